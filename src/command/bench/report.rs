//! What measurements came to: one object for `--json`, which the other forms are made from too.

use holdfast::dma::RingMemory;
use holdfast::stats::TurnCounts;
use serde::Serialize;

use super::BenchOptions;
use super::baseline::Baseline;
use super::details::LatencyDetails;
use super::disturbance::Disturbance;
use super::measure::Measured;
use super::overhead::Overhead;
use super::plan::{Mode, Operation, Pace, Plan};
use super::throughput::progress::OverTime;
use crate::command::affinity::Placement;
use crate::command::clock::Clock;
use crate::command::cores::{self, Verdict};
use crate::command::histogram::Percentiles;
use crate::command::interrupt;
use crate::command::jitter::Jitter;
use crate::command::machine::Machine;

/// Version of the fields: raised when one changes its meaning or goes, not when one is added.
pub const SCHEMA_VERSION: u32 = 2;

/// All runs of one command. Field names are part of the command's interface.
#[derive(Debug, Serialize)]
pub struct Report {
    /// [`SCHEMA_VERSION`].
    pub schema_version: u32,
    /// The program and its version.
    pub program: String,
    /// When the first run began, in seconds since 1970.
    pub started: f64,
    /// What it ran on.
    pub machine: Machine,
    /// What the measuring loops read, and what that costs.
    pub clock: ClockFacts,
    /// Each run, in order: sizes in turns, and all of them as often as was asked.
    pub runs: Vec<Run>,
    /// Why there are no more runs, where something went wrong.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub failed: Option<String>,
}

/// The clock of the measuring loops.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct ClockFacts {
    /// `rdtsc`, where the processor's counter has one rate and never stops; else `clock_gettime`.
    pub name: &'static str,
    /// What one reading costs, in nanoseconds.
    pub reading_ns: f64,
}

impl ClockFacts {
    /// Measures them.
    pub fn of(clock: &Clock) -> Self {
        Self { name: clock.name(), reading_ns: clock.cost_ns() }
    }
}

/// The result of one run.
#[derive(Debug, Serialize)]
pub struct Run {
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
    /// Latencies (`lat`), of what `latency_of` says.
    #[serde(flatten)]
    pub latency: Option<Percentiles>,
    /// More of them (`lat`).
    #[serde(flatten)]
    pub more: Option<LatencyDetails>,
    /// Throughput (`bw`, `rate`).
    #[serde(flatten)]
    pub throughput: Option<Throughput>,
    /// That as it went (`bw`, `rate`).
    #[serde(flatten)]
    pub over_time: Option<OverTime>,
    /// Measured time in seconds.
    pub seconds: f64,
    /// When it began, in seconds since the report's `started`.
    pub began_s: f64,
    /// Outstanding operations per queue pair.
    pub depth: u32,
    /// Queue pairs.
    pub qps: u32,
    /// Operations per doorbell.
    pub batch: u32,
    /// Whether both ends sent (`bw`, `rate`).
    pub bidirectional: bool,
    /// Of 100 operations, so many read (`mixed`).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reads_percent: Option<u32>,
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
    /// `p50_ns` over that, in a closed loop.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ratio_to_ping_pong: Option<f64>,
    /// Speed of a plain copy of the same blocks by one thread (`bw`).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memcpy_gbit_per_s: Option<f64>,
    /// `gbit_per_s` in percent of that.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub percent_of_memcpy: Option<f64>,
    /// What the core alone does to a thread.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub jitter: Option<Jitter>,
    /// What costs latency on the measuring thread's processor, of the list of `holdfast cores`.
    pub core_costs: Vec<&'static str>,
    /// Whether the memory of the process was locked.
    pub memory_locked: bool,
    /// NUMA node of the measuring thread's processor, where it is bound to one and the kernel has NUMA.
    pub cpu_node: Option<u32>,
    /// What the queues lie in.
    pub rings: Option<Rings>,
    /// What the poll loop has counted while it measured (`bw`, `rate`).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub poll_loop: Option<TurnCounts>,
    /// What disturbed the measuring thread meanwhile.
    pub disturbance: Disturbance,
    /// What the measuring itself costs, measured on a null device.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub overhead: Option<Overhead>,
    /// Whether the run was cut short by a signal.
    pub interrupted: bool,
    /// Whether the other process has the result.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub elsewhere: bool,
    /// The latencies as bars of text. Of the latencies themselves a run keeps no more than this and
    /// its figures, so that however many runs there are, they fit.
    #[serde(skip)]
    pub drawing: Option<String>,
}

