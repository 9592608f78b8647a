//! `holdfast watch`: files as guarded memory regions, and what happens to them, as it happens.

use std::collections::HashMap;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use clap::Args;
use clap::builder::{PossibleValuesParser, TypedValueParser};
use holdfast::coherence::keeper::KeeperOptions;
use holdfast::coherence::{
    Event, EventKind, Events, Guard, GuardOptions, NotifierKind, Policy, Reaction, RegionId,
};
use holdfast::{
    Access, Device, DeviceAddress, EmulatedNic, EmulatedOptions, Memory, MemoryRegion, Populate,
    ProtectionDomain, Source,
};
use serde::Serialize;

use super::histogram::human_ns;
use super::{Usage, interrupt, parse, print};

const EXAMPLES: &str = "\
Examples:
  holdfast watch /mnt/pmem/data                 a DAX file, or any other
  holdfast watch --json data.bin:0+64M log.bin  one JSON object a line
  holdfast watch --device 0000:00:10.0 /mnt/pmem/data
                                                registered with a device of the kernel (VFIO)
  holdfast watch --policy hold=50ms data.bin    50 ms for the application before scrap
  holdfast watch --statement data.bin           only say which notifiers would be in force

Each file is registered as a memory region. An event says which part of which region is affected:
  breaking   an operation that changes the layout waits; the part is about to go to scrap
  broken     the part is on scrap: what a device writes there is not in the file
  restored   the part is on the file again, at the same addresses
  lost       the file has no block there any more (until it grows again)

Without --device the regions belong to an emulated NIC inside this command. Ctrl-C ends it.";

/// Arguments of `holdfast watch`.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct WatchOptions {
    /// Files to watch: FILE, or a part of it as FILE:OFFSET+LEN
    #[arg(required = true, value_name = "FILE")]
    files: Vec<Source>,

    /// Register with this device: vfio-user:PATH or a PCI address
    #[arg(long, value_name = "DEVICE", default_value = "emulated")]
    device: DeviceAddress,

    /// What is done before the operation goes on: retarget, hold=TIME or revoke
    #[arg(long, default_value = "retarget", value_parser = reaction)]
    policy: Reaction,

    /// Leave on scrap what was broken
    #[arg(long)]
    no_follow: bool,

    /// Use these notifiers only; may be repeated [default: all that this machine allows but lease,
    /// under which other programs that open the file with O_NONBLOCK fail]
    #[arg(long, value_name = "NOTIFIER", value_parser = notifiers())]
    notifier: Vec<NotifierKind>,

    /// Say which notifiers are in force, what each sees and costs, and end
    #[arg(long)]
    statement: bool,

    /// End after this many events
    #[arg(long, value_name = "N")]
    events: Option<u64>,

    /// Print one JSON object for each event
    #[arg(long)]
    json: bool,
}

/// A notifier by its name.
fn notifiers() -> impl TypedValueParser<Value = NotifierKind> {
    let names = NotifierKind::ALL.map(NotifierKind::name);
    PossibleValuesParser::new(names).try_map(|name| name.parse::<NotifierKind>())
}

fn reaction(text: &str) -> Result<Reaction, String> {
    match text.split_once('=') {
        None if text == "retarget" => Ok(Reaction::Retarget),
        None if text == "revoke" => Ok(Reaction::Revoke),
        Some(("hold", time)) => Ok(Reaction::Hold { deadline: parse::duration(time)? }),
        _ => Err("write retarget, revoke, or hold=TIME (such as hold=50ms)".to_owned()),
    }
}

/// An event, for a program to read.
#[derive(Debug, Serialize)]
struct Line<'a> {
    /// Seconds since the command began to watch.
    seconds: f64,
    file: &'a str,
    region: RegionId,
    event: EventKind,
    start: u64,
    end: u64,
    cause: &'static str,
    cause_text: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    named_start: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    named_end: Option<u64>,
    notifier: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pid: Option<i32>,
    /// From the notice until no access reached the file.
    #[serde(skip_serializing_if = "Option::is_none")]
    to_fence_ns: Option<u64>,
    /// From the notice until the operation was let go.
    #[serde(skip_serializing_if = "Option::is_none")]
    to_release_ns: Option<u64>,
    /// Longest time in which an access found nothing behind an address.
    #[serde(skip_serializing_if = "Option::is_none")]
    window_ns: Option<u64>,
    merged: u32,
}

