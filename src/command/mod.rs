//! The `holdfast` command: arguments, logging and exit codes. Each subcommand has its own file.

mod affinity;
mod bench;
mod bind;
mod child;
mod clock;
mod cores;
mod demo;
mod devices;
mod endpoints;
mod histogram;
mod interrupt;
mod jitter;
mod keeper;
mod live;
mod machine;
mod nic;
mod parse;
mod patience;
mod percentiles;
mod pingpong;
mod restored;
mod stall;
mod top;
mod watch;

use std::fmt::Display;
use std::io::Write as _;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::{ArgAction, Parser, Subcommand};
use holdfast::connect::ConnectError;
use tracing_subscriber::EnvFilter;

/// Something did not work, or data came out wrong.
const EXIT_FAILED: u8 = 1;
/// The command line makes no sense.
const EXIT_USAGE: u8 = 2;

const EXAMPLES: &str = "\
Examples:
  holdfast demo                                   see it work, on any Linux machine
  holdfast bench write lat                        how fast is an 8-byte RDMA WRITE
  holdfast nic --socket /tmp/a.sock --socket /tmp/b.sock
                                                  serve two emulated NICs, joined
  holdfast top                                    what do the running ones do
  holdfast devices                                which RDMA functions does this machine have
  holdfast bind 0000:03:00.1                      give one to this driver

