//! A state of all counts, as JSON and as Prometheus' text (exposition format 0.0.4).

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::lane::Counts;
use super::{Counter, buckets};

/// Version of the JSON's fields.
const SCHEMA_VERSION: u32 = 1;

/// Everything that a process counts, at one time.
#[derive(Debug, Clone, Serialize)]
pub struct Snapshot {
    /// 1.
    pub schema_version: u32,
    /// The process.
    pub pid: u32,
    /// The name it is shown under.
    pub command: String,
    /// Seconds since it began to count.
    pub uptime_s: f64,
    /// Its lanes, oldest first.
    pub lanes: Vec<LaneState>,
    /// What is counted elsewhere.
    #[serde(serialize_with = "counters")]
    pub counters: Vec<Counter>,
}

/// One lane.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct LaneState {
    /// Its name.
    pub name: String,
    /// Operations done.
    pub operations: u64,
    /// Bytes they moved.
    pub bytes: u64,
    /// Operations that failed.
    pub errors: u64,
    /// Their latencies, where they are measured.
    pub latency: Distribution,
}

/// Latencies in buckets.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Distribution {
    /// How many.
    pub count: u64,
    /// Their sum in nanoseconds.
    pub sum_ns: u64,
    /// Longest latency of a bucket in nanoseconds, and how many are in it; those with any.
    pub buckets: Vec<(u64, u64)>,
}

impl Distribution {
    /// What came since an earlier state of the same lane.
    pub fn since(&self, earlier: &Self) -> Self {
        let before: BTreeMap<u64, u64> = earlier.buckets.iter().copied().collect();
        let more = |(ns, count): &(u64, u64)| {
            let more = count.saturating_sub(before.get(ns).copied().unwrap_or(0));
            (more > 0).then_some((*ns, more))
        };
        let buckets: Vec<_> = self.buckets.iter().filter_map(more).collect();
        Self {
            count: buckets.iter().map(|(_, count)| count).sum(),
            sum_ns: self.sum_ns.saturating_sub(earlier.sum_ns),
            buckets,
        }
    }

    /// A latency in nanoseconds that this share does not exceed, to the width of a bucket; 0 where
    /// there is none.
    pub fn quantile_ns(&self, share: f64) -> u64 {
        let rank = (share * self.count as f64).ceil().max(1.0) as u64;
        let mut seen = 0;
        let reached = self.buckets.iter().find(|(_, count)| {
            seen += count;
            seen >= rank
        });
        reached.or(self.buckets.last()).map_or(0, |(ns, _)| *ns)
    }
}

impl Snapshot {
    pub(super) fn new(
        command: String,
        uptime: Duration,
        lanes: &[(String, Arc<Counts>)],
        counters: Vec<Counter>,
    ) -> Self {
        let lanes = lanes.iter().map(|(name, counts)| LaneState::of(name, counts)).collect();
        let (schema_version, pid) = (SCHEMA_VERSION, std::process::id());
        Self { schema_version, pid, command, uptime_s: uptime.as_secs_f64(), lanes, counters }
    }

    /// The text that Prometheus reads.
    pub fn prometheus(&self) -> String {
        let mut text = String::new();
        let mut lanes = |name: &str, help: &str, value: fn(&LaneState) -> u64| {
            let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} counter");
            for lane in &self.lanes {
                let _ = writeln!(text, "{name}{{lane=\"{}\"}} {}", quoted(&lane.name), value(lane));
            }
        };
        lanes("holdfast_operations_total", "Operations done.", |lane| lane.operations);
        lanes("holdfast_bytes_total", "Bytes that operations moved.", |lane| lane.bytes);
        lanes("holdfast_errors_total", "Operations that failed.", |lane| lane.errors);
        let name = "holdfast_latency_seconds";
        let _ = writeln!(text, "# HELP {name} Time of an operation.\n# TYPE {name} histogram");
        for lane in &self.lanes {
            histogram(&mut text, name, &quoted(&lane.name), &lane.latency);
        }
        let mut by_name: BTreeMap<&str, Vec<&Counter>> = BTreeMap::new();
        self.counters.iter().for_each(|c| by_name.entry(c.name).or_default().push(c));
        for (name, counters) in by_name {
            let name = format!("holdfast_{name}_total");
            let _ = writeln!(text, "# HELP {name} {}\n# TYPE {name} counter", counters[0].help);
            for counter in counters {
                let label = |(key, value): &(&str, String)| format!("{key}=\"{}\"", quoted(value));
                let labels: Vec<String> = counter.labels.iter().map(label).collect();
                let _ = writeln!(text, "{name}{{{}}} {}", labels.join(","), counter.value);
            }
        }
        text
    }
}

