//! Rings that the driver fills: work requests as raw words.
//!
//! A request is written at a private position and published with one store. What is the same for
//! every request of a slot (its id, the source GID) is written once, by
//! [`ProducerRing::prepare`]; a post writes what differs and leaves the rest alone, as the device
//! looks only at what the operation has.
//!
//! Positions run freely modulo 2^32; the index the device sees is the position modulo 2N. Both
//! start at 0 and N is a power of two, so the two never part.
#![allow(unsafe_code)]

use std::any::Any;
use std::marker::PhantomData;
use std::mem::offset_of;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::AtomicU32;

use holdfast_wire::ring::{QueueState, RingSize, RingState};
use holdfast_wire::wqe::{Atomic, RecvHeader, SendHeader, Sge};

use crate::account::{Key, MAX_DEPTH, Posted, Tag};
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
pub(crate) struct Indices {
    pub(crate) tail: NonNull<AtomicU32>,
    pub(crate) head: NonNull<AtomicU32>,
}

impl Indices {
    pub(crate) fn new(memory: &DmaBuffer, half: Half) -> Self {
        let tail = memory.atomic_u32(half.offset() + offset_of!(RingState, prod_tail));
        let head = memory.atomic_u32(half.offset() + offset_of!(RingState, cons_head));
        Self { tail: NonNull::from(tail), head: NonNull::from(head) }
    }
}

/// The word that a ring's tail is shown in: the device's, or one that stands for it.
#[derive(Clone)]
pub(crate) struct TailWord {
    word: NonNull<AtomicU32>,
    _owner: Arc<dyn Any + Send + Sync>,
}

// SAFETY: an atomic word that lives as long as its owner, which is Send and Sync.
unsafe impl Send for TailWord {}
// SAFETY: as above.
unsafe impl Sync for TailWord {}

impl TailWord {
    /// # Safety
    /// The word lives as long as `owner`, at the same place.
    pub(crate) unsafe fn new(word: NonNull<AtomicU32>, owner: Arc<dyn Any + Send + Sync>) -> Self {
        Self { word, _owner: owner }
    }

    /// Shows everything below `index`.
    #[inline(always)]
    pub(crate) fn show(&self, index: u32) {
        // SAFETY: the word lives as long as its owner.
        barrier::publish(unsafe { self.word.as_ref() }, index);
    }
}

/// How a ring is laid out.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RingShape {
    /// Requests; a power of two.
    pub(crate) slots: u32,
    /// Bytes of a slot; a power of two.
    pub(crate) stride: usize,
    /// Bytes in front of the entries or the payload.
    pub(crate) header: usize,
    /// Scatter/gather entries that a slot holds; at least one.
    pub(crate) max_sge: u32,
    /// Payload bytes that a slot holds.
    pub(crate) max_inline: u32,
}

/// A ring the driver fills. The first page of `memory` is the state page.
pub(crate) struct ProducerRing {
    slots: NonNull<u8>,
    place_mask: u32,
    index_mask: u32,
    /// Bytes of a slot for each unit of a place.
    place_stride: usize,
    tail: TailWord,
    head: NonNull<AtomicU32>,
    shape: RingShape,
    _memory: Arc<DmaBuffer>,
}

// SAFETY: the pointers go into `_memory`, which is Send and Sync and never moves; writing a slot
// needs a claim on it.
unsafe impl Send for ProducerRing {}
// SAFETY: as above; the indices are atomic words.
unsafe impl Sync for ProducerRing {}

impl ProducerRing {
    /// A ring from byte `offset` of `memory` on.
    ///
    /// # Panics
    /// When that does not fit: the caller computed the sizes wrongly.
    pub(crate) fn new(
        memory: Arc<DmaBuffer>,
        half: Half,
        offset: usize,
        mut shape: RingShape,
    ) -> Self {
        shape.max_sge = shape.max_sge.max(1);
        let RingShape { slots, stride, header, max_sge, max_inline } = shape;
        let size = RingSize::new(slots).filter(|size| size.is_exact());
        size.expect("a work queue's depth is a power of two");
        assert!(slots <= MAX_DEPTH && stride >= size_of::<Posted>());
        assert!(stride.is_power_of_two() && offset.is_multiple_of(8));
        assert!(header.is_multiple_of(8));
        assert!(header + max_sge as usize * size_of::<Sge>() <= stride);
        assert!(header + (max_inline as usize).next_multiple_of(8) <= stride);
        assert!(offset + slots as usize * stride <= memory.len());
        let Indices { tail, head } = Indices::new(&memory, half);
        Self {
            // SAFETY: inside the buffer (asserted).
            slots: unsafe { memory.as_ptr().add(offset) },
            place_mask: place(slots - 1),
            index_mask: 2 * slots - 1,
            place_stride: stride / size_of::<Posted>(),
            // SAFETY: a word of the buffer, which never moves.
            tail: unsafe { TailWord::new(tail, memory.clone()) },
            head,
            shape,
            _memory: memory,
        }
    }

