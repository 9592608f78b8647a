//! What a storm comes to: counts, times, a table for people and JSON for programs.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use serde::Serialize;

use crate::canary::Look;
use crate::freed::Freed;
use crate::ledger::Totals;
use crate::operation::{FileSystem, Kind};

/// Times, of which order statistics are asked.
#[derive(Debug, Clone, Default)]
pub struct Times(Vec<Duration>);

/// Order statistics, in microseconds.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub struct Quantiles {
    pub count: usize,
    pub p50_us: f64,
    pub p99_us: f64,
    pub max_us: f64,
}

impl Times {
    /// One more.
    pub fn note(&mut self, time: Duration) {
        self.0.push(time);
    }

    /// Their order statistics.
    pub fn quantiles(&self) -> Quantiles {
        let mut sorted = self.0.clone();
        sorted.sort_unstable();
        let at = |part: f64| {
            let index = ((sorted.len() as f64 * part).ceil() as usize).saturating_sub(1);
            sorted.get(index).map_or(0.0, |time| time.as_nanos() as f64 / 1e3)
        };
        Quantiles { count: sorted.len(), p50_us: at(0.5), p99_us: at(0.99), max_us: at(1.0) }
    }
}

impl fmt::Display for Quantiles {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { p50_us, p99_us, max_us, .. } = self;
        write!(f, "{p50_us:10.0} {p99_us:10.0} {max_us:10.0}")
    }
}

/// One kind of operation.
#[derive(Debug, Clone, Default)]
pub struct Row {
    pub done: u64,
    /// Refused by the kernel, by errno.
    pub refused: BTreeMap<String, u64>,
    pub stall: Times,
}

/// A request that failed: in which break.
#[derive(Debug, Clone, Serialize)]
pub struct FailedIn {
    pub operation: String,
    pub failures: u64,
    /// The longest window of the breaks of that operation.
    pub window_us: f64,
}

/// What it came to.
#[derive(Debug, Clone)]
pub struct Figures {
    pub seed: u64,
    pub file_system: FileSystem,
    pub guarded: bool,
    pub notifiers: Vec<&'static str>,
    pub seconds: f64,
    pub steps: u64,
    pub rows: BTreeMap<Kind, Row>,
    pub to_scrap: Times,
    pub windows: Times,
    pub to_whole: Times,
    pub writes: u64,
    pub failed: u64,
    pub statuses: BTreeMap<String, u64>,
    pub reconnects: u64,
    /// Pages of the region that this process touched meanwhile.
    pub touched: u64,
    pub failed_in: Vec<FailedIn>,
    /// What the guard's thread asked of the allocator, once it was warm.
    pub allocations: u64,
    pub events: Totals,
    pub canaries: u64,
    pub look: Look,
    /// What the region's file gave up, and what of it the canaries got.
    pub freed: Freed,
    /// Where the time went, by what the storm was doing.
    pub spent: BTreeMap<&'static str, Duration>,
}

impl Figures {
    /// Operations that were carried out.
    pub fn operations(&self) -> u64 {
        self.rows.values().map(|row| row.done).sum()
    }

    /// For programs.
    pub fn json(&self) -> serde_json::Value {
        let rows: BTreeMap<&str, serde_json::Value> = self
            .rows
            .iter()
            .map(|(kind, row)| {
                let stall = row.stall.quantiles();
                let row = serde_json::json!({
                    "done": row.done, "refused": row.refused, "stall": stall,
                });
                (kind.name(), row)
            })
            .collect();
        let spent = self.spent.iter().map(|(what, time)| (*what, time.as_secs_f64()));
        let spent: BTreeMap<&str, f64> = spent.collect();
        serde_json::json!({
            "schema": 1,
            "seed": self.seed,
            "file_system": self.file_system,
            "guarded": self.guarded,
            "notifiers": self.notifiers,
            "seconds": self.seconds,
            "steps": self.steps,
            "operations": self.operations(),
            "by_kind": rows,
            "time_to_scrap": self.to_scrap.quantiles(),
            "window": self.windows.quantiles(),
            "time_to_whole": self.to_whole.quantiles(),
            "writes": self.writes,
            "failed_writes": self.failed,
            "failed_by_status": self.statuses,
            "failed_in": self.failed_in,
            "reconnects": self.reconnects,
            "touched_pages": self.touched,
            "guard_allocations": self.allocations,
            "events": self.events,
            "canaries": self.canaries,
            "compared_bytes": self.look.bytes,
            "foreign_bytes": self.look.foreign,
            "foreign_marks": self.look.marks,
            "freed_bytes": self.freed.given_up,
            "freed_bytes_in_canaries": self.freed.taken,
            "spent_s": spent,
        })
    }
}

impl fmt::Display for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let guard = if self.guarded { "guarded" } else { "NOT guarded" };
        writeln!(
            f,
            "seed {}, {:?}, {guard} ({}), {:.0} s, {} steps",
            self.seed,
            self.file_system,
            self.notifiers.join(", "),
            self.seconds,
            self.steps
        )?;
        writeln!(f, "                      done refused   stall us p50        p99        max")?;
        for (kind, row) in &self.rows {
            let refused: u64 = row.refused.values().sum();
            let (name, done) = (kind.name(), row.done);
            writeln!(f, "  {name:<18} {done:>6} {refused:>7}     {}", row.stall.quantiles())?;
        }
        for (name, times) in [
            ("to scrap", &self.to_scrap),
            ("window", &self.windows),
            ("end to whole again", &self.to_whole),
        ] {
            let quantiles = times.quantiles();
            writeln!(f, "  {name:<18} {:>6}             {quantiles}", quantiles.count)?;
        }
        let events = &self.events;
        writeln!(
            f,
            "  events: {} breaking, {} broken ({} repeats), {} restored, {} lost, {} merged; \
             causes {:?}; told by {:?}",
            events.breaking,
            events.broken,
            events.repeats,
            events.restored,
            events.lost,
            events.merged,
            events.causes,
            events.notifiers
        )?;
        let rate = self.writes as f64 / self.seconds.max(0.001);
        writeln!(
            f,
            "  writes: {} ({rate:.0}/s), {} failed {:?}, {} reconnects; {} pages touched meanwhile",
            self.writes, self.failed, self.statuses, self.reconnects, self.touched
        )?;
        for FailedIn { operation, failures, window_us } in &self.failed_in {
            writeln!(f, "    {failures} failed in {operation}, window {window_us:.0} us")?;
        }
        write!(f, "  time spent:")?;
        for (what, time) in &self.spent {
            write!(f, " {what} {:.1} s", time.as_secs_f64())?;
        }
        writeln!(f)?;
        writeln!(
            f,
            "  {} canaries, {} bytes compared: {} foreign bytes, {} of the peer's words; of {} bytes \
             that the file gave up, {} were in a canary at once",
            self.canaries,
            self.look.bytes,
            self.look.foreign,
            self.look.marks,
            self.freed.given_up,
            self.freed.taken
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_of_real_samples() {
        let mut times = Times::default();
        assert_eq!(times.quantiles().max_us, 0.0);
        for us in 1..=100 {
            times.note(Duration::from_micros(us));
        }
        let q = times.quantiles();
        assert_eq!((q.count, q.p50_us, q.p99_us, q.max_us), (100, 50.0, 99.0, 100.0));
    }
}
