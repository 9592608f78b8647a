//! What one measurement does: a combination that makes sense, every value filled in.

use std::time::Duration;

use clap::ValueEnum;
use serde::Serialize;

use super::latency::echo;

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
    /// RDMA READs and WRITEs, in the proportion of --reads
    Mixed,
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
            Self::Mixed => "mixed",
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
    /// latency: each operation timed, one at a time or at a --rate
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

/// Until when an operation counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Until {
    /// until the peer's answer is here: a round trip
    Echo,
    /// until its completion is here
    Completion,
}

/// When the next operation starts.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Pace {
    /// When the one before is done.
    Closed,
    /// At so many a second, whatever becomes of those before.
    Open(f64),
}

/// When a measurement ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stop {
    /// After so many operations.
    Iterations(u64),
    /// After so long.
    Time(Duration),
}

/// A combination that makes sense.
#[derive(Debug, Clone, Copy, PartialEq)]
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
    /// When the next one starts (`lat`).
    pub pace: Pace,
    /// What ends an operation (`lat`).
    pub until: Until,
    /// Whether both ends send at the same time (`bw`, `rate`).
    pub bidirectional: bool,
    /// Of 100 operations of a mix, so many read.
    pub reads: u32,
}

impl Plan {
    /// Version of what two processes do together, where they must do the same.
    const VERSION: u32 = 2;

    /// Whether the peer answers each operation.
    pub fn echoes(&self) -> bool {
        self.mode == Mode::Lat && self.until == Until::Echo
    }

    /// Whether the passive end must work as well, and count.
    pub fn both_work(&self) -> bool {
        self.echoes() || self.op == Operation::Send || self.bidirectional
    }

    /// Sends that may be outstanding on a queue pair.
    pub fn send_depth(&self) -> u32 {
        if self.echoes() { echo::send_depth(self.depth) } else { self.depth }
    }

    /// Receives that each end keeps posted on a queue pair.
    pub fn recv_depth(&self) -> u32 {
        match self.op {
            Operation::Send => 2 * self.depth.max(32),
            _ => 1,
        }
    }

    /// How long it will take, where that is known.
    pub fn duration(&self) -> Option<Duration> {
        match (self.stop, self.pace) {
            (Stop::Time(time), _) => Some(time),
            (Stop::Iterations(iters), Pace::Open(rate)) => {
                Some(Duration::from_secs_f64((iters as f64 / rate).min(1e9)))
            }
            (Stop::Iterations(_), Pace::Closed) => None,
        }
    }

    /// What both sides must agree on.
    pub fn purpose(&self) -> String {
        let stop = match self.stop {
            Stop::Iterations(iters) => format!("iters {iters}"),
            Stop::Time(time) => format!("duration {}", time.as_secs_f64()),
        };
        let mut text = format!(
            "bench {} {} size {} depth {} qps {} batch {} {stop}",
            self.op.name(),
            self.mode.name(),
            self.size,
            self.depth,
            self.qps,
            self.batch,
        );
        if let Pace::Open(rate) = self.pace {
            text += &format!(" at {rate}/s");
        }
        if self.mode == Mode::Lat && self.until == Until::Completion {
            text += " until completion";
        }
        if self.bidirectional {
            text += " bidirectional";
        }
        if self.op == Operation::Mixed {
            text += &format!(" reads {} %", self.reads);
        }
        text + &format!(" (bench protocol {})", Self::VERSION)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_sides_must_agree_on_all_of_the_plan() {
        let plan = Plan {
            op: Operation::Mixed,
            mode: Mode::Lat,
            size: 8,
            depth: 128,
            qps: 2,
            batch: 32,
            stop: Stop::Iterations(1000),
            pace: Pace::Closed,
            until: Until::Completion,
            bidirectional: false,
            reads: 50,
        };
        let others = [
            plan,
            Plan { op: Operation::Write, ..plan },
            Plan { mode: Mode::Bw, ..plan },
            Plan { size: 9, ..plan },
            Plan { depth: 64, ..plan },
            Plan { qps: 1, ..plan },
            Plan { batch: 8, ..plan },
            Plan { stop: Stop::Iterations(1001), ..plan },
            Plan { stop: Stop::Time(Duration::from_secs(2)), ..plan },
            Plan { stop: Stop::Time(Duration::from_millis(2500)), ..plan },
            Plan { pace: Pace::Open(1e4), ..plan },
            Plan { pace: Pace::Open(2e4), ..plan },
            Plan { until: Until::Echo, ..plan },
            Plan { bidirectional: true, ..plan },
            Plan { reads: 51, ..plan },
        ];
        for (i, other) in others.iter().enumerate() {
            for earlier in &others[..i] {
                assert_ne!(other.purpose(), earlier.purpose());
            }
        }
    }
}
