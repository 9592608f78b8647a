//! A lease on the file: nobody opens or truncates it by name before we have been told and have
//! given the lease back.
//!
//! A write lease (`F_WRLCK`) is granted to the one who has the file open alone: one open file
//! description (its duplicates and mappings are the same one), in any process. As long as it
//! stands, no other description comes to be, and so nobody but us and those who inherited ours can
//! change the layout: it closes the door that the pin leaves open (`XFS_IOC_SWAPEXT` and
//! `EXT4_IOC_SWAP_BOOT` look at no pins and want a writable descriptor). Whoever comes waits, until
//! the lease is given back ([`Notifier::allow`]) or the system's `fs.lease-break-time` has passed.
//! After that the file is open to others, and the lease is gone until it is taken anew
//! ([`Notifier::watch`]).
//!
//! A delegation (`F_SETDELEG`, Linux 6.19) is a lease that is also broken by unlink, rename, link
//! and change of attributes. It refuses our own and inherited descriptors' `ftruncate` with EAGAIN
//! where a lease lets it pass, so it must be asked for.
//!
//! How the kernel's signal reaches us without touching the process's signals: `listener.rs`.

mod listener;

use std::fs;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;

use nix::errno::Errno;

use super::{
    Cause, Notice, Notifier, NotifierKind, NotifyError, Stage, Subject, Terms, Watched,
    WatchedFile, sys,
};
use crate::FileId;
use listener::{LEASES, Listener};

const KIND: NotifierKind = NotifierKind::Lease;

/// What to hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Hold {
    /// A lease: transparent to our own process.
    #[default]
    Lease,
    /// A delegation where the kernel has it, else a lease.
    Delegation,
}

/// Holds leases on files.
#[derive(Debug)]
pub struct Leases {
    listener: Listener,
    hold: Hold,
    watched: Vec<Entry>,
}

#[derive(Debug)]
struct Entry {
    id: FileId,
    /// A duplicate of the watched descriptor, to which the signal refers.
    file: OwnedFd,
    delegation: bool,
    state: State,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Held,
    /// Somebody waits for it.
    Broken,
    /// Given back.
    Gone,
}

impl Leases {
    /// Starts the thread that hears of broken leases. Needs no privilege for one's own files;
    /// CAP_LEASE for others'.
    pub fn new(hold: Hold) -> Result<Self, NotifyError> {
        let listener = Listener::new().map_err(|errno| call("signalfd", "its thread", errno))?;
        Ok(Self { listener, hold, watched: Vec::new() })
    }

    /// Whether the file's lease is held, so that nobody else has the file open.
    pub fn holds(&self, id: FileId) -> bool {
        self.watched.iter().any(|entry| entry.id == id && entry.state == State::Held)
    }
}

impl Entry {
    /// Takes the lease; what was given back is taken anew.
    fn take(&mut self, hold: Hold, listener: &Listener, what: &str) -> Result<(), NotifyError> {
        let file = self.file.as_fd();
        let own = sys::set_owner(file, listener.tid);
        own.map_err(|errno| call("fcntl(F_SETOWN_EX)", what, errno))?;
        sys::set_signal(file, sys::spare_signal())
            .map_err(|errno| call("fcntl(F_SETSIG)", what, errno))?;
        // A signal of an earlier lease on the same descriptor number is none of this one's.
        listener.broken(self.file.as_raw_fd());
        self.delegation = false;
        if hold == Hold::Delegation {
            match sys::set_delegation(file, libc::F_WRLCK) {
                Ok(()) => self.delegation = true,
                Err(Errno::EINVAL) => {}
                Err(errno) => return Err(refused(errno, self.id, what)),
            }
        }
        if !self.delegation {
            sys::set_lease(file, libc::F_WRLCK).map_err(|errno| refused(errno, self.id, what))?;
        }
        self.state = State::Held;
        Ok(())
    }

    fn give_back(&mut self) {
        if self.state == State::Gone {
            return;
        }
        let unlock = libc::F_UNLCK;
        let given = match self.delegation {
            true => sys::set_delegation(self.file.as_fd(), unlock),
            false => sys::set_lease(self.file.as_fd(), unlock),
        };
        // EAGAIN: there is none any more, as the kernel took it when lease-break-time had passed.
        if let Err(errno) = given
            && errno != Errno::EAGAIN
        {
            tracing::warn!(file = %self.id, %errno, "a lease could not be given back");
        }
        self.state = State::Gone;
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        // The lease belongs to the open file description, which others may hold on to.
        self.give_back();
    }
}