    pub(crate) fn slots(&self) -> u32 {
        self.shape.slots
    }

    #[inline(always)]
    pub(crate) fn max_sge(&self) -> u32 {
        self.shape.max_sge
    }

    #[inline(always)]
    pub(crate) fn max_inline(&self) -> u32 {
        self.shape.max_inline
    }

    /// The place of a position.
    #[inline(always)]
    pub(crate) fn place(&self, position: u32) -> Place {
        Place(place(position) & self.place_mask)
    }

    /// The slot of a position, to be written.
    #[inline(always)]
    pub(crate) fn slot(&mut self, position: u32) -> Slot<'_> {
        // SAFETY: `&mut self` makes this the only claim.
        unsafe { self.claim(self.place(position)) }
    }

    /// The slot at a place of this ring.
    ///
    /// # Safety
    /// The place is one that this ring has given. Nobody else has a claim on that slot while this
    /// one lives.
    #[inline(always)]
    pub(crate) unsafe fn claim(&self, place: Place) -> Slot<'_> {
        // SAFETY: a place of this ring names one of its slots, all of which lie in the buffer.
        let at = unsafe { self.slots.add(place.0 as usize * self.place_stride) };
        Slot { at: at.as_ptr().cast(), ring: PhantomData }
    }

    /// Writes what is the same for all requests of a slot, and zero elsewhere. Nothing may be
    /// posted. `fixed` is one word of a request and its offset in bytes.
    pub(crate) fn prepare(&mut self, key: Key, fixed: Option<(usize, u64)>) {
        let words = self.shape.stride / 8;
        for index in 0..self.shape.slots {
            let Slot { at, .. } = self.slot(index);
            // SAFETY: a slot is `stride` bytes, aligned to 8, and claimed.
            unsafe {
                at.write_bytes(0, words);
                at.write(Tag::new(key, index).0);
                if let Some((offset, word)) = fixed {
                    assert!(offset.is_multiple_of(8) && offset < self.shape.header);
                    at.add(offset / 8).write(word);
                }
            }
        }
    }

    /// Shows everything below `position`.
    #[inline(always)]
    pub(crate) fn publish(&self, position: u32) {
        self.tail.show(position & self.index_mask);
    }

    /// Shows the tail in another word from now on.
    pub(crate) fn show_in(&mut self, tail: TailWord) {
        self.tail = tail;
    }

    /// The word that the tail is shown in.
    pub(crate) fn tail(&self) -> &TailWord {
        &self.tail
    }

    /// Checks that the device's index can be one; gives it, if it cannot. It may lag behind what
    /// has completed (a device may publish it late), so nothing else follows from it.
    pub(crate) fn check_head(&self) -> Result<(), u32> {
        // SAFETY: the word lives as long as `_memory`.
        let head = barrier::observe(unsafe { self.head.as_ref() });
        if head < 2 * self.shape.slots { Ok(()) } else { Err(head) }
    }
}

/// Which slot of a ring, counted in the bytes of the account's table: so it needs no scaling there,
/// and one multiplication here.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Place(u32);

impl Place {
    /// Bytes into the account's table.
    #[inline(always)]
    pub(crate) fn offset(self) -> usize {
        self.0 as usize
    }
}

/// A position as a place, before it is brought within a ring.
#[inline(always)]
const fn place(position: u32) -> u32 {
    position.wrapping_mul(size_of::<Posted>() as u32)
}

/// A slot of a ring, to be written by whoever holds this. It is as large as the ring's shape says.
pub(crate) struct Slot<'a> {
    at: *mut u64,
    ring: PhantomData<&'a ProducerRing>,
}

