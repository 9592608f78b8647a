//! What kind of memory a range turned out to be, and what a kernel lets a device do with it.

use std::fmt;

/// What kind of memory a range turned out to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Kind {
    /// Anonymous memory.
    Anon,
    /// An unnamed file in memory.
    Memfd,
    /// Huge pages, unnamed or of a hugetlbfs file.
    Hugetlb,
    /// A file on tmpfs or ramfs.
    Tmpfs,
    /// A file on any other file system, through the page cache.
    ///
    /// A kernel device may only **read** it: since Linux 6.5 a long-term pin for writing is
    /// refused for pages whose file system tracks dirty pages, and `VFIO_IOMMU_MAP_DMA` of a
    /// writable range fails with EFAULT (`writable_file_mapping_allowed` in mm/gup.c). Linux 6.1
    /// takes it, and then loses writes that come after write-back. A device in another process,
    /// which reaches the file through its own page tables, may write.
    PageCache,
    /// A file whose pages are the blocks of persistent memory (`STATX_ATTR_DAX`): ext4 or xfs
    /// mounted with `-o dax`.
    ///
    /// No kernel pins it for long (`VFIO_IOMMU_MAP_DMA` of its mapping is EOPNOTSUPP), because
    /// its blocks may move. A kernel device reaches it through a [`Window`](crate::Window) on its
    /// [`extents`](crate::extents), for as long as a [`Pin`](crate::Pin) is held.
    FsDax,
    /// Persistent memory without a file system, `/dev/daxX.Y`: nothing can move, and VFIO pins it.
    /// Offsets and lengths are multiples of the device's alignment, usually 2 MiB. VFIO never
    /// gives such pins back (its pages are `PageReserved`), so map it rarely and whole.
    DevDax,
}

impl Kind {
    /// Its name in tables and JSON.
    pub fn name(self) -> &'static str {
        match self {
            Self::Anon => "anon",
            Self::Memfd => "memfd",
            Self::Hugetlb => "hugetlb",
            Self::Tmpfs => "tmpfs",
            Self::PageCache => "page cache",
            Self::FsDax => "fs-dax",
            Self::DevDax => "devdax",
        }
    }

    /// Whether a file system may take the memory from under a device that holds its address:
    /// nothing keeps it in place but a [`Pin`](crate::Pin).
    pub fn may_move(self) -> bool {
        self == Self::FsDax
    }

    /// Why a kernel refuses to let a device write this memory by its mapping in this process, and
    /// what to do; `None` where it does not refuse.
    pub fn dma_refusal(self) -> Option<&'static str> {
        match self {
            Self::PageCache => Some(
                "the kernel refuses devices a lasting, writable pin of page-cache pages \
                 (since Linux 6.5): register it read-only, or use memfd, hugetlb, tmpfs, \
                 or a file on a DAX mount",
            ),
            Self::FsDax => Some(
                "the kernel refuses devices a lasting pin of fs-dax pages: map a window of the \
                 file's extents, under a layout pin",
            ),
            _ => None,
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
