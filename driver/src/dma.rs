//! Memory the device can reach, as the driver needs it for rings, slots and directories.
//!
//! The driver does not know who owns the IOMMU: it asks a [`DmaAllocator`] and gets page-aligned,
//! zeroed memory together with the bus address of each 4 KiB page. The device writes this memory
//! behind Rust's back, so it is never a reference: all access is by copies and atomics.
#![allow(unsafe_code)]

use std::any::Any;
use std::fmt;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use holdfast_wire::PAGE_SIZE;
use zerocopy::{FromBytes, Immutable, IntoBytes};

/// Whoever can make memory that the device reaches.
pub trait DmaAllocator: Send + Sync {
    /// At least `len` bytes (whole 4 KiB pages), zeroed, mapped readable and writable for the
    /// device until the buffer is dropped.
    fn allocate(&self, len: usize) -> Result<DmaBuffer, AllocError>;
}

/// Why DMA memory could not be had; the text comes from whoever owns the address space.
#[derive(Debug, thiserror::Error)]
#[error("cannot get {len} bytes of DMA memory")]
pub struct AllocError {
    /// Bytes asked for.
    pub len: usize,
    /// Why.
    #[source]
    pub source: Box<dyn std::error::Error + Send + Sync>,
}

/// Memory shared with the device.
pub struct DmaBuffer {
    base: NonNull<u8>,
    len: usize,
    pages: Box<[u64]>,
    // Holds the memory and its IOMMU mapping; dropped last.
    _owner: Box<dyn Any + Send + Sync>,
}

// SAFETY: the memory belongs to the owner, which is Send and Sync, and is only touched through
// raw copies and atomics.
unsafe impl Send for DmaBuffer {}
// SAFETY: as above.
unsafe impl Sync for DmaBuffer {}

impl fmt::Debug for DmaBuffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DmaBuffer({} bytes at {:p})", self.len, self.base)
    }
}

impl DmaBuffer {
    /// Wraps memory that `owner` keeps alive and mapped for the device; `pages` holds the bus
    /// address of each 4 KiB page, in order.
    ///
    /// # Safety
    /// `base` must be page aligned, valid for reads and writes of `pages.len()` pages until
    /// `owner` is dropped, and no Rust reference to it may exist meanwhile.
    pub unsafe fn new(
        base: NonNull<u8>,
        pages: Box<[u64]>,
        owner: Box<dyn Any + Send + Sync>,
    ) -> Self {
        debug_assert!(base.as_ptr().addr().is_multiple_of(PAGE_SIZE));
        Self { base, len: pages.len() * PAGE_SIZE, pages, _owner: owner }
    }

    /// Bytes; a multiple of the page size.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether the buffer has no pages.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The bus address of each 4 KiB page.
    pub fn pages(&self) -> &[u64] {
        &self.pages
    }

    /// Start of the memory, for fast paths that check their bounds once.
    pub fn as_ptr(&self) -> NonNull<u8> {
        self.base
    }

    /// Copies a structure in.
    ///
    /// # Panics
    /// When it would not fit.
    pub fn write<T: IntoBytes + Immutable>(&self, offset: usize, value: &T) {
        let bytes = value.as_bytes();
        self.check(offset, bytes.len());
        // SAFETY: in bounds (checked); the source is a Rust value, so the two cannot overlap.
        unsafe {
            std::ptr::copy_nonoverlapping(
                bytes.as_ptr(),
                self.base.as_ptr().add(offset),
                bytes.len(),
            );
        }
    }

    /// Copies a structure out. The device may be writing it: the copy can be torn, so callers
    /// order it behind an Acquire load of whatever says that it is complete.
    ///
    /// # Panics
    /// When it would be out of bounds.
    pub fn read<T: FromBytes>(&self, offset: usize) -> T {
        self.check(offset, size_of::<T>());
        let mut value = std::mem::MaybeUninit::<T>::uninit();
        // SAFETY: in bounds (checked); T is FromBytes, so any bytes are a T.
        unsafe {
            std::ptr::copy_nonoverlapping(
                self.base.as_ptr().add(offset),
                value.as_mut_ptr().cast(),
                size_of::<T>(),
            );
            value.assume_init()
        }
    }

    /// Fills everything with zeroes.
    pub fn zero(&self) {
        // SAFETY: the whole buffer is writable.
        unsafe { std::ptr::write_bytes(self.base.as_ptr(), 0, self.len) }
    }

    /// The 32-bit word at `offset` as an atomic.
    ///
    /// # Panics
    /// When it is not aligned or out of bounds.
    pub fn atomic_u32(&self, offset: usize) -> &AtomicU32 {
        self.check(offset, 4);
        assert!(offset.is_multiple_of(4));
        // SAFETY: aligned, in bounds, alive as long as self; shared writes are what atomics allow.
        unsafe { AtomicU32::from_ptr(self.base.as_ptr().add(offset).cast()) }
    }

    /// Stores a bus address into a directory or table page.
    pub fn write_entry(&self, offset: usize, address: u64) {
        self.check(offset, 8);
        assert!(offset.is_multiple_of(8));
        // SAFETY: aligned and in bounds.
        unsafe { AtomicU64::from_ptr(self.base.as_ptr().add(offset).cast()) }
            .store(address, Ordering::Relaxed);
    }

    fn check(&self, offset: usize, len: usize) {
        assert!(
            offset.checked_add(len).is_some_and(|end| end <= self.len),
            "{len} bytes at {offset:#x} are outside a DMA buffer of {:#x}",
            self.len
        );
    }
}
