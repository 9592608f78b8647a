//! userfaultfd: what this process does to its own mappings.
//!
//! Anonymous memory and memory of a memfd or hugetlbfs has no file system whose operations could be
//! watched; what can happen to a region there is that its own process unmaps it, moves it, drops
//! its pages, maps something over it, or forks. The kernel tells all of that of ranges registered
//! with a userfaultfd. They are registered for write protection, and nothing is ever protected, so
//! that no fault is ever delivered.
//!
//! Whoever does such a thing waits until a thread of ours has read the message (`reader.rs`), and
//! no longer: memory that a device reaches is kept alive by reference, and safe without holding
//! anybody.

mod message;
mod reader;

use std::fs;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, Barrier};
use std::thread::JoinHandle;

use nix::errno::Errno;

use super::{
    Notice, Notifier, NotifierKind, NotifyError, Subject, Terms, Watched, WatchedMapping, sys,
};
use reader::{Mapping, ROOM, Reader};

const KIND: NotifierKind = NotifierKind::Userfaultfd;

/// `UFFD_FEATURE_*` of linux/userfaultfd.h.
const EVENT_FORK: u64 = 1 << 1;
const EVENT_REMAP: u64 = 1 << 2;
const EVENT_REMOVE: u64 = 1 << 3;
const EVENT_UNMAP: u64 = 1 << 6;
const WP_HUGETLBFS_SHMEM: u64 = 1 << 12;
const FEATURES: u64 = EVENT_REMAP | EVENT_REMOVE | EVENT_UNMAP | WP_HUGETLBFS_SHMEM;

/// `UFFDIO_REGISTER_MODE_WP`.
const MODE_WP: u64 = 2;
/// `UFFD_USER_MODE_ONLY`: what an unprivileged process gets.
const USER_MODE_ONLY: i32 = 1;

/// Watches mappings of this process.
#[derive(Debug)]
pub struct Userfaultfd {
    reader: Arc<Reader>,
    thread: Option<JoinHandle<()>>,
    spare: Vec<Notice>,
    /// Whether forks are told of.
    forks: bool,
}

impl Userfaultfd {
    /// Needs Linux 5.19. Forks are told of only with CAP_SYS_PTRACE.
    pub fn new() -> Result<Self, NotifyError> {
        let open = |features| {
            let flags = libc::O_CLOEXEC | libc::O_NONBLOCK;
            let uffd = match sys::userfaultfd(flags) {
                Err(Errno::EPERM) => sys::userfaultfd(flags | USER_MODE_ONLY),
                other => other,
            };
            let uffd = uffd.map_err(|errno| ("userfaultfd", errno))?;
            sys::uffd_api(uffd.as_fd(), features).map_err(|errno| ("UFFDIO_API", errno))?;
            Ok(uffd)
        };
        let (uffd, forks) = match open(FEATURES | EVENT_FORK) {
            Err(("UFFDIO_API", Errno::EPERM)) => (open(FEATURES), false),
            other => (other, true),
        };
        let uffd = uffd.map_err(|(failed, errno)| match errno {
            Errno::ENOSYS | Errno::EINVAL => NotifyError::Missing {
                notifier: KIND,
                reason: "this kernel has no userfaultfd with write protection of shared memory \
                         (CONFIG_USERFAULTFD, Linux 5.19)"
                    .into(),
                errno: Some(errno),
            },
            Errno::EPERM => NotifyError::NotPermitted {
                notifier: KIND,
                needs: "CAP_SYS_PTRACE, or vm.unprivileged_userfaultfd=1",
                call: failed,
                errno,
            },
            _ => call(failed, "itself", errno),
        })?;
        let reader = Reader::new(uffd).map_err(|errno| call("eventfd", "itself", errno))?;
        let reader = Arc::new(reader);
        // A thread that starts allocates, and must not be found at that by a fork.
        let started = Arc::new(Barrier::new(2));
        let run = {
            let (reader, started) = (Arc::clone(&reader), Arc::clone(&started));
            move || {
                started.wait();
                reader.run();
            }
        };
        let thread = std::thread::Builder::new().name("userfaultfd".into()).spawn(run);
        let thread = thread.map_err(|error| {
            call("clone", "its thread", Errno::from_raw(error.raw_os_error().unwrap_or(0)))
        })?;
        started.wait();
        Ok(Self { reader, thread: Some(thread), spare: Vec::with_capacity(ROOM), forks })
    }
}

