//! Notifications by interrupt: the device takes only an ARM with both of its bits, and hangs the
//! guest if a POLL meets the interrupt.

use std::os::fd::AsFd as _;

use anyhow::{Context as _, Result, ensure};
use holdfast::{Completion, Device, DeviceAddress, Interrupts, Options, SendFlags};
use holdfast_lab_check::Report;
use nix::poll::{PollFd, PollFlags, poll};

use super::rig::{HALF, Pair, Rig};

/// Milliseconds that an interrupt may take.
const PATIENCE: u16 = 10_000;

/// Opens the device for interrupts.
pub fn run(address: &DeviceAddress, report: &mut Report) -> Result<()> {
    let options = Options { interrupts: Interrupts::Eventfd, ..Options::default() };
    let rig = Rig::new(Device::open_with(address, options)?)?;
    for (name, solicited) in [("any completion", false), ("a solicited completion", true)] {
        report.check(
            &format!("an interrupt for {name}, 200 times, with busy polling between"),
            || {
                let mut pair = rig.pair(8, 1)?;
                (0..200).try_for_each(|round| {
                    notified(&rig, &mut pair, solicited, round)
                        .with_context(|| format!("round {round}"))
                })
            },
        );
    }
    Ok(())
}

fn notified(rig: &Rig, pair: &mut Pair, solicited: bool, round: u64) -> Result<()> {
    let Pair { a, b, cq } = pair;
    let driver = rig.device.driver();
    rig.fill(0, 64, round)?;
    let recv = b.recv.as_mut().context("a receive queue")?;
    recv.post(2, &[rig.sge(HALF, 64)])?;
    recv.ring();
    while driver.next_notification()?.is_some() {}
    cq.arm(solicited)?;
    a.send.send(1, &[rig.sge(0, 64)], SendFlags::SIGNALED | SendFlags::SOLICITED)?;
    a.send.ring();
    let fd = driver.notification_fd().context("no eventfd")?;
    let mut ready = [PollFd::new(fd.as_fd(), PollFlags::POLLIN)];
    ensure!(poll(&mut ready, PATIENCE)? == 1, "no interrupt");
    nix::unistd::read(fd, &mut [0; 8])?;
    ensure!(driver.next_notification()? == Some(cq.handle()), "a notification of another queue");
    // Far more looks at an empty queue than a poller takes before it rings POLL.
    let mut done = [Completion::default()];
    let (mut found, mut looks) = (0, 0);
    while found < 2 || looks < 2000 {
        found += cq.poll(&mut done)?;
        looks += 1;
        ensure!(looks < 200_000_000, "{found} of 2 completions");
    }
    rig.expect(HALF, 64, round)
}
