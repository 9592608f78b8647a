//! As many operations outstanding as allowed, posted in batches with one doorbell each, of which only
//! the last is signalled. One end sends, or with `--bidirectional` both.

use holdfast::stats::Lane;
use holdfast::{Completion, CompletionQueue, QueuePair, Remote, SendFlags, Slice};

use super::layout::Layout;
use super::mix::Mix;
use super::plan::{Operation, Plan, Stop};
use crate::command::clock::{Clock, Time as _};
use crate::command::endpoints::{End, Session, failures, succeeded};
use crate::command::patience::Patience;
use crate::command::{interrupt, live};

/// Completions taken at a time.
const POLL: usize = 32;
/// Turns of the loop between two looks at the clock.
const CLOCK_INTERVAL: u32 = 64;

/// What a run came to.
#[derive(Debug, Clone, Copy)]
pub struct Run {
    /// Operations, of both directions where both ends are here.
    pub iters: u64,
    /// Seconds they took.
    pub seconds: f64,
    /// Work completions that were not successes.
    pub errors: u64,
}

/// Runs the loop of the operation; each sending end does as many operations as `stop` says.
pub fn run(
    session: &mut Session,
    plan: &Plan,
    layout: Layout,
    clock: &Clock,
    stop: Stop,
) -> anyhow::Result<Run> {
    let watch = session.watch();
    let both = plan.bidirectional;
    let end = |end, sends| Side::new(end, plan, layout, sends, both || !sends);
    let Session { active, passive, .. } = session;
    let mut sides = Vec::with_capacity(2);
    if let Some(active) = active {
        sides.push(end(active, true)?);
    }
    if let Some(passive) = passive.as_mut().filter(|_| both || plan.op == Operation::Send) {
        sides.push(end(passive, both)?);
    }
    let started = clock.ticks();
    let errors = failures(turns(&mut sides, watch, clock, stop))?;
    let seconds = clock.ns(clock.ticks().wrapping_sub(started)) / 1e9;
    let completed = |side: &Side<'_>| side.sending.as_ref().map(|sending| sending.completed);
    let received = || sides.iter().filter_map(|s| s.receiving.as_ref()).map(|r| r.received).sum();
    let sent: Vec<u64> = sides.iter().filter_map(completed).collect();
    let iters = if sent.is_empty() { received() } else { sent.iter().sum() };
    Ok(Run { iters, seconds, errors })
}

/// Turn after turn of both ends, until it is enough or a request fails.
#[inline(always)]
fn turns(
    sides: &mut [Side<'_>],
    mut watch: Patience,
    clock: &Clock,
    stop: Stop,
) -> anyhow::Result<()> {
    let (mut goal, deadline) = match stop {
        Stop::Iterations(iters) => (iters, u64::MAX),
        Stop::Time(time) => (u64::MAX, clock.ticks_of(time)),
    };
    let started = clock.ticks();
    let mut until_clock = CLOCK_INTERVAL;
    loop {
        let mut progress = 0;
        for side in &mut *sides {
            progress += side.turn(goal)?;
        }
        if finished(sides, goal) {
            return Ok(());
        }
        if progress == 0 {
            watch.tick("a completion")?;
        } else {
            watch.progress();
        }
        until_clock -= 1;
        if until_clock == 0 {
            until_clock = CLOCK_INTERVAL;
            let over = clock.ticks().wrapping_sub(started) >= deadline;
            if over || interrupt::requested() {
                // What is posted is still waited for.
                let posted = sides.iter().filter_map(|side| side.sending.as_ref());
                match posted.map(|sending| sending.posted).max() {
                    Some(most) => goal = goal.min(most),
                    None => interrupt::check()?,
                }
            }
        }
    }
}

/// Whether every end has done its part.
#[inline(always)]
fn finished(sides: &[Side<'_>], goal: u64) -> bool {
    let sent = |side: &Side<'_>| side.sending.as_ref().is_none_or(|s| s.completed >= goal);
    let received = |side: &Side<'_>| side.receiving.as_ref().is_none_or(|r| r.received >= goal);
    sides.iter().all(|side| sent(side) && received(side))
}

/// One end: it sends, or receives, or both.
struct Side<'a> {
    qps: &'a mut [QueuePair],
    send_cq: &'a mut CompletionQueue,
    recv_cq: &'a mut CompletionQueue,
    sending: Option<Sending<'a>>,
    receiving: Option<Receiving<'a>>,
}

/// Its sends.
struct Sending<'a> {
    op: Operation,
    mix: Mix,
    batch: u32,
    /// Operations outstanding on each queue pair, and how many are allowed.
    outstanding: Vec<u32>,
    depth: u32,
    /// Local and remote ends of each slot, to write and to read, used in turns.
    slots: Vec<[(Slice<'a>, Remote); 2]>,
    next_slot: usize,
    posted: u64,
    completed: u64,
    /// For those who look on, and the bytes of an operation.
    live: Lane,
    bytes: u64,
}

/// Its receives.
struct Receiving<'a> {
    slots: Vec<Slice<'a>>,
    next_slot: usize,
    received: u64,
    /// Receives to post again, by queue pair.
    missing: Vec<u32>,
}

impl<'a> Side<'a> {
    fn new(
        end: &'a mut End,
        plan: &Plan,
        layout: Layout,
        sends: bool,
        receives: bool,
    ) -> anyhow::Result<Self> {
        let base = end.remote;
        let End { qps, send_cq, recv_cq, region, .. } = end;
        let region = &*region;
        let remote = |at: usize| Remote { addr: base.addr + at as u64, rkey: base.rkey };
        let slot = |slot: usize| -> anyhow::Result<[(Slice<'a>, Remote); 2]> {
            let (source, target) = (layout.source(slot), layout.target(slot));
            Ok([
                (region.slice(source, plan.size)?, remote(target)),
                (region.slice(target, plan.size)?, remote(source)),
            ])
        };
        let sending = || -> anyhow::Result<Sending<'a>> {
            Ok(Sending {
                op: plan.op,
                mix: Mix::new(plan.reads),
                batch: plan.batch,
                outstanding: vec![0; qps.len()],
                depth: plan.depth,
                slots: (0..layout.slots).map(slot).collect::<anyhow::Result<_>>()?,
                next_slot: 0,
                posted: 0,
                completed: 0,
                live: live::lane("measuring"),
                bytes: plan.size as u64,
            })
        };
        let depth = plan.recv_depth();
        let receiving = || -> anyhow::Result<Receiving<'a>> {
            let slots = (0..layout.slots).map(|at| region.slice(layout.target(at), plan.size));
            Ok(Receiving {
                slots: slots.collect::<holdfast::Result<_>>()?,
                next_slot: 0,
                received: 0,
                missing: qps.iter().map(|qp| depth - qp.outstanding_receives()).collect(),
            })
        };
        let receives = receives && plan.op == Operation::Send;
        let sending = sends.then(sending).transpose()?;
        let receiving = receives.then(receiving).transpose()?;
        let mut this = Self { qps, send_cq, recv_cq, sending, receiving };
        if let Some(receiving) = &mut this.receiving {
            receiving.post(this.qps)?;
        }
        Ok(this)
    }

    /// Takes completions and posts what there is room for; gives the number of things that happened.
    #[inline]
    fn turn(&mut self, goal: u64) -> anyhow::Result<usize> {
        let mut happened = 0;
        if let Some(receiving) = &mut self.receiving {
            happened += receiving.turn(self.qps, self.recv_cq)?;
        }
        if let Some(sending) = &mut self.sending {
            happened += sending.turn(self.qps, self.send_cq, goal)?;
        }
        Ok(happened)
    }
}

