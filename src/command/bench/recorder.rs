//! What a measuring loop writes its latencies into: a distribution for each slice of time, so that
//! the run can be shown as it went, and the longest latencies one by one (of those that one stall
//! made long, the longest). The distribution of the
//! whole is the sum of the slices.
//!
//! All memory is taken and touched beforehand, and is the same for any duration: [`ROOM`]
//! distributions, about 30 MB. A run longer than was expected has wider slices ([`super::slices`]).
//!
//! [`ROOM`]: super::slices::ROOM

use std::time::Duration;

use holdfast::stats::Lane;
use serde::Serialize;

use super::slices::Slices;
use crate::command::clock::Time;
use crate::command::histogram::Latencies;

/// How many of the longest latencies are kept one by one.
pub const WORST: usize = 16;

/// One of the longest latencies.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Outlier {
    /// When it ended, in seconds since the measurement began.
    pub at_s: f64,
    /// How long it was.
    pub ns: f64,
    /// Longest time for which the measuring thread itself was away meanwhile, where the loop sees
    /// that (open loops do).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub away_ns: Option<f64>,
}

/// Records latencies as they come.
#[derive(Debug)]
pub struct Recorder {
    slices: Slices,
    started: u64,
    ps_per_tick: f64,
    worst: [Worst; WORST],
    /// The shortest of the worst, in ticks.
    least_of_worst: u64,
    /// For those who look on, and the bytes of an operation.
    live: Lane,
    bytes: u64,
}

#[derive(Debug, Clone, Copy, Default)]
struct Worst {
    at: u64,
    ticks: u64,
    away: Option<u64>,
}

/// What was recorded.
#[derive(Debug)]
pub struct Recorded {
    /// All latencies.
    pub all: Latencies,
    /// Those of each slice of time, in order; the empty ones at the end are left out.
    pub slices: Vec<Latencies>,
    /// Length of a slice.
    pub slice: Duration,
    /// The longest latencies, longest first.
    pub worst: Vec<Outlier>,
}

impl Recorder {
    /// One for a run of about this long, of operations of so many bytes, which are counted for those
    /// who look on as well. Takes all memory it will ever need; the run begins with
    /// [`Recorder::start`].
    pub fn new(time: &impl Time, expected: Duration, live: Lane, bytes: usize) -> Self {
        Self {
            slices: Slices::new(time.ticks_of(expected)),
            started: 0,
            ps_per_tick: time.ns_per_tick() * 1000.0,
            worst: [Worst::default(); WORST],
            least_of_worst: 0,
            live,
            bytes: bytes as u64,
        }
    }

    /// The measurement begins now.
    pub fn start(&mut self, now: u64) {
        self.started = now;
    }

    /// Adds a latency that ended `now`. Neither allocates nor makes a system call.
    #[inline(always)]
    pub fn record(&mut self, now: u64, ticks: u64) {
        self.record_away(now, ticks, || None);
    }

    /// The same, with the longest time that the thread was away meanwhile, which is asked only
    /// where the latency is one of the longest.
    #[inline(always)]
    pub fn record_away(&mut self, now: u64, ticks: u64, away: impl FnOnce() -> Option<u64>) {
        let ps = (ticks as f64 * self.ps_per_tick) as u64;
        self.slices.record_ps(now.wrapping_sub(self.started), ps);
        self.live.done(1, self.bytes);
        self.live.latency_ns(ps / 1000);
        if ticks > self.least_of_worst {
            self.remember(Worst { at: now, ticks, away: away() });
        }
    }

    /// Of those that overlap in time, which have one cause, the longest is kept.
    #[cold]
    fn remember(&mut self, new: Worst) {
        let began = |worst: &Worst| worst.at.wrapping_sub(worst.ticks).wrapping_sub(self.started);
        let ended = |worst: &Worst| worst.at.wrapping_sub(self.started);
        let overlaps = |old: &Worst| ended(old) > began(&new) && ended(&new) > began(old);
        let same = self.worst.iter().position(|old| old.ticks > 0 && overlaps(old));
        if let Some(same) = same.map(|at| &mut self.worst[at]) {
            if new.ticks > same.ticks {
                *same = new;
            }
        } else if let Some(least) = self.worst.iter_mut().min_by_key(|worst| worst.ticks) {
            *least = new;
        }
        self.least_of_worst = self.worst.iter().map(|worst| worst.ticks).min().unwrap_or(0);
    }

