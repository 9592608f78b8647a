//! Why memory could not be had, with what a person can do about it.

use std::path::PathBuf;

use nix::errno::Errno;

use crate::fsdax::{NotDax, WindowRefusal};
use crate::pin::ProofFailure;

/// Result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why memory could not be had or reached.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file could not be opened for reading and writing.
    #[error("cannot open {path} for reading and writing: {errno}", path = path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        errno: Errno,
    },
    /// A system call on a file failed.
    #[error("{call} of {path} failed: {errno}", path = path.display())]
    File {
        /// Which call.
        call: &'static str,
        /// The file, or what stands for it.
        path: PathBuf,
        /// Why.
        #[source]
        errno: Errno,
    },
    /// Directories, devices, sockets and pipes are no region memory.
    #[error("{path} is {what}, not a regular file", path = path.display())]
    NotAFile {
        /// The path.
        path: PathBuf,
        /// What it is.
        what: &'static str,
    },
    /// A file's range does not start or end on a page.
    #[error(
        "the {what} of {path}, {value:#x}, is not a multiple of its page size, {page_size:#x}: \
         a device reaches whole pages; choose a range of whole pages with \
         FILE:OFFSET+LEN{grow}",
        path = path.display(),
        grow = if *what == "size" { ", or grow the file with 'truncate -s %4K FILE'" } else { "" }
    )]
    Unaligned {
        /// The file.
        path: PathBuf,
        /// Offset, length or size.
        what: &'static str,
        /// Its value.
        value: u64,
        /// What it must be a multiple of.
        page_size: u64,
    },
    /// A file's range reaches beyond its end.
    #[error(
        "bytes {offset:#x}..{end:#x} of {path} reach beyond its end at {size:#x}: \
         there is nothing to write to beyond the end of a file; grow it first \
         ('truncate -s {end} FILE'; a sparse file is fine) or choose a smaller range",
        path = path.display()
    )]
    BeyondEnd {
        /// The file.
        path: PathBuf,
        /// First byte of the range.
        offset: u64,
        /// First byte after it.
        end: u64,
        /// Size of the file.
        size: u64,
    },
    /// A range of no bytes, or one whose end does not fit 64 bits.
    #[error("a range of {len:#x} bytes at {offset:#x} is not one")]
    BadRange {
        /// First byte.
        offset: u64,
        /// Bytes.
        len: u64,
    },
    /// A file's range is shorter than what is needed.
    #[error("{what} has {have:#x} bytes, but {need:#x} are needed: choose a larger range or file")]
    TooSmall {
        /// The source, as written.
        what: String,
        /// Bytes there are.
        have: u64,
        /// Bytes asked for.
        need: u64,
    },
    /// There are not enough huge pages.
    #[error(
        "{need} free huge pages of {page_kib} KiB are needed and {free} of {total} are free: \
         get them with 'echo {suggest} | sudo tee \
         /sys/kernel/mm/hugepages/hugepages-{page_kib}kB/nr_hugepages', or use memfd"
    )]
    HugePages {
        /// Pages needed.
        need: u64,
        /// Pages free.
        free: u64,
        /// Pages there are.
        total: u64,
        /// A total that would do.
        suggest: u64,
        /// Page size in KiB.
        page_kib: u64,
        /// What the kernel said.
        #[source]
        errno: Errno,
    },
    /// This kernel has no huge pages at all.
    #[error("this kernel offers no huge pages (no Hugepagesize in /proc/meminfo): use memfd")]
    NoHugePages,
    /// The memory could not be mapped into this process.
    #[error("cannot map {len:#x} bytes of {what}: {errno}")]
    Map {
        /// The source, as written.
        what: String,
        /// Bytes.
        len: u64,
        /// Why.
        #[source]
        errno: Errno,
    },
    /// The memory could not be faulted in.
    #[error(
        "cannot fault in {len:#x} bytes of {what}: {errno}; \
         {hint}"
    )]
    Populate {
        /// The source, as written.
        what: String,
        /// Bytes.
        len: u64,
        /// What to look at.
        hint: &'static str,
        /// Why.
        #[source]
        errno: Errno,
    },
    /// A file that was asked to be DAX is not.
    #[error("{path} is not DAX: {why}", path = path.display())]
    NotDax {
        /// The file.
        path: PathBuf,
        /// Why, and what to do.
        why: NotDax,
    },
    /// A part of a file has no blocks, and none were to be allocated.
    #[error(
        "{path} is sparse: bytes {offset:#x}..{end:#x} have no blocks; fill them with \
         'fallocate -o {offset} -l {len} FILE' and write them, or let them be allocated by \
         populating the region",
        path = path.display(), len = end - offset
    )]
    Sparse {
        /// The file.
        path: PathBuf,
        /// First byte of the first hole, in the file.
        offset: u64,
        /// First byte after it.
        end: u64,
    },
    /// A part of a file is shared with another (reflink) and could not be given blocks of its own.
    #[error(
        "bytes {offset:#x}..{end:#x} of {path} are shared with another file (reflink) and could \
         not be unshared: {errno}; a device would write into both; make room on the file system \
         and run 'fallocate --unshare-range' (xfs_io -c 'funshare {offset} {len}'), or copy the \
         file with 'cp --reflink=never'",
        path = path.display(), len = end - offset
    )]
    Shared {
        /// The file.
        path: PathBuf,
        /// First byte of the shared extent, in the file.
        offset: u64,
        /// First byte after it.
        end: u64,
        /// What populating it said.
        #[source]
        errno: Errno,
    },
    /// A part of a file is allocated but was never written, and could not be made so.
    #[error(
        "bytes {offset:#x}..{end:#x} of {path} are unwritten extents and could not be converted: \
         {errno}; write zeros to them ('dd conv=notrunc'), or make room on the file system",
        path = path.display()
    )]
    Unwritten {
        /// The file.
        path: PathBuf,
        /// First byte of the extent, in the file.
        offset: u64,
        /// First byte after it.
        end: u64,
        /// What populating it said.
        #[source]
        errno: Errno,
    },
    /// Extents cannot be cut at that granule.
    #[error("a granule of {granule:#x} is not a power of two of at least a page ({page_size:#x})")]
    BadGranule {
        /// The granule.
        granule: u64,
        /// Bytes in a page.
        page_size: u64,
    },
    /// A page that should have an address is not mapped.
    #[error(
        "the page at {offset:#x} of {what} is not mapped in: populate the range first; if it was, \
         an operation on the file has taken it out"
    )]
    Absent {
        /// The source, as written.
        what: String,
        /// First byte of the page, from the region's start.
        offset: u64,
    },
    /// The page tables do not show physical addresses to this process.
    #[error(
        "/proc/self/pagemap shows no physical addresses: this needs CAP_SYS_ADMIN \
         (in the first user namespace); run as root"
    )]
    NoAddresses,
    /// The page table could not be read.
    #[error("{call} of /proc/self/pagemap failed: {errno}; is /proc mounted?")]
    Pagemap {
        /// Which call.
        call: &'static str,
        /// Why.
        #[source]
        errno: Errno,
    },
    /// A page is ordinary memory where persistent memory was expected.
    #[error(
        "the page at {offset:#x} of {what} is ordinary memory at {phys:#x}, not persistent memory: \
         a hole that was only read, or a file that is no longer DAX; populate the range for \
         writing and look again"
    )]
    NotPersistent {
        /// The source, as written.
        what: String,
        /// First byte of the page, from the region's start.
        offset: u64,
        /// Where it lies.
        phys: u64,
    },
    /// Physical extents could not be mapped through /dev/mem.
    #[error("/dev/mem gives no window on {phys:#x}..{end:#x}: {why}")]
    Window {
        /// First byte of the physical range.
        phys: u64,
        /// First byte after it.
        end: u64,
        /// Why, and what to do.
        why: WindowRefusal,
    },
    /// A page of a file could not be pinned.
    #[error("{call} of the guard page at {offset:#x} of file {file} failed: {errno}; {hint}")]
    Pin {
        /// Which call.
        call: &'static str,
        /// The file.
        file: crate::FileId,
        /// Where the page is in the file.
        offset: u64,
        /// What to look at.
        hint: &'static str,
        /// Why.
        #[source]
        errno: Errno,
    },
    /// The page to pin moved each time it was tried: the file's layout keeps changing.
    #[error(
        "the layout of file {file} changed {tries} times while it was being pinned: \
         try again when the operations on it have ended"
    )]
    Restless {
        /// The file.
        file: crate::FileId,
        /// How often it was tried.
        tries: u32,
    },
    /// A pin does not make layout operations wait here.
    #[error("layout pins are not proven for {directory}: {why}", directory = directory.display())]
    NotProven {
        /// Where the proof was tried.
        directory: PathBuf,
        /// Why not, and what to do.
        why: ProofFailure,
    },
    /// A character device that is no memory.
    #[error(
        "{path} is a character device, but not a devdax one (/dev/daxX.Y): only those are memory \
         without a file system",
        path = path.display()
    )]
    NotDevDax {
        /// The device.
        path: PathBuf,
    },
    /// What sysfs says of a devdax device could not be read.
    #[error("cannot read {path}: {errno}", path = path.display())]
    Sysfs {
        /// The attribute.
        path: PathBuf,
        /// Why.
        #[source]
        errno: Errno,
    },
    /// An access outside the memory.
    #[error("{len} bytes at {offset:#x} are outside a memory of {size:#x} bytes")]
    OutOfBounds {
        /// First byte.
        offset: usize,
        /// Bytes.
        len: usize,
        /// Bytes there are.
        size: usize,
    },
    /// An atomic access that is not aligned.
    #[error("an 8-byte word at {offset:#x} is not 8-byte aligned")]
    UnalignedWord {
        /// Its offset.
        offset: usize,
    },
}

impl Error {
    /// A descriptor that fstat refused.
    pub(crate) fn identity(errno: Errno) -> Self {
        Self::File { call: "fstat", path: "a descriptor".into(), errno }
    }
}
