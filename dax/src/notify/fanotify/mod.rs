//! fanotify's pre-content events: truncation and `fallocate` before they happen, with their range,
//! for files on any file system that has them (ext4, xfs, btrfs; Linux 6.14).
//!
//! Whoever opens, reads, writes or changes the file waits in the kernel until we answer. So a
//! thread of its own answers ([`server`]), which never touches the file: what reads or writes is
//! let go at once, what changes the layout is told, and held until [`Notifier::allow`] or a
//! deadline. Operations of our own process are told and never held: who would have to answer may
//! be the one who waits. If this process dies, the kernel lets everybody go.
//!
//! Each event brings a descriptor, which the kernel opens for it; that breaks a lease on the file,
//! and would wait for it. So a file is watched by a lease or by fanotify, not by both
//! ([`super::Notifiers`] sees to it).

mod event;
mod server;
mod syscall;

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use nix::errno::Errno;

use super::{Notice, Notifier, NotifierKind, NotifyError, Subject, Terms, Watched, sys};
use crate::FileId;
use server::Server;

const KIND: NotifierKind = NotifierKind::Fanotify;

/// `FAN_PRE_ACCESS` of linux/fanotify.h.
const FAN_PRE_ACCESS: u64 = 0x0010_0000;
const MASK: u64 = FAN_PRE_ACCESS | libc::FAN_OPEN_PERM;

/// Watches files by pre-content events.
#[derive(Debug)]
pub struct Fanotify {
    server: Arc<Server>,
    thread: Option<JoinHandle<()>>,
    watched: Vec<(FileId, OwnedFd)>,
}

impl Fanotify {
    /// Needs Linux 6.14 and CAP_SYS_ADMIN. `deadline`: how long an operation is held when nobody
    /// allows it.
    pub fn new(deadline: Duration) -> Result<Self, NotifyError> {
        let flags = libc::FAN_CLASS_PRE_CONTENT
            | libc::FAN_CLOEXEC
            | libc::FAN_NONBLOCK
            | libc::FAN_REPORT_TID;
        let event_flags = libc::O_RDONLY | libc::O_CLOEXEC | libc::O_LARGEFILE | libc::O_NOATIME;
        let group = sys::fanotify(flags, event_flags).map_err(|errno| match errno {
            Errno::EPERM => NotifyError::NotPermitted {
                notifier: KIND,
                needs: "CAP_SYS_ADMIN",
                call: "fanotify_init",
                errno,
            },
            Errno::ENOSYS | Errno::EINVAL => missing(errno),
            _ => call("fanotify_init", "itself", errno),
        })?;
        // Older kernels refuse the mark, not the class: ask on a descriptor that is no file.
        let probe = nix::unistd::pipe().map_err(|errno| call("pipe", "itself", errno))?.0;
        let (add, probe) = (libc::FAN_MARK_ADD, probe.as_fd());
        if let Err(errno @ Errno::EINVAL) = sys::fanotify_mark(group.as_fd(), add, MASK, probe) {
            return Err(missing(errno));
        }
        let server =
            Server::new(group, deadline).map_err(|errno| call("eventfd", "itself", errno))?;
        let server = Arc::new(server);
        let serve = {
            let server = Arc::clone(&server);
            move || server.serve()
        };
        let thread = std::thread::Builder::new().name("fanotify".into()).spawn(serve);
        let thread = thread.map_err(|error| {
            call("clone", "its thread", Errno::from_raw(error.raw_os_error().unwrap_or(0)))
        })?;
        Ok(Self { server, thread: Some(thread), watched: Vec::new() })
    }
}

fn missing(errno: Errno) -> NotifyError {
    NotifyError::Missing {
        notifier: KIND,
        reason: "this kernel has no pre-content events (Linux 6.14)".into(),
        errno: Some(errno),
    }
}

fn call(call: &'static str, what: &str, errno: Errno) -> NotifyError {
    NotifyError::Call { notifier: KIND, call, what: what.to_owned(), errno }
}

impl Notifier for Fanotify {
    fn kind(&self) -> NotifierKind {
        KIND
    }

    fn fd(&self) -> BorrowedFd<'_> {
        self.server.fd()
    }

    fn watch(&mut self, watched: &Watched<'_>) -> Result<(), NotifyError> {
        let unsuited = |what, reason, errno| {
            Err(NotifyError::Unsuited { notifier: KIND, what, reason, errno })
        };
        let Watched::File(file) = watched else {
            let what = watched.subject().to_string();
            return unsuited(what, "it is no file; userfaultfd is for mappings", None);
        };
        if self.watched.iter().any(|(id, _)| *id == file.id) {
            return Ok(());
        }
        let kept = file.fd.try_clone_to_owned().map_err(|error| {
            let errno = Errno::from_raw(error.raw_os_error().unwrap_or(0));
            call("dup", &file.what(), errno)
        })?;
        match sys::fanotify_mark(self.server.group(), libc::FAN_MARK_ADD, MASK, file.fd) {
            Ok(()) => {
                self.watched.push((file.id, kept));
                self.server.watch(file.id);
                Ok(())
            }
            Err(errno @ (Errno::EOPNOTSUPP | Errno::EINVAL | Errno::ENODEV | Errno::EXDEV)) => {
                let reason = "its file system has no pre-content events (ext4, xfs and btrfs have)";
                unsuited(file.what(), reason, Some(errno))
            }
            Err(errno) => Err(call("fanotify_mark", &file.what(), errno)),
        }
    }

    fn unwatch(&mut self, subject: Subject) {
        self.watched.retain(|(id, file)| {
            let other = Subject::from(*id) != subject;
            if !other {
                let (group, remove) = (self.server.group(), libc::FAN_MARK_REMOVE);
                if let Err(errno) = sys::fanotify_mark(group, remove, MASK, file.as_fd()) {
                    tracing::warn!(file = %id, %errno, "a fanotify mark could not be removed");
                }
                self.server.unwatch(*id);
            }
            other
        });
    }

    fn collect(&mut self, sink: &mut dyn FnMut(Notice)) -> Result<(), NotifyError> {
        self.server.collect(sink);
        Ok(())
    }

    fn allow(&mut self, subject: Subject) {
        if let Subject::File(id) = subject {
            self.server.allow(id);
        }
    }

    fn statement(&self) -> Terms {
        Terms {
            sees: format!(
                "truncate, ftruncate, O_TRUNC, fallocate, clones, dedupe and exchange by anybody \
                 who opened the file after it was watched, with range and thread, before they \
                 begin; they wait at most {:?}",
                self.server.deadline()
            ),
            misses:
                "descriptors opened before, but for truncation; XFS_IOC_SWAPEXT; what a thread \
                     does that is in no system call of its own (io_uring, nfsd) is unknown and not \
                     held; files on tmpfs; files with a lease"
                    .into(),
            costs:
                "a thread, and for everybody who opens, reads or writes the file a detour by it \
                    with each call"
                    .into(),
        }
    }
}

impl Drop for Fanotify {
    fn drop(&mut self) {
        self.server.stop();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests;
