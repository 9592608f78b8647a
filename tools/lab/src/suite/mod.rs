//! Suites: each row boots one guest, runs the suite's script in it, and is judged by the lines the
//! script prints, its exit status, and the guest's kernel log.
//!
//! A row that fails does not stop the others. Its console is printed as it runs, so a failure
//! shows where it happened; a guest that dies or hangs adds the console's tail and what QEMU and
//! the NIC said.

mod end_to_end;
mod table;
mod verdict;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::Args;
use serde_json::{Map, Value, json};

use crate::cli::{beside_us, copy_folder};
use crate::debian::{Debian, KernelVersion};
use crate::guest::{Accelerator, Console, Job, Machine, Outcome, RunDir};
use crate::process::{self, Guarded, Terminal};
use table::{Need, Row, Suite};
use verdict::{Check, Verdict, judge_kernel_log, judge_qemu_log, read_checks};

/// Brings up Linux's driver in a guest; `lab-rdma` there.
pub const LAB_RDMA: &str = include_str!("../../guest/lab-rdma.sh");
const CHECK: &str = include_str!("../../guest/check.sh");

/// What to test.
#[derive(Args)]
pub struct TestArgs {
    /// Suites to run [default: all but those that take long]
    suite: Vec<String>,
    /// Only rows with this kernel
    #[arg(long, value_enum)]
    kernel: Option<KernelVersion>,
    /// Only rows of this name: what --list shows behind kernel and QEMU
    #[arg(long, value_name = "NAME")]
    row: Option<String>,
    /// Lists the suites and their rows, and runs nothing
    #[arg(long)]
    list: bool,
    /// Writes all verdicts to this file
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Keeps each row's console, kernel log and files here
    #[arg(long, value_name = "DIR")]
    logs: Option<PathBuf>,
    /// What executes the guests' instructions
    #[arg(long, value_enum, default_value = "auto")]
    accel: Accelerator,
    /// Runs a row that failed again, so many times at most; what failed at first stays in the
    /// summary, and no second attempt makes good what a suite calls grave
    #[arg(long, value_name = "N", default_value_t = 0)]
    again: u8,
    /// Takes the programs under test as they are, even where cargo could build them anew
    #[arg(long)]
    no_build: bool,
}

/// Runs suites; the exit status is 0 if every check of every row passed.
pub fn test(arguments: &TestArgs, debian: &Debian, run: &RunDir, holdfast: &Path) -> Result<u8> {
    let suites = chosen(arguments)?;
    if arguments.list {
        for (suite, rows) in &suites {
            println!("{}: {}", suite.name, suite.about);
            for row in rows {
                println!("    {}", row_name(suite, row));
            }
        }
        return Ok(0);
    }
    if !arguments.no_build {
        build()?;
        if suites.iter().any(|(suite, _)| suite.needs.contains(&Need::EndToEnd)) {
            end_to_end::build()?;
        }
    }
    let mut verdicts = Vec::new();
    for (suite, rows) in &suites {
        for row in rows {
            println!("== {}: {}", suite.name, row_name(suite, row));
            let mut verdict = run_row(suite, row, arguments, debian, run, holdfast)?;
            verdict.print_counts();
            for _ in 0..arguments.again {
                if verdict.ok || verdict.is_grave(&suite.grave) {
                    break;
                }
                println!("== {}: {}, again", suite.name, row_name(suite, row));
                let earlier = verdict;
                verdict = run_row(suite, row, arguments, debian, run, holdfast)?;
                verdict.print_counts();
                verdict.after(earlier);
            }
            verdicts.push(verdict);
            write_json(arguments, &verdicts)?;
        }
    }
    println!("summary:");
    for verdict in &verdicts {
        let (passed, failed) = verdict.counts();
        let mark = if verdict.ok { "ok  " } else { "FAIL" };
        println!(
            "  {mark} {:<10} {:<34} {passed:>3} passed {failed:>3} failed {:>5.0} s",
            verdict.suite, verdict.row, verdict.seconds
        );
        for failure in &verdict.failed_before {
            println!("       failed at first: {failure}");
        }
    }
    let total = verdicts.iter().map(Verdict::counts).fold((0, 0), |a, b| (a.0 + b.0, a.1 + b.1));
    println!("lab: {} passed, {} failed", total.0, total.1);
    Ok(u8::from(total.1 > 0 || verdicts.iter().any(|verdict| !verdict.ok)))
}

