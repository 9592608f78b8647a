//! `holdfast nic`: emulated NICs for other processes, on Unix sockets.

use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use anyhow::Context as _;
use clap::{Args, ValueEnum};
use holdfast_nic::engine::MissPolicy;
use holdfast_nic::{Doorbells, LinkAddress, NicOptions, NicProcess, PollMode};
use nix::sys::prctl;
use nix::sys::signal::Signal;
use nix::unistd::{Pid, getppid};
use serde::Serialize;

use super::{Usage, interrupt, live, parse};

const EXAMPLES: &str = "\
Examples:
  holdfast nic --socket /tmp/a.sock --socket /tmp/b.sock
      Two NICs that reach each other; give a client 'vfio-user:/tmp/a.sock'.
  holdfast nic --socket /tmp/a.sock --poll --cpu 1
      Lowest latency: the NIC owns processor 1 and never sleeps.
  holdfast nic --socket /tmp/a.sock --link-listen /tmp/link.sock
  holdfast nic --socket /tmp/b.sock --link-connect /tmp/link.sock
      Two processes, joined.
  holdfast nic --socket /tmp/a.sock --link-listen tcp:10.0.0.1:7471
  holdfast nic --socket /tmp/b.sock --link-connect tcp:10.0.0.1:7471
      Two hosts, joined.
  holdfast nic --socket /tmp/vm.sock --doorbells trapped
      For a virtual machine with Linux's own driver:
      qemu-system-x86_64 ... -device '{\"driver\":\"vfio-user-pci\",\"socket\":{\"type\":\"unix\",\"path\":\"/tmp/vm.sock\"},\"x-no-posted-writes\":true}'
  echo counters | nc -U /tmp/control.sock
      With --control /tmp/control.sock: what was counted, as JSON.

One line on standard output says that clients can connect. Ctrl-C or SIGTERM ends the NICs and
removes the sockets.";

/// How doorbells reach the NIC.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum DoorbellMode {
    /// stores to memory that the client maps
    Mapped,
    /// messages, which no stock driver can lose
    Trapped,
}

/// What to do when an address of the client's has nothing behind it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Miss {
    /// wait for it for a bounded time, like a NIC with page requests
    Stall,
    /// fail the queue pair at once, like a NIC without
    Fail,
}

/// Arguments of `holdfast nic`.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct NicCommand {
    /// Serve a NIC on this socket; once for each NIC
    #[arg(long = "socket", value_name = "PATH", required = true)]
    sockets: Vec<PathBuf>,

    /// Let other NIC processes join here: a socket's path, or tcp:HOST:PORT for other hosts (without
    /// encryption or authentication: for a network that you trust)
    #[arg(long, value_name = "ADDRESS")]
    link_listen: Vec<LinkAddress>,

    /// Join the NIC process that listens there
    #[arg(long, value_name = "ADDRESS")]
    link_connect: Vec<LinkAddress>,

    /// Serve counters as JSON on this socket
    #[arg(long, value_name = "PATH")]
    control: Option<PathBuf>,

    /// Never sleep: lowest latency, a whole processor
    #[arg(long)]
    poll: bool,

    /// Without --poll: go to sleep after this many microseconds without work
    #[arg(long, value_name = "MICROSECONDS", conflicts_with = "poll")]
    spin: Option<u64>,

    /// Bind the working thread to this processor
    #[arg(long, value_name = "N")]
    cpu: Option<usize>,

    /// How doorbells arrive
    #[arg(long, value_enum, default_value = "mapped")]
    doorbells: DoorbellMode,

    /// What to do on a translation miss
    #[arg(long, value_enum, default_value = "stall")]
    miss: Miss,

    /// How long a miss may stall a queue pair [default: the NIC's own]
    #[arg(long, value_name = "SECONDS", value_parser = parse::seconds)]
    stall_bound: Option<Duration>,

    /// Device interface version to report, 17 to 20
    #[arg(long, value_name = "N", default_value_t = 20,
          value_parser = clap::value_parser!(u32).range(17..=20))]
    interface: u32,

    /// Answer the register write of a command before carrying it out
    #[arg(long)]
    async_commands: bool,

    /// Keep queues and regions when a client goes
    #[arg(long)]
    keep_state: bool,

    /// Print the ready line as JSON
    #[arg(long)]
    json: bool,

    /// End with this parent process (it starts the NIC for itself)
    #[arg(long, value_name = "PID", hide = true)]
    parent: Option<i32>,
}

