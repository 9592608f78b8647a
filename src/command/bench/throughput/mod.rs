//! As many operations outstanding as allowed, posted in batches with one doorbell each, of which only
//! the last is signalled. One end sends, or with `--bidirectional` both. The loop is the library's
//! ([`holdfast::cores::PollLoop`]); what the ends have to do in each turn is [`sides`]. How much was
//! done by when is [`progress`]. What the loop itself costs is measured on a device that costs
//! nothing ([`null`]): both are a [`device`] to it.

mod device;
pub mod null;
pub mod progress;
pub mod sides;

use std::ops::ControlFlow;

use holdfast::cores::{PollLoop, Step};
use holdfast::stats::TurnCounts;
use holdfast::{CompletionQueue, QueuePair, Remote, Slice};

use super::layout::Layout;
use super::measure::errors_of;
use super::plan::{Plan, Stop};
use crate::command::clock::{Clock, Time as _};
use crate::command::endpoints::{End, Session};
use crate::command::patience::Patience;
use crate::command::{interrupt, live};
use device::{Poll, Requests};
use progress::{OverTime, Progress};
use sides::{Part, Sides};

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
    let Session { active, passive, .. } = session;
    let parts = Part::of(plan, active.is_some(), passive.is_some());
    let (mut sides, mut poll) = (Sides::new(), PollLoop::new());
    poll.count_in(live::turns("measuring"));
    for (part, end) in parts.into_iter().zip([active, passive]) {
        let (Some(part), Some(end)) = (part, end) else { continue };
        add(&mut sides, &mut poll, end, plan, layout, part)?;
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

/// Takes an end in, and its queues into the loop.
fn add<'a>(
    sides: &mut Sides<'a, QueuePair>,
    poll: &mut PollLoop<&'a mut CompletionQueue>,
    end: &'a mut End,
    plan: &Plan,
    layout: Layout,
    part: Part,
) -> anyhow::Result<()> {
    let base = end.remote;
    let End { qps, send_cq, recv_cq, region, .. } = end;
    let region = &*region;
    let remote = |at: usize| Remote { addr: base.addr + at as u64, rkey: base.rkey };
    let slice = |at: usize| -> anyhow::Result<Slice<'a>> { Ok(region.slice(at, plan.size)?) };
    let slot = |slot: usize| -> anyhow::Result<_> {
        let (source, target) = (layout.source(slot), layout.target(slot));
        Ok([(slice(source)?, remote(target)), (slice(target)?, remote(source))])
    };
    let slots = (0..layout.slots).map(slot).collect::<anyhow::Result<_>>()?;
    let targets = (0..layout.slots).map(|at| slice(layout.target(at)));
    let targets = targets.collect::<anyhow::Result<_>>()?;
    sides.add(part, plan, qps, slots, targets, live::lane("measuring"))?;
    if part.receives {
        poll.add(recv_cq);
    }
    if part.sends {
        poll.add(send_cq);
    }
    Ok(())
}

/// Turn after turn of both ends, until it is enough or a request fails.
#[inline(always)]
fn turns<P: Poll, Q: Requests>(
    poll: &mut P,
    sides: &mut Sides<'_, Q>,
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
        progress += sides.post(goal)?;
        if sides.finished(goal) {
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
                match sides.posted() {
                    Some(most) => goal = goal.min(most),
                    None => interrupt::check()?,
                }
            }
        }
        Ok(ControlFlow::Continue(()))
    })
}
