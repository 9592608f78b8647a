//! What is being done to a file or a mapping.

use std::fmt;

/// An operation that changes what memory a file's or a mapping's bytes live in, or that says so.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Cause {
    /// The file is cut to `size` bytes (`truncate`, `ftruncate`).
    Truncate {
        /// Its size afterwards.
        size: u64,
    },
    /// The file is emptied by being opened (`O_TRUNC`).
    OpenTruncate,
    /// `FALLOC_FL_PUNCH_HOLE`, or a file system's own call that frees the range.
    PunchHole,
    /// `FALLOC_FL_COLLAPSE_RANGE`: the range goes, and all behind it moves forward.
    CollapseRange,
    /// `FALLOC_FL_INSERT_RANGE`: a hole comes, and all behind it moves back.
    InsertRange,
    /// `FALLOC_FL_ZERO_RANGE` or `FALLOC_FL_WRITE_ZEROES`.
    ZeroRange,
    /// `FALLOC_FL_UNSHARE_RANGE`: shared blocks are copied to new ones.
    UnshareRange,
    /// `fallocate` without a mode: blocks are allocated where there are none.
    Allocate,
    /// The file grows to `size` bytes; no block moves.
    Grow {
        /// Its size afterwards.
        size: u64,
    },
    /// Its blocks become shared with a clone (`FICLONE` and friends, source).
    CloneFrom,
    /// Its range is replaced by another file's blocks (`FICLONE` and friends, destination).
    CloneOnto,
    /// Its blocks are joined with equal ones of another file (`FIDEDUPERANGE`).
    Dedupe,
    /// `XFS_IOC_EXCHANGE_RANGE`.
    ExchangeRange,
    /// `XFS_IOC_SWAPEXT` (`xfs_fsr`).
    SwapExtents,
    /// `EXT4_IOC_MOVE_EXT` (`e4defrag`).
    MoveExtents,
    /// `EXT4_IOC_SWAP_BOOT`: all of it is exchanged with the boot loader's inode.
    SwapBoot,
    /// A name of it was removed; with its last name and last user the file goes.
    Unlink,
    /// It got another name, or another file was renamed over it.
    Rename,
    /// Its attributes change; the DAX flag is one of them.
    Attributes,
    /// Somebody else opens it, and may change it from then on.
    OpenedByOther,
    /// Its file system was unmounted.
    Unmounted,
    /// Its file system is being shut down (`XFS_IOC_GOINGDOWN`, `EXT4_IOC_SHUTDOWN`).
    Shutdown,
    /// The device under it goes away.
    DeviceRemoved,
    /// Its content is written, by `write` or anything that looks like it from here.
    Write,
    /// The mapping, or a part of it, is unmapped.
    Munmap,
    /// The mapping is moved or shrunk (`mremap`).
    Mremap,
    /// Its pages are dropped (`MADV_DONTNEED`, `MADV_FREE`): they read as zero or as the file.
    DontNeed,
    /// Its pages and the file's are freed (`MADV_REMOVE`).
    Remove,
    /// Something else is mapped over it (`MAP_FIXED`).
    MapOver,
    /// The process forks: private pages are copied at the next write, by either side.
    Fork,
    /// More than one of these, told together.
    Several,
    /// Something, and what cannot be told: taken for anything, anywhere in the file.
    Unknown,
}

impl Cause {
    /// Whether it takes nothing away: at most, there is more of the file afterwards.
    pub fn only_adds(self) -> bool {
        matches!(self, Self::Grow { .. } | Self::Allocate | Self::Write)
    }

    /// Whether it exchanges a file's blocks without a look at pins. `EXT4_IOC_MOVE_EXT` refuses a
    /// DAX file and takes one for the donor, which a file system can have that is mounted with
    /// `dax=inode`.
    pub fn passes_pins(self) -> bool {
        matches!(self, Self::SwapExtents | Self::SwapBoot | Self::MoveExtents)
    }

    /// Whether nothing brings the memory back afterwards: the mapping itself goes, or everything
    /// that the file stands on.
    pub fn is_final(self) -> bool {
        use Cause::*;
        matches!(self, Munmap | Mremap | MapOver | Shutdown | DeviceRemoved)
    }

    /// Its name in tables and JSON.
    pub fn name(self) -> &'static str {
        match self {
            Self::Truncate { .. } => "truncate",
            Self::OpenTruncate => "open-truncate",
            Self::PunchHole => "punch-hole",
            Self::CollapseRange => "collapse-range",
            Self::InsertRange => "insert-range",
            Self::ZeroRange => "zero-range",
            Self::UnshareRange => "unshare-range",
            Self::Allocate => "allocate",
            Self::Grow { .. } => "grow",
            Self::CloneFrom => "clone-from",
            Self::CloneOnto => "clone-onto",
            Self::Dedupe => "dedupe",
            Self::ExchangeRange => "exchange-range",
            Self::SwapExtents => "swap-extents",
            Self::MoveExtents => "move-extents",
            Self::SwapBoot => "swap-boot",
            Self::Unlink => "unlink",
            Self::Rename => "rename",
            Self::Attributes => "attributes",
            Self::OpenedByOther => "opened-by-other",
            Self::Unmounted => "unmounted",
            Self::Shutdown => "shutdown",
            Self::DeviceRemoved => "device-removed",
            Self::Write => "write",
            Self::Munmap => "munmap",
            Self::Mremap => "mremap",
            Self::DontNeed => "dont-need",
            Self::Remove => "remove",
            Self::MapOver => "map-over",
            Self::Fork => "fork",
            Self::Several => "several",
            Self::Unknown => "unknown",
        }
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Truncate { size } | Self::Grow { size } => {
                write!(f, "{} to {size} bytes", self.name())
            }
            _ => f.write_str(self.name()),
        }
    }
}
