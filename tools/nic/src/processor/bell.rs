//! Waking the processor: a flag it polls while awake, an eventfd it blocks on while asleep.

use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering, fence};
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};

/// A wake-up line to one processor thread; any thread may ring it.
#[derive(Debug)]
pub struct Bell {
    // Somebody left something to look at.
    rung: AtomicBool,
    // The processor is about to block, or blocks.
    sleeping: AtomicBool,
    // There is no processor any more.
    closed: AtomicBool,
    event: EventFd,
}

impl Bell {
    /// A silent bell.
    pub fn new() -> nix::Result<Self> {
        let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
        Ok(Self {
            rung: AtomicBool::new(false),
            sleeping: AtomicBool::new(false),
            closed: AtomicBool::new(false),
            event: EventFd::from_value_and_flags(0, flags)?,
        })
    }

    /// Says that there is something to look at. A system call only when the processor sleeps.
    pub fn ring(&self) {
        self.rung.store(true, Ordering::Release);
        // With the fence in `sleep`: either this side sees the sleeper, or the sleeper sees `rung`.
        fence(Ordering::SeqCst);
        if self.sleeping.load(Ordering::Relaxed) {
            // Fails only when the counter is full, and then the sleeper wakes all the same.
            let _ = self.event.write(1);
        }
    }

    /// Whether it was rung since the last time this said so.
    #[inline]
    pub fn take(&self) -> bool {
        self.rung.load(Ordering::Relaxed) && self.rung.swap(false, Ordering::Acquire)
    }

    /// Says that nobody hears it any more.
    pub fn close(&self) {
        self.closed.store(true, Ordering::Release);
    }

    /// Whether nobody hears it any more.
    pub fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    /// Whether it was rung; leaves it so.
    pub fn is_rung(&self) -> bool {
        self.rung.load(Ordering::Acquire)
    }

    /// Blocks until rung, at most for `limit` (`None`: for ever). Does not take the ring.
    pub fn sleep(&self, limit: Option<Duration>) {
        self.sleeping.store(true, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        if !self.rung.load(Ordering::Relaxed) {
            let mut fds = [PollFd::new(self.event.as_fd(), PollFlags::POLLIN)];
            // ppoll, for naps below a millisecond. A signal ends the nap early, which is harmless.
            let _ = match limit {
                None => poll(&mut fds, PollTimeout::NONE),
                Some(limit) => nix::poll::ppoll(&mut fds, Some(limit.into()), None),
            };
        }
        self.sleeping.store(false, Ordering::Relaxed);
        let _ = self.event.read();
    }
}
