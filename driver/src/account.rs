//! Who may post how much: the account each work queue keeps with its completion queue.
//!
//! Ring space is not credit: the device moves its consumer index when it fetches a request, long
//! before the request is done. What bounds a queue is the number of requests that have not
//! completed, and only the completion queue knows. The two meet here without a lock and without
//! hashing:
//!
//! * Each work queue has a key: an index that is unique in the device, and a generation, so that
//!   an index (or a queue pair number) that is used again is not mistaken for its predecessor.
//! * A request's id, as the device sees it, is a [`Tag`]: the key, the request's position in its
//!   queue, what was posted, and whether it was signalled. The caller's own id waits in a table by
//!   position, so what the device gives back is only a claim, and is checked.
//! * A completion for position p retires everything up to p, which is how unsignalled requests
//!   are retired. It must lie between what has completed and what was published.
//!
//! A shared receive queue completes out of order; it has [`Tickets`] instead of an [`Account`].

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use crossbeam::utils::CachePadded;

/// Positions in a [`Tag`] are counted modulo 2^24.
const POSITION_BITS: u32 = 24;
const POSITION_MASK: u32 = (1 << POSITION_BITS) - 1;
/// Deepest queue that an account can be kept for.
pub(crate) const MAX_DEPTH: u32 = 1 << 20;
/// Where the kind of work starts in a tag.
const KIND_SHIFT: u32 = POSITION_BITS;
/// Set when no completion was asked for.
const UNSIGNALLED: u64 = 1 << 28;
/// Kind of a drain marker, whose completion is the driver's own.
pub(crate) const KIND_MARKER: u32 = 15;

/// Key of a work queue: index in the low half, generation (never 0) in the high half.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Key(pub(crate) u32);

impl Key {
    pub(crate) fn index(self) -> usize {
        (self.0 & 0xffff) as usize
    }

    /// The part of a tag that is the same for every request of a queue.
    pub(crate) fn base(self) -> u64 {
        u64::from(self.0) << 32
    }
}

/// A request's id as the device sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Tag(pub(crate) u64);

impl Tag {
    /// `unsignalled` is 0 or 1; `kind` is below 16.
    #[inline(always)]
    pub(crate) fn new(base: u64, position: u32, kind: u32, unsignalled: u32) -> Self {
        debug_assert!(kind < 16 && unsignalled < 2);
        let low = position & POSITION_MASK | kind << KIND_SHIFT | unsignalled << 28;
        Self(base | u64::from(low))
    }

    #[inline(always)]
    pub(crate) fn key(self) -> Key {
        Key((self.0 >> 32) as u32)
    }

    #[inline(always)]
    pub(crate) fn position(self) -> u32 {
        self.0 as u32 & POSITION_MASK
    }

    #[inline(always)]
    pub(crate) fn kind(self) -> u32 {
        (self.0 >> KIND_SHIFT) as u32 & 15
    }

    #[inline(always)]
    pub(crate) fn unsignalled(self) -> bool {
        self.0 & UNSIGNALLED != 0
    }
}

/// The account of a queue that completes in order.
///
/// Written by two owners: the work queue publishes, the completion queue retires.
#[derive(Debug)]
pub(crate) struct Account {
    completed: CachePadded<AtomicU32>,
    published: CachePadded<AtomicU32>,
    ids: Box<[AtomicU64]>,
    mask: u32,
}

impl Account {
    /// For a ring of `slots`, a power of two of at most [`MAX_DEPTH`].
    pub(crate) fn new(slots: u32) -> Self {
        debug_assert!(slots.is_power_of_two() && slots <= MAX_DEPTH);
        Self {
            completed: CachePadded::new(AtomicU32::new(0)),
            published: CachePadded::new(AtomicU32::new(0)),
            ids: (0..slots).map(|_| AtomicU64::new(0)).collect(),
            mask: slots - 1,
        }
    }

    /// Work queue: keeps the caller's id for `position`, which must not be outstanding.
    #[inline(always)]
    pub(crate) fn record(&self, position: u32, id: u64) {
        self.ids[(position & self.mask) as usize].store(id, Ordering::Relaxed);
    }

    /// Work queue: everything below `position` is about to be shown to the device.
    #[inline(always)]
    pub(crate) fn publish(&self, position: u32) {
        self.published.store(position, Ordering::Release);
    }

    /// How many requests have been retired, counted from the first, modulo 2^32.
    pub(crate) fn completed(&self) -> u32 {
        self.completed.load(Ordering::Acquire)
    }

    /// Requests the device has and has not completed.
    pub(crate) fn outstanding(&self) -> u32 {
        let completed = self.completed();
        self.published.load(Ordering::Acquire).wrapping_sub(completed)
    }

    /// Completion queue: retires everything up to and including `position` (modulo 2^24) and
    /// gives the caller's id of that request; `None` if no such request is outstanding.
    #[inline(always)]
    pub(crate) fn retire(&self, position: u32) -> Option<u64> {
        let completed = self.completed.load(Ordering::Relaxed);
        let outstanding = self.published.load(Ordering::Acquire).wrapping_sub(completed);
        let distance = position.wrapping_sub(completed) & POSITION_MASK;
        if distance >= outstanding {
            return None;
        }
        let id = self.ids[(position & self.mask) as usize].load(Ordering::Relaxed);
        self.completed.store(completed.wrapping_add(distance + 1), Ordering::Release);
        Some(id)
    }
}

