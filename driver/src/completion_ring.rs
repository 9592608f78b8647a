//! Completion rings: what the device fills, read as raw words.
//!
//! A completion is read word by word, each word that decides anything loaded once, so that a device
//! that changes an entry while it is looked at cannot make one check see something else than the
//! next.
#![allow(unsafe_code)]

use std::mem::offset_of;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use holdfast_wire::completion::{CQE_SIZE, Cqe, CqeOpcode};
use holdfast_wire::ring::RingSize;

use crate::account::{Posted, Tag};
use crate::barrier;
use crate::completion::Completion;
use crate::dma::DmaBuffer;
use crate::ring::{Half, Indices};

/// The words of a completion that mean something on RoCE: everything up to the vendor error.
pub(crate) type CqeWords = [u64; 6];

/// A completion ring: the device fills it.
pub(crate) struct ConsumerRing {
    slots: NonNull<u8>,
    size: RingSize,
    index_mask: u32,
    /// The last opcode that a send may complete as. In memory rather than a constant, which the
    /// compiler would compare the entry with only after loading it.
    last_send_opcode: u64,
    indices: Indices,
    _memory: Arc<DmaBuffer>,
}

// SAFETY: the pointers go into `_memory`, which is Send and Sync and never moves.
unsafe impl Send for ConsumerRing {}
// SAFETY: the device's words are read as atomics or copied, and nothing is written but an index.
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
            index_mask: 2 * slots - 1,
            last_send_opcode: CqeOpcode::MaskedFetchAdd.wire().into(),
            indices: Indices::new(&memory, Half::Rx),
            _memory: memory,
        }
    }

    /// How many entries the device has shown from `head` on, which is ours; `None` if its index
    /// cannot be.
    #[inline(always)]
    pub(crate) fn queued(&self, tail: u32, head: u32) -> Option<u32> {
        let count = self.advance(tail.wrapping_sub(head), 0);
        (self.advance(tail, 0) == tail && count <= self.size.slots()).then_some(count)
    }

    /// How many entries the device claims to have shown from `head` on, but no more than there are.
    #[inline(always)]
    pub(crate) fn claimed(&self, tail: u32, head: u32) -> u32 {
        self.advance(tail.wrapping_sub(head), 0).min(self.size.slots())
    }

    /// The index `count` after `index`.
    #[inline(always)]
    pub(crate) fn advance(&self, index: u32, count: u32) -> u32 {
        index.wrapping_add(count) & self.index_mask
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
        (0..count).map(move |offset| self.entry(self.advance(head, offset)).read())
    }

    /// The head as it stands in shared memory: what [`Self::set_head`] wrote last, unless the
    /// device meddled with it.
    fn shared_head(&self) -> u32 {
        // SAFETY: the word lives as long as `_memory`.
        barrier::observe(unsafe { self.indices.head.as_ref() })
    }

    /// The entry that an index names.
    #[inline(always)]
    pub(crate) fn entry(&self, index: u32) -> Entry<'_> {
        let slot = (index & (self.index_mask >> 1)) as usize;
        // SAFETY: below the number of slots, all of which lie in the buffer; a slot is 64 bytes and
        // 8-byte aligned.
        let words = unsafe { self.slots.add(slot * CQE_SIZE) };
        Entry { words: words.as_ptr().cast(), slot, ring: self }
    }
}

/// An entry of a completion ring.
#[derive(Clone, Copy)]
pub(crate) struct Entry<'a> {
    words: *mut u64,
    slot: usize,
    ring: &'a ConsumerRing,
}

impl Entry<'_> {
    /// A copy of it.
    #[inline(always)]
    pub(crate) fn read(self) -> CqeWords {
        std::array::from_fn(|i| {
            // SAFETY: the first 48 of a slot's 64 bytes.
            unsafe { AtomicU64::from_ptr(self.words.add(i)) }.load(Ordering::Relaxed)
        })
    }

    /// The id of the request that it names.
    #[inline(always)]
    pub(crate) fn tag(self) -> Tag {
        // SAFETY: the first word of a slot.
        Tag(unsafe { AtomicU64::from_ptr(self.words) }.load(Ordering::Relaxed))
    }

    /// Takes the completions from here on that succeeded and name, one after the other, the
    /// requests `posted` of queue pair `qp`, the first of which has that tag. Stops at the first
    /// that is anything else, or at the end of `out`, and says how many were taken. `RECEIVES` says
    /// which they are.
    #[inline(always)]
    pub(crate) fn take_in_order<const RECEIVES: bool>(
        self,
        tag: Tag,
        qp: u32,
        posted: &[Posted],
        out: &mut [Completion],
    ) -> usize {
        let until_end = self.ring.size.slots() as usize - self.slot;
        let count = posted.len().min(out.len()).min(until_end);
        let (to, last) = (out.as_mut_ptr(), self.ring.last_send_opcode);
        // SAFETY: `count` is no more than either slice has, nor the ring from here on.
        unsafe {
            take_run::<RECEIVES>(self.words, tag, qp.into(), posted.as_ptr(), to, count, last)
        }
    }
}

