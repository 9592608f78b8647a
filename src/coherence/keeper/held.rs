//! A pin as the keeper holds it: both ends of the pipe, the file, and a guard page of its own.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::unistd::read;

use super::sys::GuardPage;

/// A layout pin. Dropping it without draining it leaves the pin to whoever else holds the pipe.
#[derive(Debug)]
pub(super) struct HeldPin {
    pub(super) id: u64,
    pub(super) deadline: Duration,
    /// Turns that the driver has taken to map memory of the file.
    pub(super) mapping: u32,
    /// The driver was told that the keeper lets the pin go.
    pub(super) told: bool,
    state: State,
    guard: GuardPage,
    pipe_read: OwnedFd,
    // Held, so that they stay open: a pipe without a writer, and a file without a user, are no
    // longer what they were.
    _pipe_write: OwnedFd,
    _file: OwnedFd,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// In force, and nobody waits for it.
    Quiet,
    /// Since then, at the latest, a layout operation waits for it.
    Disturbed(Instant),
    /// Let go by the keeper.
    LetGo,
}

impl HeldPin {
    /// Takes the parts over and maps the guard page.
    pub(super) fn new(
        id: u64,
        deadline: Duration,
        offset: u64,
        [pipe_read, pipe_write, file]: [OwnedFd; 3],
    ) -> Result<Self, Errno> {
        // A drain must end when the pipe is empty, whoever else reads it at the same time.
        let flags = OFlag::from_bits_truncate(fcntl(&pipe_read, FcntlArg::F_GETFL)?);
        fcntl(&pipe_read, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
        let guard = GuardPage::map(file.as_fd(), offset)?;
        Ok(Self {
            id,
            deadline,
            mapping: 0,
            told: false,
            state: State::Quiet,
            guard,
            pipe_read,
            _pipe_write: pipe_write,
            _file: file,
        })
    }

    /// Looks whether the guard page is still there. Gives how long the pin has been waited for,
    /// if it is by now longer than its deadline. No allocation.
    pub(super) fn overdue(&mut self, pagemap: &File, now: Instant) -> Option<Duration> {
        if self.state == State::Quiet && matches!(self.guard.is_present(pagemap), Ok(false)) {
            self.state = State::Disturbed(now);
        }
        let State::Disturbed(since) = self.state else { return None };
        let waited = now.saturating_duration_since(since);
        (waited >= self.deadline).then_some(waited)
    }

    /// Lets the pin go, whoever else holds the pipe: drops the guard page's entry, then empties
    /// the pipe. Idempotent. Neither allocates nor blocks.
    pub(super) fn drain(&mut self) {
        // Without a page there it fails, and there is nothing to do.
        let _ = self.guard.forget();
        let mut bytes = [0; 4096];
        loop {
            match read(&self.pipe_read, &mut bytes) {
                Ok(0) | Err(Errno::EAGAIN) => break,
                Ok(_) | Err(Errno::EINTR) => {}
                // EIO: the page is poisoned, say. It stays in the pipe, and the pin with it, until
                // the last descriptor is closed.
                Err(_) => break,
            }
        }
        self.state = State::LetGo;
    }

    /// Whether the keeper has let it go.
    pub(super) fn is_let_go(&self) -> bool {
        self.state == State::LetGo
    }
}
