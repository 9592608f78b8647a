//! Open loops: as many operations outstanding as allowed, posted in batches with one doorbell
//! each, of which only the last is signalled.

use holdfast::{Completion, CompletionQueue, QueuePair, Remote, SendFlags, Slice};

use super::options::{Operation, Plan, Stop};
use super::{Layout, Measured};
use crate::command::clock::Clock;
use crate::command::endpoints::{End, Session, failures, succeeded};
use crate::command::interrupt;
use crate::command::patience::Patience;

/// Completions taken at a time.
const POLL: usize = 32;
/// Turns of the loop between two looks at the clock.
const CLOCK_INTERVAL: u32 = 64;

/// Runs the loop of the operation.
pub fn run(
    session: &mut Session,
    plan: &Plan,
    layout: Layout,
    clock: &Clock,
    stop: Stop,
) -> anyhow::Result<Measured> {
    let watch = session.watch();
    let mut sender =
        session.active.as_mut().map(|end| Sender::new(end, plan, layout)).transpose()?;
    let receives = plan.op == Operation::Send;
    let passive = session.passive.as_mut().filter(|_| receives);
    let mut receiver = passive.map(|end| Receiver::new(end, plan, layout)).transpose()?;
    let started = clock.ticks();
    let errors = failures(turns(&mut sender, &mut receiver, watch, clock, stop))?;
    let seconds = clock.ns(clock.ticks().wrapping_sub(started)) / 1e9;
    let iters = sender.map_or_else(|| receiver.map_or(0, |r| r.received), |s| s.completed);
    Ok(Measured { iters, seconds, latencies: None, errors })
}

/// Turn after turn of both ends, until it is enough or a request fails.
#[inline(always)]
fn turns(
    sender: &mut Option<Sender<'_>>,
    receiver: &mut Option<Receiver<'_>>,
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
        if let Some(receiver) = receiver {
            progress += receiver.turn()?;
        }
        let done = match sender {
            Some(sender) => {
                progress += sender.turn(goal)?;
                sender.completed >= goal.min(sender.posted)
                    && sender.posted >= goal
                    && receiver.as_ref().is_none_or(|receiver| receiver.received >= sender.posted)
            }
            None => receiver.as_ref().is_none_or(|receiver| receiver.received >= goal),
        };
        if done {
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
            if let Some(sender) = sender.as_ref().filter(|_| over || interrupt::requested()) {
                // What is posted is still waited for.
                goal = goal.min(sender.posted);
            }
            if sender.is_none() {
                interrupt::check()?;
            }
        }
    }
}

/// The active end.
struct Sender<'a> {
    op: Operation,
    qps: &'a mut [QueuePair],
    cq: &'a mut CompletionQueue,
    batch: u32,
    /// Operations outstanding on each queue pair, and how many are allowed.
    outstanding: Vec<u32>,
    depth: u32,
    /// Local and remote ends of each slot, used in turns.
    slots: Vec<(Slice<'a>, Remote)>,
    next_slot: usize,
    posted: u64,
    completed: u64,
}

impl<'a> Sender<'a> {
    fn new(end: &'a mut End, plan: &Plan, layout: Layout) -> anyhow::Result<Self> {
        let base = end.remote;
        let End { qps, send_cq, region, .. } = end;
        let region = &*region;
        let from_remote = plan.op == Operation::Read || plan.op.is_atomic();
        let slot = |slot: usize| -> anyhow::Result<(Slice<'a>, Remote)> {
            let (source, target) = (layout.source(slot), layout.target(slot));
            let (local, remote) = if from_remote { (target, source) } else { (source, target) };
            let remote = Remote { addr: base.addr + remote as u64, rkey: base.rkey };
            Ok((region.slice(local, plan.size)?, remote))
        };
        Ok(Self {
            op: plan.op,
            batch: plan.batch,
            outstanding: vec![0; qps.len()],
            depth: plan.depth,
            slots: (0..layout.slots).map(slot).collect::<anyhow::Result<_>>()?,
            next_slot: 0,
            posted: 0,
            completed: 0,
            qps,
            cq: send_cq,
        })
    }

