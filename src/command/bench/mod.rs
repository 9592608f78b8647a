//! `holdfast bench`: latency, bandwidth and rate, each beside what the hardware can do.
//!
//! The arguments ([`options`]) become plans ([`plan`]), each of which is measured ([`measure`]) by
//! one of two loops ([`latency`], [`throughput`]) and becomes a run of the report ([`report`]). The
//! report is shown as a table, as JSON, as a page for the browser ([`html`]), as an HdrHistogram log
//! ([`hdr`]) or as perftest would ([`perftest`]). Two of them can be compared ([`compare`]).

mod baseline;
mod compare;
mod details;
mod disturbance;
mod files;
mod hdr;
mod html;
mod latency;
mod layout;
mod measure;
mod mix;
mod options;
mod overhead;
mod payload;
mod perftest;
mod plan;
mod recorder;
mod report;
mod slices;
mod table;
mod throughput;

use std::process::ExitCode;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use anyhow::Context as _;
use holdfast::cores::lock_memory;
use holdfast_dax::Source;

use hdr::Log;
pub use options::BenchCommand;
use options::{BenchOptions, Other};
use report::{ClockFacts, Report, Run, SCHEMA_VERSION};

use super::affinity::Placement;
use super::clock::Clock;
use super::machine::Machine;
use super::{Usage, interrupt, print};
use baseline::Baseline;
use plan::Plan;

/// Runs the benchmark, or what else was asked for.
pub fn run(command: &BenchCommand) -> anyhow::Result<ExitCode> {
    match &command.other {
        Some(Other::Compare(options)) => compare::run(options),
        None => bench(&command.measure),
    }
}

/// Measures all plans, as often as was asked for.
fn bench(options: &BenchOptions) -> anyhow::Result<ExitCode> {
    let plans = options.plans().map_err(Usage::error)?;
    options.endpoints.check()?;
    check_region(options)?;
    options.html.iter().chain(&options.hdr).try_for_each(|path| files::check(path))?;
    let placement = options.endpoints.device.placement();
    if options.lock_memory {
        lock_memory().context("--lock-memory")?;
    }
    let clock = Clock::calibrate();
    let start = Instant::now();
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let mut report = Report {
        schema_version: SCHEMA_VERSION,
        program: concat!("holdfast ", env!("CARGO_PKG_VERSION")).to_owned(),
        started: since.as_secs_f64(),
        machine: Machine { timer: Some(clock.name()), ..Machine::read() },
        clock: ClockFacts::of(&clock),
        runs: Vec::new(),
        failed: None,
    };
    let mut log = options.hdr.is_some().then(|| Log::new(&report, &plans)).transpose()?;
    let mut failed = None;
    for plan in (0..options.repeat).flat_map(|_| &plans) {
        let (run, late) = match one(plan, options, placement, &clock, start, log.as_mut()) {
            Ok(run) => run,
            Err(error) => {
                failed = Some(error);
                break;
            }
        };
        let shown = show(&run, options, &report);
        let over = run.errors > 0 || run.interrupted;
        report.runs.push(run);
        failed = late.or(shown.err());
        if over || failed.is_some() {
            break;
        }
    }
    finish(report, options, log.as_ref(), failed)
}

/// Gives out what was measured, whatever ended it, and says how it ended.
fn finish(
    mut report: Report,
    options: &BenchOptions,
    log: Option<&Log>,
    failed: Option<anyhow::Error>,
) -> anyhow::Result<ExitCode> {
    report.failed = failed.as_ref().map(|error| format!("{error:#}"));
    let mut ended = failed.map_or(Ok(()), Err);
    if !report.runs.is_empty() {
        // One that fails keeps nothing from the others; the first is told at the end.
        for done in
            [print_json(&report, options), write_html(&report, options), write_hdr(log, options)]
        {
            if let (Err(_), Err(another)) = (&ended, &done) {
                tracing::error!("{another:#}");
            }
            ended = ended.and(done);
        }
    }
    ended?;
    let errors = report.runs.iter().any(|run| run.errors > 0);
    Ok(match (errors, report.runs.iter().any(|run| run.interrupted)) {
        (false, false) => ExitCode::SUCCESS,
        (false, true) => ExitCode::from(interrupt::EXIT_INTERRUPTED),
        (true, _) => ExitCode::from(super::EXIT_FAILED),
    })
}

/// A run, and what went wrong after its measurement, if anything. All of its latencies go into the
/// log, if there is one, and are not kept: those of a run take 30 MB.
fn one(
    plan: &Plan,
    options: &BenchOptions,
    placement: Placement,
    clock: &Clock,
    start: Instant,
    log: Option<&mut Log>,
) -> anyhow::Result<(Run, Option<anyhow::Error>)> {
    // Before the NIC starts: it would be in the way.
    let baseline = Baseline::measure(plan, options.endpoints.here(), clock, placement)?;
    let mut measured =
        measure::measure(&options.endpoints, placement, &options.region, plan, clock)?;
    let began = measured.began.saturating_duration_since(start).as_secs_f64();
    let run = Run::new(plan, options, placement, &baseline, &measured, began);
    let logged = match (log, &measured.timed) {
        (Some(log), Some(timed)) => log.add(&run, &timed.recorded),
        _ => Ok(()),
    };
    Ok((run, measured.failed.take().or(logged.err())))
}

/// Shows a run as soon as it is there, where that is the form.
fn show(run: &Run, options: &BenchOptions, report: &Report) -> anyhow::Result<()> {
    if options.json {
        return Ok(());
    }
    if run.elsewhere && run.errors == 0 {
        let cut = if run.interrupted {
            "interrupted; the other side has no result"
        } else {
            "served; the other side has the result"
        };
        return print(format_args!("{cut}\n"));
    }
    if options.perftest_compat {
        return print(perftest::lines(run, report.runs.is_empty()));
    }
    let gap = if report.runs.is_empty() { "" } else { "\n" };
    print(format_args!("{gap}{}", table::draw(run, &report.clock, &report.machine)))
}

fn print_json(report: &Report, options: &BenchOptions) -> anyhow::Result<()> {
    if !options.json {
        return Ok(());
    }
    print(format_args!("{}\n", serde_json::to_string_pretty(report)?))
}

fn write_html(report: &Report, options: &BenchOptions) -> anyhow::Result<()> {
    let Some(path) = &options.html else { return Ok(()) };
    files::write(path, html::page(report).as_bytes())
}

fn write_hdr(log: Option<&Log>, options: &BenchOptions) -> anyhow::Result<()> {
    let (Some(path), Some(log)) = (&options.hdr, log) else { return Ok(()) };
    files::write(path, log.text())
}

/// Refuses a region that this kind of device cannot reach, before anything is started.
fn check_region(options: &BenchOptions) -> anyhow::Result<()> {
    use holdfast::DeviceAddress;
    let user = |address: &DeviceAddress| !matches!(address, DeviceAddress::Pci(_));
    if options.region == Source::Anon && options.endpoints.device.devices.iter().any(user) {
        return Err(Usage::error(
            "--region anon cannot be shared with a NIC in another process, which maps memory by \
             descriptor; use memfd (anon is for PCI devices)",
        ));
    }
    Ok(())
}
