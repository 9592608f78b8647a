//! `holdfast stall`: what a guard costs. How long a file operation waits for it, how long it takes
//! until no device reaches what the operation gives up, against the size of the region and against
//! the number of regions; each beside the same operation on a file that nobody guards.

use std::fmt::Write as _;
use std::fs::{File, OpenOptions};
use std::os::fd::AsFd as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use clap::{Args, ValueEnum};
use holdfast::coherence::{Events, Guard, GuardOptions, Order, Policy};
use holdfast::{
    Access, Completion, CompletionQueue, Device, DeviceAddress, EmulatedNic, EmulatedOptions,
    Memory, MemoryRegion, Populate, ProtectionDomain, QueuePair, QueuePairOptions, Remote,
    SendFlags, Source,
};
use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, fallocate};
use serde::Serialize;

use super::clock::{Clock, Time as _};
use super::histogram::{Latencies, Percentiles, human_bytes, human_ns};
use super::machine::Machine;
use super::patience::Patience;
use super::restored::Tracker;
use super::{Usage, interrupt, parse, print};

/// What the operation cuts off, and puts back.
const CUT: u64 = 64 << 10;
/// How long the guard may take.
const PATIENCE: Duration = Duration::from_secs(20);

const EXAMPLES: &str = "\
Examples:
  holdfast stall                            files in this folder, an emulated NIC
  holdfast stall --folder /mnt/pmem --device 0000:00:10.0
                                            DAX files, a device of the kernel (VFIO)
  holdfast stall --sizes 1M,1G --regions 1,1000 --rounds 20 --json

The operation is an ftruncate that cuts off the last 64 KiB; the file then gets them back.";

/// Arguments of `holdfast stall`.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct StallOptions {
    /// Device: emulated, vfio-user:PATH or a PCI address
    #[arg(long, value_name = "DEVICE", default_value = "emulated")]
    device: DeviceAddress,

    /// Where the files are made
    #[arg(long, value_name = "DIR", default_value = ".")]
    folder: PathBuf,

    /// Operations for each figure
    #[arg(long, default_value_t = 30, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,

    /// Sizes of the region
    #[arg(long, value_delimiter = ',', default_value = "1M,16M,64M,256M", value_parser = parse::size)]
    sizes: Vec<usize>,

    /// Numbers of regions, each on a file of its own
    #[arg(long, value_delimiter = ',', default_value = "1,10,100")]
    regions: Vec<u32>,

    /// What comes first: each chunk's scrap, or every chunk's fence
    #[arg(long, value_enum, default_value = "chunk-by-chunk")]
    order: OrderName,

    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// The order in which a guard takes chunks away.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
enum OrderName {
    /// Each chunk has nothing behind it for two calls only
    ChunkByChunk,
    /// The operation waits for as few calls as can be; chunks have nothing behind them meanwhile
    FenceFirst,
}

impl From<OrderName> for Order {
    fn from(name: OrderName) -> Self {
        match name {
            OrderName::ChunkByChunk => Self::ChunkByChunk,
            OrderName::FenceFirst => Self::FenceFirst,
        }
    }
}

/// One line of the result.
#[derive(Debug, Serialize)]
struct Row {
    /// Bytes of the region that changes.
    size: u64,
    /// Regions registered.
    regions: u32,
    /// How long the operation took its caller, unguarded.
    unguarded: Percentiles,
    /// The same, guarded.
    guarded: Percentiles,
    /// From the operation's start until no access reached what it gave up. Where nothing makes the
    /// operation wait, that may be after its end.
    to_scrap: Percentiles,
    /// Longest time in which an access found nothing behind an address.
    window: Percentiles,
    /// From the file's being whole again until the region was.
    to_restored: Percentiles,
}

#[derive(Debug, Serialize)]
struct Outcome {
    op: &'static str,
    device: String,
    region_kind: String,
    notifiers: Vec<&'static str>,
    order: OrderName,
    rounds: u32,
    by_size: Vec<Row>,
    by_regions: Vec<Row>,
    /// An 8-byte RDMA WRITE into a region without a guard and into one with, taken in turns.
    write_unguarded: Percentiles,
    write_guarded: Percentiles,
    machine: Machine,
}

