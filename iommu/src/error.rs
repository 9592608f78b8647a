//! What can go wrong with an address space, with what a person needs to act on it.

use nix::errno::Errno;

use crate::IovaRange;

/// Result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What can go wrong with an address space.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A caller broke this crate's own rules.
    #[error("{0}")]
    Usage(String),

    /// The device layer failed; a group that is not viable is reported here, with its members.
    #[error(transparent)]
    Vfio(#[from] holdfast_vfio::Error),

    /// A length, address or offset is no multiple of the page size.
    #[error("{what} {value:#x} is no multiple of the domain's page size {page:#x}")]
    Unaligned {
        /// Which number.
        what: &'static str,
        /// The number.
        value: u64,
        /// Bytes.
        page: u64,
    },

    /// The domain offers no address this crate may use.
    #[error("the IOMMU offers no usable address range and page size: {0}")]
    NoSpace(String),

    /// No free address range is large enough.
    #[error(
        "no free range of {len:#x} bytes aligned to {align:#x} in the DMA address space \
         ({free:#x} bytes free, the largest range {largest:#x}): release mappings, or use a \
         device whose IOMMU offers more addresses"
    )]
    IovaExhausted {
        /// Bytes wanted.
        len: u64,
        /// Alignment wanted, in bytes.
        align: u64,
        /// Bytes free.
        free: u64,
        /// Bytes of the largest free range.
        largest: u64,
    },

    /// A fixed range is outside what the IOMMU translates, or reserved (the MSI window).
    #[error(
        "addresses {range} are reserved or outside what the IOMMU translates; usable are {usable:?}"
    )]
    Reserved {
        /// What was wanted.
        range: IovaRange,
        /// What could be had.
        usable: Vec<IovaRange>,
    },

    /// Something is mapped there already (EEXIST).
    #[error("addresses {range} overlap the mapping {existing}")]
    Overlap {
        /// What was wanted.
        range: IovaRange,
        /// What is there, as far as is known.
        existing: IovaRange,
    },

    /// Nothing is mapped at some address of the range.
    #[error("nothing is mapped at {at:#x}, inside {range}")]
    NotMapped {
        /// What was wanted.
        range: IovaRange,
        /// The first address with nothing behind it.
        at: u64,
    },

    /// A range would cut a mapping in two, which no domain can do.
    #[error(
        "{range} would cut the mapping {mapping} in two: a mapping is revoked whole, so map with \
         a granule no larger than what may have to be revoked"
    )]
    Bisects {
        /// What was wanted.
        range: IovaRange,
        /// The mapping that would be cut.
        mapping: IovaRange,
    },

    /// An unmap took away more or less than was asked.
    #[error(
        "the unmap of {range} reports {unmapped:#x} bytes instead of {:#x}: part of the range may \
         still be reachable by the device",
        range.len()
    )]
    PartialUnmap {
        /// What was to be unmapped.
        range: IovaRange,
        /// What was.
        unmapped: u64,
    },

    /// The domain's number of mappings is used up (ENOSPC).
    #[error(
        "all {limit} mappings of the DMA address space are in use: map with a larger granule, or \
         raise vfio_iommu_type1's dma_entry_limit \
         (/sys/module/vfio_iommu_type1/parameters/dma_entry_limit) before opening the device"
    )]
    MappingLimit {
        /// Mappings that can exist at a time.
        limit: u64,
    },

    /// The pages to be pinned exceed RLIMIT_MEMLOCK (ENOMEM).
    #[error(
        "pinning {needed:#x} bytes exceeds RLIMIT_MEMLOCK ({}): raise it with `ulimit -l`, with \
         LimitMEMLOCK= in a systemd unit or with a memlock line in /etc/security/limits.conf, or \
         run with CAP_IPC_LOCK; if the limit is high enough, memory itself ran out",
        Bytes(*.limit)
    )]
    Memlock {
        /// Bytes this mapping would pin, on top of what is pinned already.
        needed: u64,
        /// The soft limit in bytes; `None` when there is none.
        limit: Option<u64>,
    },

    /// The memory is a file on an fs-dax mount (EOPNOTSUPP).
    #[error(
        "the kernel pins no fs-dax file for long (FOLL_LONGTERM is refused), which {range} needs: \
         map the file's physical extents through /dev/mem under a layout pin, or use a devdax \
         device"
    )]
    FsDax {
        /// Where it was to be mapped.
        range: IovaRange,
    },

    /// The memory could not be pinned (EFAULT).
    #[error(
        "the kernel would not pin the memory at {va:#x} for {range}{}",
        if *.writable {
            ": a writable mapping of page-cache file pages is refused since Linux 6.5, because \
             the file system could not track the device's writes; use memfd, tmpfs, hugetlbfs or \
             anonymous memory, or let the device only read. A mapping without PROT_WRITE, or an \
             address that is not mapped, fails in the same way"
        } else {
            ": the address is not mapped, or is past the end of its file"
        }
    )]
    NotPinnable {
        /// Where it was to be mapped.
        range: IovaRange,
        /// Virtual address of the memory.
        va: usize,
        /// The device was to write it.
        writable: bool,
    },

    /// The domain needs an address of the memory in this process.
    #[error("memory for {range} has no address in this process, which this domain needs")]
    NeedsAddress {
        /// Where it was to be mapped.
        range: IovaRange,
    },

    /// The domain needs a descriptor of the memory.
    #[error(
        "memory for {range} has no file descriptor: a vfio-user device lives in another process \
         and can only map memory that is a file; use memfd, hugetlbfs or a real file"
    )]
    NeedsFd {
        /// Where it was to be mapped.
        range: IovaRange,
    },

    /// A map call failed for a reason that has no variant of its own.
    #[error("cannot map {range}: {errno}")]
    Map {
        /// Where.
        range: IovaRange,
        /// Why.
        #[source]
        errno: Errno,
    },

    /// An unmap call failed.
    #[error("cannot unmap {range}: {errno}; the device may still reach the memory")]
    Unmap {
        /// Where.
        range: IovaRange,
        /// Why.
        #[source]
        errno: Errno,
    },

    /// A map call failed halfway, and what it had mapped could not be unmapped again.
    #[error(
        "mapping failed ({source}), and the part already mapped at {range} could not be unmapped \
         again ({undo}): the device may still reach that memory"
    )]
    MapUndo {
        /// What stays mapped.
        range: IovaRange,
        /// Why it could not be unmapped.
        undo: Box<Error>,
        /// Why the map call failed.
        source: Box<Error>,
    },

    /// Scrap memory belongs to another address space or another tenant.
    #[error(
        "scrap memory belongs to one address space and one tenant and cannot stand in for \
         another's memory"
    )]
    ForeignScrap,

    /// Memory was to be put in the place of memory that is still there.
    #[error(
        "{chunk} still stands on memory: take it away (`retarget`) before something else is put \
         in its place"
    )]
    OnMemory {
        /// The chunk.
        chunk: IovaRange,
    },

    /// A range was taken away from its memory after the permit to put memory there was given.
    #[error("{range} was taken away again meanwhile: look at the memory anew and start over")]
    Superseded {
        /// What the permit was for.
        range: IovaRange,
    },

    /// Memory for scrap or DMA could not be had.
    #[error("cannot {step} {len:#x} bytes of shared memory: {errno}")]
    Memory {
        /// Which step failed.
        step: &'static str,
        /// Bytes.
        len: u64,
        /// Why.
        #[source]
        errno: Errno,
    },

    /// Some of a range could not be taken away from its memory.
    #[error(
        "{count} of the chunks in {range} may still reach their memory, the first at {first}: \
         keep whatever holds that memory in place"
    )]
    RetargetIncomplete {
        /// What was to be retargeted.
        range: IovaRange,
        /// Chunks that could not be fenced.
        count: usize,
        /// The first of them.
        first: IovaRange,
        /// Why it failed.
        #[source]
        source: Box<Error>,
    },

    /// A range was laid out anew only in part. What is not on memory is on scrap, holes aside.
    #[error(
        "{range} stands on memory only up to {chunk} ({holes} chunks with nothing behind them): \
         {source}"
    )]
    RetileIncomplete {
        /// What was to be laid out anew.
        range: IovaRange,
        /// The first chunk that is not as it was to be.
        chunk: IovaRange,
        /// Chunks of the range with nothing behind them, because scrap could not be mapped.
        holes: usize,
        /// Why it failed.
        #[source]
        source: Box<Error>,
    },

    /// A chunk could not be put back; those before it were.
    #[error("{chunk} could not be put back; chunks before it were: {source}")]
    RestoreIncomplete {
        /// The chunk that failed.
        chunk: IovaRange,
        /// Why it failed.
        #[source]
        source: Box<Error>,
    },
}

/// A limit in bytes, or the lack of one.
struct Bytes(Option<u64>);

impl std::fmt::Display for Bytes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0 {
            Some(bytes) => write!(f, "{bytes:#x} bytes"),
            None => f.write_str("unlimited"),
        }
    }
}

impl Error {
    /// A [`Error::Usage`] of that text.
    pub fn usage(text: impl Into<String>) -> Self {
        Self::Usage(text.into())
    }
}