/// Takes up to `count` completions from `words` on, while they are what is expected; says how many.
///
/// # Safety
/// So many entries can be read at `words`, so many [`Posted`] at `posted`, and so many completions
/// written at `to`.
// By itself, with operands in this order and one counter for three tables: then the loop keeps all
// in registers and compares entries in place (bench `instructions`, `poll`).
#[inline(never)]
unsafe fn take_run<const RECEIVES: bool>(
    words: *const u64,
    tag: Tag,
    qp: u64,
    posted: *const Posted,
    mut to: *mut Completion,
    count: usize,
    last_send_opcode: u64,
) -> usize {
    const STEP: usize = size_of::<Posted>();
    const { assert!(CQE_SIZE == 4 * STEP && Tag::STEP == STEP) };
    let (mut at, end) = (0, count * STEP);
    while at < end {
        // SAFETY: by contract, as `at` is below `end`. The words that decide are loaded once, and
        // nothing of them is used but what they were compared with; the payload is numbers,
        // whatever the device makes of them.
        unsafe {
            let words = words.byte_add(4 * at);
            if tag.0 + at as u64 != words.read_volatile() || qp != words.add(1).read_volatile() {
                break;
            }
            // The status is in the upper half.
            let outcome = words.add(2);
            if RECEIVES {
                let opcode = outcome.read_volatile();
                if opcode.wrapping_sub(u64::from(CqeOpcode::Recv.wire())) >= 2 {
                    break;
                }
                to.cast::<Posted>().write(posted.byte_add(at).read());
                (*to).opcode = received(opcode as u32);
            } else if last_send_opcode < outcome.read_volatile() {
                break;
            } else {
                to.cast::<Posted>().write(posted.byte_add(at).read());
            }
            to.byte_add(PAYLOAD).cast::<Payload>().write(words.add(3).cast::<Payload>().read());
            // With the vendor's code, 0.
            to.byte_add(TAIL).cast::<u64>().write(qp.to_le());
            to = to.add(1);
        }
        at += STEP;
    }
    at / STEP
}

/// What a receive's opcode stands for.
#[inline(always)]
pub(crate) fn received(opcode: u32) -> CqeOpcode {
    if opcode == CqeOpcode::RecvRdmaWithImm.wire() {
        CqeOpcode::RecvRdmaWithImm
    } else {
        CqeOpcode::Recv
    }
}

/// What a completion says about the message, as the device gives it.
#[derive(Clone, Copy)]
#[repr(C)]
struct Payload {
    byte_len: u32,
    imm: u32,
    src_qp: u32,
    flags: u32,
}

const PAYLOAD: usize = size_of::<Posted>();
const TAIL: usize = PAYLOAD + size_of::<Payload>();

// The parts that completions are copied in are where they belong, on both sides.
const _: () = {
    assert!(offset_of!(Completion, wr_id) == offset_of!(Posted, wr_id));
    assert!(offset_of!(Completion, opcode) == offset_of!(Posted, opcode));
    assert!(offset_of!(Completion, status) == offset_of!(Posted, status));
    assert!(offset_of!(Completion, byte_len) == PAYLOAD + offset_of!(Payload, byte_len));
    assert!(offset_of!(Completion, imm) == PAYLOAD + offset_of!(Payload, imm));
    assert!(offset_of!(Completion, src_qp) == PAYLOAD + offset_of!(Payload, src_qp));
    assert!(offset_of!(Completion, flags) == PAYLOAD + offset_of!(Payload, flags));
    assert!(offset_of!(Completion, qp) == TAIL && offset_of!(Completion, vendor_err) == TAIL + 4);
    assert!(size_of::<Completion>() == TAIL + 8 && align_of::<Completion>() == 8);
    let payload = offset_of!(Cqe, byte_len);
    assert!(payload == 24 && offset_of!(Cqe, imm_data) == payload + 4);
    assert!(offset_of!(Cqe, src_qp) == payload + 8 && offset_of!(Cqe, wc_flags) == payload + 12);
    assert!(offset_of!(Cqe, wr_id) == 0 && offset_of!(Cqe, qp) == 8);
    assert!(offset_of!(Cqe, opcode) == 16 && offset_of!(Cqe, status) == 20);
    assert!(offset_of!(Cqe, vendor_err) == 40);
};
