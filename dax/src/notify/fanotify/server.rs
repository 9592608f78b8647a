//! The thread that answers fanotify's questions, and what it shares with the notifier.

use std::fs;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::stat::fstat;
use nix::unistd::{read, write};

use super::event::{self, Event};
use super::syscall::{self, Call, Doing};
use super::{FAN_PRE_ACCESS, KIND};
use crate::FileId;
use crate::notify::{Cause, Notice, Stage, sys};

/// Notices kept for the collector, and operations held; beyond that nobody is held, and all files
/// are told as unknown.
const ROOM: usize = 1024;

/// What the thread and the notifier share.
#[derive(Debug)]
pub struct Server {
    group: OwnedFd,
    /// Readable when there are notices.
    news: EventFd,
    /// Readable when the thread is to end.
    end: EventFd,
    deadline: Duration,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    watched: Vec<FileId>,
    notices: Vec<Notice>,
    held: Vec<Held>,
    /// Something was not kept.
    overflow: bool,
}

/// An operation that waits for our answer.
#[derive(Debug)]
struct Held {
    id: FileId,
    /// The event's descriptor: the answer names it.
    file: OwnedFd,
    until: Instant,
}

impl Server {
    pub fn new(group: OwnedFd, deadline: Duration) -> Result<Self, Errno> {
        let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
        let event = || EventFd::from_flags(flags);
        let state = State {
            watched: Vec::new(),
            notices: Vec::with_capacity(ROOM),
            held: Vec::with_capacity(ROOM),
            overflow: false,
        };
        Ok(Self { group, news: event()?, end: event()?, deadline, state: Mutex::new(state) })
    }

    pub fn group(&self) -> BorrowedFd<'_> {
        self.group.as_fd()
    }

    pub fn fd(&self) -> BorrowedFd<'_> {
        self.news.as_fd()
    }

    pub fn deadline(&self) -> Duration {
        self.deadline
    }

    /// A panic elsewhere leaves nothing half done here.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn watch(&self, id: FileId) {
        self.state().watched.push(id);
    }

    pub fn unwatch(&self, id: FileId) {
        self.state().watched.retain(|watched| *watched != id);
        self.allow(id);
    }

    pub fn collect(&self, sink: &mut dyn FnMut(Notice)) {
        // EAGAIN when there is no news.
        let _ = self.news.read();
        let state = &mut *self.state();
        state.notices.drain(..).for_each(&mut *sink);
        if std::mem::take(&mut state.overflow) {
            for id in &state.watched {
                sink(Notice::new(*id, KIND, Stage::Announced).cause(Cause::Unknown));
            }
        }
    }

    /// Lets go what is held of a file.
    pub fn allow(&self, id: FileId) {
        self.let_go(|held| held.id == id);
    }

    /// Ends the thread, and lets everything go.
    pub fn stop(&self) {
        let _ = self.end.write(1);
        self.let_go(|_| true);
    }

    fn let_go(&self, whom: impl Fn(&Held) -> bool) {
        self.state().held.retain(|held| {
            let goes = whom(held);
            if goes {
                self.answer(held.file.as_fd());
            }
            !goes
        });
    }

    fn answer(&self, file: BorrowedFd<'_>) {
        // `struct fanotify_response`.
        let mut response = [0; 8];
        response[..4].copy_from_slice(&file.as_raw_fd().to_ne_bytes());
        response[4..].copy_from_slice(&libc::FAN_ALLOW.to_ne_bytes());
        match write(&self.group, &response) {
            // ENOENT: the thread that asked was killed.
            Ok(_) | Err(Errno::ENOENT) => {}
            Err(errno) => tracing::error!(%errno, "fanotify took no answer"),
        }
    }

    /// The thread: answers until it is stopped.
    pub fn serve(&self) {
        let mut buffer = vec![0; 64 * 1024];
        loop {
            let next = self.state().held.iter().map(|held| held.until).min();
            let timeout = next.map_or(PollTimeout::NONE, |until| {
                let left = until.saturating_duration_since(Instant::now());
                PollTimeout::try_from(left + Duration::from_millis(1)).unwrap_or(PollTimeout::MAX)
            });
            let mut fds =
                [self.group(), self.end.as_fd()].map(|fd| PollFd::new(fd, PollFlags::POLLIN));
            let polled = poll(&mut fds, timeout);
            if fds[1].any().unwrap_or(true) {
                self.let_go(|_| true);
                return;
            }
            if !matches!(polled, Ok(_) | Err(Errno::EINTR)) {
                tracing::error!(?polled, "fanotify's descriptor cannot be polled");
                return;
            }
            let now = Instant::now();
            self.let_go(|held| held.until <= now);
            match read(&self.group, &mut buffer) {
                Ok(len) => {
                    let mut rest = &buffer[..len];
                    while let Some(event) = event::next(&mut rest) {
                        self.handle(event);
                    }
                }
                Err(Errno::EAGAIN | Errno::EINTR) => {}
                Err(errno) => {
                    tracing::warn!(%errno, "fanotify's events cannot be read");
                    self.state().overflow = true;
                    let _ = self.news.write(1);
                }
            }
        }
    }

    fn handle(&self, event: Event) {
        let Some(file) = sys::received(event.fd) else {
            self.state().overflow = true;
            let _ = self.news.write(1);
            return;
        };
        let Ok(stat) = fstat(&file) else { return self.answer(file.as_fd()) };
        let id = FileId { dev: stat.st_dev, ino: stat.st_ino };
        let doing = match Call::of(event.tid) {
            None => Doing::Layout(Cause::Unknown, None),
            Some(call) if event.mask & FAN_PRE_ACCESS == 0 => call.opening(),
            Some(call) => call.doing(stat.st_size as u64, |fd| syscall::is_file(event.tid, fd, id)),
        };
        let Doing::Layout(cause, range) = doing else { return self.answer(file.as_fd()) };
        let own = fs::exists(format!("/proc/self/task/{}", event.tid)).unwrap_or(true);
        let hold = !own && cause != Cause::Unknown;
        let mut state = self.state();
        let room = state.notices.len() < ROOM && state.held.len() < ROOM;
        if room {
            let stage = if hold { Stage::Waiting } else { Stage::Announced };
            let notice = Notice::new(id, KIND, stage).cause(cause).pid(event.tid);
            state.notices.push(notice.range(range.or(event.range)));
        } else {
            state.overflow = true;
        }
        if room && hold {
            state.held.push(Held { id, file, until: Instant::now() + self.deadline });
        } else {
            self.answer(file.as_fd());
        }
        drop(state);
        let _ = self.news.write(1);
    }
}
