//! Who may post how much: the account each work queue keeps with its completion queue.
//!
//! Ring space is not credit: the device moves its consumer index when it fetches a request, long
//! before the request is done. What bounds a queue is the number of requests that have not
//! completed, and only the completion queue knows. The two meet here without a lock and without
//! hashing:
//!
//! * Each work queue has a key: an index that is unique in the device, and a generation, so that
//!   an index (or a queue pair number) that is used again is not mistaken for its predecessor.
//! * A request's id, as the device sees it, is a [`Tag`]: the key and the slot of the ring that the
//!   request lies in. So the tag of a slot never changes, and is written once. What the caller is to
//!   be told ([`Posted`]) waits in a table by slot, in memory of this process alone: what the device
//!   gives back is only a claim, and is checked.
//! * A completion for a slot retires everything up to the request there, which is how unsignalled
//!   requests are retired. It must lie between what has completed and what was published.
//!
//! A shared receive queue completes out of order; it has [`Tickets`](crate::tickets::Tickets)
//! instead of an [`Account`].
#![allow(unsafe_code)]

use std::cell::UnsafeCell;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use crossbeam::utils::CachePadded;
use holdfast_wire::completion::{CqeOpcode, Status};

/// Deepest queue that an account can be kept for.
pub(crate) const MAX_DEPTH: u32 = 1 << 20;

/// Key of a work queue: index in the low half, generation (never 0) in the high half.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Key(pub(crate) u32);

impl Key {
    pub(crate) fn index(self) -> usize {
        (self.0 & 0xffff) as usize
    }
}

/// Where the slot starts in a tag: one slot further on is as much more as one [`Posted`] further on
/// in the table, so that whoever goes through both needs one counter.
const SLOT_SHIFT: u32 = size_of::<Posted>().trailing_zeros();

const _: () = assert!(MAX_DEPTH as u64 * size_of::<Posted>() as u64 <= 1 << 24);

/// A request's id as the device sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Tag(pub(crate) u64);

impl Tag {
    /// From the tag of a slot to that of the next one.
    pub(crate) const STEP: usize = 1 << SLOT_SHIFT;

    /// Of a slot, or a ticket.
    #[inline(always)]
    pub(crate) fn new(key: Key, slot: u32) -> Self {
        Self(u64::from(key.0) << 32 | u64::from(slot) << SLOT_SHIFT)
    }

    /// Of another slot of the same queue; `self` is that of slot 0.
    #[inline(always)]
    pub(crate) fn of_slot(self, slot: u32) -> Self {
        Self(self.0 | u64::from(slot) << SLOT_SHIFT)
    }

    #[inline(always)]
    pub(crate) fn key(self) -> Key {
        Key((self.0 >> 32) as u32)
    }

    /// Beyond every slot, if the tag is none that was given.
    #[inline(always)]
    pub(crate) fn slot(self) -> u32 {
        // Bits below the slot's become high ones.
        (self.0 as u32).rotate_right(SLOT_SHIFT)
    }
}

/// What the completion of a request says beside what the device knows. It is laid out like the
/// start of a [`Completion`](crate::Completion).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub(crate) struct Posted {
    pub(crate) wr_id: u64,
    pub(crate) opcode: CqeOpcode,
    /// `Success` for a request whose completion is the caller's to see; else one of the constants
    /// below, and nobody sees it.
    pub(crate) status: Status,
}

impl Posted {
    /// Status of a request that asked for no completion.
    pub(crate) const UNSIGNALLED: Status = Status::General;
    /// Status of a drain marker, whose completion is the driver's own.
    pub(crate) const MARKER: Status = Status::WorkRequestFlushed;

    const NONE: Self = Self { wr_id: 0, opcode: CqeOpcode::Send, status: Status::Success };
}

/// The account of a queue that completes in order.
///
/// Written by two owners: the work queue records and publishes, the completion queue retires. A
/// place of the table belongs to the work queue while its request is not published, and to the
/// completion queue from then until it is retired.
#[derive(Debug)]
pub(crate) struct Account {
    completed: CachePadded<AtomicU32>,
    published: CachePadded<Published>,
    table: Box<[UnsafeCell<Posted>]>,
}

#[derive(Debug)]
struct Published {
    position: AtomicU32,
    /// Position after the last request whose completion nobody sees.
    quiet: AtomicU32,
}

// SAFETY: a place of the table has one owner at a time, see above; it passes on with a Release
// store and an Acquire load of `published` and of `completed`.
unsafe impl Sync for Account {}

