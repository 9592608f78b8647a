//! The owner of an address space, as thin as it can be: what a container ioctl or a socket message
//! can do, and nothing that is arithmetic.
//!
//! # How iommufd fits
//! An I/O address space of iommufd (IOAS) is a `Domain` too: `map` is IOMMU_IOAS_MAP with a fixed
//! IOVA (or IOMMU_IOAS_MAP_FILE for memory given by descriptor), `unmap` is IOMMU_IOAS_UNMAP with
//! its returned length, `limits` comes from IOMMU_IOAS_IOVA_RANGES. It has no entry limit, refuses
//! to bisect a mapping as type1 does, and accepts no /dev/mem window. A stage-1 table in user
//! memory (IOMMU_HWPT_ALLOC with nesting) would override [`Domain::replace`] and answer `true` in
//! [`Domain::replaces_without_window`]: there the exchange is one 8-byte store and an invalidation.

use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

use crate::{Error, IovaRange, Result};

/// Page size of x86-64, the least that can be put behind an address.
const PAGE: u64 = 4096;

/// What the device may do with memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Prot {
    /// The device may read.
    Read,
    /// The device may write. (Some IOMMUs then allow reads as well.)
    Write,
    /// The device may read and write.
    ReadWrite,
}

impl Prot {
    /// Whether the device may read.
    pub fn readable(self) -> bool {
        matches!(self, Self::Read | Self::ReadWrite)
    }

    /// Whether the device may write.
    pub fn writable(self) -> bool {
        matches!(self, Self::Write | Self::ReadWrite)
    }
}

/// Memory to put behind I/O virtual addresses: where it is in this process, and in which file.
/// A type1 domain takes the virtual address, a vfio-user domain the descriptor and offset.
#[derive(Debug, Clone, Copy)]
pub struct Backing<'a> {
    va: Option<usize>,
    fd: Option<BorrowedFd<'a>>,
    offset: u64,
}

impl<'a> Backing<'a> {
    /// Memory at virtual address `va`; where it is a shared mapping of a file, also that file and
    /// the offset in it.
    ///
    /// # Safety
    /// For as long as it stands behind an address (until an unmap or a retarget that succeeded)
    /// the memory must be valid for the accesses the mapping allows, no Rust reference to it may
    /// exist where the device may write, and it must hold nothing the device may not see.
    #[allow(unsafe_code)]
    pub unsafe fn memory(va: usize, file: Option<(BorrowedFd<'a>, u64)>) -> Self {
        let (fd, offset) = file.map_or((None, 0), |(fd, offset)| (Some(fd), offset));
        Self { va: Some(va), fd, offset }
    }

    /// A file's pages from `offset` bytes on, without an address here. Enough for vfio-user.
    pub fn file(fd: BorrowedFd<'a>, offset: u64) -> Self {
        Self { va: None, fd: Some(fd), offset }
    }

    /// Virtual address in this process, if it has one.
    pub fn va(&self) -> Option<usize> {
        self.va
    }

    /// The file and the offset in bytes, if there is one.
    pub fn fd(&self) -> Option<(BorrowedFd<'a>, u64)> {
        self.fd.map(|fd| (fd, self.offset))
    }

    /// The same memory `bytes` further on.
    pub(crate) fn advance(&self, bytes: u64) -> Result<Self> {
        let overflow = || Error::usage("memory to map wraps around the end of its address space");
        let step = usize::try_from(bytes).map_err(|_| overflow())?;
        let va = self.va.map(|va| va.checked_add(step).ok_or_else(overflow)).transpose()?;
        let offset = self.offset.checked_add(bytes).ok_or_else(overflow)?;
        Ok(Self { va, fd: self.fd, offset })
    }
}

/// A stretch of memory that lies in one piece.
#[derive(Debug, Clone, Copy)]
pub struct Piece<'a> {
    /// The memory.
    pub backing: Backing<'a>,
    /// Bytes of it.
    pub len: u64,
}