fn call(call: &'static str, what: &str, errno: Errno) -> NotifyError {
    NotifyError::Call { notifier: KIND, call, what: what.to_owned(), errno }
}

fn unsuited(what: String, reason: &'static str, errno: Option<Errno>) -> NotifyError {
    NotifyError::Unsuited { notifier: KIND, what, reason, errno }
}

/// Whether the mapping is shared, as /proc/self/maps has it.
fn shared(mapping: &WatchedMapping) -> bool {
    let maps = fs::read_to_string("/proc/self/maps").unwrap_or_default();
    let hex = |text| usize::from_str_radix(text, 16).unwrap_or(0);
    maps.lines().any(|line| {
        let Some((range, rest)) = line.split_once(' ') else { return false };
        let Some((start, end)) = range.split_once('-') else { return false };
        (hex(start)..hex(end)).contains(&mapping.address) && rest.get(3..4) == Some("s")
    })
}

impl Notifier for Userfaultfd {
    fn kind(&self) -> NotifierKind {
        KIND
    }

    fn fd(&self) -> BorrowedFd<'_> {
        self.reader.fd()
    }

    fn watch(&mut self, watched: &Watched<'_>) -> Result<(), NotifyError> {
        let what = watched.subject().to_string();
        let Watched::Mapping(mapping) = watched else {
            return Err(unsuited(what, "it is a file; inotify and the others are for files", None));
        };
        let (address, len) = (mapping.address as u64, mapping.len as u64);
        self.unwatch(mapping.id.into());
        let entry = Mapping { id: mapping.id, at: address..address + len, shared: shared(mapping) };
        if !self.reader.add(entry) {
            return Err(unsuited(what, "1024 mappings are watched already", None));
        }
        sys::uffd_register(self.reader.uffd(), address, len, MODE_WP).map_err(|errno| {
            self.reader.remove(mapping.id);
            match errno {
                Errno::EINVAL => unsuited(
                    what,
                    "it is not anonymous memory, memfd, tmpfs or huge pages, whole pages of it, \
                     and writable; files are for the other notifiers",
                    Some(errno),
                ),
                Errno::EBUSY => {
                    unsuited(what, "it is registered with another userfaultfd already", Some(errno))
                }
                _ => call("UFFDIO_REGISTER", &what, errno),
            }
        })
    }

    fn unwatch(&mut self, subject: Subject) {
        if let Subject::Mapping(id) = subject
            && let Some(at) = self.reader.remove(id)
        {
            // It fails when the mapping is gone, and then nothing is left to unregister.
            let _ = sys::uffd_unregister(self.reader.uffd(), at.start, at.end - at.start);
        }
    }

    fn collect(&mut self, sink: &mut dyn FnMut(Notice)) -> Result<(), NotifyError> {
        self.reader.collect(&mut self.spare, sink);
        Ok(())
    }

    fn allow(&mut self, _subject: Subject) {}

    fn statement(&self) -> Terms {
        Terms {
            sees: format!(
                "of mappings of this process: MADV_DONTNEED, MADV_FREE and MADV_REMOVE before; \
                 munmap, mremap, mapping over{} after the fact",
                if self.forks { ", fork" } else { "" }
            ),
            misses: format!(
                "what other processes do to shared memory; MADV_DONTNEED of shared memory, which \
                 loses nothing, is not told from MADV_REMOVE{}",
                if self.forks { "" } else { "; fork (it needs CAP_SYS_PTRACE)" }
            ),
            costs: "a thread that sleeps; each of these calls waits for it to wake; no huge pages \
                    are formed later in watched ranges"
                .into(),
        }
    }
}

impl Drop for Userfaultfd {
    fn drop(&mut self) {
        // First of all nobody may come to wait for the thread any more: one that ends frees
        // memory, for which it may need a lock that a fork holds.
        while let Some(at) = self.reader.pop() {
            let _ = sys::uffd_unregister(self.reader.uffd(), at.start, at.end - at.start);
        }
        self.reader.stop();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests;
