//! A distribution for each slice of a run's time, in memory that is the same for any duration: a run
//! that takes longer than there are slices goes on in slices of twice the width.
//!
//! To merge all pairs of slices at once would take milliseconds, in the middle of a measurement. So
//! one pair is merged whenever a new slice begins, which needs the room of one.

use crate::command::histogram::Latencies;

/// Slices there is room for: those of the time that was expected, and a few, so that a run that ends
/// a little late keeps its width.
pub const ROOM: usize = SLICES + 4;
/// Slices of the time that was expected.
pub const SLICES: usize = 100;
const HALF: usize = ROOM / 2;

/// The slices.
#[derive(Debug)]
pub struct Slices {
    all: Vec<Latencies>,
    /// Where each slice lies in `all`: of the old width, while pairs of those are left.
    order: [usize; ROOM],
    /// Pairs of the old width that have been merged; all of them, where there is but one width.
    merged: usize,
    /// The slice that is being filled, and where it lies.
    current: usize,
    at: usize,
    /// How long each is, in ticks.
    width: u64,
    /// When the current one ends, in ticks since the beginning.
    ends: u64,
}

impl Slices {
    /// For a run of about so many ticks. Takes, and touches, all memory they will ever need.
    pub fn new(expected: u64) -> Self {
        let width = (expected / SLICES as u64).max(1);
        // Clones, with every page of their own written.
        let all = vec![Latencies::new(); ROOM];
        let order = std::array::from_fn(|at| at);
        Self { all, order, merged: HALF, current: 0, at: 0, width, ends: width }
    }

    /// Adds a latency that ended so many ticks after the beginning.
    #[inline(always)]
    pub fn record_ps(&mut self, since: u64, ps: u64) {
        if since >= self.ends {
            self.begin_slice(since);
        }
        self.all[self.at].record_ps(ps);
    }

    #[cold]
    fn begin_slice(&mut self, since: u64) {
        while since / self.width >= ROOM as u64 {
            self.merge(HALF);
            (self.merged, self.width) = (0, self.width.saturating_mul(2));
        }
        self.current = (since / self.width) as usize;
        // Slices of the new width lie where the second of each pair was.
        self.merge((self.current + 1).saturating_sub(HALF));
        self.at = match self.merged {
            HALF => self.order[self.current],
            _ => self.order[2 * (self.current - HALF) + 1],
        };
        self.ends = (self.current as u64 + 1).saturating_mul(self.width);
    }

    /// Merges pairs until it is so many.
    fn merge(&mut self, pairs: usize) {
        while self.merged < pairs {
            let (first, second) = (self.order[2 * self.merged], self.order[2 * self.merged + 1]);
            if let Ok([first, second]) = self.all.get_disjoint_mut([first, second]) {
                first.add(second);
                second.clear();
            }
            self.merged += 1;
            if self.merged == HALF {
                let old = self.order;
                self.order = std::array::from_fn(|at| {
                    old[if at < HALF { 2 * at } else { 2 * (at - HALF) + 1 }]
                });
            }
        }
    }

    /// All of them in order, but for the empty ones at the end, and how many ticks each is long.
    pub fn finish(mut self) -> (Vec<Latencies>, u64) {
        self.merge(HALF);
        let mut all: Vec<_> = self.all.into_iter().map(Some).collect();
        let ordered = self.order[..=self.current].iter().filter_map(|at| all[*at].take());
        (ordered.collect(), self.width)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn however_long_a_run_takes_each_latency_is_in_the_slice_in_which_it_ended() {
        // Slices of 10 ticks.
        for (last, step, width) in [
            (1039, 1, 10),
            (1040, 1, 20),
            (1047, 1, 20),
            (2079, 1, 20),
            (2080, 1, 40),
            (5000, 1, 80),
            (30_000, 7, 320),
            // Hardly anything, and at long intervals: widths are passed over.
            (100_000, 33_000, 1280),
            (1_000_000, 1_000_000, 10_240),
        ] {
            let mut slices = Slices::new(1000);
            let mut expected = vec![0; ROOM];
            for since in (0..=last).step_by(step).chain([last]) {
                slices.record_ps(since, 7000 + since);
                expected[(since / width) as usize] += 1;
            }
            let (found, found_width) = slices.finish();
            assert_eq!(found_width, width, "{last}");
            let counts: Vec<_> = found.iter().map(Latencies::len).collect();
            expected.truncate((last / width) as usize + 1);
            assert_eq!(counts, expected, "{last}");
            // And not another's.
            for (at, slice) in found.iter().enumerate().filter(|(_, slice)| slice.len() > 0) {
                let p = slice.percentiles();
                let (from, to) = (at as u64 * width + 7000, (at as u64 + 1) * width + 7000);
                let shortest = (p.min_ns * 1000.0).round() as u64;
                assert!(from <= shortest && shortest < to, "{last}: {at}: {p:?}");
                assert!(((p.max_ns * 1000.0).round() as u64) < to, "{last}: {at}: {p:?}");
            }
        }
    }
}
