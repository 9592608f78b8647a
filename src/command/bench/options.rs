//! What `holdfast bench` can be asked for, and which combinations make sense.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand};
use holdfast_dax::Source;

use super::compare::CompareOptions;
use super::layout::Layout;
use super::plan::{Mode, Operation, Pace, Plan, Stop, Until};
use crate::command::endpoints::{EndpointOptions, LARGEST_MESSAGE};
use crate::command::parse;

/// Largest region that tests use: what one registration can have.
const LARGEST_REGION: usize = 2 * LARGEST_MESSAGE;
/// How long to measure, where nothing is said.
const DURATION: Duration = Duration::from_secs(2);
/// Operations outstanding on a queue pair in an open loop, where memory allows.
const OPEN_DEPTH: u32 = 32;
/// Memory that the slots of an open loop may take by default, in bytes.
const OPEN_FOOTPRINT: usize = 64 << 20;

const EXAMPLES: &str = "\
Examples:
  holdfast bench write lat                      8-byte RDMA WRITE latency, emulated NIC
  holdfast bench write lat --rate 100K          the same at 100,000 a second, whatever happens
  holdfast bench read bw --size 4K,64K,1M       READ bandwidth by size
  holdfast bench mixed bw --reads 70 --bidirectional
                                                reads and writes, both ways
  holdfast bench write rate --batch 32 --json   operations a second, for a program to read
  holdfast bench write lat --html report.html --hdr latencies.hlog
                                                a report for the browser, a log for other tools
  holdfast bench write lat --repeat 5 --json >before.json
  holdfast bench compare before.json after.json five runs each, and whether they differ
  holdfast bench write lat --region /data/scratch:0+2M
                                                into a file, which is overwritten

Two processes, each with a NIC of its own (see 'holdfast nic --help') and otherwise the same
arguments:
  holdfast bench send lat --device vfio-user:/tmp/a.sock --server 127.0.0.1:18515
  holdfast bench send lat --device vfio-user:/tmp/b.sock --connect 127.0.0.1:18515

Latency of write and send is half of a round trip: one side writes, the other sees its memory
change and writes back. Latency of read, cas and faa is from posting to completion. With --rate it
is the whole round trip, from the time at which it was meant to start.

Each result stands beside what the measuring thread's processor does to a thread that only reads the
clock, which is looked at for an eighth of the time before the NIC starts (0.1 s to 2 s), and beside
what the measuring itself costs, from the same loop on a device that is done at once: for bw and rate
that is also the highest rate that could be measured.

