//! The ends of a throughput test that are in this process: what each has posted, and what of that is
//! done.

use holdfast::stats::Lane;
use holdfast::{Completion, SendFlags};

use super::device::Requests;
use crate::command::bench::mix::Mix;
use crate::command::bench::plan::{Operation, Plan};
use crate::command::endpoints::succeeded;

/// The ends that are here, and whose each queue of the loop is.
pub struct Sides<'a, Q: Requests> {
    all: Vec<Side<'a, Q>>,
    /// By the queue's number: its side, and whether its completions are receives.
    queues: Vec<(usize, bool)>,
}

/// One end: it sends, or receives, or both.
struct Side<'a, Q: Requests> {
    qps: &'a mut [Q],
    sending: Option<Sending<'a, Q>>,
    receiving: Option<Receiving<'a, Q>>,
}

/// Its sends.
struct Sending<'a, Q: Requests> {
    op: Operation,
    mix: Mix,
    batch: u32,
    /// Operations outstanding on each queue pair, and how many are allowed.
    outstanding: Vec<u32>,
    depth: u32,
    /// Where payloads are, used in turns.
    slots: Vec<Q::Slot<'a>>,
    next_slot: usize,
    posted: u64,
    completed: u64,
    /// Of those, how many whoever looks on was told of, and the bytes of an operation.
    told: u64,
    live: Lane,
    bytes: u64,
}

/// Its receives.
struct Receiving<'a, Q: Requests> {
    slots: Vec<Q::Target<'a>>,
    next_slot: usize,
    received: u64,
    /// Receives to post again, by queue pair.
    missing: Vec<u32>,
    /// Whether there are some.
    taken: bool,
}

/// What an end that takes part does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Part {
    /// It sends.
    pub sends: bool,
    /// It receives what the peer sends.
    pub receives: bool,
}

impl Part {
    /// Those of the active end and of the passive one, where each is here and has something to do.
    pub fn of(plan: &Plan, active: bool, passive: bool) -> [Option<Self>; 2] {
        let (both, messages) = (plan.bidirectional, plan.op == Operation::Send);
        let active = active.then_some(Self { sends: true, receives: both && messages });
        let passive = passive && (both || messages);
        [active, passive.then_some(Self { sends: both, receives: messages })]
    }
}

impl<'a, Q: Requests> Sides<'a, Q> {
    /// None yet.
    pub fn new() -> Self {
        Self { all: Vec::new(), queues: Vec::new() }
    }

    /// Takes an end in. The loop must be given its receive queue next, if it receives, and then its
    /// send queue, if it sends.
    pub fn add(
        &mut self,
        part: Part,
        plan: &Plan,
        qps: &'a mut [Q],
        slots: Vec<Q::Slot<'a>>,
        targets: Vec<Q::Target<'a>>,
        live: Lane,
    ) -> anyhow::Result<()> {
        let sending = part.sends.then(|| Sending {
            op: plan.op,
            mix: Mix::new(plan.reads),
            batch: plan.batch,
            outstanding: vec![0; qps.len()],
            depth: plan.depth,
            slots,
            next_slot: 0,
            posted: 0,
            completed: 0,
            told: 0,
            live,
            bytes: plan.size as u64,
        });
        let depth = plan.recv_depth();
        let receiving = part.receives.then(|| Receiving {
            slots: targets,
            next_slot: 0,
            received: 0,
            missing: qps.iter().map(|qp| depth - qp.outstanding_receives()).collect(),
            taken: false,
        });
        let side = self.all.len();
        self.queues.extend(part.receives.then_some((side, true)));
        self.queues.extend(part.sends.then_some((side, false)));
        let mut this = Side { qps, sending, receiving };
        if let Some(receiving) = &mut this.receiving {
            receiving.post(this.qps)?;
        }
        self.all.push(this);
        Ok(())
    }

    /// Operations that are done: of all who send, or of those who only receive.
    #[inline]
    pub fn done(&self) -> u64 {
        let (mut sent, mut received, mut sends) = (0, 0, false);
        for side in &self.all {
            if let Some(sending) = &side.sending {
                (sends, sent) = (true, sent + sending.completed);
            }
            received += side.receiving.as_ref().map_or(0, |receiving| receiving.received);
        }
        if sends { sent } else { received }
    }

    /// A completion of the queue of that number.
    #[inline(always)]
    pub fn take(&mut self, queue: usize, completion: &Completion) -> anyhow::Result<()> {
        succeeded(completion)?;
        let (side, is_receive) = self.queues[queue];
        let side = &mut self.all[side];
        match (is_receive, &mut side.receiving, &mut side.sending) {
            (true, Some(receiving), _) => receiving.take(completion),
            (false, _, Some(sending)) => sending.take(completion),
            _ => {}
        }
        Ok(())
    }