/// Watches.
pub fn run(options: &WatchOptions) -> anyhow::Result<ExitCode> {
    let mut notifiers = GuardOptions::default().notifiers;
    if !options.notifier.is_empty() {
        notifiers.kinds.clone_from(&options.notifier);
    }
    let mut keeper = KeeperOptions::default();
    if let Reaction::Hold { deadline } = options.policy {
        keeper.deadline += deadline;
    }
    let keeper = Some(keeper);
    let guard = Guard::start(GuardOptions { notifiers, keeper, ..GuardOptions::default() })?;
    if options.statement {
        print(format_args!("{}\n", guard.statement()))?;
        return Ok(ExitCode::SUCCESS);
    }
    for source in &options.files {
        if !matches!(source, Source::File { .. } | Source::FsDax { .. }) {
            return Err(Usage::error(format!("'{source}' is no file: name one as ./{source}")));
        }
    }
    let events = guard.events()?;
    let (device, _nic) = open(&options.device)?;
    let pd = device.protection_domain()?;
    let policy = Policy { reaction: options.policy, follow: !options.no_follow };
    let watched = options
        .files
        .iter()
        .map(|source| register(&pd, source, &guard, policy))
        .collect::<anyhow::Result<Vec<_>>>()?;
    eprintln!("{}", guard.statement());
    eprintln!("watching; Ctrl-C ends it");
    let names: HashMap<RegionId, &str> =
        watched.iter().filter_map(|(name, region)| Some((region.id()?, name.as_str()))).collect();
    let told = tell(options, &events, &names);
    for (name, region) in watched {
        region.deregister().with_context(|| format!("letting go of {name}"))?;
    }
    told?;
    Ok(ExitCode::SUCCESS)
}

fn open(address: &DeviceAddress) -> anyhow::Result<(Device, Option<EmulatedNic>)> {
    if *address == DeviceAddress::Emulated {
        let nic = EmulatedNic::start(EmulatedOptions::default())?;
        return Ok((nic.open(0)?, Some(nic)));
    }
    let device = Device::open(address).with_context(|| format!("cannot open {address}"))?;
    interrupt::stop_at_removal(&device);
    Ok((device, None))
}

fn register(
    pd: &ProtectionDomain,
    source: &Source,
    guard: &Guard,
    policy: Policy,
) -> anyhow::Result<(String, MemoryRegion)> {
    let memory = Memory::open(source, 1, Populate::Yes)?;
    eprintln!("{source}: {}, {:#x} bytes", memory.kind(), memory.len());
    let region = pd
        .register_guarded(memory, Access::ALL, guard, policy)
        .with_context(|| format!("cannot guard {source}"))?;
    Ok((source.to_string(), region))
}

/// Prints events until there were enough; fails when the command is interrupted before.
fn tell(
    options: &WatchOptions,
    events: &Events,
    names: &HashMap<RegionId, &str>,
) -> anyhow::Result<()> {
    let started = Instant::now();
    let mut left = options.events.unwrap_or(u64::MAX);
    while left > 0 {
        interrupt::check()?;
        let Some(event) = events.next_within(Duration::from_millis(100)) else { continue };
        let file = names.get(&event.region).copied().unwrap_or("?");
        if options.json {
            let line = serde_json::to_string(&line(&event, file, started))?;
            print(format_args!("{line}\n"))?;
        } else {
            print(format_args!("{}\n", text(&event, file, started)))?;
        }
        left -= 1;
    }
    Ok(())
}

fn line<'a>(event: &Event, file: &'a str, started: Instant) -> Line<'a> {
    let ns = |time: Duration| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
    Line {
        seconds: event.at.saturating_duration_since(started).as_secs_f64(),
        file,
        region: event.region,
        event: event.kind,
        start: event.part.start,
        end: event.part.end,
        cause: event.cause.name(),
        cause_text: event.cause.to_string(),
        named_start: event.named.map(|named| named.start),
        named_end: event.named.map(|named| named.end),
        notifier: event.notifier.name(),
        pid: event.pid,
        to_fence_ns: event.timing.map(|timing| ns(timing.to_fence)),
        to_release_ns: event.timing.map(|timing| ns(timing.to_release)),
        window_ns: event.timing.map(|timing| ns(timing.window)),
        merged: event.merged,
    }
}

fn text(event: &Event, file: &str, started: Instant) -> String {
    let seconds = event.at.saturating_duration_since(started).as_secs_f64();
    let mut text =
        format!("{seconds:10.6} {file}: {:<8} {} by {}", event.kind, event.part, event.cause);
    if let Some(named) = event.named {
        text += &format!(" of {named}");
    }
    if let Some(pid) = event.pid {
        text += &format!(", pid {pid}");
    }
    text += &format!(" ({})", event.notifier);
    if let Some(timing) = event.timing {
        let ns = |time: Duration| human_ns(time.as_nanos() as f64);
        text += &format!(
            "; fenced after {}, let go after {}, nothing behind an address for at most {}",
            ns(timing.to_fence),
            ns(timing.to_release),
            ns(timing.window)
        );
    }
    if event.merged > 0 {
        text += &format!("; and {} more like it", event.merged);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_policy_is_read_as_it_is_written() {
        assert_eq!(reaction("retarget"), Ok(Reaction::Retarget));
        assert_eq!(reaction("revoke"), Ok(Reaction::Revoke));
        let deadline = Duration::from_millis(50);
        assert_eq!(reaction("hold=50ms"), Ok(Reaction::Hold { deadline }));
        for wrong in ["", "hold", "hold=", "hold=x", "drop"] {
            assert!(reaction(wrong).is_err(), "{wrong}");
        }
    }
}
