//! A device that is done with everything at once: what the loops measure on it is their own doing.

use std::hint::black_box;
use std::time::Duration;

use holdfast::stats::Stats;
use serde::Serialize;

use super::{AnyExchange, Exchange, Outcome, Seen, closed};
use crate::command::bench::plan::Stop;
use crate::command::bench::recorder::Recorder;
use crate::command::clock::{Clock, Time as _};
use crate::command::histogram::Percentiles;
use crate::command::patience::Patience;

/// Operations on the null device.
const OPERATIONS: u64 = 200_000;

/// What the measuring costs, by the loop that measures.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Overhead {
    /// Part of every latency that is the tool's: what an operation that takes no time is measured
    /// to take, median.
    pub in_each_latency_ns: f64,
    /// 99.9 % of those.
    pub in_each_latency_p999_ns: f64,
    /// The longest of those: this core's doing.
    pub in_each_latency_max_ns: f64,
    /// Time from one operation to the next that is the tool's, recording included: the mean of the
    /// quietest of ten stretches.
    pub per_operation_ns: f64,
}

/// The null device.
#[derive(Debug, Default)]
pub struct Null {
    posted: Option<u64>,
}

impl Exchange for Null {
    #[inline(always)]
    fn post(&mut self, n: u64) -> anyhow::Result<()> {
        self.posted = black_box(Some(n));
        Ok(())
    }

    #[inline(always)]
    fn ring(&mut self, n: u64) {
        black_box(n);
    }

    #[inline(always)]
    fn look(&mut self) -> anyhow::Result<Seen> {
        Ok(black_box(self.posted.take()).map_or(Seen::Nothing, Seen::Done))
    }

    fn blame(&mut self) -> anyhow::Result<()> {
        Ok(())
    }
}

/// Measures the closed loop on the null device, on this thread. Takes some milliseconds.
pub fn overhead(clock: &Clock) -> anyhow::Result<Overhead> {
    let mut watch = Patience::new(Duration::from_secs(10));
    // Counted like any other, but shown to nobody.
    let stats = Stats::new("null device");
    let mut run = |operations| {
        let mut recorder = Recorder::new(clock, Duration::from_millis(10), stats.lane("null"), 8);
        let mut outcome = Outcome::default();
        let mut null = AnyExchange::Null(Null::default());
        let stop = Stop::Iterations(operations);
        closed::run(clock, &mut null, 0, stop, &mut recorder, &mut watch, &mut outcome)?;
        anyhow::Ok((recorder.finish().all.percentiles(), outcome))
    };
    run(OPERATIONS / 10)?;
    let mut per_operation_ns = f64::MAX;
    for _ in 0..10 {
        let (_, outcome) = run(OPERATIONS / 10)?;
        let mean = clock.ns(outcome.ticks) / outcome.done.max(1) as f64;
        per_operation_ns = per_operation_ns.min(mean);
    }
    let (p, _): (Percentiles, Outcome) = run(OPERATIONS)?;
    Ok(Overhead {
        in_each_latency_ns: p.p50_ns,
        in_each_latency_p999_ns: p.p999_ns,
        in_each_latency_max_ns: p.max_ns,
        per_operation_ns,
    })
}

#[cfg(test)]
mod tests {
    use super::super::open;
    use super::*;
    use crate::command::histogram::Latencies;

    #[test]
    fn the_null_device_is_done_once_with_each() {
        let mut null = Null::default();
        assert_eq!(null.look().unwrap(), Seen::Nothing);
        null.post(7).unwrap();
        null.ring(7);
        assert_eq!(null.look().unwrap(), Seen::Done(7));
        assert_eq!(null.look().unwrap(), Seen::Nothing);
    }

    /// Calls of the allocator by a loop of so many operations on the null device, on a thread of
    /// the name that is watched.
    fn allocations(operations: u64, open: bool) -> u64 {
        use holdfast_lab_check::allocations;
        let clock = Clock::calibrate();
        let lane = Stats::new("test").lane("null");
        let mut recorder = Recorder::new(&clock, Duration::from_millis(1), lane, 8);
        let mut service = Latencies::new();
        let mut watch = Patience::new(Duration::from_secs(60));
        let (mut null, mut outcome) = (Null::default(), Outcome::default());
        let schedule =
            open::Schedule { first: 0, rate: 1e9, total: operations, limit: None, slots: 4 };
        let stop = Stop::Iterations(operations);
        let before = allocations::calls();
        assert!(allocations::watch_thread("measuring"));
        let ended = if open {
            let response = &mut recorder;
            let mut recorders = open::Recorders { response, service: &mut service };
            open::run(&clock, &mut null, &schedule, &mut recorders, &mut watch, &mut outcome)
        } else {
            closed::run(&clock, &mut null, 0, stop, &mut recorder, &mut watch, &mut outcome)
        };
        let calls = allocations::calls() - before;
        ended.unwrap();
        assert_eq!(outcome.done, operations);
        calls
    }

    #[test]
    fn however_long_a_loop_runs_it_allocates_no_more() {
        let measuring = std::thread::Builder::new().name("measuring".to_owned());
        let counts = measuring.spawn(|| {
            let of = |open| (allocations(10, open), allocations(50_000, open));
            (of(false), of(true))
        });
        let (closed, open) = counts.unwrap().join().unwrap();
        // The slots of an open loop are one call, before it begins. `watch_thread` frees what it has
        // found, which does not count.
        assert_eq!((closed, open), ((0, 0), (1, 1)));
    }

    #[test]
    fn measuring_costs_something_and_more_than_shows_in_a_latency() {
        let overhead = overhead(&Clock::calibrate()).unwrap();
        assert!(overhead.in_each_latency_ns > 0.0, "{overhead:?}");
        assert!(overhead.per_operation_ns > overhead.in_each_latency_ns / 2.0, "{overhead:?}");
    }
}