    /// Sums up.
    pub fn finish(mut self) -> Recorded {
        // Whole picoseconds, as the distributions have them.
        let ns = |ticks: u64| (ticks as f64 * self.ps_per_tick).floor() / 1000.0;
        self.worst.sort_by_key(|worst| std::cmp::Reverse(worst.ticks));
        let worst = self.worst.iter().filter(|worst| worst.ticks > 0).map(|worst| Outlier {
            at_s: ns(worst.at.wrapping_sub(self.started)) / 1e9,
            ns: ns(worst.ticks),
            away_ns: worst.away.map(ns),
        });
        let worst = worst.collect();
        let (slices, width) = self.slices.finish();
        let slice = Duration::from_secs_f64(width as f64 * self.ps_per_tick / 1e12);
        let mut all = Latencies::new();
        slices.iter().for_each(|slice| all.add(slice));
        Recorded { all, slices, slice, worst }
    }
}

#[cfg(test)]
mod tests {
    use super::super::latency::virtual_time::VirtualTime;
    use super::*;
    use crate::command::live;

    #[test]
    fn each_latency_is_in_the_slice_in_which_it_ended() {
        let time = VirtualTime::new();
        // 100 slices of 10 ticks of a nanosecond each.
        let mut recorder = Recorder::new(&time, Duration::from_micros(1), live::lane("test"), 8);
        recorder.start(5000);
        for now in [5000, 5009, 5010, 5555, 5999, 6001] {
            recorder.record(now, 7);
        }
        let recorded = recorder.finish();
        let counts: Vec<_> = recorded.slices.iter().map(Latencies::len).collect();
        let mut expected = vec![0; 101];
        for (at, count) in [(0, 2), (1, 1), (55, 1), (99, 1), (100, 1)] {
            expected[at] = count;
        }
        assert_eq!(counts, expected, "what comes a little late has a slice too");
        assert_eq!((recorded.all.len(), recorded.slice), (6, Duration::from_nanos(10)));
    }

    #[test]
    fn a_run_that_takes_longer_has_its_times_all_the_same() {
        let time = VirtualTime::new();
        let mut recorder = Recorder::new(&time, Duration::from_micros(1), live::lane("test"), 8);
        recorder.start(5000);
        [5000, 7050].iter().for_each(|now| recorder.record(*now, 7));
        let recorded = recorder.finish();
        let at = recorded.slices.iter().rposition(|slice| slice.len() > 0);
        assert_eq!((at, recorded.slice), (Some(102), Duration::from_nanos(20)));
        assert!(recorded.slices[1..102].iter().all(|slice| slice.len() == 0));
    }

    #[test]
    fn the_longest_are_kept_with_their_times() {
        let time = VirtualTime::new();
        let mut recorder = Recorder::new(&time, Duration::from_secs(1), live::lane("test"), 8);
        recorder.start(1000);
        for n in 1..=100_u64 {
            // In no order (37 is prime to 101), and far enough apart.
            let ticks = n * 37 % 101;
            recorder.record_away(1000 + n * 1000, ticks, || Some(ticks / 2));
            // Meant to start later, kept waiting by the same thing.
            recorder.record_away(1000 + n * 1000 + 1, ticks - 1, || Some(0));
        }
        let worst = recorder.finish().worst;
        let longest: Vec<_> = worst.iter().map(|outlier| outlier.ns as u64).collect();
        assert_eq!(longest, (85..=100).rev().collect::<Vec<_>>());
        let n = (1..=100_u32).find(|n| n * 37 % 101 == 100).map_or(0.0, f64::from);
        assert!((worst[0].at_s - n / 1e6).abs() < 1e-12, "{:?}", worst[0]);
        assert_eq!(worst[0].away_ns, Some(50.0));
    }
}
