//! As many operations outstanding as allowed, posted in batches with one doorbell each, of which only
//! the last is signalled. One end sends, or with `--bidirectional` both. The loop is the library's
//! ([`holdfast::cores::PollLoop`]).

use std::ops::ControlFlow;

use holdfast::cores::{PollLoop, Step};
use holdfast::stats::{Lane, TurnCounts};
use holdfast::{Completion, CompletionQueue, QueuePair, Remote, SendFlags, Slice};

pub mod progress;

use super::layout::Layout;
use super::measure::errors_of;
use super::mix::Mix;
use super::plan::{Operation, Plan, Stop};
use crate::command::clock::{Clock, Time as _};
use crate::command::endpoints::{End, Session, succeeded};
use crate::command::patience::Patience;
use crate::command::{interrupt, live};
use progress::{OverTime, Progress};

/// Turns of the loop between two looks at the clock.
const CLOCK_INTERVAL: u32 = 64;

/// What a run came to.
#[derive(Debug)]
pub struct Run {
    /// Operations, of both directions where both ends are here.
    pub iters: u64,
    /// Seconds they took.
    pub seconds: f64,
    /// Work completions that were not successes.
    pub errors: u64,
    /// What the poll loop has counted.
    pub counts: TurnCounts,
    /// The run as it went.
    pub over_time: OverTime,
}

/// Runs the loop of the operation; each sending end does as many operations as `stop` says. What is
/// done by when goes into `progress`.
pub fn run(
    session: &mut Session,
    plan: &Plan,
    layout: Layout,
    clock: &Clock,
    stop: Stop,
    mut progress: Progress,
) -> anyhow::Result<Run> {
    let watch = session.watch();
    let both = plan.bidirectional;
    let Session { active, passive, .. } = session;
    let passive = passive.as_mut().filter(|_| both || plan.op == Operation::Send);
    let ends = [(active.as_mut(), true), (passive, both)];
    let (mut sides, mut poll) = (Sides::default(), PollLoop::new());
    poll.count_in(live::turns("measuring"));
    for (end, sends) in ends {
        let Some(end) = end else { continue };
        sides.add(&mut poll, end, plan, layout, sends, both || !sends)?;
    }
    let before = poll.counts();
    let started = clock.ticks();
    let errors = errors_of(turns(&mut poll, &mut sides, watch, clock, stop, &mut progress))?;
    let ticks = clock.ticks().wrapping_sub(started);
    let after = poll.counts();
    let counts = TurnCounts {
        turns: after.turns - before.turns,
        empty_turns: after.empty_turns - before.empty_turns,
        completions: after.completions - before.completions,
    };
    let iters = sides.done();
    let over_time = progress.finish(ticks, iters, clock.ns_per_tick(), plan.size);
    Ok(Run { iters, seconds: clock.ns(ticks) / 1e9, errors, counts, over_time })
}

/// Turn after turn of both ends, until it is enough or a request fails.
#[inline(always)]
fn turns(
    poll: &mut PollLoop<&mut CompletionQueue>,
    sides: &mut Sides<'_>,
    mut watch: Patience,
    clock: &Clock,
    stop: Stop,
    over_time: &mut Progress,
) -> anyhow::Result<()> {
    let (mut goal, deadline) = match stop {
        Stop::Iterations(iters) => (iters, u64::MAX),
        Stop::Time(time) => (u64::MAX, clock.ticks_of(time)),
    };
    let started = clock.ticks();
    let mut until_clock = CLOCK_INTERVAL;
    poll.run(|step| {
        let mut progress = match step {
            Step::Completion { queue, completion } => {
                sides.take(queue, completion)?;
                return Ok(ControlFlow::Continue(()));
            }
            Step::Turn { completions } => completions,
        };
        for side in &mut sides.all {
            progress += side.post(goal)?;
        }
        if finished(&sides.all, goal) {
            return Ok(ControlFlow::Break(()));
        }
        if progress == 0 {
            watch.tick("a completion")?;
        } else {
            watch.progress();
        }
        until_clock -= 1;
        if until_clock == 0 {
            until_clock = CLOCK_INTERVAL;
            let since = clock.ticks().wrapping_sub(started);
            over_time.seen(since, sides.done());
            if since >= deadline || interrupt::requested() {
                // What is posted is still waited for.
                let posted = sides.all.iter().filter_map(|side| side.sending.as_ref());
                match posted.map(|sending| sending.posted).max() {
                    Some(most) => goal = goal.min(most),
                    None => interrupt::check()?,
                }
            }
        }
        Ok(ControlFlow::Continue(()))
    })
}

/// Whether every end has done its part.
#[inline(always)]
fn finished(sides: &[Side<'_>], goal: u64) -> bool {
    let sent = |side: &Side<'_>| side.sending.as_ref().is_none_or(|s| s.completed >= goal);
    let received = |side: &Side<'_>| side.receiving.as_ref().is_none_or(|r| r.received >= goal);
    sides.iter().all(|side| sent(side) && received(side))
}

/// The ends that are here, and whose each queue of the loop is.
#[derive(Default)]
struct Sides<'a> {
    all: Vec<Side<'a>>,
    /// By the queue's number: its side, and whether its completions are receives.
    queues: Vec<(usize, bool)>,
}

/// One end: it sends, or receives, or both.
struct Side<'a> {
    qps: &'a mut [QueuePair],
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
    /// Of those, how many whoever looks on was told of, and the bytes of an operation.
    told: u64,
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
    /// Whether there are some.
    taken: bool,
}

impl<'a> Sides<'a> {
    /// Takes an end in, and its queues into the loop.
    fn add(
        &mut self,
        poll: &mut PollLoop<&'a mut CompletionQueue>,
        end: &'a mut End,
        plan: &Plan,
        layout: Layout,
        sends: bool,
        receives: bool,
    ) -> anyhow::Result<()> {
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
                told: 0,
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
                taken: false,
            })
        };
        let receives = receives && plan.op == Operation::Send;
        let sending = sends.then(sending).transpose()?;
        let receiving = receives.then(receiving).transpose()?;
        let side = self.all.len();
        if receives {
            poll.add(recv_cq);
            self.queues.push((side, true));
        }
        if sends {
            poll.add(send_cq);
            self.queues.push((side, false));
        }
        let mut this = Side { qps, sending, receiving };
        if let Some(receiving) = &mut this.receiving {
            receiving.post(this.qps)?;
        }
        self.all.push(this);
        Ok(())
    }

    /// Operations that are done: of all who send, or of those who only receive.
    #[inline]
    fn done(&self) -> u64 {
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
    fn take(&mut self, queue: usize, completion: &Completion) -> anyhow::Result<()> {
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
}

impl Side<'_> {
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

impl Sending<'_> {
    /// A batch is done.
    #[inline(always)]
    fn take(&mut self, completion: &Completion) {
        // The id of a batch: its queue pair and how many it retires.
        let (qp, retired) = ((completion.wr_id >> 32) as usize, completion.wr_id as u32);
        self.outstanding[qp] -= retired;
        self.completed += u64::from(retired);
    }

    #[inline]
    fn post_all(&mut self, qps: &mut [QueuePair], goal: u64) -> anyhow::Result<usize> {
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
    /// A message is there.
    #[inline(always)]
    fn take(&mut self, completion: &Completion) {
        self.missing[completion.wr_id as usize] += 1;
        self.received += 1;
        self.taken = true;
    }

    /// Posts as many receives as are missing.
    fn post(&mut self, qps: &mut [QueuePair]) -> anyhow::Result<()> {
        self.taken = false;
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