/// What the queues of the measuring end lie in.
#[derive(Debug, Serialize)]
pub struct Rings {
    /// Bytes.
    pub bytes: u64,
    /// `ordinary` (4 KiB), `transparent huge` or `hugetlb` (2 MiB).
    pub pages: &'static str,
    /// NUMA nodes they are on.
    pub nodes: Vec<u32>,
}

impl Rings {
    fn of(memory: &RingMemory) -> Self {
        let RingMemory { bytes, pages, nodes } = memory;
        Self { bytes: *bytes, pages: pages.name(), nodes: nodes.clone() }
    }
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

fn core_costs(cpu: usize) -> Vec<&'static str> {
    let checks = cores::checks(cpu).into_iter();
    checks.filter(|check| check.verdict == Verdict::Costs).map(|check| check.name).collect()
}

impl Run {
    /// Everything about one run.
    pub fn new(
        plan: &Plan,
        options: &BenchOptions,
        placement: Placement,
        baseline: &Baseline,
        measured: &Measured,
        began_s: f64,
    ) -> Self {
        let here = !measured.elsewhere;
        let timed = measured.timed.as_ref().filter(|_| here);
        let more =
            timed.map(|timed| LatencyDetails::new(plan, measured, timed, baseline.jitter.as_ref()));
        let latency = timed
            .filter(|timed| timed.recorded.all.len() > 0)
            .zip(more.as_ref())
            .map(|(timed, more)| timed.recorded.all.percentiles().scaled(more.latency_of.share()));
        let throughput = (plan.mode != Mode::Lat)
            .then(|| Throughput::new(measured.iters, plan.size, measured.seconds));
        // What waits for its turn has nothing to do with a cache line.
        let closed = latency.filter(|_| plan.pace == Pace::Closed);
        let ratio = closed.zip(baseline.cache_line_ns).map(|(l, line)| l.p50_ns / line);
        let moved = throughput.filter(|_| measured.iters > 0);
        let percent =
            moved.zip(baseline.memcpy_gbit_per_s).map(|(t, copy)| t.gbit_per_s / copy * 100.0);
        Self {
            op: plan.op,
            mode: plan.mode,
            size: plan.size,
            iters: measured.iters,
            device: options.endpoints.device.name(),
            errors: measured.errors,
            latency,
            more,
            throughput,
            over_time: measured.over_time.clone().filter(|_| here),
            seconds: measured.seconds,
            began_s,
            depth: plan.depth,
            qps: plan.qps,
            batch: plan.batch,
            bidirectional: plan.bidirectional,
            reads_percent: (plan.op == Operation::Mixed).then_some(plan.reads),
            region: options.region.to_string(),
            region_kind: measured.region_kind.clone(),
            cpu: placement.bench,
            nic_cpu: placement.nic,
            cache_line_ping_pong_ns: baseline.cache_line_ns,
            ratio_to_ping_pong: ratio,
            memcpy_gbit_per_s: baseline.memcpy_gbit_per_s,
            percent_of_memcpy: percent,
            jitter: baseline.jitter,
            core_costs: placement.bench.map_or_else(Vec::new, core_costs),
            memory_locked: options.lock_memory,
            cpu_node: measured.cpu_node,
            rings: measured.rings.as_ref().map(Rings::of),
            poll_loop: measured.poll_loop,
            disturbance: measured.disturbance.clone(),
            overhead: baseline.overhead,
            interrupted: interrupt::requested(),
            elsewhere: measured.elsewhere,
            drawing: timed.map(|timed| timed.recorded.all.draw()),
        }
    }

    /// Whether no operation came to its end, nor was kept waiting, in the part that counts: the run
    /// was cut short, or failed, before it began.
    pub fn measured_nothing(&self) -> bool {
        !self.elsewhere && self.iters == 0 && self.latency.is_none()
    }
}

#[cfg(test)]
pub mod tests {
    use std::time::{Duration, Instant};

    use super::super::latency::Timed;
    use super::super::recorder::{Recorded, Recorder};
    use super::*;

    /// A run of a second with 100 round trips: 1 us, 2 us and so on, one every 10 ms.
    pub fn run(size: usize) -> Run {
        round_trips(size, 100)
    }

    /// One that was cut short during the warm-up.
    pub fn empty() -> Run {
        Run { interrupted: true, ..round_trips(8, 0) }
    }

    /// What they are recorded as.
    pub fn recorded(count: u64) -> Recorded {
        use super::super::latency::virtual_time::VirtualTime;
        use crate::command::live;
        let time = VirtualTime::new();
        let mut recorder = Recorder::new(&time, Duration::from_secs(1), live::lane("test"), 8);
        recorder.start(0);
        (0..count).for_each(|at| recorder.record(at * 10_000_000 + 1, (at + 1) * 1000));
        recorder.finish()
    }

