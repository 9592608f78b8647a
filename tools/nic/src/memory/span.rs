//! A piece of client memory that was just translated: raw, shared, possibly about to vanish.
//!
//! A [`Span`] is made by the address space's translation and is good until the NIC next passes a
//! quiescent point; holders never store one without looking at the reader's epoch before each
//! use. The client may write the bytes at any time and may truncate the file under them, so there
//! are only copies and atomics, and each says whether the memory was really there ([`Fault`]).
//!
//! Aligned copies of 1, 2, 4 and 8 bytes are single loads and stores, so that a peer polling such
//! a word never sees half of it. Stores are Release and loads Acquire, which x86 gives for free.
#![allow(unsafe_code)]

use std::sync::atomic::{
    AtomicU8, AtomicU16, AtomicU32, AtomicU64,
    Ordering::{AcqRel, Acquire, Release, SeqCst},
    compiler_fence,
};

use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::sigbus;

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

// SAFETY: a span is an address and a length; its contract is about time, not about threads.
unsafe impl Send for Span {}

/// Runs an access and says whether this thread met a vanished page in it.
#[inline(always)]
fn guarded<R>(access: impl FnOnce() -> R) -> Result<R, Fault> {
    let before = sigbus::faults();
    // The handler runs on this thread: keeping the compiler from moving accesses is enough.
    compiler_fence(SeqCst);
    let result = access();
    compiler_fence(SeqCst);
    if sigbus::faults() == before { Ok(result) } else { Err(Fault) }
}

/// Copies between two places that may overlap, either or both of them shared.
///
/// # Safety
/// `from` must be readable and `to` writable for `len` bytes.
#[inline(always)]
unsafe fn copy(from: *const u8, to: *mut u8, len: usize) {
    let aligned = (from.addr() | to.addr()) & (len.wrapping_sub(1)) == 0;
    // SAFETY: in bounds by the contract; the atomic forms are aligned by the check above.
    unsafe {
        match len {
            8 if aligned => AtomicU64::from_ptr(to.cast())
                .store(AtomicU64::from_ptr(from.cast_mut().cast()).load(Acquire), Release),
            4 if aligned => AtomicU32::from_ptr(to.cast())
                .store(AtomicU32::from_ptr(from.cast_mut().cast()).load(Acquire), Release),
            2 if aligned => AtomicU16::from_ptr(to.cast())
                .store(AtomicU16::from_ptr(from.cast_mut().cast()).load(Acquire), Release),
            1 => AtomicU8::from_ptr(to)
                .store(AtomicU8::from_ptr(from.cast_mut()).load(Acquire), Release),
            // Two loads that meet or overlap, then two stores: no call for short messages.
            8..=16 => pair::<u64>(from, to, len),
            17..=32 => pair::<u128>(from, to, len),
            _ => std::ptr::copy(from, to, len),
        }
    }
}

/// Copies `len` bytes as their first and last `T`.
///
/// # Safety
/// As for [`copy`]; `len` is between one and two times the size of `T`.
#[inline(always)]
unsafe fn pair<T: Copy>(from: *const u8, to: *mut u8, len: usize) {
    let last = len - size_of::<T>();
    // SAFETY: both words lie within `len` bytes; everything is read before anything is written.
    unsafe {
        let head = from.cast::<T>().read_unaligned();
        let tail = from.add(last).cast::<T>().read_unaligned();
        to.cast::<T>().write_unaligned(head);
        to.add(last).cast::<T>().write_unaligned(tail);
    }
}

impl Span {
    /// Client memory at `ptr`.
    ///
    /// # Safety
    /// `ptr` must be mapped for `len` bytes (writable, if it will be written through) until the
    /// NIC's next quiescent point, and no Rust reference may cover it.
    #[inline]
    pub unsafe fn new(ptr: *mut u8, len: usize) -> Self {
        Self { ptr, len }
    }

    /// Bytes.
    #[inline]
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
    #[inline]
    pub fn slice(&self, offset: usize, len: usize) -> Span {
        assert!(offset <= self.len);
        // In bounds by the assertion; wrapping_add needs no promise of its own.
        Span { ptr: self.ptr.wrapping_add(offset), len: len.min(self.len - offset) }
    }

