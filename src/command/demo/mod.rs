//! `holdfast demo`: RDMA into a real file, every byte checked through the file system.

mod moving;

use std::fs::{self, File, OpenOptions};
use std::io::IsTerminal as _;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use clap::Args;
use holdfast::coherence::{Guard, GuardOptions};
use holdfast::{Remote, SendFlags, Source};
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;
use tempfile::TempDir;

use super::pingpong::{fill, is};
use crate::command::clock::{Clock, Time as _};
use crate::command::endpoints::{DeviceOptions, End, EndpointOptions, Session, Shape, wait_for};
use crate::command::histogram::{Latencies, Percentiles, human_bytes, human_ns};
use crate::command::machine::Machine;
use crate::command::patience::Patience;
use crate::command::{EXIT_FAILED, Usage, interrupt, parse, print};
use moving::Moving;

/// Bytes of one WRITE or READ: a page.
const BLOCK: usize = 4096;
/// Longest the device may take for one operation.
const PATIENCE: Duration = Duration::from_secs(10);

const EXAMPLES: &str = "\
Examples:
  holdfast demo                          a 64 MiB file in a folder of its own, 3 seconds
  holdfast demo --size 1G --seconds 10
  holdfast demo --file /data/region      a file of yours, which is overwritten
  holdfast demo --json                   one object, for a program to read

What happens: an emulated RDMA NIC starts as a process of its own. One endpoint registers the
file as a memory region. The other writes it with RDMA WRITE and reads it back with RDMA READ, a
page at a time; then the file is read through the file system and every byte is compared. The
exit status is 0 only if every byte was right.";

/// Arguments of `holdfast demo`.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct DemoOptions {
    #[command(flatten)]
    device: DeviceOptions,

    /// Bytes of the file, K, M and G allowed; whole pages
    #[arg(long, default_value = "64M", value_parser = parse::size)]
    size: usize,

    /// How long to go on, at least once through the file
    #[arg(long, default_value = "3", value_parser = parse::seconds)]
    seconds: Duration,

    /// Use this file, which is overwritten (and made, if it is not there), and leave it behind
    #[arg(long, value_name = "PATH")]
    file: Option<PathBuf>,

    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// What came of it.
#[derive(Debug, Serialize)]
struct Outcome {
    op: &'static str,
    device: String,
    file: String,
    region_kind: String,
    size: usize,
    /// Times the whole file was written, read back and compared.
    passes: u64,
    /// WRITEs and READs.
    iters: u64,
    /// Bytes compared: read back by RDMA, and read from the file.
    bytes_checked: u64,
    /// Pages that came out wrong.
    errors: u64,
    seconds: f64,
    write: Percentiles,
    read: Percentiles,
    /// The file moved under continuous WRITEs.
    moving: Option<Moving>,
    machine: Machine,
}

impl Outcome {
    fn is_right(&self) -> bool {
        let moving = self.moving.as_ref();
        self.errors == 0
            && moving.is_some_and(|moving| moving.failed == 0 && moving.foreign_bytes == 0)
    }
}

