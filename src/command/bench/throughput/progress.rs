//! A run's throughput as it went: how many operations were done in each slice of its time, in memory
//! that is the same for any duration. A run that takes longer than there are slices goes on in slices
//! of twice the width, as those of the latencies do ([`super::super::slices`]); here a slice is one
//! number, and all pairs can be merged at once.
//!
//! The loop tells how many are done whenever it looks at the clock, once in many turns. Nothing here
//! allocates until the run is over.

use serde::Serialize;

use super::super::report::Throughput;
use super::super::slices::{ROOM, SLICES};

/// Counts operations by the time at which they were seen to be done.
#[derive(Debug)]
pub struct Progress {
    counts: [u64; ROOM],
    /// How long each slice is, in ticks.
    width: u64,
    /// The slice that is being filled, and when it ends, in ticks since the beginning.
    current: usize,
    ends: u64,
    /// Operations that are in the counts.
    counted: u64,
}

impl Progress {
    /// For a run of about so many ticks.
    pub fn new(expected: u64) -> Self {
        let width = (expected / SLICES as u64).max(1);
        Self { counts: [0; ROOM], width, current: 0, ends: width, counted: 0 }
    }

    /// So many ticks after the beginning, so many operations are done in all. Both never fall.
    #[inline(always)]
    pub fn seen(&mut self, since: u64, done: u64) {
        if since >= self.ends {
            self.begin_slice(since);
        }
        self.counts[self.current] += done - self.counted;
        self.counted = done;
    }

    #[cold]
    fn begin_slice(&mut self, since: u64) {
        while since / self.width >= ROOM as u64 {
            for at in 0..ROOM / 2 {
                self.counts[at] = self.counts[2 * at] + self.counts[2 * at + 1];
            }
            self.counts[ROOM / 2..].fill(0);
            self.width = self.width.saturating_mul(2);
        }
        self.current = (since / self.width) as usize;
        self.ends = (self.current as u64 + 1).saturating_mul(self.width);
    }

    /// All slices, of a run that ended so many ticks after the beginning, in operations of `size`
    /// bytes. None where nothing was done. A rest that is shorter than half a slice counts in the one
    /// before: what is seen in the few microseconds in which the last operations end is no rate.
    pub fn finish(mut self, ticks: u64, done: u64, ns_per_tick: f64, size: usize) -> OverTime {
        self.seen(ticks, done);
        let seconds = |ticks: u64| ticks as f64 * ns_per_tick / 1e9;
        let rest = ticks - self.current as u64 * self.width;
        if self.current > 0 && rest < self.width / 2 {
            self.current -= 1;
            self.counts[self.current] += self.counts[self.current + 1];
        }
        let slice = |(at, count): (usize, &u64)| {
            let begins = at as u64 * self.width;
            let ends = if at == self.current { ticks } else { begins + self.width };
            let throughput = Throughput::new(*count, size, seconds(ends - begins));
            Slice { at_s: seconds(begins), count: *count, throughput }
        };
        let counts = if done > 0 { &self.counts[..=self.current] } else { &[][..] };
        let slices = counts.iter().enumerate().map(slice).collect();
        OverTime { slice_s: seconds(self.width), slices }
    }
}

/// A run's throughput as it went.
#[derive(Debug, Clone, Serialize)]
pub struct OverTime {
    /// Length of a slice of time, in seconds; the last is of half to one and a half of that.
    pub slice_s: f64,
    /// The slices, in order.
    pub slices: Vec<Slice>,
}

/// A slice of time.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Slice {
    /// When it began, in seconds since the run did.
    pub at_s: f64,
    /// Operations that were seen to be done in it.
    pub count: u64,
    /// What that is a second.
    #[serde(flatten)]
    pub throughput: Throughput,
}

impl OverTime {
    /// The least and the most of a figure, where there are slices.
    pub fn range(&self, figure: impl Fn(&Throughput) -> f64) -> Option<(f64, f64)> {
        let widen = |(low, high): (f64, f64), at: f64| (low.min(at), high.max(at));
        let figures = self.slices.iter().map(|slice| figure(&slice.throughput));
        figures.map(|at| (at, at)).reduce(|range, (at, _)| widen(range, at))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Slices of a run that was expected to take 1000 ticks of a nanosecond, in which operation `n` is
    /// done at tick `n * step`.
    fn run(last: u64, step: u64) -> OverTime {
        let mut progress = Progress::new(1000);
        (0..=last / step).for_each(|n| progress.seen(n * step, n + 1));
        progress.finish(last, last / step + 1, 1.0, 1000)
    }

    #[test]
    fn however_long_a_run_takes_each_operation_is_in_the_slice_in_which_it_was_seen() {
        for (last, step, width) in [
            (995, 1, 10),
            (1039, 1, 10),
            (1055, 1, 20),
            (2079, 1, 20),
            (2099, 1, 40),
            (29_999, 7, 320),
            // Hardly anything, and at long intervals: widths are passed over.
            (100_000, 33_000, 1280),
            (1_000_000, 1_000_000, 10_240),
        ] {
            let over_time = run(last, step);
            assert!((over_time.slice_s * 1e9 - width as f64).abs() < 1e-6, "{last}: {over_time:?}");
            let mut expected = vec![0; (last / width) as usize + 1];
            (0..=last).step_by(step as usize).for_each(|at| expected[(at / width) as usize] += 1);
            if last % width < width / 2 {
                let rest = expected.pop().unwrap();
                *expected.last_mut().unwrap() += rest;
            }
            let counts: Vec<_> = over_time.slices.iter().map(|slice| slice.count).collect();
            assert_eq!(counts, expected, "{last}");
        }
    }

    #[test]
    fn a_slice_has_the_rate_of_its_own_length() {
        // One operation of 1000 bytes a nanosecond, and in the first half twice as many.
        let mut progress = Progress::new(1000);
        (1..=500).for_each(|at| progress.seen(at - 1, 2 * at));
        (501..=1003).for_each(|at| progress.seen(at - 1, 1000 + at - 500));
        let over_time = progress.finish(1003, 1503, 1.0, 1000);
        assert_eq!(over_time.slices.len(), 100, "the rest of 3 ticks is in the last");
        for (at, slice) in over_time.slices.iter().enumerate() {
            let expected = if at < 50 { 2000.0 } else { 1000.0 };
            let Throughput { mops, gbit_per_s } = slice.throughput;
            assert!((mops / expected - 1.0).abs() < 1e-9, "{at}: {slice:?}");
            assert!((gbit_per_s / expected - 8.0).abs() < 1e-8, "{at}: {slice:?}");
            assert!((slice.at_s * 1e9 - at as f64 * 10.0).abs() < 1e-6, "{at}: {slice:?}");
        }
        let (low, high) = over_time.range(|t| t.mops).unwrap();
        assert!((low - 1000.0).abs() < 1e-6 && (high - 2000.0).abs() < 1e-6, "{low} {high}");
    }

    #[test]
    fn a_time_in_which_nothing_was_done_has_slices_and_a_run_without_operations_none() {
        let mut progress = Progress::new(1000);
        progress.seen(5, 1);
        progress.seen(95, 2);
        let counts = |over_time: OverTime| -> Vec<u64> {
            over_time.slices.iter().map(|slice| slice.count).collect()
        };
        assert_eq!(counts(progress.finish(100, 2, 1.0, 8)), [1, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
        let nothing = Progress::new(1000).finish(700, 0, 1.0, 8);
        assert!(nothing.range(|t| t.mops).is_none() && counts(nothing).is_empty());
    }
}
