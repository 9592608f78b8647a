//! The thread that hears of broken leases.
//!
//! The kernel tells by signal, and a library has no business with its process's signals. So the
//! signal is sent to one thread (`F_SETOWN_EX`), which alone has it blocked and reads it from a
//! descriptor: no handler is installed, no other thread's mask is touched, and whatever else the
//! process does with the same signal goes on. When the kernel's queue of signals is full, it sends
//! SIGIO without a descriptor instead, whose default is to end the process: that one is blocked
//! there too, and taken for every lease.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::unistd::{gettid, read};

use crate::notify::sys;

/// Most leases; flags for each are made beforehand, so that the thread takes no lock.
pub const LEASES: usize = 1024;

/// Where the signal's descriptor stands in `struct signalfd_siginfo`, and its size.
const SSI_FD: usize = 20;
const SIGINFO: usize = 128;

/// The thread, and what it has heard.
#[derive(Debug)]
pub struct Listener {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
    /// The thread's number, for `F_SETOWN_EX`.
    pub tid: i32,
}

#[derive(Debug)]
struct Shared {
    news: EventFd,
    end: EventFd,
    /// By descriptor.
    broken: Vec<AtomicBool>,
    /// Any of them may be.
    any: AtomicBool,
}

impl Listener {
    /// Starts the thread.
    pub fn new() -> Result<Self, Errno> {
        let event = || EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK);
        let shared = Arc::new(Shared {
            news: event()?,
            end: event()?,
            broken: (0..LEASES).map(|_| AtomicBool::new(false)).collect(),
            any: AtomicBool::new(false),
        });
        let (started, starts) = std::sync::mpsc::channel();
        let theirs = Arc::clone(&shared);
        let run = move || match sys::signals_of_this_thread(&[sys::spare_signal(), libc::SIGIO]) {
            Ok(signals) => {
                let _ = started.send(Ok(gettid().as_raw()));
                theirs.listen(&signals);
            }
            Err(errno) => {
                let _ = started.send(Err(errno));
            }
        };
        let thread = std::thread::Builder::new()
            .name("leases".into())
            .spawn(run)
            .map_err(|error| Errno::from_raw(error.raw_os_error().unwrap_or(0)))?;
        let tid = starts.recv().unwrap_or(Err(Errno::ESRCH))?;
        Ok(Self { shared, thread: Some(thread), tid })
    }

    /// Readable when something was heard.
    pub fn fd(&self) -> &EventFd {
        &self.shared.news
    }

    /// Makes [`Listener::fd`] unreadable until more is heard.
    pub fn heard(&self) {
        let _ = self.shared.news.read();
    }

    /// Whether the lease on this descriptor was heard to be broken since it was asked last.
    pub fn broken(&self, fd: i32) -> bool {
        self.shared.flag(fd).is_none_or(|flag| flag.swap(false, Ordering::AcqRel))
    }

    /// Whether signals were lost since this was asked last, so that any may be broken.
    pub fn lost(&self) -> bool {
        self.shared.any.swap(false, Ordering::AcqRel)
    }
}

impl Shared {
    fn flag(&self, fd: i32) -> Option<&AtomicBool> {
        usize::try_from(fd).ok().and_then(|fd| self.broken.get(fd))
    }

    fn listen(&self, signals: &OwnedFd) {
        let mut info = [0; SIGINFO];
        loop {
            let mut fds =
                [signals.as_fd(), self.end.as_fd()].map(|fd| PollFd::new(fd, PollFlags::POLLIN));
            let _ = poll(&mut fds, PollTimeout::NONE);
            if fds[1].any().unwrap_or(true) {
                return;
            }
            while let Ok(SIGINFO) = read(signals, &mut info) {
                let word = |at: usize| {
                    i32::from_ne_bytes([info[at], info[at + 1], info[at + 2], info[at + 3]])
                };
                match self.flag(word(SSI_FD)) {
                    Some(flag) if word(0) != libc::SIGIO => flag.store(true, Ordering::Release),
                    _ => self.any.store(true, Ordering::Release),
                }
                let _ = self.news.write(1);
            }
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        let _ = self.shared.end.write(1);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
