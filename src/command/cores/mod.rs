//! `holdfast cores`: what costs latency on a processor that a polling thread is to have for itself,
//! as the kernel's own files tell, and what that comes to, measured.

mod checks;

use std::fmt::Write as _;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use holdfast::cores::{allowed, pin};
use serde::Serialize;

pub use checks::{Check, Verdict};

use super::clock::Clock;
use super::histogram::human_ns;
use super::jitter::Jitter;
use super::{Usage, affinity, parse, print};

const EXAMPLES: &str = "\
Examples:
  holdfast cores                      the processor that measuring threads get, and the NIC's
  holdfast cores --cpu 3 --seconds 10
  holdfast cores --json

Nothing is changed; the list says what to do.";

/// Arguments of `holdfast cores`.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct CoresOptions {
    /// Processor; several are allowed [default: those that bench would take]
    #[arg(long = "cpu", value_name = "N")]
    cpus: Vec<usize>,

    /// How long to look at each
    #[arg(long, value_name = "SECONDS", default_value = "1", value_parser = parse::seconds)]
    seconds: Duration,

    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// One processor.
#[derive(Debug, Serialize)]
struct Core {
    cpu: usize,
    checks: Vec<Check>,
    jitter: Jitter,
}

#[derive(Debug, Serialize)]
struct Outcome {
    schema_version: u32,
    cores: Vec<Core>,
}

/// What is known of a processor.
pub fn checks(cpu: usize) -> Vec<Check> {
    checks::of(Path::new("/"), cpu)
}

/// Looks.
pub fn run(options: &CoresOptions) -> anyhow::Result<ExitCode> {
    let allowed = allowed();
    let mut cpus = options.cpus.clone();
    if cpus.is_empty() {
        let placement = affinity::Placement::choose(None, None, &allowed);
        cpus.extend(placement.bench.or(allowed.first().copied()));
        cpus.extend(placement.nic);
    }
    // Not only those that the scheduler would choose: an isolated one is none of them.
    for cpu in &cpus {
        pin(*cpu).map_err(|error| Usage::error(format!("--cpu {cpu}: {error}")))?;
    }
    let clock = Clock::calibrate();
    let core = |cpu: &usize| -> anyhow::Result<Core> {
        let jitter = Jitter::measure(&clock, Some(*cpu), options.seconds)?;
        Ok(Core { cpu: *cpu, checks: checks(*cpu), jitter })
    };
    let cores = cpus.iter().map(core).collect::<anyhow::Result<_>>()?;
    let outcome = Outcome { schema_version: 1, cores };
    if options.json {
        print(format_args!("{}\n", serde_json::to_string_pretty(&outcome)?))?;
    } else {
        print(draw(&outcome))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn draw(outcome: &Outcome) -> String {
    let mut text = String::new();
    for core in &outcome.cores {
        let j = &core.jitter;
        let _ = writeln!(
            text,
            "cpu {}: away for up to {} in {:.1} s, {:.2} % of the time; {:.0} times a second for 10 us \
             and more",
            core.cpu,
            human_ns(j.longest_ns),
            j.seconds,
            j.lost_percent,
            j.over_10us_per_s
        );
        for check in &core.checks {
            let mark = match check.verdict {
                Verdict::Good => "good",
                Verdict::Costs => "COSTS",
                Verdict::Unknown => "?",
            };
            let _ = writeln!(text, "  {mark:<6} {:<22} {}", check.name, check.found);
            if let (Verdict::Costs, Some(advice)) = (check.verdict, &check.advice) {
                let _ = writeln!(text, "  {:<6} {:<22} -> {advice}", "", "");
            }
        }
        text.push('\n');
    }
    text
}
