//! Memory with a file descriptor, so that every kind of domain can map it.
//!
//! It is a sealed memfd: its size can never change, so nobody who maps it can meet SIGBUS. The
//! kernel backs it with 2 MiB pages when some are reserved (MFD_HUGETLB), or when it can make some
//! of ordinary ones (MADV_COLLAPSE, since Linux 6.1), and with ordinary pages otherwise;
//! [`SharedMemory::pages`] says which it was. A [NUMA node](crate::numa) can be preferred. Devices
//! write it behind Rust's back: it is reached by raw pointer only.
#![allow(unsafe_code)]

use std::num::NonZeroUsize;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::mman::{MapFlags, ProtFlags, mmap, mmap_anonymous, munmap};

use crate::{Backing, Error, Piece, Result, numa};

const PAGE: u64 = 4096;
const HUGE_PAGE: u64 = 2 << 20;

/// `madvise(2)`, since Linux 6.1; works whatever is configured for transparent huge pages.
const MADV_COLLAPSE: libc::c_int = 25;

/// What memory consists of, the worst for the TLB first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum PageKind {
    /// Pages of 4 KiB.
    Ordinary,
    /// Transparent huge pages of 2 MiB, which the kernel has made of ordinary ones and may take
    /// apart again when it is short of memory.
    TransparentHuge,
    /// Reserved pages of 2 MiB, which stay what they are.
    Hugetlb,
}

impl PageKind {
    /// `ordinary`, `transparent huge` or `hugetlb`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Ordinary => "ordinary",
            Self::TransparentHuge => "transparent huge",
            Self::Hugetlb => "hugetlb",
        }
    }
}

/// Maps all of a memfd, without a page yet; from 2 MiB on, at an address where a huge page can be.
fn map_aligned(fd: &OwnedFd, len: NonZeroUsize) -> Result<NonNull<u8>, Errno> {
    let prot = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
    let shared = MapFlags::MAP_SHARED;
    if (len.get() as u64) < HUGE_PAGE {
        // SAFETY: a fresh mapping at an address of the kernel's choice aliases no Rust object; it
        // is unmapped only by drop.
        return unsafe { mmap(None, len, prot, shared, fd, 0) }.map(NonNull::cast);
    }
    let huge = HUGE_PAGE as usize;
    let room = len.checked_add(huge).ok_or(Errno::ENOMEM)?;
    // SAFETY: as above; what is reserved here is cut down to the mapping below.
    unsafe {
        let start = mmap_anonymous(None, room, ProtFlags::PROT_NONE, MapFlags::MAP_PRIVATE)?;
        let before = start.addr().get().next_multiple_of(huge) - start.addr().get();
        let at = start.byte_add(before);
        let fixed = shared | MapFlags::MAP_FIXED;
        let mapped = mmap(Some(at.addr()), len, prot, fixed, fd, 0);
        let unmap = |from, len| if len > 0 { munmap(from, len) } else { Ok(()) };
        if mapped.is_err() {
            munmap(start, room.get())?;
            return mapped.map(NonNull::cast);
        }
        unmap(start, before)?;
        unmap(at.byte_add(len.get()), huge - before)?;
        mapped.map(NonNull::cast)
    }
}

/// A memfd and its mapping here, zeroed when made, in place until drop.
#[derive(Debug)]
pub struct SharedMemory {
    base: NonNull<u8>,
    len: usize,
    fd: OwnedFd,
    pages: PageKind,
}

// SAFETY: the mapping stays in place until drop and is only reached through raw pointers, whose
// users answer for their own accesses.
unsafe impl Send for SharedMemory {}
// SAFETY: as above.
unsafe impl Sync for SharedMemory {}

impl SharedMemory {
    /// At least `len` bytes. From 2 MiB on, 2 MiB pages are tried first (`len` is then rounded up
    /// to whole ones). All pages are allocated here, not on first touch; blocks for as long as
    /// that takes.
    ///
    /// # Errors
    /// [`Error::Memory`] with the step that failed; ENOMEM when memory ran out.
    pub fn new(len: u64) -> Result<Self> {
        Self::on_node(len, None)
    }

