//! `holdfast top`: what the running processes do, from the counts that each serves on its socket
//! ([`holdfast::stats`]).

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::IsTerminal as _;
use std::path::Path;
use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use clap::Args;
use holdfast::stats::{LaneState, fetch, folder, sockets};
use serde::{Deserialize, Serialize};

use super::histogram::human_ns;
use super::{interrupt, parse, print};

/// Longest name of a command that is shown.
const COMMAND: usize = 46;

const EXAMPLES: &str = "\
Examples:
  holdfast top                        every second, until Ctrl-C
  holdfast top --interval 5 --count 1 once, over five seconds
  holdfast top --json | jq .processes one object each time
  curl --unix-socket /run/holdfast/PID.sock http://holdfast/metrics
                                      what Prometheus reads, of one process

Sockets are in $HOLDFAST_STATS_DIR, or holdfast in $XDG_RUNTIME_DIR, or /run/holdfast for root, or
/tmp/holdfast-UID; each user sees his own processes.";

/// Arguments of `holdfast top`.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct TopOptions {
    /// Time between two looks
    #[arg(long, value_name = "SECONDS", default_value = "1", value_parser = parse::seconds)]
    interval: Duration,

    /// End after so many
    #[arg(long, value_name = "N")]
    count: Option<u64>,

    /// Print one JSON object each time
    #[arg(long)]
    json: bool,
}

/// What a process says of itself.
#[derive(Debug, Clone, Deserialize)]
struct State {
    pid: u32,
    command: String,
    uptime_s: f64,
    lanes: Vec<LaneState>,
    counters: BTreeMap<String, u64>,
}

/// What came of it between two looks.
#[derive(Debug, Serialize)]
struct Process {
    pid: u32,
    command: String,
    lanes: Vec<Lane>,
    counters: Vec<Count>,
}

/// A lane between two looks.
#[derive(Debug, Serialize)]
struct Lane {
    name: String,
    operations_per_s: f64,
    gbit_per_s: f64,
    errors_per_s: f64,
    /// Of the latencies between the two, to an eighth; none where none were measured.
    #[serde(skip_serializing_if = "Option::is_none")]
    latency: Option<Latency>,
}

#[derive(Debug, Serialize)]
struct Latency {
    p50_ns: u64,
    p99_ns: u64,
    p999_ns: u64,
    max_ns: u64,
}

/// A count that is not 0.
#[derive(Debug, Serialize)]
struct Count {
    name: String,
    value: u64,
    per_s: f64,
}

#[derive(Debug, Serialize)]
struct Look {
    schema_version: u32,
    seconds: f64,
    processes: Vec<Process>,
}

/// Looks again and again.
pub fn run(options: &TopOptions) -> anyhow::Result<ExitCode> {
    let folder = folder();
    let on_screen = std::io::stdout().is_terminal() && !options.json;
    let (mut before, mut at) = (states(&folder), Instant::now());
    let mut left = options.count.unwrap_or(u64::MAX);
    while left > 0 {
        let next = at + options.interval;
        while Instant::now() < next {
            if interrupt::requested() {
                return Ok(ExitCode::SUCCESS);
            }
            thread::sleep((next - Instant::now().min(next)).min(Duration::from_millis(50)));
        }
        let (now, seen) = (Instant::now(), states(&folder));
        let seconds = (now - at).as_secs_f64();
        let processes = seen.values().map(|state| between(before.get(&state.pid), state, seconds));
        let look = Look { schema_version: 1, seconds, processes: processes.collect() };
        if options.json {
            print(format_args!("{}\n", serde_json::to_string(&look)?))?;
        } else {
            let clear = if on_screen { "\x1b[H\x1b[2J" } else { "" };
            print(format_args!("{clear}{}", draw(&look, &folder)))?;
        }
        (before, at) = (seen, now);
        left -= 1;
    }
    Ok(ExitCode::SUCCESS)
}

/// All processes that answer.
fn states(folder: &Path) -> BTreeMap<u32, State> {
    let state = |path: &Path| -> anyhow::Result<State> {
        serde_json::from_str(&fetch(path)?).context("it does not speak as we do")
    };
    let found = sockets(folder).into_iter().filter_map(|(pid, path)| {
        let state = state(&path).inspect_err(|error| {
            tracing::debug!(path = %path.display(), %error, "not shown");
        });
        Some((pid, state.ok()?))
    });
    found.collect()
}

