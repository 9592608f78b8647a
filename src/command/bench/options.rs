//! What `holdfast bench` can be asked for, and which combinations make sense.

use std::time::Duration;

use clap::{Args, ValueEnum};
use holdfast_dax::Source;
use serde::Serialize;

use crate::command::endpoints::{EndpointOptions, LARGEST_MESSAGE};
use crate::command::parse;

/// What to measure.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Operation {
    /// RDMA WRITE
    Write,
    /// RDMA READ
    Read,
    /// SEND into a posted receive
    Send,
    /// atomic compare and swap, 8 bytes
    Cas,
    /// atomic fetch and add, 8 bytes
    Faa,
}

impl Operation {
    /// Its name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Write => "write",
            Self::Read => "read",
            Self::Send => "send",
            Self::Cas => "cas",
            Self::Faa => "faa",
        }
    }

    /// Whether it is an atomic.
    pub fn is_atomic(self) -> bool {
        matches!(self, Self::Cas | Self::Faa)
    }
}

/// How to measure it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// latency: one at a time, each timed
    Lat,
    /// bandwidth: many outstanding, large
    Bw,
    /// operations per second: many outstanding, small, in batches
    Rate,
}

impl Mode {
    /// Its name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Lat => "lat",
            Self::Bw => "bw",
            Self::Rate => "rate",
        }
    }
}

const EXAMPLES: &str = "\
Examples:
  holdfast bench write lat                      8-byte RDMA WRITE latency, emulated NIC
  holdfast bench read bw --size 1M              READ bandwidth with 1 MiB messages
  holdfast bench write rate --batch 32 --json   operations a second, for a program to read
  holdfast bench write lat --region /data/scratch:0+2M
                                                into a file, which is overwritten

Two processes, each with a NIC of its own (see 'holdfast nic --help') and otherwise the same
arguments:
  holdfast bench send lat --device vfio-user:/tmp/a.sock --server 127.0.0.1:18515
  holdfast bench send lat --device vfio-user:/tmp/b.sock --connect 127.0.0.1:18515

Latency of write and send is half of a round trip: one side writes, the other sees its memory
change and writes back. Latency of read, cas and faa is from posting to completion.

A device that carries out only SEND and RECV (QEMU 7.2's own pvrdma) can be measured with send.";

/// Arguments of `holdfast bench`.
#[derive(Debug, Clone, Args)]
#[command(after_help = EXAMPLES)]
pub struct BenchOptions {
    /// What to measure
    #[arg(value_name = "OP")]
    pub op: Operation,

    /// How to measure it
    #[arg(value_name = "MODE")]
    pub mode: Mode,

    #[command(flatten)]
    pub endpoints: EndpointOptions,

    /// Bytes of each operation, K and M allowed [default: 8; for bw 64K]
    #[arg(long, value_parser = parse::size)]
    pub size: Option<usize>,

    /// Stop after this many operations
    #[arg(long, conflicts_with = "duration", value_parser = clap::value_parser!(u64).range(1..))]
    pub iters: Option<u64>,

    /// Stop after this many seconds [default: 2]
    #[arg(long, value_name = "SECONDS", value_parser = parse::seconds)]
    pub duration: Option<Duration>,

    /// Operations outstanding on each queue pair [default: 1 for lat, 128 for bw and rate]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=16384))]
    pub depth: Option<u32>,

    /// Queue pairs, served in turns by the one measuring thread
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub qps: u32,

    /// Operations posted with one doorbell [default: 1 for lat, 8 for bw, 32 for rate]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=16384))]
    pub batch: Option<u32>,

    /// Memory the peer reaches, which is overwritten: anon, memfd, hugetlb or [fsdax:]FILE[:OFFSET+LEN]
    #[arg(long, default_value = "memfd", value_name = "SOURCE")]
    pub region: Source,

    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
}

/// A combination that makes sense, every value filled in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Plan {
    /// What.
    pub op: Operation,
    /// How.
    pub mode: Mode,
    /// Bytes of each operation.
    pub size: usize,
    /// Operations outstanding on each queue pair.
    pub depth: u32,
    /// Queue pairs.
    pub qps: u32,
    /// Operations per doorbell.
    pub batch: u32,
    /// When to stop.
    pub stop: Stop,
}

/// When a measurement ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stop {
    /// After so many operations.
    Iterations(u64),
    /// After so long.
    Time(Duration),
}

impl BenchOptions {
    /// Checks the combination and fills in what was not given.
    pub fn plan(&self) -> Result<Plan, String> {
        let (op, mode) = (self.op, self.mode);
        let lat = mode == Mode::Lat;
        let natural = if mode == Mode::Bw && !op.is_atomic() { 64 << 10 } else { 8 };
        let size = self.size.unwrap_or(natural);
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
        let depth = self.depth.unwrap_or(if lat { 1 } else { 128 });
        let batch = self.batch.unwrap_or_else(|| match mode {
            Mode::Lat => 1,
            Mode::Bw => 8.min(depth),
            Mode::Rate => 32.min(depth),
        });
        if lat && (depth != 1 || batch != 1 || self.qps != 1) {
            return Err(
                "lat has one operation under way at a time; --depth, --batch and --qps are for \
                 bw and rate"
                    .to_owned(),
            );
        }
        if batch > depth {
            return Err(format!("--batch {batch} cannot be posted with --depth {depth}"));
        }
        let stop = match (self.iters, self.duration) {
            (Some(iters), _) => Stop::Iterations(iters),
            (None, duration) => Stop::Time(duration.unwrap_or(Duration::from_secs(2))),
        };
        Ok(Plan { op, mode, size, depth, qps: self.qps, batch, stop })
    }
}

impl Plan {
    /// What both sides must agree on.
    pub fn purpose(&self) -> String {
        let stop = match self.stop {
            Stop::Iterations(iters) => format!("iters {iters}"),
            Stop::Time(time) => format!("duration {}", time.as_secs_f64()),
        };
        format!(
            "bench {} {} size {} depth {} qps {} batch {} {stop}",
            self.op.name(),
            self.mode.name(),
            self.size,
            self.depth,
            self.qps,
            self.batch
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_sides_must_agree_on_all_of_the_plan() {
        let plan = Plan {
            op: Operation::Send,
            mode: Mode::Rate,
            size: 8,
            depth: 128,
            qps: 2,
            batch: 32,
            stop: Stop::Iterations(1000),
        };
        let others = [
            Plan { op: Operation::Write, ..plan },
            Plan { mode: Mode::Bw, ..plan },
            Plan { size: 9, ..plan },
            Plan { depth: 64, ..plan },
            Plan { qps: 1, ..plan },
            Plan { batch: 8, ..plan },
            Plan { stop: Stop::Iterations(1001), ..plan },
            Plan { stop: Stop::Time(Duration::from_secs(2)), ..plan },
            Plan { stop: Stop::Time(Duration::from_millis(2500)), ..plan },
        ];
        for (i, other) in others.iter().enumerate() {
            assert_ne!(other.purpose(), plan.purpose());
            for earlier in &others[..i] {
                assert_ne!(other.purpose(), earlier.purpose());
            }
        }
    }
}