/// The account of a shared receive queue, whose requests complete in any order and into several
/// completion queues: each outstanding request holds a ticket.
#[derive(Debug)]
pub(crate) struct Tickets {
    held: Box<[AtomicU64]>,
    ids: Box<[AtomicU64]>,
}

impl Tickets {
    pub(crate) fn new(depth: u32) -> Self {
        let words = depth.div_ceil(64);
        let held: Box<[AtomicU64]> = (0..words).map(|_| AtomicU64::new(0)).collect();
        if !depth.is_multiple_of(64)
            && let Some(last) = held.last()
        {
            // Tickets beyond the depth do not exist: they are held for ever.
            last.store(!0 << (depth % 64), Ordering::Relaxed);
        }
        Self { held, ids: (0..depth).map(|_| AtomicU64::new(0)).collect() }
    }

    /// Work queue (one owner): takes a free ticket, looking first where `hint` says.
    #[inline]
    pub(crate) fn take(&self, hint: &mut u32, id: u64) -> Option<u32> {
        let words = self.held.len();
        let first = *hint as usize;
        for step in 0..words {
            let at = if first + step < words { first + step } else { first + step - words };
            let held = self.held[at].load(Ordering::Acquire);
            if held != !0 {
                let bit = held.trailing_ones();
                let ticket = at as u32 * 64 + bit;
                self.ids[ticket as usize].store(id, Ordering::Relaxed);
                // Only the owner sets bits, so this one is still clear.
                self.held[at].fetch_or(1 << bit, Ordering::Release);
                *hint = at as u32;
                return Some(ticket);
            }
        }
        None
    }

    /// Completion queue (any number of them): gives a ticket back; `None` if it is not held.
    #[inline]
    pub(crate) fn retire(&self, ticket: u32) -> Option<u64> {
        let id = self.ids.get(ticket as usize)?;
        let word = &self.held[ticket as usize / 64];
        let bit = 1u64 << (ticket % 64);
        if word.load(Ordering::Acquire) & bit == 0 {
            return None;
        }
        let id = id.load(Ordering::Relaxed);
        if word.fetch_and(!bit, Ordering::AcqRel) & bit == 0 { None } else { Some(id) }
    }

    /// Tickets held.
    pub(crate) fn outstanding(&self) -> u32 {
        let held: u32 =
            self.held.iter().map(|word| word.load(Ordering::Acquire).count_ones()).sum();
        held - (self.held.len() as u32 * 64 - self.ids.len() as u32)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_tag_gives_back_what_it_was_made_of() {
        let key = Key(0xabcd_0012);
        let tag = Tag::new(key.base(), 0xff00_0005, KIND_MARKER, 1);
        assert_eq!((tag.key(), tag.position(), tag.kind()), (key, 5, KIND_MARKER));
        assert!(tag.unsignalled());
        assert!(!Tag::new(key.base(), !0, 3, 0).unsignalled());
    }

    #[test]
    fn nothing_outstanding_means_nothing_can_be_retired() {
        let account = Account::new(8);
        assert_eq!(account.retire(0), None);
        account.record(0, 77);
        account.publish(1);
        assert_eq!(account.retire(1), None, "not posted yet");
        assert_eq!(account.retire(0), Some(77));
        assert_eq!(account.retire(0), None, "a second completion of the same request");
    }

    proptest! {
        #[test]
        fn an_account_agrees_with_a_queue_of_ids(
            start in any::<u32>(),
            steps in prop::collection::vec((0u32..9, 0u32..9), 1..200),
        ) {
            let account = Account::new(16);
            account.completed.store(start, Ordering::Relaxed);
            account.publish(start);
            let mut model = std::collections::VecDeque::new();
            let mut posted = start;
            for (post, skip) in steps {
                for _ in 0..post.min(16 - model.len() as u32) {
                    account.record(posted, u64::from(posted) * 3);
                    model.push_back(posted);
                    posted = posted.wrapping_add(1);
                }
                account.publish(posted);
                prop_assert_eq!(account.outstanding() as usize, model.len());
                if (skip as usize) < model.len() {
                    let position = model[skip as usize];
                    model.drain(..=skip as usize);
                    prop_assert_eq!(
                        account.retire(position & POSITION_MASK),
                        Some(u64::from(position) * 3)
                    );
                } else {
                    prop_assert_eq!(account.retire(posted.wrapping_add(skip) & POSITION_MASK), None);
                }
            }
        }

        #[test]
        fn tickets_agree_with_a_set(
            depth in 1u32..200,
            steps in prop::collection::vec((any::<bool>(), 0u32..256), 1..400),
        ) {
            let tickets = Tickets::new(depth);
            let mut model = std::collections::BTreeMap::new();
            let mut hint = 0;
            for (take, number) in steps {
                if take {
                    let id = u64::from(number) + 1000;
                    match tickets.take(&mut hint, id) {
                        Some(ticket) => {
                            prop_assert!(ticket < depth);
                            prop_assert!(model.insert(ticket, id).is_none());
                        }
                        None => prop_assert_eq!(model.len() as u32, depth),
                    }
                } else {
                    prop_assert_eq!(tickets.retire(number), model.remove(&number));
                }
                prop_assert_eq!(tickets.outstanding() as usize, model.len());
            }
        }
    }
}