/// Runs the demo.
pub fn run(options: &DemoOptions) -> anyhow::Result<ExitCode> {
    let size = options.size;
    if size == 0 || !size.is_multiple_of(BLOCK) || size > 1 << 30 {
        return Err(Usage::error(format!(
            "--size {size}: give whole pages of {BLOCK} bytes, at least one and at most 1G"
        )));
    }
    let endpoints = EndpointOptions::local(options.device.clone(), PATIENCE);
    endpoints.check()?;
    let placement = options.device.placement();
    let clock = Clock::calibrate();
    let place = Place::new(options.file.as_deref(), size)?;
    if !options.json {
        let (size, path) = (human_bytes(size as u64), place.path.display());
        print(format_args!("region    {size} of {path}\n"))?;
    }
    let guard = Guard::start(GuardOptions::default())?;
    let shape = Shape {
        one_sided: Some("write"),
        purpose: "demo".to_owned(),
        bytes: size,
        region: Source::File { path: place.path.clone(), range: Some((0, size as u64)) },
        qps: 1,
        send_depth: 8,
        recv_depth: 1,
        inline: 0,
        guard: Some(guard.clone()),
    };
    let mut session = Session::start(&endpoints, placement, &shape)?;
    let (write, read, outcome) = exchange(&mut session, options, &place.path, &clock)?;
    let moving = moving::run(&mut session, &guard, &place.path)?;
    drop(session);
    let (write_ns, read_ns) = (write.percentiles(), read.percentiles());
    let outcome = Outcome { write: write_ns, read: read_ns, moving: Some(moving), ..outcome };
    let right = outcome.is_right();
    if options.json {
        print(format_args!("{}\n", serde_json::to_string_pretty(&outcome)?))?;
    } else {
        for (name, latencies) in [("RDMA WRITE", &write), ("RDMA READ", &read)] {
            let p = latencies.percentiles();
            print(format_args!(
                "\n{name} of {}: p50 {}, p99 {}, p99.9 {}, max {}\n{}",
                human_bytes(BLOCK as u64),
                human_ns(p.p50_ns),
                human_ns(p.p99_ns),
                human_ns(p.p999_ns),
                human_ns(p.max_ns),
                latencies.draw()
            ))?;
        }
        let verdict = if outcome.errors == 0 { "every byte was right" } else { "WRONG" };
        print(format_args!(
            "\nchecked   {} in {:.1} s, {} times through the file: {verdict}{}\n",
            human_bytes(outcome.bytes_checked),
            outcome.seconds,
            outcome.passes,
            if outcome.errors == 0 {
                String::new()
            } else {
                format!(" ({} pages)", outcome.errors)
            }
        ))?;
    }
    if let Some(moving) = outcome.moving.as_ref().filter(|_| !options.json) {
        print(moving)?;
    }
    Ok(if right { ExitCode::SUCCESS } else { ExitCode::from(EXIT_FAILED) })
}

/// The file, and the folder it goes away with.
#[derive(Debug)]
struct Place {
    path: PathBuf,
    _folder: Option<TempDir>,
}

impl Place {
    fn new(file: Option<&Path>, size: usize) -> anyhow::Result<Self> {
        let (path, folder) = match file {
            Some(path) => (path.to_owned(), None),
            None => {
                let here = std::env::current_dir().context("there is no current folder")?;
                let folder = tempfile::Builder::new()
                    .prefix("holdfast-demo-")
                    .tempdir_in(&here)
                    .or_else(|_| tempfile::Builder::new().prefix("holdfast-demo-").tempdir())
                    .with_context(|| format!("cannot make a folder in {}", here.display()))?;
                interrupt::remove_on_abort(folder.path());
                (folder.path().join("region"), Some(folder))
            }
        };
        let open =
            OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path);
        let file = open.with_context(|| format!("cannot make {}", path.display()))?;
        let len = file.metadata()?.len().max(size as u64);
        file.set_len(len).with_context(|| format!("cannot grow {}", path.display()))?;
        let path = fs::canonicalize(&path).unwrap_or(path);
        Ok(Self { path, _folder: folder })
    }
}

/// Goes through the file until the time is over.
fn exchange(
    session: &mut Session,
    options: &DemoOptions,
    path: &Path,
    clock: &Clock,
) -> anyhow::Result<(Latencies, Latencies, Outcome)> {
    let mut watch = session.watch();
    let region_kind = match &session.passive {
        Some(end) => end.region.memory().kind().to_string(),
        None => String::new(),
    };
    let end = session.active.as_mut().context("the active end is missing")?;
    ensure!(end.remote_len >= options.size as u64, "the region came out shorter than the file");
    let blocks = options.size / BLOCK;
    let (mut write, mut read) = (Latencies::new(), Latencies::new());
    let (mut errors, mut bytes_checked, mut passes) = (0, 0, 0);
    let started = Instant::now();
    let bar = progress(options);
    while passes == 0 || started.elapsed() < options.seconds {
        for block in 0..blocks {
            let message = passes * blocks as u64 + block as u64 + 1;
            let right =
                one_block(end, message, block * BLOCK, clock, &mut watch, &mut write, &mut read)?;
            errors += u64::from(!right);
            bytes_checked += BLOCK as u64;
            if block.is_multiple_of(256) {
                interrupt::check()?;
                show(bar.as_ref(), &started, options);
            }
        }
        // A descriptor of its own: what is compared is what any program would read.
        let file = File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
        let mut bytes = vec![0; BLOCK];
        for block in 0..blocks {
            file.read_exact_at(&mut bytes, (block * BLOCK) as u64)
                .with_context(|| format!("cannot read {}", path.display()))?;
            errors += u64::from(!is(passes * blocks as u64 + block as u64 + 1, &bytes));
            bytes_checked += BLOCK as u64;
            if block.is_multiple_of(1024) {
                interrupt::check()?;
            }
        }
        passes += 1;
    }
    if let Some(bar) = bar {
        bar.finish_and_clear();
    }
    let outcome = Outcome {
        op: "demo",
        device: options.device.name(),
        file: path.display().to_string(),
        region_kind,
        size: options.size,
        passes,
        iters: write.len() + read.len(),
        bytes_checked,
        errors,
        seconds: started.elapsed().as_secs_f64(),
        write: Percentiles::default(),
        read: Percentiles::default(),
        moving: None,
        machine: Machine { timer: Some(clock.name()), ..Machine::read() },
    };
    Ok((write, read, outcome))
}

