//! The thread that reads userfaultfd's messages.
//!
//! Whoever unmaps, drops or forks waits in the kernel until its message is read, and may hold any
//! lock of this process meanwhile: the allocator's in `fork`, whatever the application holds
//! around `munmap`. So the thread reads before it does anything else, allocates nothing, and takes
//! one lock, under which nobody allocates or calls out.

use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Mutex, MutexGuard, PoisonError};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::unistd::read;

use super::KIND;
use super::message::{LEN, Message, parse};
use crate::notify::{Cause, MappingId, Notice, Stage, sys};

/// Mappings watched, and notices kept for the collector; beyond that, all are told as unknown.
pub const ROOM: usize = 1024;

/// What the thread and the notifier share.
#[derive(Debug)]
pub struct Reader {
    uffd: OwnedFd,
    news: EventFd,
    end: EventFd,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    mappings: Vec<Mapping>,
    notices: Vec<Notice>,
    overflow: bool,
}

/// A watched range of addresses.
#[derive(Debug, Clone)]
pub struct Mapping {
    pub id: MappingId,
    /// Where it is now.
    pub at: Range<u64>,
    pub shared: bool,
}

impl Reader {
    pub fn new(uffd: OwnedFd) -> Result<Self, Errno> {
        let event = || EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK);
        let state = State {
            mappings: Vec::with_capacity(ROOM),
            notices: Vec::with_capacity(ROOM),
            overflow: false,
        };
        Ok(Self { uffd, news: event()?, end: event()?, state: Mutex::new(state) })
    }

    pub fn uffd(&self) -> BorrowedFd<'_> {
        self.uffd.as_fd()
    }

    pub fn fd(&self) -> BorrowedFd<'_> {
        self.news.as_fd()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a mapping; false when there is no room.
    pub fn add(&self, mapping: Mapping) -> bool {
        let mut state = self.state();
        let room = state.mappings.len() < ROOM;
        if room {
            state.mappings.push(mapping);
        }
        room
    }

    /// Takes a mapping out, and says where it is now.
    pub fn remove(&self, id: MappingId) -> Option<Range<u64>> {
        let mut state = self.state();
        let at = state.mappings.iter().position(|mapping| mapping.id == id)?;
        Some(state.mappings.swap_remove(at).at)
    }

    /// Takes any mapping out, and says where it is now.
    pub fn pop(&self) -> Option<Range<u64>> {
        self.state().mappings.pop().map(|mapping| mapping.at)
    }

    /// Hands over what was read. `spare` takes the place of the list that is handed over, so that
    /// nothing is allocated or called under the lock.
    pub fn collect(&self, spare: &mut Vec<Notice>, sink: &mut dyn FnMut(Notice)) {
        // EAGAIN when there is no news.
        let _ = self.news.read();
        let mut state = self.state();
        std::mem::swap(&mut state.notices, spare);
        drop(state);
        spare.drain(..).for_each(&mut *sink);
        let mut state = self.state();
        if !std::mem::take(&mut state.overflow) {
            return;
        }
        for mapping in &state.mappings {
            if spare.len() < ROOM {
                spare.push(Notice::new(mapping.id, KIND, Stage::Done).cause(Cause::Unknown));
            }
        }
        drop(state);
        spare.drain(..).for_each(sink);
    }

    pub fn stop(&self) {
        let _ = self.end.write(1);
    }

    /// The thread.
    pub fn run(&self) {
        let mut bytes = [0; LEN];
        loop {
            let mut fds =
                [self.uffd(), self.end.as_fd()].map(|fd| PollFd::new(fd, PollFlags::POLLIN));
            let _ = poll(&mut fds, PollTimeout::NONE);
            let end = fds[1].any().unwrap_or(true);
            while let Ok(LEN) = read(&self.uffd, &mut bytes) {
                self.take(parse(&bytes));
            }
            if end {
                return;
            }
        }
    }

    fn take(&self, message: Message) {
        let state = &mut *self.state();
        let (mappings, notices) = (&mut state.mappings, &mut state.notices);
        let mut lost = false;
        let mut tell = |id, stage, cause, range| {
            if notices.len() < ROOM {
                notices.push(Notice::new(id, KIND, stage).cause(cause).range(range));
            } else {
                lost = true;
            }
        };
        match message {
            Message::Fork { fd } => {
                drop(sys::received(fd));
                for mapping in mappings.iter().filter(|mapping| !mapping.shared) {
                    tell(mapping.id, Stage::Done, Cause::Fork, None);
                }
            }
            Message::Remap { from, to, len } => {
                for mapping in mappings.iter_mut() {
                    let Some(part) = part(&mapping.at, &(from..from.saturating_add(len))) else {
                        continue;
                    };
                    tell(mapping.id, Stage::Done, Cause::Mremap, Some(part.clone()));
                    if part == (0..mapping.at.end - mapping.at.start) {
                        let to = to + (mapping.at.start - from);
                        mapping.at = to..to + part.end;
                    }
                }
            }
            Message::Remove(range) => {
                for mapping in mappings.iter() {
                    if let Some(part) = part(&mapping.at, &range) {
                        let cause = if mapping.shared { Cause::Remove } else { Cause::DontNeed };
                        tell(mapping.id, Stage::Announced, cause, Some(part));
                    }
                }
            }
            Message::Unmap(range) => {
                for mapping in mappings.iter() {
                    if let Some(part) = part(&mapping.at, &range) {
                        // What came in its place is there before the message is sent.
                        let over = sys::is_mapped(mapping.at.start + part.start);
                        let cause = if over { Cause::MapOver } else { Cause::Munmap };
                        tell(mapping.id, Stage::Done, cause, Some(part));
                    }
                }
            }
            Message::Other => return,
        }
        state.overflow |= lost;
        let _ = self.news.write(1);
    }
}

/// The part of a mapping that a range of addresses covers, as offsets in the mapping.
fn part(mapping: &Range<u64>, range: &Range<u64>) -> Option<Range<u64>> {
    let (start, end) = (mapping.start.max(range.start), mapping.end.min(range.end));
    (start < end).then(|| start - mapping.start..end - mapping.start)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_offsets_in_the_mapping() {
        assert_eq!(part(&(10..20), &(12..15)), Some(2..5));
        assert_eq!(part(&(10..20), &(5..100)), Some(0..10));
        assert_eq!(part(&(10..20), &(15..100)), Some(5..10));
        assert_eq!(part(&(10..20), &(20..30)), None);
        assert_eq!(part(&(10..20), &(0..10)), None);
    }
}