impl Account {
    /// For a ring of `slots`, a power of two of at most [`MAX_DEPTH`].
    pub(crate) fn new(slots: u32) -> Self {
        debug_assert!(slots.is_power_of_two() && slots <= MAX_DEPTH);
        let published = Published { position: AtomicU32::new(0), quiet: AtomicU32::new(0) };
        Self {
            completed: CachePadded::new(AtomicU32::new(0)),
            published: CachePadded::new(published),
            table: (0..slots).map(|_| UnsafeCell::new(Posted::NONE)).collect(),
        }
    }

    /// Places of the table; as many as the ring has slots.
    pub(crate) fn slots(&self) -> u32 {
        self.table.len() as u32
    }

    #[inline(always)]
    fn mask(&self) -> u32 {
        self.table.len() as u32 - 1
    }

    /// Work queue: everything below `position` is about to be shown to the device.
    #[inline(always)]
    pub(crate) fn publish(&self, position: u32) {
        self.published.position.store(position, Ordering::Release);
    }

    /// Work queue: nobody is to see the completion of the request at `position`, which is not
    /// published yet.
    #[inline(always)]
    pub(crate) fn keep_quiet(&self, position: u32) {
        self.published.quiet.store(position.wrapping_add(1), Ordering::Relaxed);
    }

    /// The same where several threads post.
    pub(crate) fn keep_quiet_among(&self, position: u32) {
        let (next, relaxed) = (position.wrapping_add(1), Ordering::Relaxed);
        let later = |last: u32| (next.wrapping_sub(last) as i32 > 0).then_some(next);
        // An error says that a later one was there already.
        let _ = self.published.quiet.fetch_update(relaxed, relaxed, later);
    }

    /// Work queue, now and then: keeps the last quiet request from getting so old that it looks
    /// new again, which would only cost time.
    pub(crate) fn age(&self, position: u32) {
        const OLD: u32 = 1 << 30;
        let (aged, relaxed) = (position.wrapping_sub(OLD), Ordering::Relaxed);
        let old = |last: u32| (position.wrapping_sub(last) > OLD).then_some(aged);
        // An error says that it is not old.
        let _ = self.published.quiet.fetch_update(relaxed, relaxed, old);
    }

    /// Its work queue is gone: from now on [`Account::in_order`] gives nothing.
    pub(crate) fn close(&self) {
        self.keep_quiet(self.completed().wrapping_add(1 << 30));
    }

    /// How many requests have been retired, counted from the first, modulo 2^32.
    #[inline(always)]
    pub(crate) fn completed(&self) -> u32 {
        self.completed.load(Ordering::Acquire)
    }

    /// Requests the device has and has not completed.
    pub(crate) fn outstanding(&self) -> u32 {
        let completed = self.completed();
        self.published.position.load(Ordering::Acquire).wrapping_sub(completed)
    }

    /// Completion queue: retires everything up to and including the request in `slot`, and gives
    /// that; `None` if no such request is outstanding.
    pub(crate) fn retire(&self, slot: u32) -> Option<Posted> {
        let completed = self.completed.load(Ordering::Relaxed);
        let outstanding = self.published.position.load(Ordering::Acquire).wrapping_sub(completed);
        let distance = slot.wrapping_sub(completed) & self.mask();
        if slot > self.mask() || distance >= outstanding {
            return None;
        }
        // SAFETY: published and not retired, so the place is the completion queue's.
        let posted = unsafe { *self.table[slot as usize].get() };
        self.completed.store(completed.wrapping_add(distance + 1), Ordering::Release);
        Some(posted)
    }

    /// Completion queue: the outstanding requests from the oldest on, up to the end of the table,
    /// with the slot of the first; none if the completion of any that was posted is not to be seen.
    #[inline(always)]
    pub(crate) fn in_order(&self) -> (u32, &[Posted]) {
        let completed = self.completed.load(Ordering::Relaxed);
        let position = self.published.position.load(Ordering::Acquire);
        let quiet = self.published.quiet.load(Ordering::Relaxed).wrapping_sub(completed);
        let slot = completed & self.mask();
        // SAFETY: the slot is below the table's length.
        let first = unsafe { self.table.as_ptr().add(slot as usize) };
        let count = match quiet as i32 > 0 {
            true => 0,
            false => position.wrapping_sub(completed).min(self.slots() - slot),
        };
        // SAFETY: inside the table. Published and not retired, so these places are the completion
        // queue's, which calls nothing else here meanwhile; an UnsafeCell is laid out like what it
        // holds.
        (slot, unsafe { std::slice::from_raw_parts(first.cast(), count as usize) })
    }

    /// Completion queue: retires the oldest `count`, which [`Account::in_order`] has given.
    #[inline(always)]
    pub(crate) fn retire_oldest(&self, count: u32) {
        let completed = self.completed.load(Ordering::Relaxed);
        self.completed.store(completed.wrapping_add(count), Ordering::Release);
    }
}

/// The work queue's end of an account: the table at hand.
#[derive(Debug)]
pub(crate) struct Recorder {
    table: NonNull<Posted>,
    account: Arc<Account>,
}

