//! The system calls of the keeper that need `unsafe`: the guard page's mapping, process
//! descriptors, closing what was inherited.
#![allow(unsafe_code)]

use std::fs::File;
use std::num::NonZeroUsize;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::FileExt;
use std::ptr::NonNull;

use nix::errno::Errno;
use nix::sys::mman::{MapFlags, MmapAdvise, ProtFlags, madvise, mmap, munlock, munmap};

const PAGE: usize = 4096;
/// Bits of a pagemap entry: the page is in memory, or in swap.
const PRESENT: u64 = 1 << 63;
const SWAPPED: u64 = 1 << 62;

/// The first page of a file, mapped and never touched: Linux before 6.15 ignores references to pages
/// of a file that nobody maps.
#[derive(Debug)]
pub(super) struct Anchor {
    _page: FilePage,
}

impl Anchor {
    /// Maps it, whatever the file was opened for. Does not wait.
    pub(super) fn of(file: BorrowedFd<'_>) -> Result<Self, Errno> {
        Ok(Self { _page: FilePage::map(file, 0, ProtFlags::PROT_NONE)? })
    }
}

/// One page of a file, mapped and populated once and never touched again. Nothing here reads or
/// writes it: it is there for its page table entry.
#[derive(Debug)]
pub(super) struct GuardPage(FilePage);

impl GuardPage {
    /// Maps the page at `offset` of `file` and has its page table entry made. Waits while the
    /// file system has the file's mappings locked. A file that may only be read gets a mapping
    /// that may only be read.
    pub(super) fn map(file: BorrowedFd<'_>, offset: u64) -> Result<Self, Errno> {
        let offset = libc::off_t::try_from(offset).map_err(|_| Errno::EINVAL)?;
        let map = |prot| FilePage::map(file, offset, prot);
        let (page, populate) = match map(ProtFlags::PROT_READ | ProtFlags::PROT_WRITE) {
            Ok(page) => (page, libc::MADV_POPULATE_WRITE),
            Err(Errno::EACCES) => (map(ProtFlags::PROT_READ)?, libc::MADV_POPULATE_READ),
            Err(errno) => return Err(errno),
        };
        // SAFETY: the page is ours, and no reference to it exists; for all three.
        unsafe {
            madvise(page.0, PAGE, MmapAdvise::MADV_DONTFORK)?;
            // MADV_DONTNEED refuses memory that is locked, as all of it may be (mlockall).
            munlock(page.0, PAGE)?;
            Errno::result(libc::madvise(page.0.as_ptr(), PAGE, populate))?;
        }
        Ok(Self(page))
    }

    /// Whether its page table entry is there, by this process's pagemap.
    pub(super) fn is_present(&self, pagemap: &File) -> std::io::Result<bool> {
        let mut entry = [0; 8];
        let at = self.0.0.as_ptr().addr() / PAGE * 8;
        pagemap.read_exact_at(&mut entry, at as u64)?;
        Ok(u64::from_ne_bytes(entry) & (PRESENT | SWAPPED) != 0)
    }

    /// Drops the page table entry, which counts as a user of the page. The mapping stays.
    pub(super) fn forget(&self) -> Result<(), Errno> {
        // SAFETY: the page is ours and never read, so losing it loses nothing.
        unsafe { madvise(self.0.0, PAGE, MmapAdvise::MADV_DONTNEED) }
    }
}

/// A page of a file that is mapped and neither read nor written; unmapped on drop.
#[derive(Debug)]
struct FilePage(NonNull<libc::c_void>);

impl FilePage {
    fn map(file: BorrowedFd<'_>, offset: libc::off_t, prot: ProtFlags) -> Result<Self, Errno> {
        let length = const { NonZeroUsize::new(PAGE).unwrap() };
        // SAFETY: a fresh mapping at an address of the kernel's choice aliases no Rust object.
        let page = unsafe { mmap(None, length, prot, MapFlags::MAP_SHARED, file, offset) };
        page.map(Self)
    }
}

impl Drop for FilePage {
    fn drop(&mut self) {
        // SAFETY: the mapping was made by `map` with this length, and no reference to it exists.
        let _ = unsafe { munmap(self.0, PAGE) };
    }
}

// SAFETY: the mapping belongs to no thread, and nothing is ever read or written through it.
unsafe impl Send for FilePage {}

/// A descriptor of this process, by which its end can be told (Linux 5.3 and later).
pub(super) fn pidfd_self() -> Result<OwnedFd, Errno> {
    pidfd(std::process::id())
}

/// A descriptor of a process.
pub(super) fn pidfd(pid: u32) -> Result<OwnedFd, Errno> {
    // SAFETY: the call takes two numbers and touches no memory of ours.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    let fd = RawFd::try_from(Errno::result(fd)?).map_err(|_| Errno::EBADF)?;
    // SAFETY: the call succeeded, so this is a fresh descriptor that nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Kills the process behind a descriptor.
pub(super) fn kill(pidfd: BorrowedFd<'_>) -> Result<(), Errno> {
    let no_info = std::ptr::null::<libc::siginfo_t>();
    let fd = pidfd.as_raw_fd();
    // SAFETY: with no siginfo the call touches no memory of ours.
    let result =
        unsafe { libc::syscall(libc::SYS_pidfd_send_signal, fd, libc::SIGKILL, no_info, 0) };
    Errno::result(result).map(drop)
}

/// Closes every descriptor from `first` up to and with `last`.
///
/// # Safety
/// Nothing of this process may own one of them.
pub(super) unsafe fn close_range(first: RawFd, last: RawFd) -> Result<(), Errno> {
    // SAFETY: the caller answers for the descriptors; no memory is touched.
    let result = unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) };
    Errno::result(result).map(drop)
}
