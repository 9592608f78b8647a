//! A latency distribution: recorded without allocation, summed up in percentiles, drawn in bars.

use std::fmt::Write as _;

use hdrhistogram::Histogram;

use super::percentiles;
pub use super::percentiles::{Figure, Percentiles, UNSAMPLED};

/// Longest latency told apart from longer ones: 100 s, in picoseconds.
const MAX_PS: u64 = 100_000_000_000_000;
/// Width of the longest bar in characters.
const BAR: usize = 44;
/// Most rows of a drawing.
const ROWS: usize = 14;

/// Latencies in picoseconds, to three digits; the shortest, the longest and the mean are exact. All
/// memory is taken, and touched, when it is made: 300 KiB, however many latencies come.
#[derive(Debug, Clone)]
pub struct Latencies {
    histogram: Histogram<u64>,
    min_ps: u64,
    max_ps: u64,
    sum_ps: u128,
}

impl Latencies {
    /// An empty distribution.
    pub fn new() -> Self {
        // The bounds are constants that the histogram accepts (low >= 1, high >= 2 low, digits
        // <= 5), so this cannot fail.
        let mut histogram = Histogram::new_with_bounds(1, MAX_PS, 3)
            .unwrap_or_else(|error| unreachable!("fixed histogram bounds: {error}"));
        // Zeroes that were never written are pages that do not exist yet.
        histogram.reset();
        Self { histogram, min_ps: u64::MAX, max_ps: 0, sum_ps: 0 }
    }

    /// Adds one latency. Allocates nothing.
    #[inline]
    pub fn record_ns(&mut self, ns: f64) {
        self.record_ps((ns * 1000.0) as u64);
    }

    /// Adds one latency in picoseconds. Allocates nothing.
    #[inline(always)]
    pub fn record_ps(&mut self, ps: u64) {
        self.histogram.saturating_record(ps);
        self.min_ps = self.min_ps.min(ps);
        self.max_ps = self.max_ps.max(ps);
        self.sum_ps += u128::from(ps);
    }

    /// Adds all of another distribution.
    pub fn add(&mut self, other: &Self) {
        self.histogram
            .add(&other.histogram)
            .unwrap_or_else(|error| unreachable!("the same bounds: {error}"));
        self.min_ps = self.min_ps.min(other.min_ps);
        self.max_ps = self.max_ps.max(other.max_ps);
        self.sum_ps += other.sum_ps;
    }

    /// Takes all of them out again. Allocates nothing.
    pub fn clear(&mut self) {
        self.histogram.reset();
        (self.min_ps, self.max_ps, self.sum_ps) = (u64::MAX, 0, 0);
    }

    /// Number of latencies.
    pub fn len(&self) -> u64 {
        self.histogram.len()
    }

    /// How many were as long as `ns` or longer, to the histogram's three digits.
    pub fn at_least(&self, ns: f64) -> u64 {
        self.len() - self.count_below((ns * 1000.0) as u64)
    }

    /// The summary; all zero when nothing was recorded.
    pub fn percentiles(&self) -> Percentiles {
        if self.histogram.is_empty() {
            return Percentiles::default();
        }
        Percentiles {
            min_ns: self.min_ps as f64 / 1000.0,
            p50_ns: self.quantile_ns(0.5),
            p90_ns: self.quantile_ns(0.9),
            p99_ns: self.quantile_ns(0.99),
            p999_ns: self.quantile_ns(0.999),
            p9999_ns: self.quantile_ns(0.9999),
            p99999_ns: self.quantile_ns(0.99999),
            max_ns: self.max_ps as f64 / 1000.0,
            mean_ns: self.sum_ps as f64 / self.len() as f64 / 1000.0,
            stdev_ns: self.histogram.stdev() / 1000.0,
            sampled_to_percent: percentiles::sampled_to(self.len()),
        }
    }

    /// The latency that this share of all does not exceed; never more than the longest.
    fn quantile_ns(&self, quantile: f64) -> f64 {
        let ps = self.histogram.value_at_quantile(quantile);
        ps.clamp(self.min_ps, self.max_ps) as f64 / 1000.0
    }

    /// The curve of percentiles: shares of all, and the latency that each does not exceed, closer
    /// together towards 1. The last is (1, longest); empty when nothing was recorded.
    pub fn curve(&self) -> Vec<(f64, f64)> {
        if self.histogram.is_empty() {
            return Vec::new();
        }
        let mut shares = vec![0.0];
        let mut rest = 1.0;
        // Five steps for each halving of what is left, until less than one latency is.
        while rest * self.len() as f64 > 1.0 {
            shares.extend((1..=5).map(|step| 1.0 - rest * (1.0 - f64::from(step) / 10.0)));
            rest /= 2.0;
        }
        let last = (1.0, self.max_ps as f64 / 1000.0);
        shares.iter().map(|share| (*share, self.quantile_ns(*share))).chain([last]).collect()
    }