    /// [`SharedMemory::new`], from this NUMA node while it has memory; [`SharedMemory::node`] says
    /// whether it had.
    ///
    /// # Errors
    /// [`Error::Memory`] in the step "place" where there is no such node, or this process may not
    /// use it.
    pub fn on_node(len: u64, node: Option<u32>) -> Result<Self> {
        // Near pages come before huge ones: which node has huge pages to give is for others to say.
        if len >= HUGE_PAGE
            && let Ok(memory) = Self::with_pages(len, true, node)
            && (node.is_none() || memory.node() == node)
        {
            return Ok(memory);
        }
        let mut memory = Self::with_pages(len, false, node)?;
        if memory.collapse() {
            memory.pages = PageKind::TransparentHuge;
            memory.populate();
        }
        Ok(memory)
    }

    /// At least `len` bytes in ordinary pages: what mapping costs where there are no others.
    pub fn of_ordinary_pages(len: u64) -> Result<Self> {
        Self::with_pages(len, false, None)
    }

    fn with_pages(len: u64, huge: bool, node: Option<u32>) -> Result<Self> {
        let fail = |step| move |errno| Error::Memory { step, len, errno };
        let page = if huge { HUGE_PAGE } else { PAGE };
        let too_long = || Error::Memory { step: "size", len, errno: Errno::EINVAL };
        let bytes = len.max(1).checked_next_multiple_of(page).ok_or_else(too_long)?;
        let size = libc::off_t::try_from(bytes).map_err(|_| too_long())?;
        let length =
            usize::try_from(bytes).ok().and_then(NonZeroUsize::new).ok_or_else(too_long)?;

        let mut flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
        if huge {
            flags |= MFdFlags::MFD_HUGETLB | MFdFlags::MFD_HUGE_2MB;
        }
        let fd = memfd_create(c"holdfast", flags).map_err(fail("create"))?;
        nix::unistd::ftruncate(&fd, size).map_err(fail("size"))?;
        let base = map_aligned(&fd, length).map_err(fail("map"))?;
        let pages = if huge { PageKind::Hugetlb } else { PageKind::Ordinary };
        // Unmaps itself from here on.
        let memory = Self { base, len: length.get(), fd, pages };
        if let Some(node) = node {
            numa::prefer(base, memory.len, node).map_err(fail("place"))?;
        }
        // Allocating here turns a lack of huge pages into an error rather than a SIGBUS later.
        nix::fcntl::fallocate(&memory.fd, nix::fcntl::FallocateFlags::empty(), 0, size)
            .map_err(fail("allocate"))?;
        let seals = SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SEAL;
        fcntl(&memory.fd, FcntlArg::F_ADD_SEALS(seals)).map_err(fail("seal"))?;
        memory.populate();
        Ok(memory)
    }

    /// Asks for 2 MiB pages in place of those there are; says whether all of it has them now.
    fn collapse(&self) -> bool {
        self.len().is_multiple_of(HUGE_PAGE) && self.advise(MADV_COLLAPSE)
    }

    /// Has the mapping know all pages of the file, so that no first touch is a fault. A kernel that
    /// cannot do so (before 5.14) goes on without: the pages are there, and cost a fault each.
    fn populate(&self) {
        self.advise(libc::MADV_POPULATE_WRITE);
    }

    fn advise(&self, advice: libc::c_int) -> bool {
        // SAFETY: the mapping is ours; these change which pages hold its content and whether the
        // mapping knows them, not the content.
        unsafe { libc::madvise(self.base.as_ptr().cast(), self.len, advice) == 0 }
    }

    /// Bytes: whole pages.
    #[expect(clippy::len_without_is_empty, reason = "it is never empty")]
    pub fn len(&self) -> u64 {
        self.len as u64
    }

    /// Whether it consists of 2 MiB pages, of either kind.
    pub fn is_huge(&self) -> bool {
        self.pages != PageKind::Ordinary
    }

    /// What it was made of.
    pub fn pages(&self) -> PageKind {
        self.pages
    }

    /// The NUMA node that its first page is on; `None` where the kernel has no NUMA.
    pub fn node(&self) -> Option<u32> {
        numa::of(self.base)
    }

    /// Start of the memory; page aligned, valid for reads and writes of [`SharedMemory::len`]
    /// bytes until drop.
    pub fn as_ptr(&self) -> NonNull<u8> {
        self.base
    }

