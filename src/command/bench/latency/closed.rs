//! The closed loop: the next operation starts when the one before is done.

use super::{Exchange, Outcome, Seen};
use crate::command::bench::plan::Stop;
use crate::command::bench::recorder::Recorder;
use crate::command::clock::Time;
use crate::command::interrupt;
use crate::command::patience::Patience;

/// Times operations from number `first` on, until it is enough or a request fails.
#[inline(always)]
pub fn run<T: Time, E: Exchange>(
    time: &T,
    exchange: &mut E,
    first: u64,
    stop: Stop,
    recorder: &mut Recorder,
    watch: &mut Patience,
    outcome: &mut Outcome,
) -> anyhow::Result<()> {
    let (most, longest) = match stop {
        Stop::Iterations(iters) => (iters, u64::MAX),
        Stop::Time(time_given) => (u64::MAX, time.ticks_of(time_given)),
    };
    let began = time.ticks();
    recorder.start(began);
    while outcome.done < most && outcome.ticks < longest && !interrupt::requested() {
        let n = first + outcome.done;
        // Read anew: recording the one before is no part of this one.
        let start = time.ticks();
        exchange.post(n)?;
        outcome.posted += 1;
        exchange.ring(n);
        loop {
            match exchange.look()? {
                Seen::Done(_) => break,
                Seen::Answered => watch.progress(),
                Seen::Nothing => wait(exchange, watch)?,
            }
        }
        let now = time.ticks();
        watch.progress();
        recorder.record(now, now.wrapping_sub(start));
        outcome.done += 1;
        outcome.ticks = now.wrapping_sub(began);
    }
    Ok(())
}

/// Nothing has happened yet; the error at the end of all patience names a failed request, if one
/// was the cause.
#[inline(always)]
pub fn wait<E: Exchange>(exchange: &mut E, watch: &mut Patience) -> anyhow::Result<()> {
    match watch.tick("the end of an operation") {
        Ok(()) => Ok(()),
        Err(error) => {
            exchange.blame()?;
            Err(error)
        }
    }
}
