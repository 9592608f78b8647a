//! Ring memory: the only place where work requests and completions are raw words.
//!
//! A producer ring (send, receive, shared receive) is written at a private position and published
//! with one store; a consumer ring (completion) is read as relaxed atomic words, each loaded
//! once, so that a device that changes an entry while it is looked at cannot make one check see
//! something else than the next.
//!
//! Positions run freely modulo 2^32; the index the device sees is the position modulo 2N. Both
//! start at 0 and N is a power of two, so the two never part.
#![allow(unsafe_code)]

use std::mem::offset_of;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use holdfast_wire::completion::CQE_SIZE;
use holdfast_wire::ring::{QueueState, RingSize, RingState};
use holdfast_wire::wqe::{FLAG_INLINE, RecvHeader, SendHeader, Sge};

use crate::barrier;
use crate::dma::DmaBuffer;

/// Which half of a state page a ring uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Half {
    Tx,
    Rx,
}

impl Half {
    fn offset(self) -> usize {
        match self {
            Half::Tx => offset_of!(QueueState, tx),
            Half::Rx => offset_of!(QueueState, rx),
        }
    }
}

/// The two index words of a ring.
struct Indices {
    tail: NonNull<AtomicU32>,
    head: NonNull<AtomicU32>,
}

impl Indices {
    fn new(memory: &DmaBuffer, half: Half) -> Self {
        let tail = memory.atomic_u32(half.offset() + offset_of!(RingState, prod_tail));
        let head = memory.atomic_u32(half.offset() + offset_of!(RingState, cons_head));
        Self { tail: NonNull::from(tail), head: NonNull::from(head) }
    }
}

/// A ring the driver fills. The first page of `memory` is the state page.
pub(crate) struct ProducerRing {
    slots: NonNull<u8>,
    shift: u32,
    size: RingSize,
    max_sge: u32,
    max_inline: u32,
    indices: Indices,
    _memory: Arc<DmaBuffer>,
}

// SAFETY: the pointers go into `_memory`, which is Send and Sync and never moves; writing needs
// `&mut self`.
unsafe impl Send for ProducerRing {}
// SAFETY: through `&self` only atomic words are read.
unsafe impl Sync for ProducerRing {}

impl ProducerRing {
    /// A ring of `slots` (a power of two) of `stride` bytes (a power of two) from `offset` on.
    /// A slot must hold a header of `header` bytes and `max_sge` entries or `max_inline` bytes.
    ///
    /// # Panics
    /// When that does not fit: the caller computed the sizes wrongly.
    #[allow(clippy::too_many_arguments)] // a ring simply has this many measures
    pub(crate) fn new(
        memory: Arc<DmaBuffer>,
        half: Half,
        offset: usize,
        slots: u32,
        stride: usize,
        header: usize,
        max_sge: u32,
        max_inline: u32,
    ) -> Self {
        let size = RingSize::new(slots).filter(|size| size.is_exact());
        let size = size.expect("a work queue's depth is a power of two");
        assert!(stride.is_power_of_two() && offset.is_multiple_of(8));
        assert!(header + max_sge as usize * size_of::<Sge>() <= stride);
        assert!(header + (max_inline as usize).next_multiple_of(8) <= stride);
        assert!(offset + slots as usize * stride <= memory.len());
        Self {
            // SAFETY: inside the buffer (asserted).
            slots: unsafe { memory.as_ptr().add(offset) },
            shift: stride.trailing_zeros(),
            size,
            max_sge,
            max_inline,
            indices: Indices::new(&memory, half),
            _memory: memory,
        }
    }

    pub(crate) fn slots(&self) -> u32 {
        self.size.slots()
    }

    #[inline(always)]
    pub(crate) fn max_sge(&self) -> u32 {
        self.max_sge
    }

    pub(crate) fn max_inline(&self) -> u32 {
        self.max_inline
    }

    #[inline(always)]
    fn slot(&self, position: u32) -> *mut u64 {
        let offset = (self.size.slot(position) as usize) << self.shift;
        // SAFETY: slot() is below the number of slots, all of which lie in the buffer.
        unsafe { self.slots.as_ptr().add(offset).cast() }
    }