/// Fetches and builds all that any suite needs.
pub fn prepare(debian: &Debian) -> Result<()> {
    debian.guest_root()?;
    for suite in table::all()? {
        debian.qemu(suite.qemu)?;
        for row in &suite.rows {
            debian.kernel(row.kernel)?;
            if suite.needs.contains(&Need::VmwPvrdma) {
                debian.vmw_pvrdma(row.kernel)?;
            }
        }
    }
    Ok(())
}

fn chosen(arguments: &TestArgs) -> Result<Vec<(Suite, Vec<Row>)>> {
    let suites = table::all()?;
    let known: Vec<&str> = suites.iter().map(|suite| suite.name.as_str()).collect();
    if let Some(name) = arguments.suite.iter().find(|name| !known.contains(&name.as_str())) {
        bail!("no suite {name:?}; there are {}", known.join(", "));
    }
    let wanted = |suite: &Suite| match arguments.suite.as_slice() {
        [] => !suite.only_by_name || arguments.list,
        named => named.contains(&suite.name),
    };
    let rows = |suite: &Suite| {
        let asked = |row: &&Row| {
            arguments.kernel.is_none_or(|kernel| kernel == row.kernel)
                && arguments.row.as_ref().is_none_or(|name| *name == row.name)
        };
        suite.rows.iter().filter(asked).cloned().collect::<Vec<_>>()
    };
    let chosen: Vec<_> = suites
        .iter()
        .filter(|suite| wanted(suite))
        .map(|suite| (suite.clone(), rows(suite)))
        .collect();
    if chosen.iter().all(|(_, rows)| rows.is_empty()) {
        bail!("no row has that kernel and name");
    }
    Ok(chosen)
}

fn row_name(suite: &Suite, row: &Row) -> String {
    let mut name = format!("Linux {}, QEMU {}", row.kernel.name(), suite.qemu.name());
    if !row.name.is_empty() {
        name += &format!(", {}", row.name);
    }
    name
}

fn run_row(
    suite: &Suite,
    row: &Row,
    arguments: &TestArgs,
    debian: &Debian,
    run: &RunDir,
    holdfast: &Path,
) -> Result<Verdict> {
    let machine = Machine {
        kernel: row.kernel,
        qemu: suite.qemu,
        accelerator: arguments.accel,
        cpus: 2,
        memory_mib: suite.memory_mib,
        nics: row.nics.clone().unwrap_or_else(|| suite.nics.clone()),
        nic_options: row.nic_options.clone().unwrap_or_else(|| suite.nic_options.clone()),
        devices: Vec::new(),
        append: row.append.clone().unwrap_or_else(|| suite.append.clone()),
        nvdimm_mib: suite.nvdimm_mib,
        limit: Duration::from_secs(suite.limit),
    };
    let mut verdict = Verdict {
        suite: suite.name.clone(),
        row: row_name(suite, row),
        kernel: row.kernel.name(),
        qemu: suite.qemu.name(),
        ok: false,
        seconds: 0.0,
        checks: Vec::new(),
        dma_faults: 0,
        numbers: Map::new(),
        error: None,
        failed_before: Vec::new(),
    };
    let outcome = job(suite, row, debian, holdfast)
        .and_then(|job| machine.run(debian, run, &job, holdfast, Console::Stream));
    if process::interrupted() {
        bail!("stopped in {}", verdict.row);
    }
    match outcome {
        Ok(outcome) => {
            judge(suite, &outcome, &mut verdict);
            if let Some(folder) = &arguments.logs {
                let name = format!("{}, {}", suite.name, verdict.row);
                copy_folder(&outcome.out, &folder.join(name))?;
            }
        }
        Err(error) => {
            println!("FAIL {error:#}");
            verdict.error = Some(format!("{error:#}"));
        }
    }
    Ok(verdict)
}