/// Cumulative buckets, one for each doubling from 64 ns to 17 s; the counts are exact there.
fn histogram(text: &mut String, name: &str, lane: &str, latency: &Distribution) {
    for power in 6..=34 {
        let bound = (1_u64 << power) - 1;
        let below = latency.buckets.iter().filter(|(ns, _)| *ns <= bound);
        let count: u64 = below.map(|(_, count)| count).sum();
        let le = (bound + 1) as f64 / 1e9;
        let _ = writeln!(text, "{name}_bucket{{lane=\"{lane}\",le=\"{le}\"}} {count}");
    }
    let (count, sum) = (latency.count, latency.sum_ns as f64 / 1e9);
    let _ = writeln!(text, "{name}_bucket{{lane=\"{lane}\",le=\"+Inf\"}} {count}");
    let _ = writeln!(text, "{name}_sum{{lane=\"{lane}\"}} {sum}");
    let _ = writeln!(text, "{name}_count{{lane=\"{lane}\"}} {count}");
}

/// The value of a label.
fn quoted(text: &str) -> String {
    text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

/// `{"nic_stalls{nic=0}": 3}`: one name for each.
fn counters<S: serde::Serializer>(counters: &[Counter], to: S) -> Result<S::Ok, S::Error> {
    to.collect_map(counters.iter().map(|counter| {
        let label = |(key, value): &(&str, String)| format!("{key}={value}");
        let labels: Vec<String> = counter.labels.iter().map(label).collect();
        match labels.is_empty() {
            true => (counter.name.to_owned(), counter.value),
            false => (format!("{}{{{}}}", counter.name, labels.join(",")), counter.value),
        }
    }))
}

impl LaneState {
    fn of(name: &str, counts: &Counts) -> Self {
        let read = |count: &std::sync::atomic::AtomicU64| count.load(Ordering::Relaxed);
        let counted = counts.latencies.iter().enumerate().map(|(at, count)| (at, read(count)));
        let buckets: Vec<_> = counted
            .filter(|(_, count)| *count > 0)
            .map(|(at, count)| (buckets::longest(at), count))
            .collect();
        // Of the buckets, so that the two agree whatever comes meanwhile.
        let count = buckets.iter().map(|(_, count)| count).sum();
        Self {
            name: name.to_owned(),
            operations: read(&counts.operations),
            bytes: read(&counts.bytes),
            errors: read(&counts.errors),
            latency: Distribution { count, sum_ns: read(&counts.latency_sum_ns), buckets },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::Stats;
    use super::*;

    #[test]
    fn prometheus_reads_counts_and_cumulative_buckets() {
        let stats = Stats::new("test");
        let mut lane = stats.lane("a\"b");
        lane.done(3, 96);
        lane.failed(1);
        [63, 64, 100, 1 << 20].into_iter().for_each(|ns| lane.latency_ns(ns));
        stats.source(|| {
            let labels = vec![("nic", "0".to_owned())];
            vec![Counter { name: "nic_stalls", help: "Stalls.", labels, value: 7 }]
        });
        let text = stats.prometheus();
        for line in [
            "# TYPE holdfast_operations_total counter",
            "holdfast_operations_total{lane=\"a\\\"b\"} 3",
            "holdfast_bytes_total{lane=\"a\\\"b\"} 96",
            "holdfast_errors_total{lane=\"a\\\"b\"} 1",
            "# TYPE holdfast_latency_seconds histogram",
            "holdfast_latency_seconds_bucket{lane=\"a\\\"b\",le=\"0.000000064\"} 1",
            "holdfast_latency_seconds_bucket{lane=\"a\\\"b\",le=\"0.000000128\"} 3",
            "holdfast_latency_seconds_bucket{lane=\"a\\\"b\",le=\"+Inf\"} 4",
            "holdfast_latency_seconds_count{lane=\"a\\\"b\"} 4",
            "holdfast_nic_stalls_total{nic=\"0\"} 7",
            "holdfast_coherence_events_total{event=\"broken\"} 0",
        ] {
            assert!(text.lines().any(|l| l == line), "'{line}' is missing in\n{text}");
        }
        let json = serde_json::to_value(stats.snapshot()).unwrap();
        assert_eq!(json["counters"]["nic_stalls{nic=0}"], 7);
        assert_eq!(json["lanes"][0]["latency"]["count"], 4);
    }

    #[test]
    fn what_came_since_has_its_own_quantiles() {
        let stats = Stats::new("test");
        let mut lane = stats.lane("a");
        (0..100).for_each(|_| lane.latency_ns(1_000_000));
        let before = stats.snapshot().lanes[0].latency.clone();
        (0..90).for_each(|_| lane.latency_ns(100));
        (0..10).for_each(|_| lane.latency_ns(1000));
        let since = stats.snapshot().lanes[0].latency.since(&before);
        assert_eq!((since.count, since.sum_ns), (100, 19_000));
        for (share, ns) in [(0.5, 100), (0.9, 100), (0.91, 1000), (1.0, 1000)] {
            let found = since.quantile_ns(share);
            assert!(found >= ns && found as f64 <= ns as f64 * 1.125, "{share}: {found}");
        }
        assert_eq!(since.since(&since).quantile_ns(0.5), 0);
    }
}
