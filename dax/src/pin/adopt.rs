//! A pin held in another process than the one that took it.

use std::os::fd::{AsFd, OwnedFd};

use super::guard::Guard;
use super::pipe::Pipe;
use crate::open::system_page_size;
use crate::{Error, FileId, Result};

/// What a process got from the one that took a pin ([`super::Pin::parts`]), by SCM_RIGHTS or by
/// inheritance.
#[derive(Debug)]
pub struct OwnedPinParts {
    /// The end that is drained.
    pub read: OwnedFd,
    /// The end that keeps the pipe from being closed.
    pub write: OwnedFd,
    /// The file, open for reading and writing.
    pub file: OwnedFd,
    /// Offset of the guard page in the file, in bytes.
    pub offset: u64,
}

/// A copy of a pin, which keeps it in force when the process that took it dies.
///
/// It has a guard mapping of its own, since on Linux 6.1 and 6.12 a pin has no force once the last
/// mapping of the file is gone, and a dying process loses its mappings before its descriptors. The
/// mapping is never faulted in: a second entry for the page would make Linux 7.3 wait for it after
/// the first owner drained the pipe.
///
/// Dropping it does **not** drain the pipe: the other owner may still count on the pin. When the
/// last copy goes, the kernel lets the page go.
#[derive(Debug)]
pub struct AdoptedPin {
    guard: Guard,
    pipe: Pipe,
    // Keeps an unlinked file's blocks from being freed.
    _file: OwnedFd,
    id: FileId,
    offset: u64,
}

impl AdoptedPin {
    /// Holds the pin as well. Maps a page of the file and touches nothing.
    pub fn adopt(parts: OwnedPinParts) -> Result<Self> {
        let OwnedPinParts { read, write, file, offset } = parts;
        let id = FileId::of(file.as_fd()).map_err(Error::identity)?;
        let failed = |call, hint| move |errno| Error::Pin { call, file: id, offset, hint, errno };
        let guard = Guard::map(file.as_fd(), offset, system_page_size() as usize)
            .map_err(failed("mmap", "the file must be open for reading and writing"))?;
        let pipe = Pipe::from_ends(read, write).map_err(failed("fcntl", "is this a pipe?"))?;
        Ok(Self { guard, pipe, _file: file, id, offset })
    }

    /// The file.
    pub fn file_id(&self) -> FileId {
        self.id
    }

    /// Whether the page is still in the pipe, which all copies share: false once any owner has
    /// released it.
    pub fn is_held(&self) -> Result<bool> {
        self.pipe.is_full().map_err(|errno| self.failed("FIONREAD", errno))
    }

    /// Releases the pin for every owner: drains the pipe. If the process that took it lives, its
    /// guard page may still be mapped in, which Linux 7.3 waits for too: release there first, or
    /// let it die. No allocation, no wait.
    pub fn release(&self) -> Result<()> {
        let _ = self.guard.forget();
        self.pipe.drain().map_err(|errno| self.failed("read of the pipe", errno))
    }

    fn failed(&self, call: &'static str, errno: nix::errno::Errno) -> Error {
        let hint = "the pin may still be held";
        Error::Pin { call, file: self.id, offset: self.offset, hint, errno }
    }
}
