//! Latency: operations that are timed one by one.
//!
//! *What* is timed is an [`Exchange`]: a message that the peer answers ([`echo`]), or a request
//! until its completion ([`completion`]). *When* the next one starts is the loop's matter:
//!
//! - the closed loop ([`closed`]) starts an operation when the one before is done. What stalls the
//!   device stalls the loop as well, so a long stall is one bad sample among thousands of good ones;
//! - the open loop ([`open`]) starts operations at a rate, as clients that know nothing of each
//!   other do, and counts each from the time at which it was *meant* to start. A stall then shows
//!   in every operation that it kept waiting.
//!
//! Beside them, [`phases`] takes an operation apart, and [`null`] is a device that costs nothing, to
//! know what the measuring itself costs. Nothing here allocates once a loop runs.

pub mod closed;
pub mod completion;
pub mod echo;
pub mod null;
pub mod open;
pub mod phases;
#[cfg(test)]
pub mod virtual_time;

use std::time::Duration;

use super::layout::Layout;
use super::measure::errors_of;
use super::plan::{Pace, Plan, Stop};
use super::recorder::{Recorded, Recorder};
use crate::command::clock::{Clock, Time};
use crate::command::endpoints::{Session, failures};
use crate::command::histogram::Latencies;
use crate::command::live;
use crate::command::patience::Patience;
use completion::Completions;
use echo::{Echo, Player};
use phases::Phases;

/// One kind of operation, as the loops see it. Operations have consecutive numbers.
pub trait Exchange {
    /// Writes the request of operation `n` into its queue.
    fn post(&mut self, n: u64) -> anyhow::Result<()>;

    /// Shows it to the device.
    fn ring(&mut self, n: u64);

    /// Looks once whether something has happened.
    fn look(&mut self) -> anyhow::Result<Seen>;

    /// Nothing has come for too long: fails if a request has failed, which would be why.
    fn blame(&mut self) -> anyhow::Result<()>;
}

/// What a look has shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Seen {
    /// Nothing new.
    Nothing,
    /// The peer, which is in this process, has seen an operation and answered it.
    Answered,
    /// This operation is done.
    Done(u64),
}

/// What a loop came to.
#[derive(Debug, Default)]
pub struct Outcome {
    /// Operations done.
    pub done: u64,
    /// Operations begun, which is how many numbers were used.
    pub posted: u64,
    /// Time from the first start to the last end, in ticks.
    pub ticks: u64,
    /// Operations of an open loop that were not done when it was given up; each was recorded with
    /// the time it had taken until then.
    pub unfinished: u64,
}

/// Latencies of one measurement.
#[derive(Debug)]
pub struct Timed {
    /// As defined by the loop: from the start, or from the intended start.
    pub recorded: Recorded,
    /// From the real start (open loop): what an uncorrected measurement would have shown.
    pub service: Option<Latencies>,
    /// See [`Outcome::unfinished`].
    pub unfinished: u64,
}

/// Where a loop writes what it measures: all memory it needs, taken before it runs.
#[derive(Debug)]
pub struct Recording {
    recorder: Recorder,
    service: Option<Latencies>,
    expected: Duration,
}

impl Recording {
    /// One for the plan, for a run of about this long.
    pub fn new(plan: &Plan, clock: &Clock, expected: Duration) -> Self {
        let recorder = Recorder::new(clock, expected, live::lane("measuring"), plan.size);
        let service = matches!(plan.pace, Pace::Open(_)).then(Latencies::new);
        Self { recorder, service, expected }
    }
}

/// What [`run`] came to.
#[derive(Debug)]
pub struct Run {
    /// Operations done.
    pub iters: u64,
    /// Seconds they took.
    pub seconds: f64,
    /// Work completions that were not successes.
    pub errors: u64,
    /// The latencies.
    pub timed: Timed,
}

/// Runs the loop of the plan.
pub fn run(
    session: &mut Session,
    plan: &Plan,
    layout: Layout,
    clock: &Clock,
    stop: Stop,
    recording: Recording,
) -> anyhow::Result<Run> {
    let Recording { mut recorder, mut service, expected } = recording;
    let limit = may_give_up(session, plan).then(|| longest(expected));
    let first = session.round;
    let mut outcome = Outcome::default();
    let ended = with_exchange(session, plan, layout, stop, |exchange, watch| {
        match (plan.pace, service.as_mut()) {
            (Pace::Open(rate), Some(service)) => {
                let Stop::Iterations(total) = stop else {
                    unreachable!("the plan of an open loop counts operations")
                };
                let schedule = open::Schedule { first, rate, total, limit, slots: layout.slots };
                let mut recorders = open::Recorders { response: &mut recorder, service };
                open::run(clock, exchange, &schedule, &mut recorders, watch, &mut outcome)
            }
            _ => closed::run(clock, exchange, first, stop, &mut recorder, watch, &mut outcome),
        }
    });
    if let (None, Stop::Iterations(answered)) = (&session.active, stop) {
        (outcome.done, outcome.posted) = (answered, answered);
    }
    session.round += outcome.posted;
    let errors = errors_of(ended)?;
    Ok(Run {
        iters: outcome.done,
        seconds: clock.ns(outcome.ticks) / 1e9,
        errors,
        timed: Timed { recorded: recorder.finish(), service, unfinished: outcome.unfinished },
    })
}