/// Writes one block of the file and reads it back into another buffer; says whether it came back
/// as it was.
fn one_block(
    end: &mut End,
    message: u64,
    offset: usize,
    clock: &Clock,
    watch: &mut Patience,
    write: &mut Latencies,
    read: &mut Latencies,
) -> anyhow::Result<bool> {
    let mut bytes = [0; BLOCK];
    fill(message, &mut bytes);
    let remote = Remote { addr: end.remote.addr + offset as u64, rkey: end.remote.rkey };
    let End { qps, region, send_cq, .. } = end;
    // Two buffers at the start of this side's own memory, which is as long as the file.
    let (from, to) = (0, if region.len() >= 2 * BLOCK { BLOCK } else { 0 });
    region.memory().write_at(from, &bytes)?;
    let start = clock.ticks();
    qps[0].write(message, &[region.slice(from, BLOCK)?], remote, SendFlags::SIGNALED)?;
    qps[0].ring_sends();
    wait_for(send_cq, watch, "the completion of a WRITE")?;
    write.record_ns(clock.ns(clock.ticks().wrapping_sub(start)));

    region.memory().fill(to, BLOCK, 0)?;
    let start = clock.ticks();
    qps[0].read(message, &[region.slice(to, BLOCK)?], remote, SendFlags::SIGNALED)?;
    qps[0].ring_sends();
    wait_for(send_cq, watch, "the completion of a READ")?;
    read.record_ns(clock.ns(clock.ticks().wrapping_sub(start)));
    region.memory().read_at(to, &mut bytes)?;
    Ok(is(message, &bytes))
}

/// A progress bar, where somebody sees it and it is worth one.
fn progress(options: &DemoOptions) -> Option<ProgressBar> {
    let worth = !options.json
        && options.seconds > Duration::from_secs(1)
        && std::io::stderr().is_terminal();
    worth.then(|| {
        let bar = ProgressBar::new(options.seconds.as_millis() as u64);
        if let Ok(style) = ProgressStyle::with_template("{bar:44} {percent:>3} % {msg}") {
            bar.set_style(style);
        }
        bar.set_message("RDMA WRITE and READ, checking every byte");
        bar
    })
}

fn show(bar: Option<&ProgressBar>, started: &Instant, options: &DemoOptions) {
    if let Some(bar) = bar {
        bar.set_position(started.elapsed().min(options.seconds).as_millis() as u64);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_grown_and_never_cut() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("region");
        drop(Place::new(Some(&path), BLOCK).unwrap());
        assert_eq!(fs::metadata(&path).unwrap().len(), BLOCK as u64);
        fs::write(&path, vec![1; 3 * BLOCK]).unwrap();
        drop(Place::new(Some(&path), BLOCK).unwrap());
        assert_eq!(fs::metadata(&path).unwrap().len(), 3 * BLOCK as u64);
    }

    #[test]
    fn a_folder_of_its_own_goes_away() {
        let place = Place::new(None, BLOCK).unwrap();
        let path = place.path.clone();
        assert!(path.exists());
        drop(place);
        assert!(!path.exists() && !path.parent().unwrap().exists());
    }
}
