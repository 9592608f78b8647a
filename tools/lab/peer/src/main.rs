//! `lab-peer`: Holdfast against libibverbs on Linux's own driver. It runs in a lab guest.
//!
//! * `joint` opens one NIC through each and carries out every operation from either side to the
//!   other, with all data checked ([`joint`]).
//! * `pingpong` is the peer of an unmodified `ibv_rc_pingpong` or `ibv_ud_pingpong`
//!   ([`pingpong`]).
//! * `perftest` is the peer of an unmodified perftest ([`perftest`]).
//! * `measure` times what perftest cannot: registration, the way from opening a device to the
//!   first completion ([`measure`]), and both ends played by one thread ([`one_thread`]).
//! * `qemu` checks Holdfast on the PVRDMA device that QEMU 7.2 has itself ([`qemu`]).
//! * `table` sets the figures of both drivers side by side ([`table`]).

mod end;
mod holdfast_end;
mod joint;
mod kernel_end;
mod measure;
mod one_thread;
mod perftest;
mod pingpong;
mod qemu;
mod table;
mod verbs;

use std::net::Ipv6Addr;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Result, bail};
use clap::{Parser, Subcommand};
use holdfast::{Device, DeviceAddress};

/// Holdfast against libibverbs on Linux's own driver.
#[derive(Parser)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Every operation between two NICs, in both directions
    Joint {
        /// The NIC that Holdfast drives
        #[arg(long)]
        device: DeviceAddress,
        /// The RDMA device of Linux's driver
        #[arg(long)]
        verbs: String,
    },
    /// Plays the peer of ibv_rc_pingpong or ibv_ud_pingpong
    Pingpong(pingpong::Options),
    /// Plays the peer of a perftest
    Perftest(perftest::Options),
    /// Prints the file for perftest's --payload_file_path
    PerftestPayload,
    /// Times what perftest cannot, with one driver on two NICs, as JSON
    Measure {
        /// A NIC that Holdfast drives; twice
        #[arg(long, conflicts_with = "verbs")]
        device: Vec<DeviceAddress>,
        /// An RDMA device of Linux's driver; twice
        #[arg(long)]
        verbs: Vec<String>,
    },
    /// Holdfast on the PVRDMA device that QEMU 7.2 has itself
    Qemu(qemu::Options),
    /// Prints the IPv6 address of a NIC's GID, and the MAC address that belongs to it
    Gid {
        /// The NIC that Holdfast drives
        #[arg(long)]
        device: DeviceAddress,
    },
    /// Sets what was measured with both drivers side by side
    Table {
        /// A folder for each round, with `lab-peer measure`'s JSON, perftest's output and `holdfast
        /// bench`'s JSON
        #[arg(required = true)]
        rounds: Vec<PathBuf>,
        /// Where to write the table as JSON
        #[arg(long)]
        json: PathBuf,
    },
}

fn main() -> ExitCode {
    match run(Cli::parse().verb) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("lab-peer: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(verb: Verb) -> Result<bool> {
    match verb {
        Verb::Joint { device, verbs } => joint::run(&device, &verbs),
        Verb::Pingpong(options) => pingpong::run(&options).map(|()| true),
        Verb::Perftest(options) => perftest::run(&options).map(|()| true),
        Verb::PerftestPayload => {
            print!("{}", perftest::payload_file());
            Ok(true)
        }
        Verb::Measure { device, verbs } => {
            let figures = match (&device[..], &verbs[..]) {
                ([one, two], []) => measure::holdfast(one, two)?,
                ([], [one, two]) => measure::kernel(one, two)?,
                _ => bail!("two of --device, or two of --verbs"),
            };
            println!("{}", serde_json::to_string_pretty(&figures)?);
            Ok(true)
        }
        Verb::Qemu(options) => qemu::run(&options),
        Verb::Gid { device } => {
            let gid = Device::open(&device)?.gid();
            // The two halves of a modified EUI-64 (RFC 4291, appendix A), as Linux takes them.
            let mac = [gid[8] ^ 2, gid[9], gid[10], gid[13], gid[14], gid[15]];
            let mac = mac.map(|byte| format!("{byte:02x}")).join(":");
            println!("{} {mac}", Ipv6Addr::from(gid));
            Ok(true)
        }
        Verb::Table { rounds, json } => table::run(&rounds, &json).map(|()| true),
    }
}
