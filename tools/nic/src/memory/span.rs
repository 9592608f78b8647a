//! A piece of client memory that was just translated: raw, shared, possibly about to vanish.
//!
//! A [`Span`] is made by the address space's translation and is good until the NIC next passes a
//! quiescent point; holders never store one. The client may write the bytes at any time and may
//! truncate the file under them, so there are only copies and atomics, and each says whether the
//! memory was really there ([`Fault`]).
#![allow(unsafe_code)]

use std::sync::atomic::{AtomicU64, Ordering};

/// The memory behind a span was gone (the client truncated its file); nothing may be concluded
/// from what was read, and what was written reached nobody.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the client's memory vanished under an access")]
pub struct Fault;

/// Contiguous client memory, valid until the next quiescent point.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span {
    ptr: *mut u8,
    len: usize,
}

impl Span {
    /// Client memory at `ptr`.
    ///
    /// # Safety
    /// `ptr` must be mapped for `len` bytes (writable, if it will be written through) until the
    /// NIC's next quiescent point, and no Rust reference may cover it.
    pub unsafe fn new(ptr: *mut u8, len: usize) -> Self {
        Self { ptr, len }
    }

    /// Bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Where it starts.
    pub fn as_ptr(&self) -> *mut u8 {
        self.ptr
    }

    /// The part from `offset` on, at most `len` bytes of it.
    ///
    /// # Panics
    /// When `offset` is beyond the end.
    pub fn slice(&self, offset: usize, len: usize) -> Span {
        assert!(offset <= self.len);
        // In bounds by the assertion; wrapping_add needs no promise of its own.
        Span { ptr: self.ptr.wrapping_add(offset), len: len.min(self.len - offset) }
    }

    /// Copies the first `buf.len()` bytes out.
    ///
    /// # Panics
    /// When the span is shorter.
    pub fn read(&self, buf: &mut [u8]) -> Result<(), Fault> {
        assert!(buf.len() <= self.len);
        // SAFETY: mapped by the contract of `new`; `buf` is a Rust slice and cannot overlap it.
        unsafe { std::ptr::copy_nonoverlapping(self.ptr, buf.as_mut_ptr(), buf.len()) };
        Ok(())
    }

    /// Copies `data` over the first bytes.
    ///
    /// # Panics
    /// When the span is shorter.
    pub fn write(&self, data: &[u8]) -> Result<(), Fault> {
        assert!(data.len() <= self.len);
        // SAFETY: mapped by the contract of `new`; `data` is a Rust slice and cannot overlap it.
        unsafe { std::ptr::copy_nonoverlapping(data.as_ptr(), self.ptr, data.len()) };
        Ok(())
    }

    /// Copies `self.len().min(to.len())` bytes to another span, which may overlap, and says how
    /// many. An aligned 8-byte copy is single-copy atomic, as an 8-byte RDMA WRITE is on real NICs.
    pub fn copy_to(&self, to: &Span) -> Result<usize, Fault> {
        let len = self.len.min(to.len);
        // SAFETY: both are mapped by the contract of `new`; `copy` allows overlap.
        unsafe { std::ptr::copy(self.ptr, to.ptr, len) };
        Ok(len)
    }

    /// Applies `update` atomically to the 8-byte word at the start and gives the old value.
    /// `update` returning `None` leaves the word alone.
    ///
    /// # Panics
    /// When the span is shorter than 8 bytes or not aligned.
    pub fn fetch_update(&self, mut update: impl FnMut(u64) -> Option<u64>) -> Result<u64, Fault> {
        assert!(self.len >= 8 && self.ptr.addr().is_multiple_of(8));
        // SAFETY: mapped, aligned, and shared only through atomics or by the client's own rules.
        let word = unsafe { AtomicU64::from_ptr(self.ptr.cast()) };
        match word.fetch_update(Ordering::AcqRel, Ordering::Acquire, &mut update) {
            Ok(old) | Err(old) => Ok(old),
        }
    }
}
