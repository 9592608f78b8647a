//! A mapped part of a device region: the only place where registers are plain stores.
#![allow(unsafe_code)]

use std::os::fd::BorrowedFd;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::{Error, Result};

/// A mapped part of a device region. Accesses are 32 bits wide, naturally aligned, and bounds
/// checked; the pointer form ([`MappedRegion::word`]) is for fast paths that check once.
#[derive(Debug)]
pub struct MappedRegion {
    base: NonNull<u8>,
    len: usize,
}

// SAFETY: the mapping is shared memory that stays in place until drop; every access goes through
// an atomic of the width the device expects, so threads cannot tear it.
unsafe impl Send for MappedRegion {}
// SAFETY: as above.
unsafe impl Sync for MappedRegion {}

impl MappedRegion {
    /// Maps `len` bytes of `fd` at `offset`, shared, readable and writable.
    pub fn new(fd: BorrowedFd<'_>, offset: u64, len: usize) -> Result<Self> {
        let length = std::num::NonZeroUsize::new(len)
            .ok_or_else(|| Error::usage("a region mapping of no bytes was asked for"))?;
        let offset_arg = libc::off_t::try_from(offset)
            .map_err(|_| Error::usage("a region offset does not fit off_t"))?;
        // SAFETY: a fresh shared mapping at an address of the kernel's choice aliases no Rust
        // object; it is unmapped only by drop.
        let base = unsafe {
            nix::sys::mman::mmap(
                None,
                length,
                nix::sys::mman::ProtFlags::PROT_READ | nix::sys::mman::ProtFlags::PROT_WRITE,
                nix::sys::mman::MapFlags::MAP_SHARED,
                fd,
                offset_arg,
            )
        }
        .map_err(|errno| Error::MapRegion { offset, len: len as u64, errno })?;
        Ok(Self { base: base.cast(), len })
    }

    /// Bytes mapped.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Never true: an empty mapping cannot be made.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The 32-bit word at `offset`, as an atomic that lives as long as the mapping.
    ///
    /// # Panics
    /// When the word is not aligned or not inside the mapping.
    pub fn word(&self, offset: usize) -> &AtomicU32 {
        assert!(
            offset.is_multiple_of(4) && offset + 4 <= self.len,
            "register offset {offset:#x} is not a word of a {:#x}-byte mapping",
            self.len
        );
        // SAFETY: inside the mapping and aligned (asserted); the mapping outlives the reference.
        // The device may write the word at any time, which is what an atomic allows.
        unsafe { AtomicU32::from_ptr(self.base.as_ptr().add(offset).cast()) }
    }

    /// Stores a word; ordered after every earlier store of this thread.
    pub fn write_u32(&self, offset: usize, value: u32) {
        self.word(offset).store(value, Ordering::Release);
    }

    /// Loads a word; ordered before every later load of this thread.
    pub fn read_u32(&self, offset: usize) -> u32 {
        self.word(offset).load(Ordering::Acquire)
    }
}

impl Drop for MappedRegion {
    fn drop(&mut self) {
        // SAFETY: the mapping was made by `new` with this length, and no reference outlives self.
        if let Err(errno) = unsafe { nix::sys::mman::munmap(self.base.cast(), self.len) } {
            tracing::error!(%errno, "a device region could not be unmapped");
        }
    }
}
