//! `lab-storm`: the test that shows what Holdfast is for. It runs in a lab guest.
//!
//! A remote peer writes a region of a DAX file at full rate and never stops. Meanwhile every
//! operation that can change the file's layout runs against it in random order, from this process
//! and from others; what it frees is given to other files at once, whose every byte is known and
//! compared. Not one byte may be foreign, and the events must add up exactly to what was done.
//! Without a guard, the same storm corrupts.

mod canary;
mod causes;
mod choice;
mod driver;
mod ends;
mod field;
mod figures;
mod freed;
mod guarding;
mod hands;
mod killing;
mod ledger;
mod operation;
mod peer;
mod random;
mod region;
mod storm;
mod toucher;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow};
use clap::{Args, Parser, Subcommand, ValueEnum};
use holdfast::DeviceAddress;
use holdfast::coherence::NotifierKind;

use holdfast_lab_check::Report;
use holdfast_lab_check::allocations::CountingAllocator;

use figures::Figures;
use storm::{Plan, Storm};

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;

/// Layout operations on a DAX file under a peer that never stops writing it.
#[derive(Parser)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Every layout operation in random order, and every byte of what it frees compared
    Run(RunOptions),
    /// A driver that is killed at any instant, over and over, while a peer writes its region
    Kill(KillOptions),
    /// What can happen to memory besides, one thing at a time, with the events that each must bring
    Causes {
        /// The NIC that has the regions
        #[arg(long)]
        device: DeviceAddress,
        /// Folder on a DAX mount; its file system is shut down in the end
        #[arg(long)]
        dir: PathBuf,
        /// Folder on another file system that has a disk
        #[arg(long)]
        disk: PathBuf,
        /// Folder on hugetlbfs, with pages for 8 MiB
        #[arg(long)]
        huge: PathBuf,
    },
    /// Makes a hole in a file of a region by MADV_REMOVE (started by the others)
    #[command(hide = true)]
    Remove {
        /// The file
        file: PathBuf,
    },
    /// A driver with a region, to be killed (started by the others)
    #[command(hide = true)]
    Drive {
        /// Its NIC
        #[arg(long)]
        device: DeviceAddress,
        /// The region's file
        #[arg(long)]
        file: PathBuf,
        /// Bytes of it
        #[arg(long)]
        size: u64,
        /// Without a keeper
        #[arg(long)]
        no_keeper: bool,
    },
    /// Performs operations that it reads from its standard input (started by the others)
    #[command(hide = true)]
    Operate {
        /// Folder of the files
        folder: PathBuf,
    },
}

/// Where, how long, and how.
#[derive(Debug, Args)]
struct RunOptions {
    /// Folder on a DAX mount; every file in it goes
    #[arg(long)]
    dir: PathBuf,
    /// The NIC that has the region
    #[arg(long)]
    device: DeviceAddress,
    /// The NIC whose peer writes it
    #[arg(long)]
    peer: DeviceAddress,
    /// How long at least
    #[arg(long, default_value_t = 60)]
    seconds: u64,
    /// Go on until so many operations were done, however long that takes
    #[arg(long, default_value_t = 0, value_name = "N")]
    operations: u64,
    /// What the order of operations comes from [default: the time]
    #[arg(long)]
    seed: Option<u64>,
    /// MiB of the file and its region
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u64).range(1..=64))]
    size: u64,
    /// Regions on the file: one, another beside it, and a third on the other NIC
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=3))]
    regions: u8,
    /// Whether anything guards the region; the test is whether the storm then corrupts
    #[arg(long, value_enum, default_value = "on")]
    guard: Switch,
    /// Use these notifiers only; may be repeated [default: all]
    #[arg(long)]
    notifier: Vec<NotifierKind>,
    /// Stop the guard's process for as many milliseconds during some operations
    #[arg(long, value_name = "MS")]
    delay_notices: Option<u64>,
    /// Half-way, switch off the tracing that the kprobe notifier listens to: it is dead, and nobody
    /// says so (needs tracefs at /sys/kernel/tracing)
    #[arg(long)]
    stop_tracing: bool,
    /// Leave out what shares blocks (clones, deduplication, unsharing): Linux 6.1's xfs has bugs of
    /// its own there on DAX files, which end in a BUG of the kernel
    #[arg(long)]
    no_sharing: bool,
    /// Touch pages of the region all the while, as an application does that reads it
    #[arg(long)]
    touch: bool,
    /// The NIC fails on a translation miss: count failed requests, and do not mind them
    #[arg(long)]
    misses_fail: bool,
    /// Where to write the figures
    #[arg(long, value_name = "FILE")]
    numbers: Option<PathBuf>,
}