    /// Copies the first `buf.len()` bytes out.
    ///
    /// # Panics
    /// When the span is shorter.
    #[inline]
    pub fn read(&self, buf: &mut [u8]) -> Result<(), Fault> {
        assert!(buf.len() <= self.len);
        // SAFETY: mapped by the contract of `new`, and `buf` is writable.
        guarded(|| unsafe { copy(self.ptr, buf.as_mut_ptr(), buf.len()) })
    }

    /// Copies `data` over the first bytes.
    ///
    /// # Panics
    /// When the span is shorter.
    #[inline]
    pub fn write(&self, data: &[u8]) -> Result<(), Fault> {
        assert!(data.len() <= self.len);
        // SAFETY: mapped writable by the contract of `new`, and `data` is readable.
        guarded(|| unsafe { copy(data.as_ptr(), self.ptr, data.len()) })
    }

    /// Copies `self.len().min(to.len())` bytes to another span, which may overlap, and says how
    /// many. An aligned 8-byte copy is single-copy atomic, as an 8-byte RDMA WRITE is on real NICs.
    #[inline]
    pub fn copy_to(&self, to: &Span) -> Result<usize, Fault> {
        let len = self.len.min(to.len);
        // SAFETY: both are mapped by the contract of `new`; `copy` allows overlap.
        guarded(|| unsafe { copy(self.ptr, to.ptr, len) })?;
        Ok(len)
    }

    /// Fills it with zeroes.
    pub fn zero(&self) -> Result<(), Fault> {
        // SAFETY: mapped writable by the contract of `new`.
        guarded(|| unsafe { std::ptr::write_bytes(self.ptr, 0, self.len) })
    }

    /// Copies a structure out from `offset`; it can be torn.
    ///
    /// # Panics
    /// When it would be out of bounds.
    #[inline]
    pub fn read_at<T: FromBytes>(&self, offset: usize) -> Result<T, Fault> {
        assert!(offset <= self.len && size_of::<T>() <= self.len - offset);
        let from = self.ptr.wrapping_add(offset).cast::<T>();
        // SAFETY: in bounds; any bytes are a T.
        guarded(|| unsafe { from.read_unaligned() })
    }

    /// Copies a structure in at `offset`.
    ///
    /// # Panics
    /// When it would be out of bounds.
    #[inline]
    pub fn write_at<T: IntoBytes + Immutable>(
        &self,
        offset: usize,
        value: &T,
    ) -> Result<(), Fault> {
        self.slice(offset, self.len).write(value.as_bytes())
    }

    #[inline]
    fn word(&self, offset: usize) -> &AtomicU32 {
        assert!(offset < self.len && self.len - offset >= 4);
        let ptr = self.ptr.wrapping_add(offset);
        assert!(ptr.addr().is_multiple_of(4));
        // SAFETY: aligned, in bounds; shared writes are what atomics allow.
        unsafe { AtomicU32::from_ptr(ptr.cast()) }
    }

    /// Asks the cache for the line at `offset` (below the length; else nothing happens).
    #[inline]
    pub fn prefetch(&self, offset: usize) {
        if offset < self.len {
            let line = self.ptr.wrapping_add(offset).cast::<i8>();
            // SAFETY: a prefetch accesses nothing and never faults.
            unsafe { std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T0 }>(line) };
        }
    }

    /// Loads the word at `offset` (Acquire).
    ///
    /// # Panics
    /// When it is out of bounds or not aligned.
    #[inline]
    pub fn load_u32(&self, offset: usize) -> Result<u32, Fault> {
        guarded(|| self.word(offset).load(Acquire))
    }

    /// Stores the word at `offset` (Release).
    ///
    /// # Panics
    /// When it is out of bounds or not aligned.
    #[inline]
    pub fn store_u32(&self, offset: usize, value: u32) -> Result<(), Fault> {
        guarded(|| self.word(offset).store(value, Release))
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
        guarded(|| match word.fetch_update(AcqRel, Acquire, &mut update) {
            Ok(old) | Err(old) => old,
        })
    }
}
