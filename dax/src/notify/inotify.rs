//! inotify: what has happened to a file, afterwards and without privilege.
//!
//! For memory that the kernel keeps alive by reference (page cache, tmpfs, memfd) afterwards is
//! soon enough: a device that still writes to a page that was truncated away reaches nobody else.
//! inotify tells that a file was modified or that something about its inode changed, and no more;
//! what it was is found by comparing with what was known of the file (size, names, and which
//! parts hold data), see `state.rs`. Two operations in quick succession are seen as one, and of a
//! file that grew and shrank in between only what is left is seen.

#[cfg(test)]
mod huge_tests;
mod state;
mod untouched;

use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags};
use nix::sys::time::TimeSpec;
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};
use nix::unistd::read;

use super::{
    Cause, Notice, Notifier, NotifierKind, NotifyError, Stage, Subject, Terms, Watched, sys,
};
use state::State;

const KIND: NotifierKind = NotifierKind::Inotify;

/// What is asked for: content and size, attributes and number of links, names. (While it is
/// watched the file is held open, so that it never goes altogether.)
const MASK: u32 = libc::IN_MODIFY | libc::IN_ATTRIB | libc::IN_MOVE_SELF;

/// Stands for a file that was seen to differ without having been told of.
const LOOKED: u32 = libc::IN_ISDIR;

/// How often files are looked at of which the kernel does not tell all.
const LOOK: Duration = Duration::from_millis(5);

/// `struct inotify_event` without its name, of which watches on files have none.
const EVENT: usize = 16;

/// Watches files by inotify.
#[derive(Debug)]
pub struct Inotify {
    fd: OwnedFd,
    /// Runs while there are files that must be looked at.
    timer: TimerFd,
    runs: bool,
    /// Readable when either is.
    either: Epoll,
    watched: Vec<Entry>,
}

#[derive(Debug)]
struct Entry {
    watch: i32,
    state: State,
    /// What has come since the last look: inotify's flags.
    pending: u32,
}

impl Inotify {
    /// Needs nothing but a free inotify instance (`fs.inotify.max_user_instances`).
    pub fn new() -> Result<Self, NotifyError> {
        let fd = sys::inotify().map_err(|errno| match errno {
            Errno::EMFILE => NotifyError::Missing {
                notifier: KIND,
                reason: "no instance is left to this user: raise fs.inotify.max_user_instances"
                    .into(),
                errno: Some(errno),
            },
            _ => call("inotify_init1", "itself", errno),
        })?;
        let flags = TimerFlags::TFD_CLOEXEC | TimerFlags::TFD_NONBLOCK;
        let timer = TimerFd::new(ClockId::CLOCK_MONOTONIC, flags)
            .map_err(|errno| call("timerfd_create", "its timer", errno))?;
        let either = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)
            .map_err(|errno| call("epoll_create1", "itself", errno))?;
        for source in [fd.as_fd(), timer.as_fd()] {
            either
                .add(source, EpollEvent::new(EpollFlags::EPOLLIN, 0))
                .map_err(|errno| call("epoll_ctl", "itself", errno))?;
        }
        Ok(Self { fd, timer, runs: false, either, watched: Vec::new() })
    }

    /// Runs the timer while there is something to look at, and only then.
    fn arm(&mut self) -> Result<(), Errno> {
        let wanted = self.watched.iter().any(|entry| entry.state.needs_looks());
        match (wanted, std::mem::replace(&mut self.runs, wanted)) {
            (true, false) => {
                let period = Expiration::Interval(TimeSpec::from_duration(LOOK));
                self.timer.set(period, TimerSetTimeFlags::empty())
            }
            (false, true) => self.timer.unset(),
            _ => Ok(()),
        }
    }

    /// Notes which watches have something. Two watches on one inode cannot be: its number is the
    /// same. An overflow is something for all.
    fn note(&mut self, events: &[u8]) {
        let mut rest = events;
        while let Some((event, tail)) = rest.split_first_chunk::<EVENT>() {
            let word = |at: usize| {
                u32::from_ne_bytes([event[at], event[at + 1], event[at + 2], event[at + 3]])
            };
            let (watch, flags, name) = (word(0) as i32, word(4), word(12) as usize);
            for entry in &mut self.watched {
                if entry.watch == watch || flags & libc::IN_Q_OVERFLOW != 0 {
                    entry.pending |= flags;
                }
            }
            rest = tail.get(name..).unwrap_or_default();
        }
    }
}

fn call(call: &'static str, what: &str, errno: Errno) -> NotifyError {
    NotifyError::Call { notifier: KIND, call, what: what.to_owned(), errno }
}

impl Notifier for Inotify {
    fn kind(&self) -> NotifierKind {
        KIND
    }