    /// Posts what there is room for on each side; gives the number of batches of sends.
    #[inline(always)]
    pub fn post(&mut self, goal: u64) -> anyhow::Result<usize> {
        let mut happened = 0;
        for side in &mut self.all {
            happened += side.post(goal)?;
        }
        Ok(happened)
    }

    /// Whether every end has done its part.
    #[inline(always)]
    pub fn finished(&self, goal: u64) -> bool {
        let sent = |side: &Side<'_, Q>| side.sending.as_ref().is_none_or(|s| s.completed >= goal);
        let received =
            |side: &Side<'_, Q>| side.receiving.as_ref().is_none_or(|r| r.received >= goal);
        self.all.iter().all(|side| sent(side) && received(side))
    }

    /// The most that an end has posted, where one sends.
    pub fn posted(&self) -> Option<u64> {
        let sending = self.all.iter().filter_map(|side| side.sending.as_ref());
        sending.map(|sending| sending.posted).max()
    }
}

impl<Q: Requests> Side<'_, Q> {
    /// Posts what there is room for; gives the number of batches of sends.
    #[inline]
    fn post(&mut self, goal: u64) -> anyhow::Result<usize> {
        if let Some(receiving) = &mut self.receiving
            && receiving.taken
        {
            receiving.post(self.qps)?;
        }
        match &mut self.sending {
            Some(sending) => sending.post_all(self.qps, goal),
            None => Ok(0),
        }
    }
}

impl<Q: Requests> Sending<'_, Q> {
    /// A batch is done.
    #[inline(always)]
    fn take(&mut self, completion: &Completion) {
        // The id of a batch: its queue pair and how many it retires.
        let (qp, retired) = ((completion.wr_id >> 32) as usize, completion.wr_id as u32);
        self.outstanding[qp] -= retired;
        self.completed += u64::from(retired);
    }

    #[inline]
    fn post_all(&mut self, qps: &mut [Q], goal: u64) -> anyhow::Result<usize> {
        let done = self.completed - self.told;
        if done > 0 {
            self.live.done(done, done * self.bytes);
            self.told = self.completed;
        }
        let mut happened = 0;
        for (at, qp) in qps.iter_mut().enumerate() {
            while self.posted < goal && self.outstanding[at] + self.batch <= self.depth {
                self.post(at, qp, goal)?;
                happened += 1;
            }
        }
        Ok(happened)
    }

    /// Posts a batch with one doorbell.
    #[inline]
    fn post(&mut self, at: usize, qp: &mut Q, goal: u64) -> anyhow::Result<()> {
        let count = u64::from(self.batch).min(goal - self.posted) as u32;
        let id = (at as u64) << 32 | u64::from(count);
        for i in 0..count {
            let flags = if i + 1 == count { SendFlags::SIGNALED } else { SendFlags::NONE };
            let slot = &self.slots[self.next_slot];
            self.next_slot += 1;
            if self.next_slot == self.slots.len() {
                self.next_slot = 0;
            }
            match self.op {
                Operation::Write => qp.write(id, slot, flags)?,
                Operation::Read => qp.read(id, slot, flags)?,
                Operation::Mixed if self.mix.next_reads() => qp.read(id, slot, flags)?,
                Operation::Mixed => qp.write(id, slot, flags)?,
                Operation::Send => qp.send(id, slot, flags)?,
                Operation::Cas => qp.cas(id, slot, flags)?,
                Operation::Faa => qp.faa(id, slot, flags)?,
            }
        }
        qp.ring_sends();
        self.outstanding[at] += count;
        self.posted += u64::from(count);
        Ok(())
    }
}

impl<Q: Requests> Receiving<'_, Q> {
    /// A message is there.
    #[inline(always)]
    fn take(&mut self, completion: &Completion) {
        self.missing[completion.wr_id as usize] += 1;
        self.received += 1;
        self.taken = true;
    }

    /// Posts as many receives as are missing.
    fn post(&mut self, qps: &mut [Q]) -> anyhow::Result<()> {
        self.taken = false;
        for (at, (qp, missing)) in qps.iter_mut().zip(&mut self.missing).enumerate() {
            if *missing == 0 {
                continue;
            }
            while *missing > 0 {
                qp.receive(at as u64, &self.slots[self.next_slot])?;
                self.next_slot = (self.next_slot + 1) % self.slots.len();
                *missing -= 1;
            }
            qp.ring_receives();
        }
        Ok(())
    }
}