/// Where, and how often.
#[derive(Debug, Args)]
struct KillOptions {
    /// Folder on a DAX mount; every file in it goes
    #[arg(long)]
    dir: PathBuf,
    /// The NIC of the driver that is killed
    #[arg(long)]
    device: DeviceAddress,
    /// The NIC whose peer writes its region
    #[arg(long)]
    peer: DeviceAddress,
    /// How often
    #[arg(long, default_value_t = 20)]
    times: u64,
    /// What the instants come from [default: the time]
    #[arg(long)]
    seed: Option<u64>,
    /// MiB of the file and its region
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u64).range(1..=64))]
    size: u64,
    /// Milliseconds after a kill within which the file must be usable
    #[arg(long, default_value_t = 1000)]
    within: u64,
    /// Without a keeper, to see what it is for
    #[arg(long)]
    no_keeper: bool,
    /// Where to write the figures
    #[arg(long, value_name = "FILE")]
    numbers: Option<PathBuf>,
}

/// What must never fail (the suites call it grave).
const NO_FOREIGN_BYTE: &str = "no byte of another file was written";

/// On or off.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Switch {
    On,
    Off,
}

fn main() -> ExitCode {
    let result = match Cli::parse().verb {
        Verb::Run(options) => run(&options),
        Verb::Kill(options) => kill(&options),
        Verb::Causes { device, dir, disk, huge } => causes::run(&device, &dir, &disk, &huge),
        Verb::Remove { file } => causes::remove_part(file).map(|()| true),
        Verb::Drive { device, file, size, no_keeper } => {
            driver::serve(&device, &file, size, !no_keeper).map(|()| true)
        }
        Verb::Operate { folder } => hands::operate(folder).map(|()| true),
    };
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("lab-storm: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// A seed that nobody chose.
fn any_seed() -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    now.map_or(1, |now| now.as_micros() as u64)
}

fn kill(options: &KillOptions) -> Result<bool> {
    let seed = options.seed.unwrap_or_else(any_seed);
    println!("seed {seed}");
    let start = Instant::now();
    let (figures, result) = killing::run(&killing::Plan {
        folder: options.dir.clone(),
        device: options.device.clone(),
        peer: options.peer.clone(),
        times: options.times,
        seed,
        size: options.size << 20,
        within: Duration::from_millis(options.within),
        keeper: !options.no_keeper,
    });
    let json = figures.json(seed);
    println!("{json:#}");
    if let Some(path) = &options.numbers {
        std::fs::write(path, serde_json::to_vec_pretty(&json)?)?;
    }
    let (mut report, took) = (Report::default(), start.elapsed());
    report.enter(NO_FOREIGN_BYTE, took, figures.look.none_foreign());
    let name = format!("{} kills of the driver, and its file is usable soon", options.times);
    report.enter(&name, took, result);
    Ok(report.failed == 0)
}

fn run(options: &RunOptions) -> Result<bool> {
    let seed = options.seed.unwrap_or_else(any_seed);
    let guarded = options.guard == Switch::On;
    println!("seed {seed}");
    let storm = Storm::new(Plan {
        folder: options.dir.clone(),
        device: options.device.clone(),
        peer: options.peer.clone(),
        time: Duration::from_secs(options.seconds),
        operations: options.operations,
        seed,
        size: options.size << 20,
        guarded,
        notifiers: options.notifier.clone(),
        delay: options.delay_notices.map(Duration::from_millis),
        stop_tracing: options.stop_tracing,
        regions: usize::from(options.regions),
        touch: options.touch,
        sharing: !options.no_sharing,
    })?;
    let start = Instant::now();
    let (figures, result) = storm.run();
    print!("{figures}");
    if let Some(path) = &options.numbers {
        std::fs::write(path, serde_json::to_vec_pretty(&figures.json())?)?;
    }
    Ok(verdict(&figures, result, guarded, options.misses_fail, start.elapsed()))
}

/// Prints what the suite reads.
fn verdict(
    figures: &Figures,
    result: Result<()>,
    guarded: bool,
    misses_fail: bool,
    took: Duration,
) -> bool {
    let mut report = Report::default();
    let mut check = |name: &str, result: Result<()>| report.enter(name, took, result);
    let none = |count: u64, what: &str| match count {
        0 => Ok(()),
        _ => Err(anyhow!("{count} {what}")),
    };
    let (operations, look) = (figures.operations(), figures.look);
    if !guarded {
        let found = match look.foreign > 0 && look.marks > 0 {
            true => Ok(()),
            false => Err(anyhow!("no foreign byte in {} after {operations}", look.bytes)),
        };
        return check("without a guard, the storm corrupts other files", found);
    }
    check(NO_FOREIGN_BYTE, look.none_foreign());
    check("the guard's thread allocated nothing", none(figures.allocations, "calls"));
    if !misses_fail {
        check("no request of the peer failed", none(figures.failed, "did"));
    }
    check("the events add up to what was done", result);
    let was_one = match operations < 5 || figures.writes < 1000 {
        true => Err(anyhow!("{operations} operations, {} writes", figures.writes)),
        false => Ok(()),
    };
    check("it was a storm", was_one);
    let freed = figures.freed;
    // What it shared with a clone is not free, and a few steps may have been about clones alone.
    if figures.steps >= 16 {
        let reused = match freed.taken * 10 < freed.given_up {
            true => Err(anyhow!("{} of {} bytes", freed.taken, freed.given_up)),
            false => Ok(()),
        };
        check("what the file gave up was in a canary at once", reused);
    }
    report.failed == 0
}
