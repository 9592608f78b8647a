//! Rings: shared head and tail, and the index arithmetic both sides must agree on.
//!
//! An index runs modulo 2N over a ring of N slots (N a power of two), so that a full ring and an
//! empty one differ: empty is `tail == head`, full is `tail == head ^ N`, the slot is
//! `index & (N - 1)`, and an index with any bit at or above 2N is not valid. The first page of
//! every queue is its state page; send queues use `tx`, everything else uses `rx`.
//!
//! The device's own two rings (events, completion notifications) may have an N that is not a
//! power of two: Linux gives them four pages, three of them data. Both sides mask with N - 1 all
//! the same, and the arithmetic here mirrors that exactly rather than correcting it.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Producer tail and consumer head of one ring; each is written by one side only.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct RingState {
    /// Next index the producer will write.
    pub prod_tail: u32,
    /// Next index the consumer will read.
    pub cons_head: u32,
}
assert_layout!(RingState, 8, prod_tail @ 0, cons_head @ 4);

/// The start of a queue's state page.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct QueueState {
    /// Send queue.
    pub tx: RingState,
    /// Receive, shared receive, completion, event and notification queues.
    pub rx: RingState,
}
assert_layout!(QueueState, 16, tx @ 0, rx @ 8);

/// Size of an entry of the asynchronous event ring.
pub const EVENT_ENTRY_SIZE: usize = 8;
/// Size of an entry of the completion notification ring.
pub const NOTIFY_ENTRY_SIZE: usize = 4;

/// The size of a ring, from which all its index arithmetic follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RingSize(u32);

impl RingSize {
    /// A ring of `slots` entries; `None` unless 1 ≤ slots ≤ 2³⁰. A queue's ring also wants a power
    /// of two ([`RingSize::is_exact`]); the device's own rings may have any size.
    pub const fn new(slots: u32) -> Option<Self> {
        if slots == 0 || slots > 1 << 30 { None } else { Some(Self(slots)) }
    }

    /// The size of a device ring that spans `pages` pages, the first of which is its state page.
    pub const fn of_device_ring(pages: u32, entry: usize) -> Option<Self> {
        if pages < 2 || pages > 512 {
            return None;
        }
        Self::new((pages - 1) * (crate::PAGE_SIZE / entry) as u32)
    }

    /// Number of slots.
    pub const fn slots(self) -> u32 {
        self.0
    }

    /// Whether the size is a power of two, so that every slot is used.
    pub const fn is_exact(self) -> bool {
        self.0.is_power_of_two()
    }

    /// Whether `index` is one this ring can hold.
    pub const fn is_valid(self, index: u32) -> bool {
        index & !(2 * self.0 - 1) == 0
    }

    /// The slot that `index` names; always below [`RingSize::slots`].
    pub const fn slot(self, index: u32) -> u32 {
        index & (self.0 - 1)
    }

    /// The index after `index`.
    pub const fn next(self, index: u32) -> u32 {
        self.advance(index, 1)
    }

    /// The index `count` after `index`.
    pub const fn advance(self, index: u32, count: u32) -> u32 {
        index.wrapping_add(count) & (2 * self.0 - 1)
    }

    /// Whether nothing is queued between `head` and `tail`.
    pub const fn is_empty(self, tail: u32, head: u32) -> bool {
        tail == head
    }

    /// Whether no slot is free.
    pub const fn is_full(self, tail: u32, head: u32) -> bool {
        tail == head ^ self.0
    }

    /// Number of entries queued between `head` and `tail`, both valid: 0 to N for an exact ring.
    /// `None` when the two cannot both be right (the other side wrote nonsense).
    pub const fn queued(self, tail: u32, head: u32) -> Option<u32> {
        if !self.is_valid(tail) || !self.is_valid(head) {
            return None;
        }
        let count = tail.wrapping_sub(head) & (2 * self.0 - 1);
        if count > self.0 { None } else { Some(count) }
    }
}