// SAFETY: the table lives as long as `account`, which is Send and Sync.
unsafe impl Send for Recorder {}
// SAFETY: recording is unsafe and says who may.
unsafe impl Sync for Recorder {}

impl Recorder {
    pub(crate) fn new(account: Arc<Account>) -> Self {
        let table = NonNull::from(&*account.table).cast();
        Self { table, account }
    }

    #[inline(always)]
    pub(crate) fn account(&self) -> &Account {
        &self.account
    }

    /// Keeps what the completion of a request will say, `offset` bytes into the table: its slot
    /// times the size of a [`Posted`].
    ///
    /// # Safety
    /// The slot is one of the account's. The request that will lie there is not outstanding (see
    /// [`Account::completed`]), is not published before this returns, and is nobody else's.
    #[inline(always)]
    pub(crate) unsafe fn record(&self, offset: usize, posted: Posted) {
        // SAFETY: inside the table; by contract the place is the caller's.
        unsafe { self.table.byte_add(offset).write(posted) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn posted(wr_id: u64) -> Posted {
        Posted { wr_id, ..Posted::NONE }
    }

    #[test]
    fn a_tag_gives_back_what_it_was_made_of() {
        let tag = Tag::new(Key(0xabcd_0012), 0xf_fff5);
        assert_eq!((tag.key(), tag.slot()), (Key(0xabcd_0012), 0xf_fff5));
        assert_eq!(tag.key().index(), 0x12);
    }

    #[test]
    fn nothing_outstanding_means_nothing_can_be_retired() {
        let recorder = Recorder::new(Arc::new(Account::new(8)));
        let account = recorder.account();
        assert_eq!(account.retire(0), None);
        assert!(account.in_order().1.is_empty());
        // SAFETY: position 0 was never posted.
        unsafe { recorder.record(0, posted(77)) };
        assert_eq!(account.retire(0), None, "not published yet");
        account.publish(1);
        assert_eq!(account.retire(1), None, "not posted yet");
        assert_eq!(account.retire(8), None, "not a slot");
        assert_eq!(account.in_order(), (0, &[posted(77)][..]));
        assert_eq!(account.retire(0), Some(posted(77)));
        assert_eq!(account.retire(0), None, "a second completion of the same request");
    }

    #[test]
    fn what_nobody_is_to_see_is_never_given_in_order() {
        let recorder = Recorder::new(Arc::new(Account::new(8)));
        let account = recorder.account();
        for (position, quiet) in [(0, false), (1, true), (2, false)] {
            // SAFETY: none of these was posted before.
            unsafe { recorder.record(position as usize * 16, posted(position.into())) };
            if quiet {
                account.keep_quiet(position);
            }
        }
        account.publish(1);
        assert!(account.in_order().1.is_empty(), "one is posted, if not published");
        account.publish(3);
        account.retire(1);
        assert_eq!(account.in_order(), (2, &[posted(2)][..]), "it has been retired");
    }

    proptest! {
        #[test]
        fn an_account_agrees_with_a_queue_of_ids(
            start in any::<u32>(),
            steps in prop::collection::vec((0u32..9, 0u32..9, any::<bool>()), 1..200),
        ) {
            let recorder = Recorder::new(Arc::new(Account::new(16)));
            let account = recorder.account();
            account.completed.store(start, Ordering::Relaxed);
            account.keep_quiet(start.wrapping_sub(1));
            account.publish(start);
            let mut model = std::collections::VecDeque::new();
            let mut next = start;
            for (post, skip, in_order) in steps {
                for _ in 0..post.min(16 - model.len() as u32) {
                    // SAFETY: at most 16 are outstanding.
                    unsafe { recorder.record(next as usize % 16 * 16, posted(u64::from(next) * 3)) };
                    model.push_back(next);
                    next = next.wrapping_add(1);
                }
                account.publish(next);
                prop_assert_eq!(account.outstanding() as usize, model.len());
                if in_order {
                    let (slot, oldest) = account.in_order();
                    let count = oldest.len().min(skip as usize);
                    for (i, one) in oldest[..count].iter().enumerate() {
                        let position = model.pop_front().unwrap();
                        prop_assert_eq!(position % 16, slot + i as u32);
                        prop_assert_eq!(one.wr_id, u64::from(position) * 3);
                    }
                    account.retire_oldest(count as u32);
                } else if (skip as usize) < model.len() {
                    let position = model[skip as usize];
                    model.drain(..=skip as usize);
                    let expected = Some(posted(u64::from(position) * 3));
                    prop_assert_eq!(account.retire(position % 16), expected);
                } else if model.len() < 16 {
                    prop_assert_eq!(account.retire(next % 16), None);
                }
            }
        }
    }
}
