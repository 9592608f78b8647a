//! The command's own counts, for `holdfast top`: lanes for threads that measure, and whatever else
//! the command knows.

use std::sync::OnceLock;

use holdfast::stats::{Counter, Lane, Server, Stats, Turns, folder};
use holdfast_nic::NicProcess;

static STATS: OnceLock<Stats> = OnceLock::new();

/// The counts of this process.
pub fn stats() -> &'static Stats {
    STATS.get_or_init(|| {
        let words: Vec<String> = std::env::args().skip(1).collect();
        Stats::new(words.join(" "))
    })
}

/// A lane for the thread that does the work of the command.
pub fn lane(name: &str) -> Lane {
    stats().lane(name)
}

/// Counts for a poll loop of the command.
pub fn turns(name: &str) -> Turns {
    stats().turns(name)
}

/// Serves the counts until the server is dropped; a process that nobody can look at is no worse for
/// it.
pub fn serve() -> Option<Server> {
    let served = stats().serve(&folder());
    served.inspect_err(|error| tracing::debug!(%error, "counts are not served")).ok()
}

/// What the NICs of a process count: enough to see whether they are well.
pub fn nic_counters(nic: &NicProcess) -> Vec<Counter> {
    let Ok(report) = nic.report() else { return Vec::new() };
    let nics = report.nics.iter().enumerate();
    nics.flat_map(|(number, nic)| {
        let engine = &nic.engine;
        let counter = |name, help, value| {
            let labels = vec![("nic", number.to_string())];
            Counter { name, help, labels, value }
        };
        [
            counter("nic_completions", "Requests done.", engine.completions),
            counter("nic_error_completions", "Requests failed.", engine.error_completions),
            counter("nic_bytes_sent", "Bytes sent.", engine.bytes_sent),
            counter("nic_bytes_read", "Bytes read from peers.", engine.bytes_read),
            counter("nic_retries", "Requests sent again.", engine.retries),
            counter(
                "nic_translation_misses",
                "Accesses that found nothing behind an address.",
                engine.translation_misses,
            ),
            counter("nic_stalls", "Queue pairs that waited for a miss.", engine.stalls),
            counter("nic_stall_nanoseconds", "Time they waited.", engine.stall_ns),
        ]
    })
    .collect()
}
