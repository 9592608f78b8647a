//! QEMU 7.2's own pvrdma under Holdfast: what it does, and each way in which it is not like others.
//!
//! Every check is one that fails if the driver took no notice of the device's ways: the device
//! would refuse the command, lose a completion, move wrong bytes, or hang the guest, which the
//! lab's time limit ends. The device reaches itself: both ends are queue pairs of one function.

mod bring_up;
mod failures;
mod interrupts;
mod leftovers;
mod messages;
mod regions;
mod rig;
mod shared;

use anyhow::Result;
use clap::{Args, ValueEnum};
use holdfast::DeviceAddress;
use holdfast_lab_check::Report;

/// What to check on which device.
#[derive(Args)]
pub struct Options {
    /// The function, bound to vfio-pci
    #[arg(long)]
    device: DeviceAddress,
    /// What to check
    #[arg(value_enum)]
    part: Part,
}

/// A part of the checks.
#[derive(Clone, Copy, ValueEnum)]
enum Part {
    /// Bring-up, limits, messages, refusals, failures
    All,
    /// Fills the device with objects and waits to be killed
    Hold,
    /// After the holder was killed: the device is as good as empty
    AfterKill,
    /// Notifications by interrupt
    Interrupts,
}

/// Runs a part; says whether all of its checks passed.
pub fn run(options: &Options) -> Result<bool> {
    let mut report = Report::default();
    let device = &options.device;
    match options.part {
        Part::All => {
            bring_up::run(device, &mut report)?;
            let rig = rig::Rig::open(device)?;
            regions::run(&rig, &mut report);
            messages::run(&rig, &mut report);
            shared::run(&rig, &mut report);
            failures::run(&rig, &mut report);
        }
        Part::Hold => leftovers::hold(device)?,
        Part::AfterKill => leftovers::after_kill(device, &mut report)?,
        Part::Interrupts => interrupts::run(device, &mut report)?,
    }
    Ok(report.failed == 0)
}