    /// The same distribution in whole nanoseconds, as other programs expect it.
    pub fn in_nanoseconds(&self) -> Histogram<u64> {
        let mut out = Histogram::new_with_bounds(1, MAX_PS / 1000, 3)
            .unwrap_or_else(|error| unreachable!("fixed histogram bounds: {error}"));
        for step in self.histogram.iter_recorded() {
            let ps = step.value_iterated_to().min(self.max_ps);
            out.saturating_record_n((ps + 500) / 1000, step.count_at_value());
        }
        out
    }

    /// Draws the distribution as bars of text, one row per latency range; ranges grow by the same
    /// factor, and the last row holds everything longer.
    pub fn draw(&self) -> String {
        if self.histogram.is_empty() {
            return "  (no samples)\n".to_owned();
        }
        let rows = self.rows();
        let most = rows.iter().map(|row| row.2).max().unwrap_or(1).max(1);
        let total = self.histogram.len() as f64;
        let mut text = String::new();
        for (low, high, count) in rows {
            let mut width = (count as f64 / most as f64 * BAR as f64).round() as usize;
            if count > 0 {
                width = width.max(1);
            }
            let range = match high {
                Some(high) => format!("{:>9} - {:<9}", human_ns(low), human_ns(high)),
                None => format!("{:>9} {:<11}", human_ns(low), "and more"),
            };
            let percent = count as f64 / total * 100.0;
            let _ = writeln!(
                text,
                "  {range} |{:<BAR$}| {percent:6.2} % {count:>9}",
                "█".repeat(width)
            );
        }
        text
    }

    /// Rows of a drawing: from, to (none for the last, open one) in nanoseconds, and the count.
    fn rows(&self) -> Vec<(f64, Option<f64>, u64)> {
        let ps = |quantile| self.histogram.value_at_quantile(quantile).max(1) as f64;
        let (first, last) = (ps(0.0), ps(0.999));
        let factor = (last / first).powf(1.0 / (ROWS - 1) as f64).max(1.05);
        let mut rows = Vec::with_capacity(ROWS);
        let mut low = first;
        let mut counted = 0;
        while rows.len() + 1 < ROWS && low <= last {
            let high = low * factor;
            // Whole buckets of the histogram, each counted once: up to and without `high`.
            let below = self.count_below(high as u64);
            rows.push((low / 1000.0, Some(high / 1000.0), below.saturating_sub(counted)));
            counted = below;
            low = high;
        }
        let rest = self.histogram.len().saturating_sub(counted);
        if rest > 0 {
            rows.push((low / 1000.0, None, rest));
        }
        rows
    }

    fn count_below(&self, ps: u64) -> u64 {
        let below = self.histogram.iter_recorded().take_while(|step| step.value_iterated_to() < ps);
        below.map(|step| step.count_at_value()).sum()
    }
}

/// A time in the unit that suits it, with three digits.
pub fn human_ns(ns: f64) -> String {
    let (value, unit) = match ns {
        ns if ns < 1e3 => (ns, "ns"),
        ns if ns < 1e6 => (ns / 1e3, "us"),
        ns if ns < 1e9 => (ns / 1e6, "ms"),
        ns => (ns / 1e9, "s"),
    };
    let digits = match value {
        v if v < 9.995 => 2,
        v if v < 99.95 => 1,
        _ => 0,
    };
    format!("{value:.digits$} {unit}")
}