    /// All of it, to put behind addresses.
    pub fn piece(&self) -> Piece<'_> {
        Piece { backing: self.backing(), len: self.len() }
    }

    /// Its start, to put behind addresses.
    pub fn backing(&self) -> Backing<'_> {
        // SAFETY: no Rust reference into the memory is ever made. A domain keeps the pages alive
        // by itself (a pin, or the server's own mapping of the file) should `self` go first.
        unsafe {
            Backing::memory(self.base.as_ptr().expose_provenance(), Some((self.fd.as_fd(), 0)))
        }
    }

    /// Fills everything with zeroes.
    pub fn zero(&self) {
        // SAFETY: the whole mapping is writable memory and no reference to it exists.
        unsafe { std::ptr::write_bytes(self.base.as_ptr(), 0, self.len) }
    }

    /// Copies bytes out. A device may be writing them: the copy can be torn.
    ///
    /// # Panics
    /// When it would be out of bounds.
    pub fn read(&self, offset: usize, buf: &mut [u8]) {
        self.check(offset, buf.len());
        // SAFETY: in bounds (checked); the target is a Rust slice, so the two cannot overlap.
        unsafe {
            std::ptr::copy_nonoverlapping(
                self.base.as_ptr().add(offset),
                buf.as_mut_ptr(),
                buf.len(),
            );
        }
    }

    /// Copies bytes in.
    ///
    /// # Panics
    /// When it would be out of bounds.
    pub fn write(&self, offset: usize, data: &[u8]) {
        self.check(offset, data.len());
        // SAFETY: in bounds (checked); the source is a Rust slice, so the two cannot overlap.
        unsafe {
            std::ptr::copy_nonoverlapping(
                data.as_ptr(),
                self.base.as_ptr().add(offset),
                data.len(),
            );
        }
    }

    fn check(&self, offset: usize, len: usize) {
        assert!(
            offset.checked_add(len).is_some_and(|end| end <= self.len),
            "{len} bytes at {offset:#x} are outside {:#x} bytes of shared memory",
            self.len
        );
    }
}

impl AsFd for SharedMemory {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Drop for SharedMemory {
    fn drop(&mut self) {
        // SAFETY: the mapping was made by `new` with this length, and no reference to it exists.
        if let Err(errno) = unsafe { munmap(self.base.cast(), self.len) } {
            tracing::error!(%errno, "shared memory could not be unmapped");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_whole_and_zeroed_whatever_its_pages() {
        for len in [1, 4096, 3 << 20, 4 << 20] {
            let memory = SharedMemory::new(len).unwrap();
            assert!(memory.len() >= len);
            assert!(!memory.is_huge() || memory.len().is_multiple_of(HUGE_PAGE));
            if memory.len() >= HUGE_PAGE {
                assert!(memory.as_ptr().addr().get().is_multiple_of(HUGE_PAGE as usize));
            }
            let last = memory.len() as usize - 1;
            memory.write(last, &[7]);
            let mut bytes = [1; 2];
            memory.read(last - 1, &mut bytes);
            assert_eq!(bytes, [0, 7]);
        }
        let ordinary = SharedMemory::of_ordinary_pages(4 << 20).unwrap();
        assert_eq!((ordinary.is_huge(), ordinary.pages()), (false, PageKind::Ordinary));
    }

    /// `Rss` of the mapping that begins there, in bytes: pages of its that this process knows.
    fn resident(memory: &SharedMemory) -> u64 {
        let maps = std::fs::read_to_string("/proc/self/smaps").unwrap();
        let start = format!("{:x}-", memory.as_ptr().addr());
        let mut lines = maps.lines().skip_while(|line| !line.starts_with(&start));
        let rss = lines.find_map(|line| line.strip_prefix("Rss:")).expect("the mapping is there");
        rss.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
    }

    #[test]
    fn no_first_touch_is_a_fault() {
        let ordinary = SharedMemory::of_ordinary_pages(3 << 20).unwrap();
        assert_eq!(resident(&ordinary), ordinary.len());
        let memory = SharedMemory::new(2 << 20).unwrap();
        // Rss does not count reserved pages.
        if memory.pages() != PageKind::Hugetlb {
            assert_eq!(resident(&memory), memory.len(), "{:?}", memory.pages());
        }
    }

    #[test]
    fn memory_comes_from_the_node_that_is_asked_for() {
        for node in numa::nodes() {
            for len in [4096, 2 << 20] {
                let memory = SharedMemory::on_node(len, Some(node)).unwrap();
                assert_eq!(memory.node(), Some(node), "{len} bytes");
            }
        }
        for absent in [1023, 1024, u32::MAX] {
            let error = SharedMemory::on_node(4096, Some(absent)).unwrap_err();
            assert!(matches!(error, Error::Memory { step: "place", .. }), "{absent}: {error}");
        }
    }
}