/// What came between two states, or in all the time of a process that was not there before.
fn between(before: Option<&State>, now: &State, seconds: f64) -> Process {
    // The same number may be another process by now.
    let before = before.filter(|before| before.uptime_s <= now.uptime_s);
    let seconds = if before.is_some() { seconds } else { now.uptime_s.min(seconds) }.max(1e-9);
    let lanes = now.lanes.iter().map(|lane| {
        let earlier = before.and_then(|b| b.lanes.iter().find(|other| other.name == lane.name));
        let per_s = |value: fn(&LaneState) -> u64| {
            value(lane).saturating_sub(earlier.map_or(0, value)) as f64 / seconds
        };
        let latency =
            earlier.map_or_else(|| lane.latency.clone(), |e| lane.latency.since(&e.latency));
        Lane {
            name: lane.name.clone(),
            operations_per_s: per_s(|lane| lane.operations),
            gbit_per_s: per_s(|lane| lane.bytes) * 8.0 / 1e9,
            errors_per_s: per_s(|lane| lane.errors),
            latency: (latency.count > 0).then(|| Latency {
                p50_ns: latency.quantile_ns(0.5),
                p99_ns: latency.quantile_ns(0.99),
                p999_ns: latency.quantile_ns(0.999),
                max_ns: latency.quantile_ns(1.0),
            }),
        }
    });
    let counters = now.counters.iter().filter(|(_, value)| **value > 0).map(|(name, value)| {
        let earlier = before.and_then(|before| before.counters.get(name)).copied().unwrap_or(0);
        let per_s = value.saturating_sub(earlier) as f64 / seconds;
        Count { name: name.clone(), value: *value, per_s }
    });
    let (lanes, counters) = (lanes.collect(), counters.collect());
    Process { pid: now.pid, command: now.command.clone(), lanes, counters }
}

fn draw(look: &Look, folder: &Path) -> String {
    if look.processes.is_empty() {
        return format!("no holdfast process has its counts in {}\n", folder.display());
    }
    let mut text = format!(
        "{:>8}  {:<COMMAND$} {:>12} {:>9} {:>9} {:>9} {:>9} {:>9}\n",
        "pid",
        "command, and its threads that count",
        "per s",
        "Gbit/s",
        "p50",
        "p99",
        "p99.9",
        "max"
    );
    for process in &look.processes {
        let command: String = process.command.chars().take(COMMAND).collect();
        let _ = writeln!(text, "{:>8}  {command}", process.pid);
        for lane in &process.lanes {
            let times = lane.latency.as_ref().map_or_else(String::new, |l| {
                let times = [l.p50_ns, l.p99_ns, l.p999_ns, l.max_ns];
                times.iter().map(|ns| format!(" {:>9}", human_ns(*ns as f64))).collect()
            });
            let errors = match lane.errors_per_s > 0.0 {
                true => format!("  {:.0} errors a second", lane.errors_per_s),
                false => String::new(),
            };
            let _ = writeln!(
                text,
                "{:>8}    {:<44} {:>12.0} {:>9.3}{times}{errors}",
                "", lane.name, lane.operations_per_s, lane.gbit_per_s
            );
        }
        for count in &process.counters {
            let _ = writeln!(
                text,
                "{:>8}    {:<44} {:>12.0}           ({} so far)",
                "", count.name, count.per_s, count.value
            );
        }
    }
    text + "\n"
}

#[cfg(test)]
mod tests {
    use holdfast::stats::Stats;

    use super::*;

    fn state(stats: &Stats, uptime_s: f64) -> State {
        let json = serde_json::to_string(&stats.snapshot()).unwrap();
        State { uptime_s, ..serde_json::from_str(&json).unwrap() }
    }

    #[test]
    fn rates_and_latencies_are_of_the_time_between_two_looks() {
        let stats = Stats::new("bench write lat");
        let mut lane = stats.lane("measuring");
        lane.done(1000, 8000);
        lane.latency_ns(5_000_000);
        let before = state(&stats, 10.0);
        lane.done(500, 1_000_000_000);
        (0..500).for_each(|_| lane.latency_ns(200));
        let now = state(&stats, 12.0);
        let process = between(Some(&before), &now, 2.0);
        let lane = &process.lanes[0];
        assert_eq!((lane.operations_per_s, lane.gbit_per_s), (250.0, 4.0));
        assert!(lane.latency.as_ref().unwrap().max_ns < 230, "{lane:?}");
        // Another process by the same number: all that it has done counts.
        let process = between(Some(&State { uptime_s: 99.0, ..before }), &now, 15.0);
        assert_eq!(process.lanes[0].operations_per_s, 1500.0 / 12.0);
        let look = Look { schema_version: 1, seconds: 2.0, processes: vec![process] };
        let text = draw(&look, Path::new("/x"));
        assert!(text.contains("bench write lat") && text.contains("measuring"), "{text}");
        assert!(draw(&Look { processes: Vec::new(), ..look }, Path::new("/x")).contains("/x"));
    }
}