/// Measures.
pub fn run(options: &StallOptions) -> anyhow::Result<ExitCode> {
    let page = |size: &usize| *size as u64 >= 2 * CUT && (*size as u64).is_multiple_of(CUT);
    if !options.sizes.iter().all(page) {
        return Err(Usage::error("--sizes: each a multiple of 64K, and at least 128K"));
    }
    let clock = Clock::calibrate();
    let bench = Bench::new(options)?;
    let (write_unguarded, write_guarded) = bench.fast_path(&clock)?;
    let mut by_size = Vec::new();
    for &size in &options.sizes {
        by_size.push(bench.row(size as u64, 1, options.rounds)?);
    }
    let mut by_regions = Vec::new();
    for &regions in &options.regions {
        by_regions.push(bench.row(1 << 20, regions.max(1), options.rounds)?);
    }
    let outcome = Outcome {
        op: "stall",
        device: options.device.to_string(),
        region_kind: bench.kind.borrow().clone(),
        notifiers: bench.guard.statement().in_force().map(|kind| kind.name()).collect(),
        order: options.order,
        rounds: options.rounds,
        by_size,
        by_regions,
        write_unguarded: write_unguarded.percentiles(),
        write_guarded: write_guarded.percentiles(),
        machine: Machine { timer: Some(clock.name()), ..Machine::read() },
    };
    if options.json {
        print(format_args!("{}\n", serde_json::to_string_pretty(&outcome)?))?;
    } else {
        print(table(&outcome))?;
    }
    Ok(ExitCode::SUCCESS)
}

struct Bench {
    guard: Guard,
    events: Events,
    pd: ProtectionDomain,
    folder: tempfile::TempDir,
    kind: std::cell::RefCell<String>,
    device: Device,
    _nic: Option<EmulatedNic>,
}

/// A file and, if it is guarded, its region.
struct Guarded {
    file: File,
    region: Option<MemoryRegion>,
}

impl Bench {
    fn new(options: &StallOptions) -> anyhow::Result<Self> {
        let order = options.order.into();
        let guard = Guard::start(GuardOptions { order, ..GuardOptions::default() })?;
        let events = guard.events()?;
        let (device, nic) = match &options.device {
            DeviceAddress::Emulated => {
                let nic = EmulatedNic::start(EmulatedOptions::default())?;
                (nic.open(0)?, Some(nic))
            }
            address => {
                let opened = Device::open(address);
                (opened.with_context(|| format!("cannot open {address}"))?, None)
            }
        };
        let folder = tempfile::Builder::new()
            .prefix("holdfast-stall-")
            .tempdir_in(&options.folder)
            .with_context(|| format!("cannot make a folder in {}", options.folder.display()))?;
        interrupt::remove_on_abort(folder.path());
        let pd = device.protection_domain()?;
        let kind = std::cell::RefCell::default();
        Ok(Self { guard, events, pd, folder, kind, device, _nic: nic })
    }

    fn file(&self, name: &str, size: u64) -> anyhow::Result<(PathBuf, File)> {
        let path = self.folder.path().join(name);
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .open(&path)
            .with_context(|| format!("cannot make {}", path.display()))?;
        allocate(&file, size).with_context(|| format!("cannot fill {}", path.display()))?;
        Ok((path, file))
    }

    fn guarded(&self, name: &str, size: u64) -> anyhow::Result<Guarded> {
        let (path, file) = self.file(name, size)?;
        let memory = Memory::open(&Source::file(&path), 1, Populate::Yes)?;
        *self.kind.borrow_mut() = memory.kind().to_string();
        let region = self.pd.register_guarded(memory, Access::ALL, &self.guard, Policy::FOLLOW)?;
        Ok(Guarded { file, region: Some(region) })
    }

    fn row(&self, size: u64, regions: u32, rounds: u32) -> anyhow::Result<Row> {
        let (plain_path, plain) = self.file("plain", size)?;
        let others = (1..regions)
            .map(|number| self.guarded(&format!("other-{number}"), CUT))
            .collect::<anyhow::Result<Vec<_>>>()?;
        let mut one = self.guarded("one", size)?;
        let mut unguarded = Latencies::new();
        let mut guarded = Latencies::new();
        let (mut to_scrap, mut window) = (Latencies::new(), Latencies::new());
        let mut to_restored = Latencies::new();
        let ns = |time: Duration| time.as_nanos() as f64;
        for _ in 0..rounds {
            interrupt::check()?;
            let start = Instant::now();
            plain.set_len(size - CUT)?;
            unguarded.record_ns(ns(start.elapsed()));
            allocate(&plain, size)?;

            let id = one.region.as_ref().and_then(MemoryRegion::id).context("no region")?;
            let mut tracker = Tracker::new(&self.events, id, size, PATIENCE);
            let start = Instant::now();
            one.file.set_len(size - CUT)?;
            guarded.record_ns(ns(start.elapsed()));
            let broken = tracker.broken("the operation")?;
            let timing = broken.timing.unwrap_or_default();
            let fenced = broken.at + timing.to_fence;
            to_scrap.record_ns(ns(fenced.saturating_duration_since(start)));
            window.record_ns(ns(timing.window));
            allocate(&one.file, size)?;
            let grown = Instant::now();
            let whole = tracker.whole("the operation")?;
            to_restored.record_ns(ns(whole.saturating_duration_since(grown)));
        }
        for file in others
            .into_iter()
            .chain([Guarded { file: one.file.try_clone()?, region: one.region.take() }])
        {
            if let Some(region) = file.region {
                region.deregister()?;
            }
        }
        std::fs::remove_file(plain_path)?;
        Ok(Row {
            size,
            regions,
            unguarded: unguarded.percentiles(),
            guarded: guarded.percentiles(),
            to_scrap: to_scrap.percentiles(),
            window: window.percentiles(),
            to_restored: to_restored.percentiles(),
        })
    }