impl Sending<'_> {
    #[inline]
    fn turn(
        &mut self,
        qps: &mut [QueuePair],
        cq: &mut CompletionQueue,
        goal: u64,
    ) -> anyhow::Result<usize> {
        let mut completions = [Completion::default(); POLL];
        let count = cq.poll(&mut completions)?;
        let before = self.completed;
        for completion in &completions[..count] {
            succeeded(completion)?;
            // The id of a batch: its queue pair and how many it retires.
            let (qp, retired) = ((completion.wr_id >> 32) as usize, completion.wr_id as u32);
            self.outstanding[qp] -= retired;
            self.completed += u64::from(retired);
        }
        let done = self.completed - before;
        self.live.done(done, done * self.bytes);
        let mut happened = count;
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
    fn post(&mut self, at: usize, qp: &mut QueuePair, goal: u64) -> anyhow::Result<()> {
        let count = u64::from(self.batch).min(goal - self.posted) as u32;
        let id = (at as u64) << 32 | u64::from(count);
        for i in 0..count {
            let flags = if i + 1 == count { SendFlags::SIGNALED } else { SendFlags::NONE };
            let [(source, there), (target, from)] = self.slots[self.next_slot];
            self.next_slot += 1;
            if self.next_slot == self.slots.len() {
                self.next_slot = 0;
            }
            match self.op {
                Operation::Write => qp.write(id, &[source], there, flags)?,
                Operation::Read => qp.read(id, &[target], from, flags)?,
                Operation::Mixed if self.mix.next_reads() => {
                    qp.read(id, &[target], from, flags)?;
                }
                Operation::Mixed => qp.write(id, &[source], there, flags)?,
                Operation::Send => qp.send(id, &[source], flags)?,
                Operation::Cas => qp.compare_swap(id, target, from, 0, 0, flags)?,
                Operation::Faa => qp.fetch_add(id, target, from, 1, flags)?,
            }
        }
        qp.ring_sends();
        self.outstanding[at] += count;
        self.posted += u64::from(count);
        Ok(())
    }
}

impl Receiving<'_> {
    /// Takes completions and posts as many receives again; gives the number of completions.
    #[inline]
    fn turn(&mut self, qps: &mut [QueuePair], cq: &mut CompletionQueue) -> anyhow::Result<usize> {
        let mut completions = [Completion::default(); POLL];
        let count = cq.poll(&mut completions)?;
        if count == 0 {
            return Ok(0);
        }
        for completion in &completions[..count] {
            succeeded(completion)?;
            self.missing[completion.wr_id as usize] += 1;
        }
        self.received += count as u64;
        self.post(qps)?;
        Ok(count)
    }

    fn post(&mut self, qps: &mut [QueuePair]) -> anyhow::Result<()> {
        for (at, (qp, missing)) in qps.iter_mut().zip(&mut self.missing).enumerate() {
            if *missing == 0 {
                continue;
            }
            while *missing > 0 {
                qp.receive(at as u64, &[self.slots[self.next_slot]])?;
                self.next_slot = (self.next_slot + 1) % self.slots.len();
                *missing -= 1;
            }
            qp.ring_receives();
        }
        Ok(())
    }
}