/// The job of a row: its script and all the script needs.
fn job(suite: &Suite, row: &Row, debian: &Debian, holdfast: &Path) -> Result<Job> {
    let mut job = Job::script(suite.script_text);
    for need in &suite.needs {
        match need {
            Need::Holdfast => {
                let hint = "cargo build --release, or --holdfast PATH";
                holdfast.metadata().with_context(|| format!("no {holdfast:?}: {hint}"))?;
                job = job.file(holdfast, "bin/holdfast");
            }
            Need::LabDomain => job = job.file(beside_us("lab-domain")?, "bin/lab-domain"),
            Need::EndToEnd => job = end_to_end::add(job)?,
            Need::LabDax => job = job.file(beside_us("lab-dax")?, "bin/lab-dax"),
            Need::LabKeeper => job = job.file(beside_us("lab-keeper")?, "bin/lab-keeper"),
            Need::LabPeer => job = job.file(beside_us("lab-peer")?, "bin/lab-peer"),
            Need::LabStorm => job = job.file(beside_us("lab-storm")?, "bin/lab-storm"),
            Need::VmwPvrdma => {
                job = job.file(debian.vmw_pvrdma(row.kernel)?, "vmw_pvrdma.ko");
                job = job.text("bin/lab-rdma", LAB_RDMA);
            }
        }
    }
    job = job.module("vfio-pci").module("vfio_iommu_type1");
    let job = job.env("SUITE", suite.name.clone()).env("ROW", row.name.clone());
    Ok(job.text("lab/check.sh", CHECK))
}

fn judge(suite: &Suite, outcome: &Outcome, verdict: &mut Verdict) {
    verdict.seconds = outcome.seconds;
    verdict.checks = read_checks(&outcome.console);
    let dmesg = fs::read_to_string(outcome.out.join("dmesg")).unwrap_or_default();
    let (kernel, faults) = judge_kernel_log(&dmesg, suite.faults, &suite.warnings);
    let qemu = judge_qemu_log(&outcome.qemu_log);
    for check in kernel.iter().chain([&qemu]) {
        show(check);
    }
    verdict.checks.extend(kernel);
    verdict.checks.push(qemu);
    verdict.dma_faults = faults;
    verdict.numbers = read_numbers(&outcome.out.join("numbers"));
    if outcome.status != 0 && verdict.checks.iter().all(|check| check.ok) {
        verdict.error = Some(format!("the script ended with exit status {}", outcome.status));
    }
    if verdict.checks.len() < 3 {
        verdict.error = Some("the script made no checks".to_owned());
    }
    let (_, failed) = verdict.counts();
    verdict.ok = failed == 0;
    if let Some(error) = &verdict.error {
        println!("FAIL {error}");
    }
    let said = [("QEMU", &outcome.qemu_log), ("the NIC", &outcome.nic_log)];
    for (who, said) in said.into_iter().filter(|(_, said)| !verdict.ok && !said.is_empty()) {
        println!("{who} said:\n{}", said.trim_end());
    }
}

fn show(check: &Check) {
    let mark = if check.ok { "ok  " } else { "FAIL" };
    println!("{mark} {} {}", check.name, check.reason);
}

/// The JSON objects in a folder, one for each file, by the file's name.
fn read_numbers(folder: &Path) -> Map<String, Value> {
    let mut numbers = Map::new();
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let name = entry.path().file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let text = fs::read(entry.path()).unwrap_or_default();
        if let Ok(value) = serde_json::from_slice(&text) {
            numbers.insert(name, value);
        }
    }
    numbers
}

fn write_json(arguments: &TestArgs, verdicts: &[Verdict]) -> Result<()> {
    let Some(path) = &arguments.json else { return Ok(()) };
    let ok = verdicts.iter().all(|verdict| verdict.ok);
    let text = serde_json::to_vec_pretty(&json!({ "ok": ok, "rows": verdicts }))?;
    fs::write(path, text).with_context(|| format!("cannot write {path:?}"))
}

/// Builds the programs under test, if cargo started us: what is tested is then what is there.
fn build() -> Result<()> {
    let Some(cargo) = std::env::var_os("CARGO") else { return Ok(()) };
    let mut command = Command::new(cargo);
    command.args(["build", "--release", "--quiet"]);
    for package in ["holdfast", "holdfast-verbs"] {
        command.args(["-p", package]);
    }
    for checker in ["dax", "domain", "keeper", "peer", "storm"] {
        command.args(["-p", &format!("holdfast-lab-{checker}")]);
    }
    let status = Guarded::spawn(command.stdin(Stdio::null()), Terminal::Own)?
        .named("cargo build")
        .wait(Duration::from_secs(3600))?;
    if !status.success() {
        bail!("cargo build of the programs under test failed");
    }
    Ok(())
}