Devices are named 'emulated' (a NIC started for the command alone), 'vfio-user:PATH' (a socket of
'holdfast nic', or of QEMU's kind), or by PCI address.

Exit status: 0 success; 1 something failed or data came out wrong; 2 wrong usage;
130 interrupted (Ctrl-C, SIGTERM), with everything tidied up ('nic' ends so: 0).

Environment: HOLDFAST_LOG sets what is logged to standard error, such as 'debug' or
'holdfast_driver=trace'.";

/// User-space RDMA over VFIO, and an emulated NIC to run it on.
#[derive(Debug, Parser)]
#[command(name = "holdfast", version, after_help = EXAMPLES, max_term_width = 100)]
#[command(propagate_version = false, subcommand_required = true, arg_required_else_help = true)]
struct Cli {
    /// Log more to standard error; twice for still more
    #[arg(short, long, global = true, action = ArgAction::Count)]
    verbose: u8,

    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// List RDMA-capable PCI functions: driver, IOMMU group and its other members, what to do next
    Devices(devices::DevicesOptions),
    /// Give a function's whole IOMMU group to vfio-pci
    Bind(bind::BindOptions),
    /// Give a function's whole IOMMU group back to the kernel's drivers
    Unbind(bind::BindOptions),
    /// Serve emulated NICs on Unix sockets
    Nic(nic::NicCommand),
    /// Send messages back and forth between two endpoints and verify every payload
    Pingpong(pingpong::PingpongOptions),
    /// Measure latency, bandwidth or operation rate
    Bench(Box<bench::BenchCommand>),
    /// Guard files as memory regions and print what happens to them, as it happens
    Watch(watch::WatchOptions),
    /// Measure how long file operations wait for a guard, and what a guard costs
    Stall(stall::StallOptions),
    /// Say what costs latency on the processors that polling threads get
    Cores(cores::CoresOptions),
    /// Show what running holdfast processes do: rates, latencies, misses, coherence events
    Top(top::TopOptions),
    /// RDMA WRITE and READ a real file through an emulated NIC, and check every byte
    Demo(demo::DemoOptions),
    /// Hold a driver's layout pins and DMA containers beyond its death (started by the driver)
    #[command(hide = true)]
    Keeper,
}

impl Command {
    /// Whether it works for a while, so that `holdfast top` can show it. (`nic` serves its counts
    /// itself: they end with the NICs.)
    fn works(&self) -> bool {
        match self {
            Self::Bench(command) => command.other.is_none(),
            Self::Pingpong(_) | Self::Watch(_) | Self::Stall(_) | Self::Demo(_) => true,
            _ => false,
        }
    }
}

/// A command line that parses but makes no sense; ends with exit status 2.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Usage(String);

impl Usage {
    /// The error, to be returned.
    fn error(text: impl Into<String>) -> anyhow::Error {
        Self(text.into()).into()
    }
}

/// Runs the command line of this process.
pub fn run() -> ExitCode {
    let cli = Cli::parse();
    if let Command::Keeper = cli.command {
        // It has its own way with signals, and threads of nobody.
        return keeper::run();
    }
    log(cli.verbose);
    if let Err(error) = interrupt::watch() {
        tracing::warn!(%error, "Ctrl-C will end the command without tidying up");
    }
    let _served = cli.command.works().then(live::serve).flatten();
    let done = match &cli.command {
        Command::Devices(options) => devices::run(options),
        Command::Bind(options) => bind::bind(options),
        Command::Unbind(options) => bind::unbind(options),
        Command::Nic(options) => nic::run(options),
        Command::Pingpong(options) => pingpong::run(options),
        Command::Bench(options) => bench::run(options),
        Command::Watch(options) => watch::run(options),
        Command::Stall(options) => stall::run(options),
        Command::Cores(options) => cores::run(options),
        Command::Top(options) => top::run(options),
        Command::Demo(options) => demo::run(options),
        Command::Keeper => return keeper::run(),
    };
    match done {
        Ok(code) => code,
        Err(error) => ExitCode::from(report(&error)),
    }
}

/// Prints to standard output; an error where `print!` would panic, when nobody reads it any more.
fn print(text: impl Display) -> anyhow::Result<()> {
    let mut stdout = std::io::stdout().lock();
    write!(stdout, "{text}")
        .and_then(|()| stdout.flush())
        .context("cannot write to standard output")
}

/// Says what went wrong and gives the exit status.
fn report(error: &anyhow::Error) -> u8 {
    if let Some(device) = interrupt::removed() {
        eprintln!("holdfast: {device} is being removed: everything on it was closed");
        return EXIT_FAILED;
    }
    let interrupted = error.chain().any(|cause| {
        cause.is::<interrupt::Interrupted>()
            || matches!(cause.downcast_ref(), Some(ConnectError::Interrupted { .. }))
    });
    if interrupted || interrupt::requested() {
        eprintln!("holdfast: interrupted");
        return interrupt::EXIT_INTERRUPTED;
    }
    if let Some(usage) = error.downcast_ref::<Usage>() {
        eprintln!("error: {usage}\n\nFor more information, try '--help'.");
        return EXIT_USAGE;
    }
    eprintln!("holdfast: {}", explain(error));
    EXIT_FAILED
}

/// The error and its causes, leaving out a cause whose text the one before already includes.
fn explain(error: &anyhow::Error) -> String {
    let mut text = String::new();
    let mut last = String::new();
    for cause in error.chain() {
        let cause = cause.to_string();
        if !last.contains(&cause) {
            if !text.is_empty() {
                text.push_str(": ");
            }
            text.push_str(&cause);
        }
        last = cause;
    }
    text
}

fn log(verbose: u8) {
    let default = match verbose {
        0 => "warn",
        1 => "info",
        2 => "debug",
        _ => "trace",
    };
    let filter = EnvFilter::try_from_env("HOLDFAST_LOG").unwrap_or_else(|_| default.into());
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_target(verbose > 1)
        .init();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        use clap::CommandFactory as _;
        Cli::command().debug_assert();
    }

    #[test]
    fn causes_are_told_once() {
        let root = anyhow::anyhow!("no such file");
        let error = root.context("cannot open x: no such file").context("loading");
        assert_eq!(explain(&error), "loading: cannot open x: no such file");
    }

    #[test]
    fn wrong_usage_and_failure_have_their_own_exit_status() {
        assert_eq!(report(&Usage::error("no")), EXIT_USAGE);
        assert_eq!(report(&anyhow::anyhow!("no")), EXIT_FAILED);
        let interrupted = anyhow::Error::from(interrupt::Interrupted).context("running");
        assert_eq!(report(&interrupted), interrupt::EXIT_INTERRUPTED);
    }
}
