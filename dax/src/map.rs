//! The raw mapping under a [`crate::Memory`]: mmap, madvise and munmap, and nothing else.
#![allow(unsafe_code)]

use std::num::NonZeroUsize;
use std::os::fd::BorrowedFd;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU8, AtomicU64};

use nix::errno::Errno;
use nix::sys::mman::{self, MapFlags, ProtFlags};
use vm_memory::VolatileSlice;

use crate::GRANULE;
use crate::open::system_page_size;

/// A shared (or, without a descriptor, private anonymous) writable mapping; unmapped on drop.
#[derive(Debug)]
pub struct Mapping {
    base: NonNull<u8>,
    len: usize,
}

// SAFETY: the mapping stays in place until drop and is only touched through volatile copies and
// atomics (`slice`), which threads may do at the same time.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps `len` bytes of `fd` at `offset`, or anonymous memory.
    pub fn new(fd: Option<(BorrowedFd<'_>, u64)>, len: NonZeroUsize) -> Result<Self, Errno> {
        let prot = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: a fresh mapping at an address of the kernel's choice aliases no Rust object.
        let base = unsafe {
            match fd {
                Some((fd, offset)) => {
                    let offset = libc::off_t::try_from(offset).map_err(|_| Errno::EOVERFLOW)?;
                    mman::mmap(None, len, prot, MapFlags::MAP_SHARED, fd, offset)
                }
                None => mman::mmap_anonymous(None, len, prot, MapFlags::MAP_PRIVATE),
            }
        }?;
        Ok(Self { base: base.cast(), len: len.get() })
    }

    /// Maps `len` bytes of `fd` at `offset`, both whole pages, where no huge page of the file can be
    /// mapped as one: a page beside an address that one would fit.
    pub fn of_small_pages(
        fd: BorrowedFd<'_>,
        offset: u64,
        len: NonZeroUsize,
    ) -> Result<Self, Errno> {
        let huge = GRANULE as usize;
        let room = len.checked_add(2 * huge).ok_or(Errno::ENOMEM)?;
        let none = ProtFlags::PROT_NONE;
        // SAFETY: a fresh mapping at an address of the kernel's choice aliases no Rust object.
        let start = unsafe { mman::mmap_anonymous(None, room, none, MapFlags::MAP_PRIVATE) }?;
        // Unmaps the room on every way out, and in the end what became of it.
        let mut mapping = Self { base: start.cast(), len: room.get() };
        let aligned = start.addr().get().next_multiple_of(huge) - start.addr().get();
        let before = match aligned + ((offset + system_page_size()) % GRANULE) as usize {
            0 => huge,
            before => before,
        };
        let at = start.addr().checked_add(before);
        let offset = libc::off_t::try_from(offset).map_err(|_| Errno::EOVERFLOW)?;
        let prot = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        let flags = MapFlags::MAP_SHARED | MapFlags::MAP_FIXED;
        // SAFETY: takes the place of a part of the room, which is ours and which nobody uses.
        let base = unsafe { mman::mmap(at, len, prot, flags, fd, offset) }?;
        // SAFETY: the room before it is ours and used by nobody; there is some of it.
        unsafe { mman::munmap(start, before) }?;
        mapping.base = base.cast();
        mapping.len -= before;
        // SAFETY: as above, for what is behind it.
        unsafe { mman::munmap(base.byte_add(len.get()), mapping.len - len.get()) }?;
        mapping.len = len.get();
        Ok(mapping)
    }

    /// Maps `len` bytes of `fd` at `offset` to be looked at from outside and never to be touched: it
    /// reserves no memory and makes no file longer.
    pub fn untouched(fd: BorrowedFd<'_>, offset: u64, len: NonZeroUsize) -> Result<Self, Errno> {
        let offset = libc::off_t::try_from(offset).map_err(|_| Errno::EOVERFLOW)?;
        let flags = MapFlags::MAP_SHARED | MapFlags::MAP_NORESERVE;
        // SAFETY: a fresh mapping at an address of the kernel's choice aliases no Rust object.
        let base = unsafe { mman::mmap(None, len, ProtFlags::PROT_READ, flags, fd, offset) }?;
        Ok(Self { base: base.cast(), len: len.get() })
    }

    /// Start of the mapping.
    pub fn base(&self) -> NonNull<u8> {
        self.base
    }

    /// Bytes mapped.
    pub fn len(&self) -> usize {
        self.len
    }

    /// The whole mapping, for volatile access.
    pub fn slice(&self) -> VolatileSlice<'_> {
        // SAFETY: the mapping is valid for `len` bytes while `self` lives, and nobody makes a
        // Rust reference to it.
        unsafe { VolatileSlice::new(self.base.as_ptr(), self.len) }
    }

    /// The 8-byte word at `offset`, if it is aligned and inside.
    pub fn word(&self, offset: usize) -> Option<&AtomicU64> {
        let inside = offset.checked_add(8).is_some_and(|end| end <= self.len);
        if !inside || !offset.is_multiple_of(8) {
            return None;
        }
        // SAFETY: inside the mapping and aligned (checked; the base is page aligned), alive as
        // long as self; shared writes are what atomics allow.
        Some(unsafe { AtomicU64::from_ptr(self.base.as_ptr().add(offset).cast()) })
    }

    /// The byte at `offset`, if it is inside.
    pub fn byte(&self, offset: usize) -> Option<&AtomicU8> {
        if offset >= self.len {
            return None;
        }
        // SAFETY: inside the mapping (checked), alive as long as self; shared writes are what
        // atomics allow.
        Some(unsafe { AtomicU8::from_ptr(self.base.as_ptr().add(offset)) })
    }

    /// Faults every page in for writing (`MADV_POPULATE_WRITE`): blocks are allocated and page
    /// tables filled, without a signal when that fails.
    pub fn populate(&self) -> Result<(), Errno> {
        self.populate_part(0, self.len)
    }

    /// Faults the pages of `[offset, offset + len)` in for writing; EINVAL if that is not inside.
    pub fn populate_part(&self, offset: usize, len: usize) -> Result<(), Errno> {
        loop {
            match self.advise(offset, len, libc::MADV_POPULATE_WRITE) {
                Err(Errno::EINTR | Errno::EAGAIN) => {}
                other => return other,
            }
        }
    }

    /// Keeps the mapping out of forked children (`MADV_DONTFORK`).
    pub fn not_in_children(&self) -> Result<(), Errno> {
        self.advise(0, self.len, libc::MADV_DONTFORK)
    }

    /// Empties the page-table entries of a part of a mapped file (`MADV_DONTNEED`); the file keeps
    /// its bytes. Anonymous memory would lose its own.
    pub fn drop_entries(&self, offset: usize, len: usize) -> Result<(), Errno> {
        self.advise(offset, len, libc::MADV_DONTNEED)
    }

    fn advise(&self, offset: usize, len: usize, advice: libc::c_int) -> Result<(), Errno> {
        if offset.checked_add(len).is_none_or(|end| end > self.len) {
            return Err(Errno::EINVAL);
        }
        // SAFETY: the range is inside the mapping (checked), and nobody holds a Rust reference to
        // its bytes, so they may be filled or dropped.
        let ret = unsafe { libc::madvise(self.base.as_ptr().add(offset).cast(), len, advice) };
        Errno::result(ret).map(drop)
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: made by `new` with this length; borrows of it cannot outlive self.
        if let Err(errno) = unsafe { mman::munmap(self.base.cast(), self.len) } {
            tracing::error!(%errno, "region memory could not be unmapped");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;
    use std::os::unix::fs::FileExt;

    use super::*;

    #[test]
    fn where_no_huge_page_fits_a_file_is_all_the_same() {
        let file = tempfile::tempfile().unwrap();
        let page = system_page_size();
        file.set_len(4 * GRANULE).unwrap();
        for (offset, len) in [(0, GRANULE), (page, page), (GRANULE - page, 2 * GRANULE)] {
            file.write_all_at(&offset.to_ne_bytes(), offset).unwrap();
            let len = NonZeroUsize::new(len as usize).unwrap();
            let mapping = Mapping::of_small_pages(file.as_fd(), offset, len).unwrap();
            assert_eq!(mapping.len(), len.get());
            let apart = (mapping.base().addr().get() as u64).wrapping_sub(offset) % GRANULE;
            assert_ne!(apart, 0, "a huge page fits at {offset:#x}");
            mapping.populate().unwrap();
            let first = mapping.word(0).unwrap().load(std::sync::atomic::Ordering::Relaxed);
            assert_eq!(first, offset);
        }
    }
}
