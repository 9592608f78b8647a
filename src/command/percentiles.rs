//! What a latency distribution comes down to, and which of its percentiles there are enough latencies
//! for.

use serde::Serialize;

use super::histogram::human_ns;

/// What a distribution comes down to, in nanoseconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Percentiles {
    /// Shortest.
    pub min_ns: f64,
    /// Median.
    pub p50_ns: f64,
    /// 90 %.
    pub p90_ns: f64,
    /// 99 %.
    pub p99_ns: f64,
    /// 99.9 %.
    pub p999_ns: f64,
    /// 99.99 %.
    pub p9999_ns: f64,
    /// 99.999 %.
    pub p99999_ns: f64,
    /// Longest.
    pub max_ns: f64,
    /// Arithmetic mean.
    pub mean_ns: f64,
    /// Standard deviation.
    pub stdev_ns: f64,
    /// The largest of these percentiles beyond which there is a latency, in percent: 99.9 of 1000. Those
    /// above are the longest once more. 0 where there are none at all.
    pub sampled_to_percent: f64,
}

/// A figure of a distribution.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Figure {
    /// Its name.
    pub name: &'static str,
    /// In nanoseconds.
    pub ns: f64,
    /// Whether there are enough latencies for it.
    pub sampled: bool,
}

/// What the mark of [`Figure::text`] means.
pub const UNSAMPLED: &str = "* too few operations for this percentile: it is the longest";

impl Figure {
    /// For people; marked where there are too few latencies for it.
    pub fn text(&self) -> String {
        format!("{}{}", human_ns(self.ns), if self.sampled { "" } else { " *" })
    }
}

/// Percentiles, and how many latencies there must be for one of them to be beyond each.
const NEEDED: [(f64, u64); 6] =
    [(50.0, 2), (90.0, 10), (99.0, 100), (99.9, 1000), (99.99, 10_000), (99.999, 100_000)];

impl Percentiles {
    /// Every figure times `share`.
    pub fn scaled(&self, share: f64) -> Self {
        Self {
            min_ns: self.min_ns * share,
            p50_ns: self.p50_ns * share,
            p90_ns: self.p90_ns * share,
            p99_ns: self.p99_ns * share,
            p999_ns: self.p999_ns * share,
            p9999_ns: self.p9999_ns * share,
            p99999_ns: self.p99999_ns * share,
            max_ns: self.max_ns * share,
            mean_ns: self.mean_ns * share,
            stdev_ns: self.stdev_ns * share,
            sampled_to_percent: self.sampled_to_percent,
        }
    }

    /// Each figure by its name.
    pub fn figures(&self) -> [Figure; 10] {
        let exact = |name, ns| Figure { name, ns, sampled: true };
        let at =
            |name, percent, ns| Figure { name, ns, sampled: percent <= self.sampled_to_percent };
        [
            exact("min", self.min_ns),
            at("p50", 50.0, self.p50_ns),
            at("p90", 90.0, self.p90_ns),
            at("p99", 99.0, self.p99_ns),
            at("p99.9", 99.9, self.p999_ns),
            at("p99.99", 99.99, self.p9999_ns),
            at("p99.999", 99.999, self.p99999_ns),
            exact("max", self.max_ns),
            exact("mean", self.mean_ns),
            exact("deviation", self.stdev_ns),
        ]
    }
}

/// The largest percentile beyond which there is one of so many latencies; 0 where there is none.
pub fn sampled_to(count: u64) -> f64 {
    NEEDED.iter().rfind(|(_, needed)| count >= *needed).map_or(0.0, |(percent, _)| *percent)
}

#[cfg(test)]
mod tests {
    use super::super::histogram::Latencies;

    #[test]
    fn a_percentile_beyond_which_there_is_nothing_is_marked() {
        for (count, percent, marked) in [
            (1, 0.0, 6),
            (2, 50.0, 5),
            (99, 90.0, 4),
            (999, 99.0, 3),
            (1000, 99.9, 2),
            (9999, 99.9, 2),
            (10_000, 99.99, 1),
            (100_000, 99.999, 0),
        ] {
            let mut latencies = Latencies::new();
            (0..count).for_each(|_| latencies.record_ns(1000.0));
            let p = latencies.percentiles().scaled(0.5);
            assert_eq!(p.sampled_to_percent, percent, "{count}");
            let texts = p.figures().map(|figure| figure.text());
            assert_eq!(texts.iter().filter(|text| text.ends_with(" *")).count(), marked, "{count}");
            // The largest ones, and no others.
            assert!(texts[7 - marked..7].iter().all(|text| text == "500 ns *"), "{texts:?}");
        }
    }
}