A device that carries out only SEND and RECV (QEMU 7.2's own pvrdma) can be measured with send.";

/// Arguments of `holdfast bench`.
#[derive(Debug, Clone, Args)]
#[command(after_help = EXAMPLES, args_conflicts_with_subcommands = true)]
#[command(subcommand_negates_reqs = true)]
pub struct BenchCommand {
    /// What else it does.
    #[command(subcommand)]
    pub other: Option<Other>,

    /// What it measures.
    #[command(flatten)]
    pub measure: BenchOptions,
}

/// What `holdfast bench` does beside measuring.
#[derive(Debug, Clone, Subcommand)]
pub enum Other {
    /// Say whether two measurements (files of --json) differ by more than their noise
    Compare(CompareOptions),
}

/// What to measure.
#[derive(Debug, Clone, Args)]
pub struct BenchOptions {
    /// What to measure
    #[arg(value_name = "OP", required = true)]
    pub op: Option<Operation>,

    /// How to measure it
    #[arg(value_name = "MODE", required = true)]
    pub mode: Option<Mode>,

    /// Where.
    #[command(flatten)]
    pub endpoints: EndpointOptions,

    /// Bytes of each operation, K and M allowed; several, one run each [default: 8; for bw 64K]
    #[arg(long = "size", value_name = "SIZES", value_delimiter = ',', value_parser = parse::size)]
    pub sizes: Vec<usize>,

    /// Stop after this many operations
    #[arg(long, conflicts_with = "duration", value_parser = clap::value_parser!(u64).range(1..))]
    pub iters: Option<u64>,

    /// Stop after this many seconds [default: 2]
    #[arg(long, value_name = "SECONDS", value_parser = parse::seconds)]
    pub duration: Option<Duration>,

    /// lat: start operations at this rate, K and M allowed, whatever becomes of those before (an
    /// open loop) [default: start one when the one before is done]
    #[arg(long, value_name = "PER_SECOND", value_parser = parse::rate)]
    pub rate: Option<f64>,

    /// lat of write: count until the peer's answer is here, or until the completion is
    #[arg(long, value_enum, value_name = "END")]
    pub until: Option<Until>,

    /// Operations outstanding on each queue pair [default: 1 for lat, 32 at most for lat at a
    /// --rate, 128 for bw and rate]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=16384))]
    pub depth: Option<u32>,

    /// Queue pairs, served in turns by the one measuring thread
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub qps: u32,

    /// Operations posted with one doorbell [default: 1 for lat, 8 for bw, 32 for rate]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=16384))]
    pub batch: Option<u32>,

    /// bw, rate: both ends send at the same time
    #[arg(long)]
    pub bidirectional: bool,

    /// mixed: so many of 100 operations read, the others write [default: 50]
    #[arg(long, value_name = "PERCENT", value_parser = clap::value_parser!(u32).range(0..=100))]
    pub reads: Option<u32>,

    /// Measure so many times, each with ends and a NIC of its own
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub repeat: u32,

    /// Memory the peer reaches, which is overwritten: anon, memfd, hugetlb or [fsdax:]FILE[:OFFSET+LEN]
    #[arg(long, default_value = "memfd", value_name = "SOURCE")]
    pub region: Source,

    /// Lock all memory of this process (mlockall), so that none is ever away
    #[arg(long)]
    pub lock_memory: bool,

    /// Write a report for the browser to this file: all figures, and plots of the latencies, or of
    /// bandwidth and rate, over time
    #[arg(long, value_name = "FILE")]
    pub html: Option<PathBuf>,

    /// lat: write the latencies to this file, as an HdrHistogram log (V2, in nanoseconds)
    #[arg(long, value_name = "FILE")]
    pub hdr: Option<PathBuf>,

    /// Print one JSON object
    #[arg(long)]
    pub json: bool,

    /// Print the lines that perftest prints, for scripts that read those
    #[arg(long, conflicts_with = "json")]
    pub perftest_compat: bool,
}

impl BenchOptions {
    /// Checks the combination and fills in what was not given: a plan for each size.
    pub fn plans(&self) -> Result<Vec<Plan>, String> {
        let (Some(op), Some(mode)) = (self.op, self.mode) else {
            return Err("say what to measure: <OP> <MODE>".to_owned());
        };
        if self.html.is_some() && self.html == self.hdr {
            return Err("--html and --hdr name the same file".to_owned());
        }
        let natural = if mode == Mode::Bw && !op.is_atomic() { 64 << 10 } else { 8 };
        let sizes = if self.sizes.is_empty() { &[natural][..] } else { &self.sizes };
        sizes.iter().map(|size| self.plan(op, mode, *size)).collect()
    }

    fn plan(&self, op: Operation, mode: Mode, size: usize) -> Result<Plan, String> {
        let lat = mode == Mode::Lat;
        if op.is_atomic() && size != 8 {
            return Err(format!("{} works on 8 bytes; leave --size {size} away", op.name()));
        }
        if size == 0 {
            return Err("--size 0 moves nothing that could be measured; give at least 1".to_owned());
        }
        if size > LARGEST_MESSAGE {
            return Err(format!(
                "--size {size}: a buffer to send from and one to receive into share a memory \
                 region of at most 1 GiB; give at most 512M"
            ));
        }
        let only = |what: &str, right: bool| match right {
            true => Ok(()),
            false => Err(format!("{what}; see 'holdfast bench --help'")),
        };
        only("--rate is for lat", self.rate.is_none() || lat)?;
        only("--hdr is for lat", self.hdr.is_none() || lat)?;
        only("--bidirectional is for bw and rate", !self.bidirectional || !lat)?;
        only("--until is for write lat", self.until.is_none() || lat && op == Operation::Write)?;
        only("--reads is for mixed", self.reads.is_none() || op == Operation::Mixed)?;
        let open = self.rate.is_some();
        let room = OPEN_FOOTPRINT / size.next_multiple_of(64);
        let depth = self.depth.unwrap_or(match (lat, open) {
            (true, true) => OPEN_DEPTH.min(room as u32).max(1),
            (true, false) => 1,
            (false, _) => 128,
        });
        let batch = self.batch.unwrap_or_else(|| match mode {
            Mode::Lat => 1,
            Mode::Bw => 8.min(depth),
            Mode::Rate => 32.min(depth),
        });
        if lat && (batch != 1 || depth != 1 && !open) {
            return Err(
                "lat has one operation under way at a time, or with --rate up to --depth, each with \
                 a doorbell of its own; --batch is for bw and rate"
                    .to_owned(),
            );
        }
        if batch > depth {
            return Err(format!("--batch {batch} cannot be posted with --depth {depth}"));
        }
        let until = match (op, self.until) {
            (Operation::Write, until) => until.unwrap_or(Until::Echo),
            (Operation::Send, _) => Until::Echo,
            _ => Until::Completion,
        };
        let stop = match (self.iters, self.duration, self.rate) {
            (Some(iters), ..) => Stop::Iterations(iters),
            (None, duration, Some(rate)) => {
                let seconds = duration.unwrap_or(DURATION).as_secs_f64();
                Stop::Iterations((rate * seconds).max(1.0) as u64)
            }
            (None, duration, None) => Stop::Time(duration.unwrap_or(DURATION)),
        };
        let plan = Plan {
            op,
            mode,
            size,
            depth,
            qps: self.qps,
            batch,
            stop,
            pace: self.rate.map_or(Pace::Closed, Pace::Open),
            until,
            bidirectional: self.bidirectional,
            reads: self.reads.unwrap_or(50),
        };
        let bytes = Layout::new(&plan).bytes();
        if bytes > LARGEST_REGION {
            return Err(format!(
                "{depth} operations of {size} bytes on each of {} queue pairs need {bytes} bytes of \
                 memory on each side, and a region has at most 1 GiB; give a smaller --depth, --qps \
                 or --size",
                self.qps
            ));
        }
        Ok(plan)
    }
}