    /// Writes a send request with at most [`Self::max_sge`] entries; more are left out.
    #[inline(always)]
    pub(crate) fn write_send(&mut self, position: u32, head: &SendWords, sges: &[Sge]) {
        let sges = &sges[..sges.len().min(self.max_sge as usize)];
        let slot = self.slot(position);
        // SAFETY: a slot holds the header and max_sge entries (asserted by `new`), it is 8-byte
        // aligned, and `&mut self` makes this thread its only writer but for the device.
        unsafe {
            head.store(slot, sges.len() as u32, 0);
            store_sges(slot.add(size_of::<SendHeader>() / 8), sges);
        }
    }

    /// Writes a send request that carries its payload; bytes beyond [`Self::max_inline`] are
    /// left out.
    #[inline]
    pub(crate) fn write_inline(&mut self, position: u32, head: &SendWords, payload: &[u8]) {
        let payload = &payload[..payload.len().min(self.max_inline as usize)];
        let slot = self.slot(position);
        // SAFETY: as above; a slot holds the header and max_inline bytes.
        unsafe {
            head.store(slot, 0, payload.len() as u32);
            let to = slot.add(size_of::<SendHeader>() / 8).cast::<u8>();
            std::ptr::copy_nonoverlapping(payload.as_ptr(), to, payload.len());
        }
    }

    /// Writes a receive request with at most [`Self::max_sge`] entries; more are left out.
    #[inline(always)]
    pub(crate) fn write_recv(&mut self, position: u32, tag: u64, sges: &[Sge]) {
        let sges = &sges[..sges.len().min(self.max_sge as usize)];
        let slot = self.slot(position);
        // SAFETY: as in `write_send`, with the receive header.
        unsafe {
            slot.write(tag);
            slot.add(1).write(sges.len() as u64);
            store_sges(slot.add(size_of::<RecvHeader>() / 8), sges);
        }
    }

    /// Shows the device everything below `position`.
    #[inline(always)]
    pub(crate) fn publish(&mut self, position: u32) {
        let index = self.size.advance(position, 0);
        // SAFETY: the word lives as long as `_memory`.
        barrier::publish(unsafe { self.indices.tail.as_ref() }, index);
    }

    /// Checks that the device's index can be one; gives it, if it cannot. It may lag behind what
    /// has completed (a device may publish it late), so nothing else follows from it.
    pub(crate) fn check_head(&self) -> Result<(), u32> {
        // SAFETY: the word lives as long as `_memory`.
        let head = barrier::observe(unsafe { self.indices.head.as_ref() });
        if head < 2 * self.size.slots() { Ok(()) } else { Err(head) }
    }
}

/// Everything in a send header but the entry count.
pub(crate) struct SendWords {
    pub(crate) tag: u64,
    pub(crate) opcode: u32,
    pub(crate) flags: u32,
    /// Network order.
    pub(crate) ex: u32,
    pub(crate) body: [u64; 6],
}

impl SendWords {
    /// # Safety
    /// `slot` must be valid for writes of 80 bytes and aligned to 8.
    #[inline(always)]
    unsafe fn store(&self, slot: *mut u64, num_sge: u32, inline_len: u32) {
        const { assert!(offset_of!(SendHeader, num_sge) == 8) };
        const { assert!(offset_of!(SendHeader, opcode) == 16) };
        const { assert!(offset_of!(SendHeader, ex) == 24) };
        const { assert!(offset_of!(SendHeader, wr) == 32) };
        let inline = if inline_len != 0 { FLAG_INLINE } else { 0 };
        // SAFETY: by contract.
        unsafe {
            slot.write(self.tag);
            slot.add(1).write(pair(num_sge, inline_len));
            slot.add(2).write(pair(self.opcode, self.flags | inline));
            slot.add(3).write(pair(self.ex, 0));
            slot.add(4).cast::<[u64; 6]>().write(self.body);
        }
    }
}

