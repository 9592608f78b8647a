//! Why a mapping was refused.

use nix::errno::Errno;

/// Why the client's `DMA_MAP` or `DMA_UNMAP` was refused.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MapError {
    /// Address, length or file offset is not a multiple of 4 KiB, or the length is zero.
    #[error("IOVA {iova:#x} + {len:#x} (file offset {offset:#x}) is not whole 4 KiB pages")]
    Unaligned {
        /// First address.
        iova: u64,
        /// Bytes.
        len: u64,
        /// Offset in the file.
        offset: u64,
    },
    /// The range wraps around or ends beyond [`super::IOVA_LIMIT`].
    #[error("IOVA {iova:#x} + {len:#x} ends beyond the 48 bits this NIC translates")]
    OutOfRange {
        /// First address.
        iova: u64,
        /// Bytes.
        len: u64,
    },
    /// Something is mapped there already.
    #[error("IOVA {iova:#x} + {len:#x} overlaps the mapping at {existing:#x}")]
    Overlap {
        /// First address.
        iova: u64,
        /// Bytes.
        len: u64,
        /// Start of the mapping in the way.
        existing: u64,
    },
    /// An unmap would cut a mapping in two.
    #[error("unmapping IOVA {iova:#x} + {len:#x} would bisect the mapping at {existing:#x}")]
    Bisect {
        /// First address.
        iova: u64,
        /// Bytes.
        len: u64,
        /// Start of the mapping that would be cut.
        existing: u64,
    },
    /// Neither readable nor writable.
    #[error("a mapping must be readable or writable")]
    NoAccess,
    /// The space is full.
    #[error("the client reached this NIC's limit of {limit} {what}; unmap some first")]
    Limit {
        /// What there are too many of.
        what: &'static str,
        /// How many there can be.
        limit: usize,
    },
    /// Its pages come from another process or machine, for which all NICs would wait.
    #[error(
        "the client's memory is a file on {system}, whose server every access would wait for; \
         use memfd, tmpfs, hugetlbfs, devdax or a local file system"
    )]
    Remote {
        /// Which file system.
        system: &'static str,
    },
    /// A descriptor that is no memory.
    #[error(
        "the client's memory is neither a regular file (memfd, tmpfs, hugetlbfs, ...) nor devdax"
    )]
    Kind,
    /// The client's file could not be looked at or mapped.
    #[error("cannot map {len:#x} bytes at offset {offset:#x} of the client's file: {errno}")]
    File {
        /// Offset in the file.
        offset: u64,
        /// Bytes.
        len: u64,
        /// Why.
        #[source]
        errno: Errno,
    },
}

impl MapError {
    /// The errno a client is answered with.
    pub fn errno(&self) -> Errno {
        match self {
            Self::Unaligned { .. } | Self::OutOfRange { .. } => Errno::EINVAL,
            Self::Bisect { .. } | Self::NoAccess => Errno::EINVAL,
            Self::Overlap { .. } => Errno::EEXIST,
            Self::Limit { .. } => Errno::ENOSPC,
            Self::Remote { .. } | Self::Kind => Errno::EOPNOTSUPP,
            Self::File { errno, .. } => *errno,
        }
    }
}