    fn fd(&self) -> BorrowedFd<'_> {
        self.either.0.as_fd()
    }

    fn watch(&mut self, watched: &Watched<'_>) -> Result<(), NotifyError> {
        let Watched::File(file) = watched else {
            return Err(NotifyError::Unsuited {
                notifier: KIND,
                what: watched.subject().to_string(),
                reason: "it is no file; userfaultfd is for mappings",
                errno: None,
            });
        };
        // The state first: what changes from here on is seen at the first event.
        let state = State::of(file).map_err(|errno| call("fstat", &file.what(), errno))?;
        let path = sys::proc_path(state.file().as_fd());
        let watch =
            sys::inotify_add(self.fd.as_fd(), &path, MASK).map_err(|errno| match errno {
                Errno::ENOSPC => NotifyError::Unsuited {
                    notifier: KIND,
                    what: file.what(),
                    reason: "no watch is left to this user: raise fs.inotify.max_user_watches",
                    errno: Some(errno),
                },
                _ => call("inotify_add_watch", &file.what(), errno),
            })?;
        self.watched.retain(|entry| entry.watch != watch);
        self.watched.push(Entry { watch, state, pending: 0 });
        self.arm().map_err(|errno| call("timerfd_settime", "its timer", errno))
    }

    fn unwatch(&mut self, subject: Subject) {
        self.watched.retain(|entry| {
            let other = Subject::from(entry.state.id) != subject;
            if !other {
                // It fails when the file is gone, and then it is removed already.
                let _ = sys::inotify_remove(self.fd.as_fd(), entry.watch);
            }
            other
        });
        // It only stops a timer that would find nothing.
        let _ = self.arm();
    }

    fn collect(&mut self, sink: &mut dyn FnMut(Notice)) -> Result<(), NotifyError> {
        // The expirations; EAGAIN between two of them.
        let _ = read(&self.timer, &mut [0; 8]);
        // Aligned as inotify writes it; read until it is empty, so that a burst is one look.
        let mut buffer = [0u8; 4096];
        loop {
            match read(&self.fd, &mut buffer) {
                Ok(0) | Err(Errno::EAGAIN) => break,
                Ok(n) => self.note(&buffer[..n]),
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(call("read", "its descriptor", errno)),
            }
        }
        for entry in &mut self.watched {
            let mut flags = std::mem::take(&mut entry.pending);
            if flags == 0 {
                if !entry.state.differs() {
                    continue;
                }
                flags = LOOKED;
            }
            let id = entry.state.id;
            let mut tell = |cause, range| {
                sink(Notice::new(id, KIND, Stage::Done).cause(cause).range(range));
            };
            if flags & libc::IN_UNMOUNT != 0 {
                tell(Cause::Unmounted, None);
                continue;
            }
            if flags & libc::IN_MOVE_SELF != 0 {
                tell(Cause::Rename, None);
            }
            let overflow = flags & libc::IN_Q_OVERFLOW != 0;
            let evented = flags & libc::IN_MODIFY != 0;
            let modified = evented || overflow || flags == LOOKED || entry.state.quiet;
            match entry.state.compare(modified, evented, &mut tell) {
                Ok(true) => {}
                Ok(false) if flags & libc::IN_ATTRIB != 0 => tell(Cause::Attributes, None),
                Ok(false) if evented || flags == LOOKED && entry.state.rewritten => {
                    tell(Cause::Write, None);
                }
                Ok(false) => {}
                Err(errno) => {
                    tracing::warn!(file = %id, %errno, "a file that changed cannot be looked at");
                    tell(Cause::Unknown, None);
                }
            }
            if overflow {
                tell(Cause::Unknown, None);
            }
        }
        self.arm().map_err(|errno| call("timerfd_settime", "its timer", errno))
    }

    fn filled(&mut self, subject: Subject, range: Range<u64>) {
        for entry in &mut self.watched {
            if Subject::from(entry.state.id) == subject
                && let Err(errno) = entry.state.filled(range.clone())
            {
                tracing::warn!(file = %entry.state.id, %errno, "holes in what it grew by are not told");
            }
        }
    }

    fn allow(&mut self, _subject: Subject) {}

    fn statement(&self) -> Terms {
        Terms {
            sees: "after the fact: changed size, holes that came, names removed or changed, \
                   attributes, unmounting"
                .into(),
            misses: "what mmap writes; blocks that move while size and holes stay (collapse and \
                     insert of equal length, clones onto, exchanges, a hole of small pages that is \
                     filled at once), told as a write; without userfaultfd, which huge pages went; \
                     thread and order of several operations"
                .into(),
            costs: format!(
                "an event for each write call on the file, and then one fstat and a search for \
                 holes; one fstat every {LOOK:?} for each memfd and each file of huge pages with a \
                 hole; a mapping of each file of huge pages"
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File};
    use std::io::Write;
    use std::time::Instant;

    use nix::fcntl::{FallocateFlags, fallocate};
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
    use nix::sys::memfd::{MFdFlags, memfd_create};

    use super::*;
    use crate::map::Mapping;
    use crate::notify::WatchedFile;

    /// What is told of what is done to a file.
    fn told(inotify: &mut Inotify) -> Vec<(Cause, Option<Range<u64>>)> {
        let mut notices = Vec::new();
        let end = Instant::now() + Duration::from_secs(5);
        while notices.is_empty() && Instant::now() < end {
            let mut fds = [PollFd::new(inotify.fd(), PollFlags::POLLIN)];
            assert_eq!(poll(&mut fds, PollTimeout::from(2000u16)), Ok(1), "nothing is told");
            inotify.collect(&mut |n| notices.push((n.cause, n.range))).unwrap();
        }
        notices
    }

    fn memfd() -> File {
        let mut file = File::from(memfd_create(c"t", MFdFlags::MFD_CLOEXEC).unwrap());
        file.write_all(&[1; 64 * 1024]).unwrap();
        file
    }

    #[test]
    fn changes_of_a_memfd_are_told_with_their_ranges() {
        let file = memfd();
        let mut inotify = Inotify::new().unwrap();
        let watched = WatchedFile::of(&file).unwrap();
        let id = watched.id;
        inotify.watch(&watched.into()).unwrap();
        let hole = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
        fallocate(&file, hole, 8192, 4096).unwrap();
        assert_eq!(told(&mut inotify), [(Cause::PunchHole, Some(8192..12288))]);
        file.set_len(32768).unwrap();
        let cut = (Cause::Truncate { size: 32768 }, Some(32768..65536));
        assert_eq!(told(&mut inotify), [cut]);
        file.set_len(65536).unwrap();
        assert_eq!(told(&mut inotify), [(Cause::Grow { size: 65536 }, Some(32768..65536))]);
        let len = std::num::NonZeroUsize::new(65536).unwrap();
        // The same hole twice; as the guard does it, filled in between and said so.
        for _ in 0..2 {
            Mapping::new(Some((file.as_fd(), 0)), len).unwrap().populate().unwrap();
            inotify.filled(id.into(), 0..65536);
            fallocate(&file, hole, 0, 4096).unwrap();
            assert_eq!(told(&mut inotify), [(Cause::PunchHole, Some(0..4096))]);
        }
        // Made and filled before anybody looks: something was done, and no more is known.
        fallocate(&file, hole, 0, 4096).unwrap();
        Mapping::new(Some((file.as_fd(), 0)), len).unwrap().populate().unwrap();
        let unknown = [(Cause::Write, None)];
        assert_eq!(told(&mut inotify), unknown);
        inotify.unwatch(id.into());
        file.set_len(0).unwrap();
        let mut notices = Vec::new();
        inotify.collect(&mut |notice| notices.push(notice)).unwrap();
        assert_eq!(notices, [], "not watched any more");
    }

    #[test]
    fn names_that_go_or_change_are_told() {
        let folder = tempfile::tempdir().unwrap();
        let (a, b) = (folder.path().join("a"), folder.path().join("b"));
        fs::write(&a, [1; 8192]).unwrap();
        let file = File::options().read(true).write(true).open(&a).unwrap();
        let mut inotify = Inotify::new().unwrap();
        inotify.watch(&WatchedFile::of(&file).unwrap().path(&a).into()).unwrap();
        fs::rename(&a, &b).unwrap();
        assert_eq!(told(&mut inotify), [(Cause::Rename, None)]);
        fs::write(&a, "other").unwrap();
        fs::rename(&a, &b).unwrap();
        assert_eq!(told(&mut inotify), [(Cause::Unlink, None)], "renamed over");
    }

    #[test]
    fn a_file_on_disk_that_gets_shorter_is_lost_as_a_whole() {
        let folder = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        let path = folder.path().join("f");
        fs::write(&path, [1; 65536]).unwrap();
        let file = File::options().read(true).write(true).open(&path).unwrap();
        let mut inotify = Inotify::new().unwrap();
        inotify.watch(&WatchedFile::of(&file).unwrap().into()).unwrap();
        fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(4096).unwrap();
        assert_eq!(told(&mut inotify), [(Cause::Truncate { size: 4096 }, None)]);
        nix::sys::uio::pwrite(&file, b"x", 0).unwrap();
        assert_eq!(told(&mut inotify), [(Cause::Write, None)]);
    }

    #[test]
    fn an_overflow_of_the_queue_is_something_unknown_to_all() {
        let file = memfd();
        let mut inotify = Inotify::new().unwrap();
        inotify.watch(&WatchedFile::of(&file).unwrap().into()).unwrap();
        let mut event = [0u8; EVENT];
        event[0..4].copy_from_slice(&(-1i32).to_ne_bytes());
        event[4..8].copy_from_slice(&libc::IN_Q_OVERFLOW.to_ne_bytes());
        inotify.note(&event);
        let mut causes = Vec::new();
        inotify.collect(&mut |notice| causes.push(notice.cause)).unwrap();
        assert_eq!(causes, [Cause::Unknown]);
    }
}
