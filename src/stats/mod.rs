//! What a running process does, for others to look at: counts and latencies, on a local socket.
//!
//! A [`Lane`] belongs to one thread, as a queue does, and counts what that thread does: operations,
//! bytes, errors, latencies. Counting is a plain load and store of memory that nobody else writes:
//! no lock, no atomic exchange, no system call. What is counted elsewhere anyway (an emulated
//! NIC's engine) is asked for only when somebody looks ([`Stats::source`]).
//!
//! [`Stats::serve`] puts all of it on a Unix socket in [`folder`], where `holdfast top` finds it; so
//! do `curl` and anything that reads Prometheus' text:
//!
//! ```text
//! curl --unix-socket /run/holdfast/PID.sock http://holdfast/metrics
//! curl --unix-socket /run/holdfast/PID.sock http://holdfast/json
//! ```
//!
//! ```
//! use holdfast::stats::Stats;
//!
//! let stats = Stats::new("my program");
//! let mut lane = stats.lane("receiver");
//! lane.done(32, 32 * 4096);
//! lane.latency_ns(1700);
//! assert!(stats.prometheus().contains("holdfast_operations_total{lane=\"receiver\"} 32"));
//! ```

mod buckets;
mod folder;
mod lane;
mod render;
mod serve;
mod turns;

use std::fmt;
use std::sync::{Arc, Mutex};
use std::time::Instant;

pub use folder::{folder, sockets};
pub use lane::Lane;
pub use render::{Distribution, LaneState, Snapshot};
pub use serve::{Server, fetch};
pub use turns::{TurnCounts, Turns};

use crate::lock::lock;
use lane::Counts;
use turns::Cells;

/// A count that somebody else keeps.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Counter {
    /// Its name, in the words of Prometheus: `nic_translation_misses`. `holdfast_` and `_total` are
    /// put around it.
    pub name: &'static str,
    /// What it counts, in a sentence.
    pub help: &'static str,
    /// What tells it from others of its name.
    pub labels: Vec<(&'static str, String)>,
    /// The count, which never goes down.
    pub value: u64,
}

/// Counts by name, oldest first.
type Named<T> = Vec<(String, Arc<T>)>;

type Source = Box<dyn Fn() -> Vec<Counter> + Send + Sync>;

/// The counts of a process. Cheap to clone; clones are the same.
#[derive(Clone)]
pub struct Stats {
    inner: Arc<Inner>,
}

struct Inner {
    command: String,
    started: Instant,
    lanes: Mutex<Named<Counts>>,
    turns: Mutex<Named<Cells>>,
    sources: Mutex<Vec<Source>>,
}

impl fmt::Debug for Stats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Stats").field("command", &self.inner.command).finish_non_exhaustive()
    }
}

impl Stats {
    /// For a process that is to be shown under this name. Coherence events of all its guards are
    /// counted from the beginning.
    pub fn new(command: impl Into<String>) -> Self {
        let inner = Inner {
            command: command.into(),
            started: Instant::now(),
            lanes: Mutex::default(),
            turns: Mutex::default(),
            sources: Mutex::new(Vec::new()),
        };
        let this = Self { inner: Arc::new(inner) };
        this.source(|| {
            let counts = crate::coherence::event_counts();
            let counter = |(kind, value): &(crate::coherence::EventKind, u64)| Counter {
                name: "coherence_events",
                help: "What became of regions whose files moved.",
                labels: vec![("event", kind.name().to_owned())],
                value: *value,
            };
            counts.iter().map(counter).collect()
        });
        this
    }

    /// A new lane, for the thread that does the work. Its counts stay when it is dropped, and the
    /// next of that name goes on with them. Where the name is in use, a number is put to it.
    /// Allocates.
    pub fn lane(&self, name: &str) -> Lane {
        Lane::over(claim(&self.inner.lanes, name))
    }

    /// New counts of a poll loop ([`crate::cores::PollLoop::count_in`]), named as lanes are. Allocates.
    pub fn turns(&self, name: &str) -> Turns {
        Turns::over(claim(&self.inner.turns, name))
    }

