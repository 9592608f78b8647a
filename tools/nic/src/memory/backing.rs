//! A client's file, mapped once and shared by every `DMA_MAP` that refers to it.
#![allow(unsafe_code)]

use std::os::fd::{AsFd, BorrowedFd};
use std::ptr::NonNull;

use nix::errno::Errno;
use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};
use nix::sys::stat::{SFlag, fstat};

use super::sigbus::{MAX_BACKINGS, Registration};
use super::{MapError, Prot};

const HUGETLBFS_MAGIC: i64 = 0x9584_58f6;
/// Alignment that devdax wants by default; other character devices do not mind.
const CHAR_DEVICE_PAGE: usize = 2 << 20;

/// What tells one file, opened one way, from another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct FileKey {
    device: u64,
    inode: u64,
    writable: bool,
}

/// What is to be known of a file before mapping it.
#[derive(Debug)]
pub(super) struct FileFacts {
    pub(super) key: FileKey,
    size: u64,
    page: usize,
    // Its size says how much can be mapped, so that all of it can be.
    whole: bool,
}

impl FileFacts {
    pub(super) fn of(fd: BorrowedFd<'_>, prot: Prot) -> nix::Result<Self> {
        let stat = fstat(fd)?;
        let kind = SFlag::from_bits_truncate(stat.st_mode & SFlag::S_IFMT.bits());
        let whole = kind == SFlag::S_IFREG;
        let huge = whole
            && nix::sys::statfs::fstatfs(fd.as_fd())
                .is_ok_and(|fs| fs.filesystem_type().0 == HUGETLBFS_MAGIC);
        let page = match (huge, whole) {
            (true, _) => usize::try_from(stat.st_blksize).map_err(|_| Errno::EINVAL)?,
            (false, true) => 4096,
            (false, false) => CHAR_DEVICE_PAGE,
        };
        if !page.is_power_of_two() {
            return Err(Errno::EINVAL);
        }
        Ok(Self {
            key: FileKey { device: stat.st_dev, inode: stat.st_ino, writable: prot.write },
            size: u64::try_from(stat.st_size).unwrap_or(0),
            page,
            whole,
        })
    }
}

/// A shared mapping of a part of a file, mostly of all of it.
#[derive(Debug)]
pub(super) struct Backing {
    base: NonNull<u8>,
    len: usize,
    // File offset that `base` stands for.
    offset: u64,
    whole: bool,
    // Dropped by hand before the mapping goes.
    registration: Option<Registration>,
}

// SAFETY: the mapping is shared memory at a fixed address; it is only handed out as an address.
unsafe impl Send for Backing {}
// SAFETY: as above.
unsafe impl Sync for Backing {}

impl Backing {
    /// Maps `fd` so that `offset..offset + len` (page aligned) is covered: the whole file where
    /// its size is known, else just that range.
    pub(super) fn new(
        fd: BorrowedFd<'_>,
        facts: &FileFacts,
        prot: Prot,
        offset: u64,
        len: u64,
    ) -> Result<Self, MapError> {
        let refused = |errno| MapError::File { offset, len, errno };
        let page = facts.page as u64;
        let asked = offset.checked_add(len).ok_or(refused(Errno::EOVERFLOW))?;
        let (first, end) = if facts.whole {
            let end = facts.size.max(asked).checked_next_multiple_of(page);
            (0, end.ok_or(refused(Errno::EOVERFLOW))?)
        } else {
            (offset, asked)
        };
        let bytes = usize::try_from(end - first).map_err(|_| refused(Errno::EOVERFLOW))?;
        let length = std::num::NonZeroUsize::new(bytes).ok_or(refused(Errno::EINVAL))?;
        let start = libc::off_t::try_from(first).map_err(|_| refused(Errno::EOVERFLOW))?;
        let mut access = ProtFlags::PROT_READ;
        access.set(ProtFlags::PROT_WRITE, prot.write);
        // SAFETY: a fresh mapping at an address of the kernel's choice aliases no Rust object.
        let base = unsafe {
            mmap(None, length, access, MapFlags::MAP_SHARED | MapFlags::MAP_NORESERVE, fd, start)
        }
        .map_err(refused)?;
        let mut backing = Self {
            base: base.cast(),
            len: bytes,
            offset: first,
            whole: facts.whole,
            registration: None,
        };
        backing.registration =
            Registration::new(backing.base.as_ptr().expose_provenance(), bytes, facts.page);
        if backing.registration.is_none() {
            return Err(MapError::Limit { what: "mapped files", limit: MAX_BACKINGS });
        }
        Ok(backing)
    }

    /// Whether further mappings may share it: it is the whole file, covers that range, and no
    /// page of it vanished.
    pub(super) fn serves(&self, offset: u64, len: u64) -> bool {
        self.whole
            && offset.checked_add(len).is_some_and(|end| end <= self.len as u64)
            && !self.registration.as_ref().is_some_and(Registration::is_poisoned)
    }

    /// Host address of file offset `offset`, which the mapping covers.
    pub(super) fn host(&self, offset: u64) -> u64 {
        self.base.as_ptr().addr() as u64 + (offset - self.offset)
    }
}

impl Drop for Backing {
    fn drop(&mut self) {
        self.registration = None;
        // SAFETY: mapped by `new` with this length; whoever held translations passed the fence
        // before the last owner let go.
        if let Err(errno) = unsafe { munmap(self.base.cast(), self.len) } {
            tracing::error!(%errno, len = self.len, "a client file could not be unmapped");
        }
    }
}
