//! Client memory as the NIC sees it: one IOVA space per NIC.
//!
//! A vfio-user client hands over memory by file descriptor (`DMA_MAP`) and takes it back
//! (`DMA_UNMAP`). [`Space`] is the side the server thread works on: it checks requests, keeps the
//! files mapped and publishes the result. [`Reader`] is the side the processor thread works on: it
//! turns an IOVA into a [`Span`] without a lock, through a small software TLB.
//!
//! The two meet in a radix table of atomic entries, shaped like an x86 page table (4 levels of 512
//! entries, leaves of 4 KiB, 2 MiB, 1 GiB or 512 GiB by IOVA alignment). Chosen over an immutable
//! snapshot because a guest behind a vIOMMU maps and unmaps tens of thousands of single pages: each
//! costs one or two atomic stores here, whatever else is mapped, while a 64 GiB guest still needs
//! only a few dozen entries. A leaf holds the host address itself, which need only be 4 KiB
//! aligned, so no alignment is asked of the client's file offset.
//!
//! **Unmapping is a fence.** [`Space::unmap`] clears the entries, then waits until the reader has
//! passed a quiescent point or is offline ([`fence`]), and only then lets go of the files. When it
//! has returned, no access through the old translation is in flight or can still start.
//!
//! A client may truncate a file that the NIC is copying to. The process survives (`sigbus`): the
//! access reports [`Fault`] and the page gives misses until the client maps that IOVA anew.
//!
//! Only memory that the kernel itself provides is taken: memfd, tmpfs, hugetlbfs, devdax, files of
//! local file systems. The processor would wait for a FUSE or network file system's server at each
//! page, and all NICs with it. A file on a local disk may still cost it a read of that disk.

mod account;
mod backing;
mod error;
pub mod fence;
mod radix;
mod reader;
mod sigbus;
mod space;
pub mod span;
mod sync;

pub use account::{MAX_FILE_BYTES, MAX_FILES, MAX_VANISHED};
pub use error::MapError;
pub use reader::Reader;
pub use space::{FileRange, Prot, Space, SpaceStats};
pub use span::{Fault, Span};

/// First IOVA that cannot be mapped (the table spans 48 bits).
pub const IOVA_LIMIT: u64 = 1 << 48;
/// Most mappings of one space.
pub const MAX_MAPPINGS: usize = 4 * 65535;