    /// Asks `source` for counts whenever somebody looks, on the thread that serves them. It may block
    /// for a moment.
    pub fn source(&self, source: impl Fn() -> Vec<Counter> + Send + Sync + 'static) {
        let mut sources = lock(&self.inner.sources);
        sources.push(Box::new(source));
    }

    /// Everything, as it is now.
    pub fn snapshot(&self) -> Snapshot {
        let lanes = lock(&self.inner.lanes).clone();
        let sources = lock(&self.inner.sources);
        let mut counters: Vec<_> = sources.iter().flat_map(|source| source()).collect();
        let turns = lock(&self.inner.turns).clone();
        counters.extend(turns.iter().flat_map(|(name, cells)| cells.counters(name)));
        let uptime = self.inner.started.elapsed();
        Snapshot::new(self.inner.command.clone(), uptime, &lanes, counters)
    }

    /// Everything, as Prometheus' text.
    pub fn prometheus(&self) -> String {
        self.snapshot().prometheus()
    }
}

/// The counts of that name, if nobody has them, or new ones: a number is put to a name that is in use.
fn claim<T: Default>(all: &Mutex<Named<T>>, name: &str) -> Arc<T> {
    let mut all = lock(all);
    let mut number = 1;
    let mut full = name.to_owned();
    loop {
        match all.iter().find(|(other, _)| *other == full) {
            // Counts that somebody has still got have their owner.
            Some((_, counts)) if Arc::strong_count(counts) > 1 => {
                number += 1;
                full = format!("{name} {number}");
            }
            Some((_, counts)) => return Arc::clone(counts),
            None => break,
        }
    }
    let counts = Arc::new(T::default());
    all.push((full, Arc::clone(&counts)));
    counts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lane_has_one_owner_and_its_counts_outlive_it() {
        let stats = Stats::new("test");
        let (mut first, mut second) = (stats.lane("a"), stats.lane("a"));
        first.done(1, 10);
        second.done(2, 20);
        let operations = || -> Vec<(String, u64)> {
            stats.snapshot().lanes.into_iter().map(|lane| (lane.name, lane.operations)).collect()
        };
        let lanes = |a, second| vec![("a".to_owned(), a), ("a 2".to_owned(), second)];
        assert_eq!(operations(), lanes(1, 2), "two owners, two lanes");
        drop(first);
        stats.lane("a").done(5, 0);
        assert_eq!(operations(), lanes(6, 2), "the next goes on with the first's");
    }

    #[test]
    fn turns_of_a_loop_are_among_the_counters() {
        let stats = Stats::new("test");
        let mut turns = stats.turns("cpu 1");
        [0, 3, 0, 0, 1].into_iter().for_each(|completions| turns.turn(completions));
        turns.took(2);
        let counts = TurnCounts { turns: 5, empty_turns: 3, completions: 6 };
        assert_eq!(turns.counts(), counts);
        let _other = stats.turns("cpu 1");
        let json = serde_json::to_value(stats.snapshot()).unwrap();
        let counted = |name: &str| json["counters"][name].as_u64();
        assert_eq!(counted("poll_turns{loop=cpu 1}"), Some(5));
        assert_eq!(counted("poll_empty_turns{loop=cpu 1}"), Some(3));
        assert_eq!(counted("poll_completions{loop=cpu 1}"), Some(6));
        assert_eq!(counted("poll_turns{loop=cpu 1 2}"), Some(0), "two owners, two loops");
    }

    #[test]
    fn sources_are_asked_when_somebody_looks() {
        use std::sync::atomic::{AtomicU64, Ordering};
        let stats = Stats::new("test");
        let asked = Arc::new(AtomicU64::new(0));
        let count = Arc::clone(&asked);
        stats.source(move || {
            let value = count.fetch_add(1, Ordering::Relaxed);
            vec![Counter { name: "looks", help: "Looks.", labels: Vec::new(), value }]
        });
        let looks =
            || stats.snapshot().counters.iter().find(|c| c.name == "looks").map(|c| c.value);
        assert_eq!((looks(), looks()), (Some(0), Some(1)));
    }
}
