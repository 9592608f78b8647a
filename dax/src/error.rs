//! Why memory could not be had, with what a person can do about it.

use std::path::PathBuf;

use nix::errno::Errno;

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
