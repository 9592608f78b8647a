//! Time in the measuring loops: the processor's time stamp counter where it is fit for that, else
//! the system's monotonic clock. Neither makes a system call.
#![allow(unsafe_code)]

use std::time::{Duration, Instant};

/// Where ticks come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Counter {
    /// RDTSC; constant rate and running in every sleep state.
    Tsc,
    /// Nanoseconds of CLOCK_MONOTONIC since the clock was made.
    Monotonic,
}

/// Time as the measuring loops see it. Tests have one that only the work moves on.
pub trait Time {
    /// Now, in ticks.
    fn ticks(&self) -> u64;

    /// Nanoseconds of one tick.
    fn ns_per_tick(&self) -> f64;

    /// Nanoseconds of an interval in ticks.
    #[inline(always)]
    fn ns(&self, ticks: u64) -> f64 {
        ticks as f64 * self.ns_per_tick()
    }

    /// Ticks of a duration.
    fn ticks_of(&self, duration: Duration) -> u64 {
        (duration.as_nanos() as f64 / self.ns_per_tick()) as u64
    }
}

/// Reads time in ticks of its own and turns differences into nanoseconds.
#[derive(Debug, Clone, Copy)]
pub struct Clock {
    counter: Counter,
    start: Instant,
    ns_per_tick: f64,
}

impl Clock {
    /// Picks the counter and measures its rate; takes 20 ms.
    pub fn calibrate() -> Self {
        let start = Instant::now();
        if !tsc_is_fit() {
            return Self { counter: Counter::Monotonic, start, ns_per_tick: 1.0 };
        }
        let mut clock = Self { counter: Counter::Tsc, start, ns_per_tick: 1.0 };
        let (t0, c0) = clock.paired();
        while t0.elapsed() < Duration::from_millis(20) {
            std::hint::spin_loop();
        }
        let (t1, c1) = clock.paired();
        clock.ns_per_tick = (t1 - t0).as_nanos() as f64 / c1.wrapping_sub(c0).max(1) as f64;
        clock
    }

    /// What the ticks come from, for the report.
    pub fn name(&self) -> &'static str {
        match self.counter {
            Counter::Tsc => "rdtsc",
            Counter::Monotonic => "clock_gettime",
        }
    }

    /// Nanoseconds that one reading takes, back to back: the best of many batches, so that what
    /// comes between is left out. Takes less than a millisecond.
    pub fn cost_ns(&self) -> f64 {
        const READINGS: u64 = 1000;
        let batch = || {
            let start = self.ticks();
            for _ in 1..READINGS {
                std::hint::black_box(self.ticks());
            }
            self.ns(self.ticks().wrapping_sub(start)) / READINGS as f64
        };
        (0..20).map(|_| batch()).fold(f64::MAX, f64::min)
    }

    /// A reading of both clocks at the same time: the closest of a few tries.
    fn paired(&self) -> (Instant, u64) {
        let pair = || {
            let before = self.ticks();
            let now = Instant::now();
            let after = self.ticks();
            (after.wrapping_sub(before), now, before.wrapping_add(after.wrapping_sub(before) / 2))
        };
        let best = (0..16).map(|_| pair()).min_by_key(|(width, ..)| *width);
        best.map_or_else(|| (Instant::now(), self.ticks()), |(_, now, ticks)| (now, ticks))
    }
}

impl Time for Clock {
    /// Earlier instructions of this thread may still be under way, as may later ones have begun:
    /// good for intervals of tens of nanoseconds and more.
    #[inline(always)]
    fn ticks(&self) -> u64 {
        match self.counter {
            // SAFETY: every x86-64 processor has RDTSC.
            Counter::Tsc => unsafe { std::arch::x86_64::_rdtsc() },
            Counter::Monotonic => self.start.elapsed().as_nanos() as u64,
        }
    }

    #[inline(always)]
    fn ns_per_tick(&self) -> f64 {
        self.ns_per_tick
    }
}

/// The kernel lists these two flags when the counter has one rate on all processors and never
/// stops (Intel SDM 17.17.1, "invariant TSC").
fn tsc_is_fit() -> bool {
    let Ok(cpuinfo) = std::fs::read_to_string("/proc/cpuinfo") else { return false };
    let flags = cpuinfo.lines().find(|line| line.starts_with("flags")).unwrap_or("");
    ["constant_tsc", "nonstop_tsc"].iter().all(|flag| flags.split_whitespace().any(|f| f == *flag))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_calibrated_clock_agrees_with_the_system() {
        let clock = Clock::calibrate();
        // The best of a few tries: this thread may lose its processor between two readings.
        let error = (0..5).map(|_| {
            let (t0, c0) = (Instant::now(), clock.ticks());
            while t0.elapsed() < Duration::from_millis(5) {}
            let ns = clock.ns(clock.ticks().wrapping_sub(c0));
            (ns / t0.elapsed().as_nanos() as f64 - 1.0).abs()
        });
        let error = error.fold(f64::MAX, f64::min);
        assert!(error < 0.01, "{} is off by {error}", clock.name());
        let cost = clock.cost_ns();
        assert!(cost > 0.0 && cost < 1e5, "a reading of {} took {cost} ns", clock.name());
        let ticks = clock.ticks_of(Duration::from_millis(1));
        assert!((clock.ns(ticks) - 1e6).abs() < 1e4);
    }
}