impl Slot<'_> {
    /// The id of its request, where it is not that of the slot.
    #[inline(always)]
    pub(crate) fn tag(&self, tag: Tag) {
        // SAFETY: every slot starts with a header, and this one is claimed; so in what follows.
        unsafe { self.at.write(tag.0) };
    }

    /// The rest of a send's header, but for its body: entries and inline bytes, operation, flags.
    #[inline(always)]
    pub(crate) fn send(&self, num_sge: u32, inline: u32, opcode: u32, flags: u32) {
        const { assert!(offset_of!(SendHeader, num_sge) == 8) };
        const { assert!(offset_of!(SendHeader, opcode) == 16) };
        // SAFETY: inside the header.
        unsafe {
            self.at.add(1).write(pair(num_sge, inline));
            self.at.add(2).write(pair(opcode, flags));
        }
    }

    /// The rest of a receive's header.
    #[inline(always)]
    pub(crate) fn receive(&self, num_sge: u32) {
        const { assert!(offset_of!(RecvHeader, num_sge) == 8 && size_of::<RecvHeader>() == 16) };
        // SAFETY: inside the header.
        unsafe { self.at.add(1).write(pair(num_sge, 0)) };
    }

    /// Immediate data of a send, in network order.
    #[inline(always)]
    pub(crate) fn immediate(&self, ex: u32) {
        const { assert!(offset_of!(SendHeader, ex) == 24) };
        // SAFETY: inside the header.
        unsafe { self.at.add(3).write(pair(ex, 0)) };
    }

    /// Body of RDMA WRITE and READ.
    #[inline(always)]
    pub(crate) fn remote(&self, addr: u64, rkey: u32) {
        const { assert!(offset_of!(SendHeader, wr) == 32) };
        // SAFETY: inside the header.
        unsafe {
            self.at.add(4).write(addr);
            self.at.add(5).cast::<u32>().write(rkey);
        }
    }

    /// Body of an atomic operation.
    #[inline(always)]
    pub(crate) fn atomic(&self, addr: u64, compare_add: u64, swap: u64, rkey: u32) {
        const { assert!(offset_of!(Atomic, compare_add) == 8 && offset_of!(Atomic, rkey) == 24) };
        // SAFETY: inside the header.
        unsafe {
            self.at.add(4).write(addr);
            self.at.add(5).write(compare_add);
            self.at.add(6).write(swap);
            self.at.add(7).cast::<u32>().write(rkey);
        }
    }

    /// Body of a datagram.
    #[inline(always)]
    pub(crate) fn datagram(&self, body: [u64; 6]) {
        // SAFETY: inside the header.
        unsafe { self.at.add(4).cast::<[u64; 6]>().write(body) };
    }

    /// The only entry of a send.
    #[inline(always)]
    pub(crate) fn send_entry(&self, sge: Sge) {
        // SAFETY: a slot has room for a header and an entry at least.
        unsafe { self.at.add(size_of::<SendHeader>() / 8).cast::<Sge>().write(sge) };
    }

    /// The only entry of a receive.
    #[inline(always)]
    pub(crate) fn receive_entry(&self, sge: Sge) {
        // SAFETY: a slot has room for a header and an entry at least.
        unsafe { self.at.add(size_of::<RecvHeader>() / 8).cast::<Sge>().write(sge) };
    }

    /// All entries behind a header.
    ///
    /// # Safety
    /// The slot's ring has headers of `header` bytes and room for that many entries.
    #[inline]
    pub(crate) unsafe fn entries(&self, header: usize, sges: &[Sge]) {
        // SAFETY: by contract.
        unsafe {
            let to = self.at.add(header / 8).cast::<Sge>();
            std::ptr::copy_nonoverlapping(sges.as_ptr(), to, sges.len());
        }
    }

    /// The payload of a send.
    ///
    /// # Safety
    /// The slot's ring has room for that many bytes behind a send's header.
    #[inline(always)]
    pub(crate) unsafe fn payload(&self, payload: &[u8]) {
        // SAFETY: by contract.
        unsafe {
            let to = self.at.add(size_of::<SendHeader>() / 8).cast::<u8>();
            std::ptr::copy_nonoverlapping(payload.as_ptr(), to, payload.len());
        }
    }
}

#[inline(always)]
fn pair(low: u32, high: u32) -> u64 {
    u64::from(low) | u64::from(high) << 32
}