/// A number of bytes in the binary unit that suits it.
pub fn human_bytes(bytes: u64) -> String {
    for (shift, unit) in [(30, "GiB"), (20, "MiB"), (10, "KiB")] {
        if bytes >= 1 << shift {
            let value = bytes as f64 / (1u64 << shift) as f64;
            let digits = usize::from(!bytes.is_multiple_of(1 << shift));
            return format!("{value:.digits$} {unit}");
        }
    }
    format!("{bytes} B")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_come_out_in_nanoseconds() {
        let mut latencies = Latencies::new();
        (1..=1000).for_each(|ns| latencies.record_ns(f64::from(ns)));
        let p = latencies.percentiles();
        for (value, expected) in [
            (p.min_ns, 1.0),
            (p.p50_ns, 500.0),
            (p.p90_ns, 900.0),
            (p.p99_ns, 990.0),
            (p.p999_ns, 999.0),
            (p.p9999_ns, 1000.0),
            (p.mean_ns, 500.5),
            (p.stdev_ns, 288.7),
        ] {
            assert!((value / expected - 1.0).abs() < 0.002, "{value} is not {expected}");
        }
        assert_eq!(p.scaled(0.5).p90_ns, p.p90_ns / 2.0);
        assert_eq!(Latencies::new().percentiles(), Percentiles::default());
    }

    #[test]
    fn the_extremes_and_the_mean_are_exact() {
        let mut latencies = Latencies::new();
        // None of these is a bound of a bucket, and the last is off the scale.
        for ns in [1234.567, 1234.568, 987_654.321, 2e11] {
            latencies.record_ns(ns);
        }
        let p = latencies.percentiles();
        assert_eq!((p.min_ns, p.max_ns), (1234.567, 2e11));
        assert_eq!(p.mean_ns, (1234.567 + 1234.568 + 987_654.321 + 2e11) / 4.0);
        let mut few = Latencies::new();
        few.record_ns(1234.567);
        let p = few.percentiles();
        assert_eq!((p.p50_ns, p.p99999_ns), (1234.567, 1234.567), "no more than the longest");
    }

    #[test]
    fn a_sum_of_distributions_is_that_of_all_latencies() {
        let (mut all, mut odd, mut even) = (Latencies::new(), Latencies::new(), Latencies::new());
        for ns in 1..2000_u32 {
            let ns_exact = f64::from(ns) * 17.0;
            all.record_ns(ns_exact);
            if ns % 2 == 0 { even.record_ns(ns_exact) } else { odd.record_ns(ns_exact) }
        }
        odd.add(&even);
        assert_eq!(odd.percentiles(), all.percentiles());
        assert_eq!(odd.at_least(17.0 * 1000.0), 1000);
        assert_eq!((odd.at_least(0.0), odd.at_least(1e9)), (1999, 0));
    }

    #[test]
    fn the_curve_rises_to_the_longest() {
        let mut latencies = Latencies::new();
        (1..=100_000).for_each(|ns| latencies.record_ns(f64::from(ns)));
        let curve = latencies.curve();
        assert!(curve.is_sorted(), "{curve:?}");
        assert_eq!(curve.last(), Some(&(1.0, 100_000.0)));
        assert!(curve.iter().any(|(share, _)| *share > 0.9999 && *share < 1.0), "{curve:?}");
        assert!(Latencies::new().curve().is_empty());
    }

    #[test]
    fn every_sample_is_in_exactly_one_bar() {
        for samples in [vec![500.0], vec![3.0; 7], (1..5000).map(|i| f64::from(i * i)).collect()] {
            let mut latencies = Latencies::new();
            samples.iter().for_each(|ns| latencies.record_ns(*ns));
            let rows = latencies.rows();
            assert_eq!(rows.iter().map(|row| row.2).sum::<u64>(), samples.len() as u64);
            assert!(rows.len() <= ROWS, "{} rows", rows.len());
        }
    }

    #[test]
    fn the_drawing_has_a_bar_per_range_and_an_open_last_row() {
        let mut latencies = Latencies::new();
        (0..10_000).for_each(|_| latencies.record_ns(700.0));
        latencies.record_ns(5e6);
        let drawing = latencies.draw();
        let lines: Vec<_> = drawing.lines().collect();
        assert!(lines[0].contains(&"█".repeat(BAR)), "{drawing}");
        assert!(lines[0].contains("99.99 %     10000"), "{drawing}");
        assert!(lines.last().unwrap().contains("and more"), "{drawing}");
        assert_eq!(Latencies::new().draw(), "  (no samples)\n");
    }

    #[test]
    fn times_and_sizes_are_short_to_read() {
        for (ns, text) in [
            (0.5, "0.50 ns"),
            (83.25, "83.2 ns"),
            (999.0, "999 ns"),
            (1234.0, "1.23 us"),
            (45_678.0, "45.7 us"),
            (2.5e7, "25.0 ms"),
            (3e9, "3.00 s"),
        ] {
            assert_eq!(human_ns(ns), text);
        }
        for (bytes, text) in
            [(8, "8 B"), (4096, "4 KiB"), (4097, "4.0 KiB"), (3 << 20, "3 MiB"), (1 << 30, "1 GiB")]
        {
            assert_eq!(human_bytes(bytes), text);
        }
    }
}
