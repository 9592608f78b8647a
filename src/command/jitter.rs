//! What the core does to a thread that wants nothing but to run: the floor below every latency.
//!
//! As the kernel's osnoise tracer does, one thread reads the clock in a loop and notes each time
//! that the next reading is late. Whatever took the core meanwhile (an interrupt, another thread, a
//! hypervisor, the firmware) would have done so to an operation as well. A latency of a kind that
//! comes as often here is not the device's.

use std::thread;
use std::time::Duration;

use holdfast::cores::pin;
use serde::Serialize;

use crate::command::clock::{Clock, Time as _};
use crate::command::histogram::Latencies;
use crate::command::interrupt;

/// A reading this late means that the core was taken away.
const THRESHOLD: Duration = Duration::from_micros(1);

/// How often the core was taken away from a thread that did nothing but look at the clock.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Jitter {
    /// How long was looked, in seconds.
    pub seconds: f64,
    /// Time between two readings when nothing comes between them, in nanoseconds.
    pub quiet_ns: f64,
    /// Absences of 1 us and more a second.
    pub over_1us_per_s: f64,
    /// Of 10 us and more.
    pub over_10us_per_s: f64,
    /// Of 100 us and more.
    pub over_100us_per_s: f64,
    /// Of 1 ms and more.
    pub over_1ms_per_s: f64,
    /// The longest.
    pub longest_ns: f64,
    /// Share of the time that was lost to them, in percent.
    pub lost_percent: f64,
}

impl Jitter {
    /// Looks for so long, on `cpu` if that is given, on a thread of its own.
    pub fn measure(clock: &Clock, cpu: Option<usize>, time: Duration) -> anyhow::Result<Self> {
        thread::scope(|scope| {
            let looking = scope.spawn(|| {
                let _pinned = cpu.map(pin).transpose()?;
                anyhow::Ok(Self::look(clock, time)?.0)
            });
            looking
                .join()
                .map_err(|_| anyhow::anyhow!("the thread that looks for jitter panicked"))?
        })
    }

    fn look(clock: &Clock, time: Duration) -> anyhow::Result<(Self, Latencies)> {
        let mut absences = Latencies::new();
        let (threshold, whole) = (clock.ticks_of(THRESHOLD), clock.ticks_of(time));
        let (mut lost, mut longest, mut quiet) = (0, 0, u64::MAX);
        let start = clock.ticks();
        let mut before = start;
        while before.wrapping_sub(start) < whole {
            let now = clock.ticks();
            let late = now.wrapping_sub(before);
            before = now;
            quiet = quiet.min(late);
            if late >= threshold {
                absences.record_ns(clock.ns(late));
                lost += late;
                longest = longest.max(late);
                interrupt::check()?;
            }
        }
        let seconds = clock.ns(before.wrapping_sub(start)) / 1e9;
        let per_s = |ns: f64| absences.at_least(ns) as f64 / seconds;
        let jitter = Self {
            seconds,
            quiet_ns: clock.ns(quiet),
            over_1us_per_s: per_s(1e3),
            over_10us_per_s: per_s(1e4),
            over_100us_per_s: per_s(1e5),
            over_1ms_per_s: per_s(1e6),
            longest_ns: clock.ns(longest),
            lost_percent: clock.ns(lost) / 1e9 / seconds * 100.0,
        };
        Ok((jitter, absences))
    }

    /// Steps of length, and how often a second the core was away for as long or longer.
    pub fn steps(&self) -> [(f64, f64); 4] {
        [
            (1e3, self.over_1us_per_s),
            (1e4, self.over_10us_per_s),
            (1e5, self.over_100us_per_s),
            (1e6, self.over_1ms_per_s),
        ]
    }
}

#[cfg(test)]
mod tests {
    use holdfast::cores::allowed;

    use super::*;

    #[test]
    fn absences_are_counted_once_for_each_length_they_reach() {
        let clock = Clock::calibrate();
        let (jitter, absences) = Jitter::look(&clock, Duration::from_millis(30)).unwrap();
        let p = absences.percentiles();
        assert!(jitter.steps().is_sorted_by(|a, b| a.1 >= b.1), "{jitter:?}");
        assert!(jitter.quiet_ns < 1e3 && jitter.seconds >= 0.03, "{jitter:?}");
        // The sum of the absences is what was lost.
        let lost = p.mean_ns * absences.len() as f64 / 1e9 / jitter.seconds * 100.0;
        assert!((lost - jitter.lost_percent).abs() < 1e-3 * lost.max(1.0), "{jitter:?} {p:?}");
        assert!((jitter.longest_ns - p.max_ns).abs() <= 0.001, "{jitter:?} {p:?}");
    }

    #[test]
    fn a_thread_that_shares_its_core_is_seen_to_be_away() {
        let Some(cpu) = allowed().last().copied() else { return };
        let clock = Clock::calibrate();
        let over = std::sync::atomic::AtomicBool::new(false);
        thread::scope(|scope| {
            scope.spawn(|| {
                let _pinned = pin(cpu).unwrap();
                while !over.load(std::sync::atomic::Ordering::Relaxed) {
                    std::hint::spin_loop();
                }
            });
            // However the scheduler shares the core, it takes some turns.
            let mut longest = 0.0_f64;
            while longest < 5e5 {
                let time = Duration::from_millis(200);
                longest = longest.max(Jitter::measure(&clock, Some(cpu), time).unwrap().longest_ns);
            }
            over.store(true, std::sync::atomic::Ordering::Relaxed);
        });
    }
}