/// When to give up on a rate that is not reached, in a run that should take so long; also how long
/// its operations are taken apart at most.
pub fn longest(expected: Duration) -> Duration {
    2 * expected + Duration::from_secs(1)
}

/// Whether this side may do fewer operations than were agreed on: not where a peer in another
/// process counts those that it answers.
fn may_give_up(session: &Session, plan: &Plan) -> bool {
    session.exchange.is_none() || !plan.echoes()
}

/// Takes so many operations apart, one at a time; fewer where they take too long. `None` where this process has no part in that, or
/// where a request failed.
pub fn take_apart(
    session: &mut Session,
    plan: &Plan,
    layout: Layout,
    clock: &Clock,
    operations: u64,
) -> anyhow::Result<Option<Phases>> {
    let first = session.round;
    let stop = Stop::Iterations(operations);
    let limit = plan.duration().filter(|_| may_give_up(session, plan)).map(longest);
    let mut phases = None;
    let ended = with_exchange(session, plan, layout, stop, |exchange, watch| {
        let done = phases.insert(Phases::new());
        phases::run(clock, exchange, first..first + operations, limit, done, watch)
    });
    session.round += phases.as_ref().map_or(operations, Phases::operations);
    Ok(if failures(ended)? > 0 { None } else { phases })
}

/// Any exchange. One branch, always the same way, and the null device pays for it too.
pub enum AnyExchange<'a> {
    /// Messages that the peer answers.
    Echo(Echo<'a>),
    /// Requests until their completion.
    Completions(Completions<'a>),
    /// Nothing at all.
    Null(null::Null),
}

impl Exchange for AnyExchange<'_> {
    #[inline(always)]
    fn post(&mut self, n: u64) -> anyhow::Result<()> {
        match self {
            Self::Echo(echo) => echo.post(n),
            Self::Completions(completions) => completions.post(n),
            Self::Null(null) => null.post(n),
        }
    }

    #[inline(always)]
    fn ring(&mut self, n: u64) {
        match self {
            Self::Echo(echo) => echo.ring(n),
            Self::Completions(completions) => completions.ring(n),
            Self::Null(null) => null.ring(n),
        }
    }

    #[inline(always)]
    fn look(&mut self) -> anyhow::Result<Seen> {
        match self {
            Self::Echo(echo) => echo.look(),
            Self::Completions(completions) => completions.look(),
            Self::Null(null) => null.look(),
        }
    }

    fn blame(&mut self) -> anyhow::Result<()> {
        match self {
            Self::Echo(echo) => echo.blame(),
            Self::Completions(completions) => completions.blame(),
            Self::Null(null) => null.blame(),
        }
    }
}

/// Makes the exchange of the plan and runs a loop over it, where the active end is in this process;
/// answers as many operations as `stop` says, where only the passive one is.
fn with_exchange(
    session: &mut Session,
    plan: &Plan,
    layout: Layout,
    stop: Stop,
    looping: impl FnOnce(&mut AnyExchange<'_>, &mut Patience) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let mut watch = session.watch();
    let first = session.round;
    let Session { active, passive, .. } = session;
    if !plan.echoes() {
        let Some(end) = active else { return Ok(()) };
        return looping(
            &mut AnyExchange::Completions(Completions::new(end, plan, layout)?),
            &mut watch,
        );
    }
    let player = |end| Player::new(end, plan, layout, first);
    let passive = passive.as_mut().map(player).transpose()?;
    match (active.as_mut().map(player).transpose()?, passive) {
        (Some(active), passive) => {
            looping(&mut AnyExchange::Echo(Echo::new(active, passive)), &mut watch)
        }
        (None, Some(mut passive)) => {
            let Stop::Iterations(count) = stop else {
                unreachable!("both processes have agreed on a number of operations")
            };
            passive.answer(count, &mut watch)
        }
        (None, None) => Ok(()),
    }
}