/// # Safety
/// `to` must be valid for writes of 16 bytes per entry and aligned to 8.
#[inline(always)]
unsafe fn store_sges(to: *mut u64, sges: &[Sge]) {
    for (i, sge) in sges.iter().enumerate() {
        // SAFETY: by contract.
        unsafe {
            to.add(2 * i).write(sge.addr);
            to.add(2 * i + 1).write(pair(sge.length, sge.lkey));
        }
    }
}

#[inline(always)]
fn pair(low: u32, high: u32) -> u64 {
    u64::from(low) | u64::from(high) << 32
}

/// The words of a completion that mean something on RoCE: everything up to the vendor error.
pub(crate) type CqeWords = [u64; 6];

/// A completion ring: the device fills it.
pub(crate) struct ConsumerRing {
    slots: NonNull<u8>,
    size: RingSize,
    indices: Indices,
    _memory: Arc<DmaBuffer>,
}

// SAFETY: the pointers go into `_memory`, which is Send and Sync and never moves.
unsafe impl Send for ConsumerRing {}
// SAFETY: all access is atomic.
unsafe impl Sync for ConsumerRing {}

impl ConsumerRing {
    /// A ring of `slots` (a power of two) completions behind the state page.
    ///
    /// # Panics
    /// When that does not fit: the caller computed the sizes wrongly.
    pub(crate) fn new(memory: Arc<DmaBuffer>, slots: u32) -> Self {
        let size = RingSize::new(slots).filter(|size| size.is_exact());
        let size = size.expect("a completion queue's depth is a power of two");
        let offset = holdfast_wire::PAGE_SIZE;
        assert!(offset + slots as usize * CQE_SIZE <= memory.len());
        Self {
            // SAFETY: inside the buffer (asserted).
            slots: unsafe { memory.as_ptr().add(offset) },
            size,
            indices: Indices::new(&memory, Half::Rx),
            _memory: memory,
        }
    }

    #[inline(always)]
    pub(crate) fn size(&self) -> RingSize {
        self.size
    }

    /// The device's producer index, as it stands.
    #[inline(always)]
    pub(crate) fn tail(&self) -> u32 {
        // SAFETY: the word lives as long as `_memory`.
        barrier::observe(unsafe { self.indices.tail.as_ref() })
    }

    /// Gives every slot below `head` back to the device.
    #[inline(always)]
    pub(crate) fn set_head(&self, head: u32) {
        // SAFETY: the word lives as long as `_memory`.
        barrier::publish(unsafe { self.indices.head.as_ref() }, head);
    }

    /// Whether everything the device has shown was given back to it.
    pub(crate) fn is_drained(&self) -> bool {
        self.tail() == self.shared_head()
    }

    /// What the device has shown and nobody has given back; nothing, if the indices make no sense.
    pub(crate) fn unread(&self) -> impl Iterator<Item = CqeWords> + '_ {
        let head = self.shared_head();
        let count = self.size.queued(self.tail(), head).unwrap_or(0);
        (0..count).map(move |offset| self.read(self.size.advance(head, offset)))
    }

    /// The head as it stands in shared memory: what [`Self::set_head`] wrote last, unless the
    /// device meddled with it.
    fn shared_head(&self) -> u32 {
        // SAFETY: the word lives as long as `_memory`.
        barrier::observe(unsafe { self.indices.head.as_ref() })
    }

    /// Copies a completion.
    #[inline(always)]
    pub(crate) fn read(&self, index: u32) -> CqeWords {
        let slot = self.size.slot(index) as usize * CQE_SIZE;
        // SAFETY: slot() is below the number of slots, all of which lie in the buffer; a slot is
        // 64 bytes and 8-byte aligned.
        let words: *mut u64 = unsafe { self.slots.as_ptr().add(slot).cast() };
        std::array::from_fn(|i| {
            // SAFETY: the first 48 of a slot's 64 bytes.
            unsafe { AtomicU64::from_ptr(words.add(i)) }.load(Ordering::Relaxed)
        })
    }
}