#[derive(Debug, Serialize)]
struct Ready<'a> {
    ready: bool,
    sockets: &'a [PathBuf],
    control: Option<&'a PathBuf>,
    link_listen: Vec<String>,
    pid: u32,
}

impl NicCommand {
    fn options(&self) -> anyhow::Result<NicOptions> {
        let mut options = NicOptions::default();
        options.miss = match (self.miss, self.stall_bound, options.miss) {
            (Miss::Fail, Some(_), _) => {
                return Err(Usage::error("--stall-bound means nothing with --miss fail"));
            }
            (Miss::Fail, None, _) => MissPolicy::Fail,
            (Miss::Stall, Some(bound), _) => MissPolicy::Stall { bound },
            (Miss::Stall, None, stall @ MissPolicy::Stall { .. }) => stall,
            (Miss::Stall, None, MissPolicy::Fail) => {
                MissPolicy::Stall { bound: Duration::from_secs(1) }
            }
        };
        options.poll = match (self.poll, self.spin) {
            (true, _) => PollMode::Always,
            (false, Some(spin)) => PollMode::Idle { spin: Duration::from_micros(spin) },
            (false, None) => PollMode::default(),
        };
        options.doorbells = match self.doorbells {
            DoorbellMode::Mapped => Doorbells::Mapped,
            DoorbellMode::Trapped => Doorbells::Trapped,
        };
        Ok(NicOptions {
            sockets: self.sockets.clone(),
            link_listen: self.link_listen.clone(),
            link_connect: self.link_connect.clone(),
            control: self.control.clone(),
            version: self.interface,
            async_commands: self.async_commands,
            cpu: self.cpu,
            reset_on_disconnect: !self.keep_state,
            ..options
        })
    }
}

/// Serves NICs until a signal comes.
pub fn run(command: &NicCommand) -> anyhow::Result<ExitCode> {
    if let Some(parent) = command.parent {
        end_with(parent)?;
    }
    let nic = Arc::new(NicProcess::start(command.options()?)?);
    let counted = Arc::downgrade(&nic);
    live::stats()
        .source(move || counted.upgrade().map(|nic| live::nic_counters(&nic)).unwrap_or_default());
    let served = live::serve();
    announce(command, &nic)?;
    while !interrupt::requested() {
        thread::park_timeout(Duration::from_millis(50));
    }
    // Nobody asks the NICs any more, so this is their end.
    drop(served);
    drop(nic);
    if command.parent.is_some() {
        // The parent made this folder for the sockets, and may be gone without removing it.
        for folder in command.sockets.iter().filter_map(|socket| socket.parent()) {
            let _ = std::fs::remove_dir(folder);
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn announce(command: &NicCommand, nic: &NicProcess) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    if command.json {
        let ready = Ready {
            ready: true,
            sockets: &command.sockets,
            control: command.control.as_ref(),
            link_listen: nic.link_addresses().iter().map(ToString::to_string).collect(),
            pid: std::process::id(),
        };
        writeln!(out, "{}", serde_json::to_string(&ready)?)?;
    } else {
        let sockets: Vec<String> =
            command.sockets.iter().map(|path| format!("vfio-user:{}", path.display())).collect();
        writeln!(out, "ready: {}", sockets.join(" "))?;
    }
    out.flush()?;
    Ok(())
}

/// Has the kernel send SIGTERM when the parent dies, and ends now if it has died already.
fn end_with(parent: i32) -> anyhow::Result<()> {
    prctl::set_pdeathsig(Signal::SIGTERM).context("cannot ask to end with the parent process")?;
    anyhow::ensure!(getppid() == Pid::from_raw(parent), "the parent process is gone already");
    Ok(())
}
