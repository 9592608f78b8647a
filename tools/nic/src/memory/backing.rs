//! A client's file, mapped once and shared by every `DMA_MAP` that refers to it.
#![allow(unsafe_code)]

use std::os::fd::{AsFd, BorrowedFd};
use std::ptr::NonNull;

use nix::errno::Errno;
use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};
use nix::sys::stat::{SFlag, fstat};

use super::account::{Account, Lease};
use super::sigbus::{MAX_BACKINGS, Registration};
use super::{MapError, Prot};

const HUGETLBFS_MAGIC: i64 = 0x9584_58f6;
/// Page size of devdax, where it does not say.
const DEVDAX_PAGE: usize = 2 << 20;
/// File systems whose pages come from another process or machine: an access waits for as long as
/// that takes, and with it the processor and all its NICs.
const REMOTE: [(i64, &str); 14] = [
    (0x6573_5546, "FUSE"),
    (0x6969, "NFS"),
    (0x517b, "SMB"),
    (0xfe53_4d42, "SMB2"),
    (0xff53_4d42, "CIFS"),
    (0x00c3_6400, "Ceph"),
    (0x0102_1997, "9P"),
    (0x5346_414f, "AFS"),
    (0x6b41_4653, "AFS"),
    (0x7375_7245, "Coda"),
    (0x0bd0_0bd0, "Lustre"),
    (0x4750_4653, "GPFS"),
    (0x0116_1970, "GFS2"),
    (0x7461_636f, "OCFS2"),
];

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
    /// Looks at a client's file. Only files whose pages the kernel itself provides are taken:
    /// the processor must not wait for whoever else would.
    pub(super) fn of(fd: BorrowedFd<'_>, prot: Prot) -> Result<Self, Unfit> {
        let stat = fstat(fd)?;
        let kind = SFlag::from_bits_truncate(stat.st_mode & SFlag::S_IFMT.bits());
        let whole = kind == SFlag::S_IFREG;
        let page = if whole {
            let system = nix::sys::statfs::fstatfs(fd.as_fd())?.filesystem_type().0;
            if let Some(remote) = remote(system) {
                return Err(Unfit::Remote(remote));
            }
            if system == HUGETLBFS_MAGIC {
                usize::try_from(stat.st_blksize).ok()
            } else {
                Some(4096)
            }
        } else {
            let page = (kind == SFlag::S_IFCHR).then(|| devdax_page(stat.st_rdev)).flatten();
            Some(page.ok_or(Unfit::Kind)?)
        };
        let page = page.filter(|page| page.is_power_of_two()).ok_or(Errno::EINVAL)?;
        Ok(Self {
            key: FileKey { device: stat.st_dev, inode: stat.st_ino, writable: prot.write },
            size: u64::try_from(stat.st_size).unwrap_or(0),
            page,
            whole,
        })
    }
}

/// Why a file is not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Unfit {
    /// It could not be looked at.
    Errno(Errno),
    /// Its pages come from elsewhere.
    Remote(&'static str),
    /// It is no file and no devdax device.
    Kind,
}

impl From<Errno> for Unfit {
    fn from(errno: Errno) -> Self {
        Self::Errno(errno)
    }
}

fn remote(system: i64) -> Option<&'static str> {
    REMOTE.iter().find(|(magic, _)| *magic == system).map(|(_, name)| *name)
}

/// The page size of a character device that is devdax.
fn devdax_page(device: u64) -> Option<usize> {
    let (major, minor) = (nix::sys::stat::major(device), nix::sys::stat::minor(device));
    let device = std::path::PathBuf::from(format!("/sys/dev/char/{major}:{minor}"));
    if !device.join("subsystem").canonicalize().ok()?.ends_with("dax") {
        return None;
    }
    let align = std::fs::read_to_string(device.join("align")).ok();
    Some(align.and_then(|text| text.trim().parse().ok()).unwrap_or(DEVDAX_PAGE))
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
    // What it takes of the space's share; given back after the mapping went.
    _lease: Lease,
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
        account: &Account,
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
        let lease = account.lease(bytes)?;
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
            _lease: lease,
        };
        backing.registration = Registration::new(
            backing.base.as_ptr().expose_provenance(),
            bytes,
            facts.page,
            account.poison(),
        );
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_that_others_serve_are_told_from_local_ones() {
        const LOCAL: [(&str, i64); 6] = [
            ("tmpfs", 0x0102_1994),
            ("hugetlbfs", HUGETLBFS_MAGIC),
            ("ext4", 0xef53),
            ("xfs", 0x5846_5342),
            ("btrfs", 0x9123_683e),
            ("overlayfs", 0x794c_7630),
        ];
        for (name, magic) in LOCAL {
            assert_eq!(remote(magic), None, "{name}");
        }
        assert_eq!(remote(0x6573_5546), Some("FUSE"));
        assert_eq!(remote(0x6969), Some("NFS"));
    }
}