/// Why a lease is refused (`generic_setlease` of fs/locks.c).
fn refused(errno: Errno, id: FileId, what: &str) -> NotifyError {
    let unsuited = |reason| NotifyError::Unsuited {
        notifier: KIND,
        what: what.to_owned(),
        reason,
        errno: Some(errno),
    };
    match errno {
        Errno::EAGAIN | Errno::EBUSY => {
            NotifyError::NotSoleOpener { what: what.to_owned(), holders: holders(id), errno }
        }
        Errno::EACCES => {
            unsuited("it belongs to another user: a lease needs its owner or CAP_LEASE")
        }
        Errno::EINVAL | Errno::EOPNOTSUPP | Errno::ENOLCK => {
            unsuited("its file system has no leases, or they are switched off (fs.leases-enable)")
        }
        _ => call("fcntl(F_SETLEASE)", what, errno),
    }
}

/// Processes that have a file open, for a person to look at.
fn holders(id: FileId) -> String {
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten().filter_map(|process| {
        let pid: u32 = process.file_name().to_str()?.parse().ok()?;
        let open = fs::read_dir(process.path().join("fd")).ok()?.flatten().filter(|fd| {
            fs::metadata(fd.path()).is_ok_and(|stat| (stat.dev(), stat.ino()) == (id.dev, id.ino))
        });
        match open.count() {
            0 => None,
            count => Some(format!("{pid} with {count}")),
        }
    });
    let found: Vec<_> = processes.take(8).collect();
    if found.is_empty() { "none can be seen".into() } else { found.join(", ") }
}

fn call(call: &'static str, what: &str, errno: Errno) -> NotifyError {
    NotifyError::Call { notifier: KIND, call, what: what.to_owned(), errno }
}

impl Notifier for Leases {
    fn kind(&self) -> NotifierKind {
        KIND
    }

    fn fd(&self) -> BorrowedFd<'_> {
        self.listener.fd().as_fd()
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
        let (hold, what) = (self.hold, file.what());
        if let Some(entry) = self.watched.iter_mut().find(|entry| entry.id == file.id) {
            return match entry.state {
                State::Held | State::Broken => Ok(()),
                State::Gone => entry.take(hold, &self.listener, &what),
            };
        }
        let mut entry = new_entry(file)?;
        entry.take(hold, &self.listener, &what)?;
        self.watched.push(entry);
        Ok(())
    }

    fn unwatch(&mut self, subject: Subject) {
        self.watched.retain(|entry| Subject::from(entry.id) != subject);
    }

    fn collect(&mut self, sink: &mut dyn FnMut(Notice)) -> Result<(), NotifyError> {
        self.listener.heard();
        let lost = self.listener.lost();
        for entry in self.watched.iter_mut().filter(|entry| entry.state == State::Held) {
            let broken = self.listener.broken(entry.file.as_raw_fd())
                || lost && sys::lease(entry.file.as_fd()) != Ok(libc::F_WRLCK);
            if broken {
                entry.state = State::Broken;
                sink(Notice::new(entry.id, KIND, Stage::Waiting).cause(Cause::OpenedByOther));
            }
        }
        Ok(())
    }

    fn allow(&mut self, subject: Subject) {
        let broken =
            |entry: &&mut Entry| entry.state == State::Broken && Subject::from(entry.id) == subject;
        if let Some(entry) = self.watched.iter_mut().find(broken) {
            entry.give_back();
        }
    }

    fn statement(&self) -> Terms {
        let time = fs::read_to_string("/proc/sys/fs/lease-break-time").unwrap_or_default();
        let more = match self.hold {
            Hold::Lease => "",
            Hold::Delegation => ", and (Linux 6.19) unlinks, renames it or changes its attributes",
        };
        Terms {
            sees: format!(
                "that somebody opens the file or truncates it by name{more}, before it happens; it \
                 waits for us (fs.lease-break-time: {} s, 0 is for ever)",
                time.trim()
            ),
            misses: "our own and inherited descriptors; thread, cause and range; everything once \
                     it was given back, until it is taken anew"
                .into(),
            costs: "a thread that sleeps; whoever opens the file waits for us once, and whoever \
                    opens it with O_NONBLOCK (coreutils' truncate does) gets EWOULDBLOCK once"
                .into(),
        }
    }
}

fn new_entry(file: &WatchedFile<'_>) -> Result<Entry, NotifyError> {
    let kept = file.fd.try_clone_to_owned().map_err(|error| {
        let errno = Errno::from_raw(error.raw_os_error().unwrap_or(0));
        call("dup", &file.what(), errno)
    })?;
    if kept.as_raw_fd() as usize >= LEASES {
        return Err(NotifyError::Unsuited {
            notifier: KIND,
            what: file.what(),
            reason: "this process has too many descriptors open (leases want one below 1024)",
            errno: None,
        });
    }
    Ok(Entry { id: file.id, file: kept, delegation: false, state: State::Gone })
}

#[cfg(test)]
mod tests;