/// What a domain can do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Addresses the device may be given.
    pub ranges: Vec<IovaRange>,
    /// Bit n set: mappings may be multiples of 2^n bytes. The lowest bit is the granularity.
    pub page_sizes: u64,
    /// Mappings that can exist at a time; `None` when nobody counts.
    pub max_mappings: Option<u64>,
    /// Memory must come with a descriptor.
    pub needs_fd: bool,
    /// One unmap may take several whole mappings that lie side by side.
    pub unmap_spans: bool,
}

impl Limits {
    /// The smallest unit of mapping, in bytes: the smallest page size, but no less than the
    /// processor's. `None` when `page_sizes` is empty.
    pub fn page(&self) -> Option<u64> {
        let smallest = self.page_sizes & self.page_sizes.wrapping_neg();
        (smallest != 0).then(|| smallest.max(PAGE))
    }
}

/// A mapping was exchanged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Replaced {
    /// How long nothing stood behind the addresses: an access in that time failed.
    pub window: Duration,
    /// What the domain found there.
    pub found: Unmapped,
}

/// What an unmap found behind a range.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unmapped {
    /// A mapping of every byte, which is gone now.
    All,
    /// No mapping at all: somebody else took it away before. As good as the other, for whoever
    /// wants the memory out of reach, but a sign that the device has met faults meanwhile.
    Nothing,
}

/// Why a mapping was not exchanged, and what stands behind the addresses now.
#[derive(Debug, thiserror::Error)]
pub enum ReplaceError {
    /// The old memory is, or may be, still reachable.
    #[error("the old memory is still mapped: {0}")]
    StillMapped(#[source] Error),
    /// The old memory is out of reach, but nothing took its place: accesses fail.
    #[error("nothing could be mapped in its place: {0}")]
    Hole(#[source] Error),
}

/// The owner of a DMA address space. Calls block for as long as the kernel pins pages or the
/// server takes to answer, and may be made from any thread.
///
/// Callers keep the books: ranges are multiples of the page size, and nobody maps over a mapping.
pub trait Domain: Send + Sync {
    /// What this domain can do.
    fn limits(&self) -> Result<Limits>;

    /// Puts memory behind a range that has nothing behind it.
    fn map(&self, range: IovaRange, backing: &Backing<'_>, prot: Prot) -> Result<()>;

    /// Takes everything away from behind a range, whole mappings only, and returns how many bytes
    /// were mapped there. When it returns, the IOTLB is flushed: no DMA that starts later reaches
    /// the old memory, and none is in flight. Success with 0 bytes is a statement as well: nothing
    /// is mapped anywhere in the range.
    ///
    /// Callers want [`Domain::unmap_exact`].
    fn unmap(&self, range: IovaRange) -> Result<u64>;

    /// [`Domain::unmap`] that fails unless every byte of the range was unmapped, or none was
    /// mapped.
    fn unmap_exact(&self, range: IovaRange) -> Result<Unmapped> {
        match self.unmap(range)? {
            0 => Ok(Unmapped::Nothing),
            unmapped if unmapped == range.len() => Ok(Unmapped::All),
            unmapped => Err(Error::PartialUnmap { range, unmapped }),
        }
    }

    /// Exchanges the memory behind one whole mapping. By default this is an unmap and a map, with
    /// a window between them in which accesses fail.
    fn replace(
        &self,
        range: IovaRange,
        backing: &Backing<'_>,
        prot: Prot,
    ) -> Result<Replaced, ReplaceError> {
        // The window opens somewhere inside the unmap: counting from its start overstates it.
        let start = Instant::now();
        let found = self.unmap_exact(range).map_err(ReplaceError::StillMapped)?;
        self.map(range, backing, prot).map_err(ReplaceError::Hole)?;
        Ok(Replaced { window: start.elapsed(), found })
    }

    /// The VFIO container behind it, where there is one: with its descriptor another process can
    /// take every mapping away, which outlives this one.
    fn container(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    /// Whether [`Domain::replace`] leaves no instant in which an access fails.
    fn replaces_without_window(&self) -> bool {
        false
    }
}