    /// Takes completions, then fills every queue pair; gives the number of things that happened.
    #[inline]
    fn turn(&mut self, goal: u64) -> anyhow::Result<usize> {
        let mut completions = [Completion::default(); POLL];
        let count = self.cq.poll(&mut completions)?;
        for completion in &completions[..count] {
            succeeded(completion)?;
            // The id of a batch: its queue pair and how many it retires.
            let (qp, retired) = ((completion.wr_id >> 32) as usize, completion.wr_id as u32);
            self.outstanding[qp] -= retired;
            self.completed += u64::from(retired);
        }
        let mut happened = count;
        for qp in 0..self.outstanding.len() {
            while self.posted < goal && self.outstanding[qp] + self.batch <= self.depth {
                self.post(qp, goal)?;
                happened += 1;
            }
        }
        Ok(happened)
    }

    /// Posts a batch with one doorbell.
    #[inline]
    fn post(&mut self, at: usize, goal: u64) -> anyhow::Result<()> {
        let count = u64::from(self.batch).min(goal - self.posted) as u32;
        let qp = &mut self.qps[at];
        let id = (at as u64) << 32 | u64::from(count);
        for i in 0..count {
            let flags = if i + 1 == count { SendFlags::SIGNALED } else { SendFlags::NONE };
            let (local, remote) = self.slots[self.next_slot];
            self.next_slot += 1;
            if self.next_slot == self.slots.len() {
                self.next_slot = 0;
            }
            match self.op {
                Operation::Write => qp.write(id, &[local], remote, flags)?,
                Operation::Read => qp.read(id, &[local], remote, flags)?,
                Operation::Send => qp.send(id, &[local], flags)?,
                Operation::Cas => qp.compare_swap(id, local, remote, 0, 0, flags)?,
                Operation::Faa => qp.fetch_add(id, local, remote, 1, flags)?,
            }
        }
        qp.ring_sends();
        self.outstanding[at] += count;
        self.posted += u64::from(count);
        Ok(())
    }
}

/// The passive end of sends: keeps receives posted.
struct Receiver<'a> {
    qps: &'a mut [QueuePair],
    cq: &'a mut CompletionQueue,
    slots: Vec<Slice<'a>>,
    next_slot: usize,
    received: u64,
    /// Receives to post again, by queue pair.
    missing: Vec<u32>,
}

impl<'a> Receiver<'a> {
    fn new(end: &'a mut End, plan: &Plan, layout: Layout) -> anyhow::Result<Self> {
        let End { qps, recv_cq, region, .. } = end;
        let region = &*region;
        let depth = 2 * plan.depth;
        let slots = (0..layout.slots).map(|slot| region.slice(layout.target(slot), plan.size));
        let missing = qps.iter().map(|qp| depth - qp.outstanding_receives()).collect();
        let slots = slots.collect::<holdfast::Result<_>>()?;
        let mut this = Self { qps, cq: recv_cq, slots, next_slot: 0, received: 0, missing };
        this.post()?;
        Ok(this)
    }

    /// Takes completions and posts as many receives again; gives the number of completions.
    #[inline]
    fn turn(&mut self) -> anyhow::Result<usize> {
        let mut completions = [Completion::default(); POLL];
        let count = self.cq.poll(&mut completions)?;
        if count == 0 {
            return Ok(0);
        }
        for completion in &completions[..count] {
            succeeded(completion)?;
            self.missing[completion.wr_id as usize] += 1;
        }
        self.received += count as u64;
        self.post()?;
        Ok(count)
    }

    fn post(&mut self) -> anyhow::Result<()> {
        for (at, (qp, missing)) in self.qps.iter_mut().zip(&mut self.missing).enumerate() {
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