    /// What they are a run of.
    pub fn plan(size: usize) -> Plan {
        super::super::measure::tests::plan(Operation::Write, Mode::Lat, size, 1, 100)
    }

    /// So many of them.
    fn round_trips(size: usize, count: u64) -> Run {
        let timed = Timed { recorded: recorded(count), service: None, unfinished: 0 };
        let measured = Measured {
            began: Instant::now(),
            iters: count,
            seconds: 1.0,
            errors: 0,
            timed: Some(timed),
            phases: None,
            disturbance: Disturbance::default(),
            region_kind: "memfd".to_owned(),
            cpu_node: Some(0),
            rings: Some(RingMemory {
                bytes: 2 << 20,
                pages: holdfast::PageKind::TransparentHuge,
                nodes: vec![0],
            }),
            poll_loop: None,
            over_time: None,
            elsewhere: false,
            failed: None,
        };
        let baseline = Baseline { cache_line_ns: Some(250.0), ..Baseline::default() };
        let options = options(&["write", "lat"]);
        let placement = Placement { bench: Some(1), nic: None };
        Run::new(&plan(size), &options, placement, &baseline, &measured, 0.25)
    }

    /// What these arguments mean.
    pub fn options(args: &[&str]) -> BenchOptions {
        use clap::{Args as _, FromArgMatches as _};
        let command = BenchOptions::augment_args(clap::Command::new("bench").no_binary_name(true));
        BenchOptions::from_arg_matches(&command.get_matches_from(args)).unwrap()
    }

    /// A report of these runs.
    pub fn report(runs: Vec<Run>) -> Report {
        Report {
            schema_version: SCHEMA_VERSION,
            program: "holdfast test".to_owned(),
            started: 1_700_000_000.0,
            machine: Machine::read(),
            clock: ClockFacts { name: "rdtsc", reading_ns: 7.0 },
            runs,
            failed: None,
        }
    }

    #[test]
    fn the_object_has_the_promised_fields() {
        let json = serde_json::to_value(report(vec![run(8)])).unwrap();
        assert_eq!(json["schema_version"], 2);
        let run = &json["runs"][0];
        for field in ["op", "mode", "size", "iters", "device", "errors", "qps", "disturbance"] {
            assert!(run.get(field).is_some(), "{field} is missing");
        }
        for fact in ["kernel", "cpu", "governor", "clock_source"] {
            assert!(json["machine"].get(fact).is_some(), "{fact} is missing");
        }
        assert_eq!((&run["op"], &run["mode"]), (&"write".into(), &"lat".into()));
        assert!(run.get("mops").is_none());
        // Half and full, both labelled.
        assert_eq!(run["latency_of"], "half_round_trip");
        assert_eq!((&run["max_ns"], &run["round_trip"]["max_ns"]), (&5e4.into(), &1e5.into()));
        for field in ["p50_ns", "p9999_ns", "p99999_ns", "mean_ns", "stdev_ns"] {
            let (half, whole) = (run[field].as_f64(), run["round_trip"][field].as_f64());
            assert_eq!(half.map(|half| half * 2.0), whole, "{field}");
        }
        assert_eq!(run["slices"].as_array().map(Vec::len), Some(100));
        assert_eq!(run["slices"][99]["max_ns"], 5e4);
        assert_eq!(
            (run["worst"][0]["ns"].as_f64(), run["curve"][0][0].as_f64()),
            (Some(5e4), Some(0.0))
        );
        assert!((run["ratio_to_ping_pong"].as_f64().unwrap() - 100.0).abs() < 0.2, "{run}");
    }

    #[test]
    fn a_run_without_operations_has_no_percentiles() {
        let json = serde_json::to_value(empty()).unwrap();
        for field in ["p50_ns", "max_ns", "ratio_to_ping_pong", "round_trip"] {
            assert!(json.get(field).is_none(), "{field}: {json}");
        }
        assert!(empty().measured_nothing() && !run(8).measured_nothing());
        let report = report(Vec::new());
        let text = super::super::table::draw(&empty(), &report.clock, &report.machine);
        assert!(text.contains("nothing was measured") && !text.contains("0.00"), "{text}");
    }

    #[test]
    fn no_time_is_no_throughput() {
        assert_eq!(Throughput::new(5, 8, 0.0).mops, 0.0);
        let Throughput { gbit_per_s, mops } = Throughput::new(2_000_000, 1000, 2.0);
        assert_eq!((gbit_per_s, mops), (8.0, 1.0));
    }
}