    /// 8-byte WRITEs into memory without a guard and with one, in turns, so that both meet the same
    /// machine.
    fn fast_path(&self, clock: &Clock) -> anyhow::Result<(Latencies, Latencies)> {
        let memory = || Memory::open(&Source::Memfd, 4096, Populate::Yes);
        let plain = self.pd.register(memory()?, Access::ALL)?;
        let guarded =
            self.pd.register_guarded(memory()?, Access::ALL, &self.guard, Policy::FOLLOW)?;
        let mut cq = self.device.completion_queue(64)?;
        let options = QueuePairOptions { send_depth: 8, recv_depth: 1, ..Default::default() };
        let mut qp = self.pd.queue_pair(&options, &cq, &cq)?;
        let mut peer = self.pd.queue_pair(&options, &cq, &cq)?;
        QueuePair::connect_pair(&mut qp, &mut peer)?;
        let mut both = (Latencies::new(), Latencies::new());
        for turn in 0..40 {
            interrupt::check()?;
            for (region, latencies) in [(&plain, &mut both.0), (&guarded, &mut both.1)] {
                for _ in 0..250 {
                    let ns = write(&mut qp, &mut cq, region, clock)?;
                    // The first turn warms up.
                    if turn > 0 {
                        latencies.record_ns(ns);
                    }
                }
            }
        }
        Ok(both)
    }
}

/// One WRITE within a region, in nanoseconds.
fn write(
    qp: &mut QueuePair,
    cq: &mut CompletionQueue,
    region: &MemoryRegion,
    clock: &Clock,
) -> anyhow::Result<f64> {
    let remote = Remote { addr: region.remote().addr + 64, rkey: region.rkey() };
    let local = [region.slice(0, 8)?];
    let mut patience = Patience::new(PATIENCE);
    let mut done = [Completion::default()];
    let start = clock.ticks();
    qp.write(1, &local, remote, SendFlags::SIGNALED)?;
    qp.ring_sends();
    while cq.poll(&mut done)? == 0 {
        patience.tick("the completion of a WRITE")?;
    }
    let ns = clock.ns(clock.ticks().wrapping_sub(start));
    anyhow::ensure!(done[0].is_success(), "a WRITE failed: {:?}", done[0].status);
    Ok(ns)
}

/// Gives a file its size, with blocks where the file system can.
fn allocate(file: &File, size: u64) -> anyhow::Result<()> {
    file.set_len(size)?;
    match fallocate(file.as_fd(), FallocateFlags::empty(), 0, i64::try_from(size)?) {
        Ok(()) | Err(Errno::EOPNOTSUPP) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}

fn table(outcome: &Outcome) -> String {
    let mut text = format!(
        "{} regions on {}; {} operations each; told by {}\n\n",
        outcome.region_kind,
        outcome.device,
        outcome.rounds,
        outcome.notifiers.join(", ")
    );
    let cell = |p: &Percentiles| {
        format!("{} / {} / {}", human_ns(p.p50_ns), human_ns(p.p99_ns), human_ns(p.max_ns))
    };
    let _ = writeln!(
        text,
        "{:>9} {:>7}  {:<28} {:<28} {:<28} {:<28} p50 / p99 / max",
        "size", "regions", "ftruncate, unguarded", "guarded", "until on scrap", "window"
    );
    for row in outcome.by_size.iter().chain(&outcome.by_regions) {
        let _ = writeln!(
            text,
            "{:>9} {:>7}  {:<28} {:<28} {:<28} {:<28}",
            human_bytes(row.size),
            row.regions,
            cell(&row.unguarded),
            cell(&row.guarded),
            cell(&row.to_scrap),
            cell(&row.window)
        );
    }
    let (plain, guarded) = (&outcome.write_unguarded, &outcome.write_guarded);
    let _ = writeln!(
        text,
        "\n8-byte WRITE p50: {} without a guard, {} with one (ratio {:.2})",
        human_ns(plain.p50_ns),
        human_ns(guarded.p50_ns),
        guarded.p50_ns / plain.p50_ns
    );
    text
}
