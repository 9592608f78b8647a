//! Completion channels: a descriptor that polls readable while an event is there to be taken.
//!
//! An event says that a completion queue that was armed has got a completion. At most one event
//! of a queue waits at a time, so that a channel is never longer than it has queues.

use std::collections::VecDeque;
use std::os::fd::{AsFd, AsRawFd};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};

use crate::error::Error;
use crate::process::unpoisoned;

#[derive(Debug)]
pub(crate) struct Channel {
    /// Its count is not zero exactly while `queue` is not empty, or the channel is closed.
    event: EventFd,
    /// Addresses of completion queues.
    queue: Mutex<VecDeque<usize>>,
    closed: AtomicBool,
}

impl Channel {
    pub(crate) fn new() -> Result<Self, Error> {
        let event = EventFd::from_value_and_flags(0, EfdFlags::EFD_CLOEXEC)
            .map_err(|errno| Error::os("eventfd", errno))?;
        Ok(Self { event, queue: Mutex::default(), closed: AtomicBool::new(false) })
    }

    /// The descriptor, for poll; the caller may make it non-blocking.
    pub(crate) fn fd(&self) -> i32 {
        self.event.as_fd().as_raw_fd()
    }

    /// An armed completion queue fired.
    pub(crate) fn push(&self, cq: usize) {
        let mut queue = unpoisoned(self.queue.lock());
        if queue.contains(&cq) {
            return;
        }
        queue.push_back(cq);
        if queue.len() == 1 {
            // Cannot fail: the count was zero.
            let _ = self.event.write(1);
        }
    }

    /// Takes the oldest event.
    pub(crate) fn pop(&self) -> Option<usize> {
        let mut queue = unpoisoned(self.queue.lock());
        let cq = queue.pop_front()?;
        self.quieten(&queue);
        Some(cq)
    }

    /// Drops the event of a completion queue that is destroyed.
    pub(crate) fn purge(&self, cq: usize) {
        let mut queue = unpoisoned(self.queue.lock());
        if let Some(at) = queue.iter().position(|c| *c == cq) {
            queue.remove(at);
            self.quieten(&queue);
        }
    }

    /// Waits for an event. It may be gone again by the time it is looked for.
    pub(crate) fn wait(&self) -> Result<(), Error> {
        let flags = fcntl(&self.event, FcntlArg::F_GETFL).map_err(|e| Error::os("fcntl", e))?;
        if OFlag::from_bits_retain(flags).contains(OFlag::O_NONBLOCK) {
            return Err(Error::Again);
        }
        let mut fds = [PollFd::new(self.event.as_fd(), PollFlags::POLLIN)];
        poll(&mut fds, PollTimeout::NONE).map_err(|errno| Error::os("poll", errno))?;
        if self.closed.load(Ordering::Acquire) {
            return Err(Error::os("the channel was destroyed", Errno::EBADF));
        }
        Ok(())
    }

    /// Lets whoever waits go.
    pub(crate) fn close(&self) {
        self.closed.store(true, Ordering::Release);
        let _ = self.event.write(1);
    }

    /// After an event was taken off: nothing to read when it was the last.
    fn quieten(&self, queue: &VecDeque<usize>) {
        if queue.is_empty() {
            // Does not block: the count is 1.
            let _ = self.event.read();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn readable(channel: &Channel) -> bool {
        let mut fds = [PollFd::new(channel.event.as_fd(), PollFlags::POLLIN)];
        poll(&mut fds, PollTimeout::ZERO).expect("poll") == 1
    }

    #[test]
    fn it_polls_readable_exactly_while_an_event_waits() {
        let channel = Channel::new().expect("a channel");
        assert!(!readable(&channel));
        channel.push(1);
        channel.push(2);
        channel.push(1);
        assert!(readable(&channel));
        assert_eq!(channel.pop(), Some(1));
        assert!(readable(&channel));
        channel.purge(2);
        assert!(!readable(&channel));
        assert_eq!(channel.pop(), None);
    }
}
