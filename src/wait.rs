//! Waiting for completions by polling first and sleeping later: the latency of polling while there is
//! traffic, and no processor used while there is none.
//!
//! A completion that comes within the spin time costs what polling costs. After it, the completion
//! queue is armed and the thread sleeps until the device interrupts; the next completion then costs
//! an interrupt and a wake-up. A spin time of about what a wake-up costs (some ten microseconds; see
//! `holdfast cores` for idle states) is never far from the better of the two.

use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use holdfast_driver as driver;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::{Completion, CompletionQueue, Device, Error, Result};

/// Polls between two looks at the clock.
const POLLS: u32 = 64;

/// Polls, then sleeps. For one thread: a device has one notification for all its completion queues,
/// so one waiter for each device.
#[derive(Debug)]
pub struct Waiter {
    device: Arc<driver::Device>,
    spin: Duration,
    /// The queue that owes an interrupt, or has given one that was not taken yet.
    armed: Option<u32>,
    sleeps: u64,
}

impl Waiter {
    /// One that polls for `spin` before it sleeps. `None` where the device was opened without
    /// interrupts ([`driver::Options::interrupts`]).
    pub fn new(device: &Device, spin: Duration) -> Option<Self> {
        let device = Arc::clone(device.driver());
        device.notification_fd()?;
        Some(Self { device, spin, armed: None, sleeps: 0 })
    }

    /// Takes completions of `cq`, waiting for the first of them for at most `patience`; 0 if none
    /// came.
    ///
    /// # Errors
    /// Those of polling and arming, and [`Error::Wait`] when the kernel refuses to wait.
    pub fn wait(
        &mut self,
        cq: &mut CompletionQueue,
        out: &mut [Completion],
        patience: Duration,
    ) -> Result<usize> {
        let started = Instant::now();
        let count = self.spin(cq, out, started, patience)?;
        if count > 0 {
            return Ok(count);
        }
        loop {
            if self.armed != Some(cq.handle()) {
                cq.arm(false)?;
                self.armed = Some(cq.handle());
            }
            // What came before the arming interrupts nobody.
            let count = cq.poll(out)?;
            let left = patience.saturating_sub(started.elapsed());
            if count > 0 || left.is_zero() {
                return Ok(count);
            }
            self.sleep(left)?;
        }
    }

    /// Times that it went to sleep.
    pub fn sleeps(&self) -> u64 {
        self.sleeps
    }

    fn spin(
        &self,
        cq: &mut CompletionQueue,
        out: &mut [Completion],
        started: Instant,
        patience: Duration,
    ) -> Result<usize> {
        let longest = self.spin.min(patience);
        loop {
            for _ in 0..POLLS {
                let count = cq.poll(out)?;
                if count > 0 {
                    return Ok(count);
                }
                std::hint::spin_loop();
            }
            if started.elapsed() >= longest {
                return Ok(0);
            }
        }
    }

    /// Sleeps until an interrupt comes, and takes it.
    fn sleep(&mut self, longest: Duration) -> Result<()> {
        let Some(fd) = self.device.notification_fd() else { return Ok(()) };
        self.sleeps += 1;
        if readable_within(fd, longest).map_err(Error::Wait)? {
            match nix::unistd::read(fd, &mut [0; 8]) {
                Ok(_) | Err(Errno::EAGAIN | Errno::EINTR) => {}
                Err(errno) => return Err(Error::Wait(errno)),
            }
            while self.device.next_notification()?.is_some() {}
            self.armed = None;
        }
        Ok(())
    }
}

fn readable_within(fd: BorrowedFd<'_>, longest: Duration) -> Result<bool, Errno> {
    // Rounded up, or the last millisecond would be spent in a busy loop.
    let millis = longest.as_millis().saturating_add(1);
    let timeout = PollTimeout::try_from(millis).unwrap_or(PollTimeout::MAX);
    let mut fds = [PollFd::new(fd, PollFlags::POLLIN)];
    match poll(&mut fds, timeout) {
        Ok(count) => Ok(count > 0),
        Err(Errno::EINTR) => Ok(false),
        Err(errno) => Err(errno),
    }
}
