//! What a measurement came to: one object for `--json`, a table for people.

use std::fmt::Write as _;

use serde::Serialize;

use super::options::{Mode, Operation};
use crate::command::histogram::{Percentiles, human_bytes, human_ns};
use crate::command::machine::Machine;

/// The result of one run. Field names are part of the command's interface.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// What was measured.
    pub op: Operation,
    /// How.
    pub mode: Mode,
    /// Bytes of each operation.
    pub size: usize,
    /// Operations measured.
    pub iters: u64,
    /// Device, as it was given.
    pub device: String,
    /// Work completions that were not successes (the first ends the measurement), and payloads
    /// that came out wrong or never arrived.
    pub errors: u64,
    /// Latencies (`lat`). For write and send this is half of the round trip.
    #[serde(flatten)]
    pub latency: Option<Percentiles>,
    /// Throughput (`bw`, `rate`).
    #[serde(flatten)]
    pub throughput: Option<Throughput>,
    /// Measured time in seconds.
    pub seconds: f64,
    /// Outstanding operations per queue pair.
    pub depth: u32,
    /// Queue pairs.
    pub qps: u32,
    /// Operations per doorbell.
    pub batch: u32,
    /// Region, as it was given.
    pub region: String,
    /// What kind of memory it is.
    pub region_kind: String,
    /// Processor of the measuring thread.
    pub cpu: Option<usize>,
    /// Processor of the NIC, where this command started it or was told.
    pub nic_cpu: Option<usize>,
    /// Round trip of a cache line between those two processors (`lat`), median.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cache_line_ping_pong_ns: Option<f64>,
    /// `p50_ns` over that.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ratio_to_ping_pong: Option<f64>,
    /// Speed of a plain copy of the same blocks by one thread (`bw`).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memcpy_gbit_per_s: Option<f64>,
    /// `gbit_per_s` in percent of that.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub percent_of_memcpy: Option<f64>,
    /// Whether the run was cut short by a signal.
    pub interrupted: bool,
    /// What it ran on.
    pub machine: Machine,
}

/// Bytes and operations per second.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Throughput {
    /// 10^9 bits of payload a second.
    pub gbit_per_s: f64,
    /// 10^6 operations a second.
    pub mops: f64,
}

impl Throughput {
    /// Of so many operations of so many bytes.
    pub fn new(iters: u64, size: usize, seconds: f64) -> Self {
        let per_second = if seconds > 0.0 { iters as f64 / seconds } else { 0.0 };
        Self { gbit_per_s: per_second * size as f64 * 8.0 / 1e9, mops: per_second / 1e6 }
    }
}

impl Report {
    /// The table for people; `bars` is a drawing of the latencies.
    pub fn table(&self, bars: Option<&str>) -> String {
        let mut text = String::new();
        let _ = writeln!(
            text,
            "{} {}, {} on {} ({})",
            self.op.name(),
            self.mode.name(),
            human_bytes(self.size as u64),
            self.device,
            self.region_kind
        );
        let mut row = |name: &str, value: String| {
            let _ = writeln!(text, "  {name:<14} {value}");
        };
        row("operations", format!("{} in {:.2} s", self.iters, self.seconds));
        row("errors", self.errors.to_string());
        if let Some(p) = &self.latency {
            row("p50", human_ns(p.p50_ns));
            row("p90", human_ns(p.p90_ns));
            row("p99", human_ns(p.p99_ns));
            row("p99.9", human_ns(p.p999_ns));
            row("max", human_ns(p.max_ns));
        }
        if let Some(t) = &self.throughput {
            row("bandwidth", format!("{:.2} Gbit/s", t.gbit_per_s));
            row("rate", format!("{:.3} million operations/s", t.mops));
        }
        if let (Some(line), Some(ratio)) = (self.cache_line_ping_pong_ns, self.ratio_to_ping_pong) {
            let value = format!("{} round trip; p50 is {ratio:.2} of it", human_ns(line));
            row("cache line", value);
        }
        if let (Some(copy), Some(percent)) = (self.memcpy_gbit_per_s, self.percent_of_memcpy) {
            row("memcpy", format!("{copy:.2} Gbit/s; bandwidth is {percent:.0} % of it"));
        }
        let cpu = |cpu: Option<usize>| cpu.map_or_else(|| "any".to_owned(), |cpu| cpu.to_string());
        row("cpu", format!("{}, NIC on {}", cpu(self.cpu), cpu(self.nic_cpu)));
        row("machine", self.machine.summary());
        if let Some(bars) = bars {
            text.push('\n');
            text.push_str(bars);
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report() -> Report {
        Report {
            op: Operation::Write,
            mode: Mode::Lat,
            size: 8,
            iters: 1000,
            device: "emulated".to_owned(),
            errors: 0,
            latency: Some(Percentiles { p50_ns: 500.0, ..Percentiles::default() }),
            throughput: None,
            seconds: 1.0,
            depth: 1,
            qps: 1,
            batch: 1,
            region: "memfd".to_owned(),
            region_kind: "memfd".to_owned(),
            cpu: Some(1),
            nic_cpu: None,
            cache_line_ping_pong_ns: Some(250.0),
            ratio_to_ping_pong: Some(2.0),
            memcpy_gbit_per_s: None,
            percent_of_memcpy: None,
            interrupted: false,
            machine: Machine::read(),
        }
    }

    #[test]
    fn the_object_has_the_promised_fields() {
        let latency = serde_json::to_value(report()).unwrap();
        let common = ["op", "mode", "size", "iters", "device", "errors", "machine"];
        for field in common.iter().chain(&["p50_ns", "p99_ns", "p999_ns", "max_ns"]) {
            assert!(latency.get(field).is_some(), "{field} is missing");
        }
        for fact in ["kernel", "cpu", "governor", "clock_source"] {
            assert!(latency["machine"].get(fact).is_some(), "{fact} is missing");
        }
        assert_eq!((&latency["op"], &latency["mode"]), (&"write".into(), &"lat".into()));
        assert!(latency.get("mops").is_none());
        let throughput = Some(Throughput::new(2_000_000, 1000, 2.0));
        let bandwidth = Report { latency: None, throughput, mode: Mode::Bw, ..report() };
        let bandwidth = serde_json::to_value(bandwidth).unwrap();
        assert_eq!((&bandwidth["gbit_per_s"], &bandwidth["mops"]), (&8.0.into(), &1.0.into()));
        assert!(bandwidth.get("p50_ns").is_none());
    }

    #[test]
    fn the_table_names_the_ratio() {
        let table = report().table(Some("bars\n"));
        assert!(table.contains("250 ns round trip; p50 is 2.00 of it"), "{table}");
        assert!(table.ends_with("bars\n"));
    }

    #[test]
    fn no_time_is_no_throughput() {
        assert_eq!(Throughput::new(5, 8, 0.0).mops, 0.0);
    }
}
