//! Several producers of one ring, none of which ever waits for another: reserve, write, publish.
//!
//! 1. **Reserve**: a compare-and-swap takes a position, if there is room.
//! 2. **Write**: the position's slot is its taker's alone. Marking it ready says that it is written.
//! 3. **Publish**: the tail must grow in order and have one writer at a time, or the device could see
//!    it go back. Whoever calls [`Combiner::combine`] while nobody else is at it publishes everything
//!    that is ready, with one doorbell; whoever comes meanwhile is only counted, and leaves. Before
//!    the one stops, it looks whether the count has changed, and if so at the ring once more. So
//!    nothing that is ready is left lying, and nobody waits.
//!
//! A slot that is reserved and not yet ready holds back those behind it, which its taker then
//! publishes with its own: between the two there is nothing but the writing.
//!
//! The ready mark of a position is the position plus one, so a mark from an earlier round of the
//! ring means nothing. Checked by the models in `tests/loom_combiner.rs`.

use crossbeam::utils::CachePadded;

#[cfg(loom)]
use loom::sync::atomic::{AtomicU32, Ordering};
#[cfg(not(loom))]
use std::sync::atomic::{AtomicU32, Ordering};

/// Positions of a ring that several threads fill.
#[derive(Debug)]
pub struct Combiner {
    /// Taken by producers.
    reserved: CachePadded<AtomicU32>,
    /// Calls of `combine` since somebody began to publish; 0 while nobody does.
    calls: CachePadded<AtomicU32>,
    /// Written by whoever publishes.
    published: AtomicU32,
    /// By slot: the last position written there, plus one.
    ready: Box<[AtomicU32]>,
}

impl Combiner {
    /// For a ring of `slots`, a power of two, in which everything below `position` is published.
    pub fn new(slots: u32, position: u32) -> Self {
        debug_assert!(slots.is_power_of_two());
        // The position before the last round's is one that will not come for a long time.
        let never = position.wrapping_sub(slots);
        Self {
            reserved: CachePadded::new(AtomicU32::new(position)),
            calls: CachePadded::new(AtomicU32::new(0)),
            published: AtomicU32::new(position),
            ready: (0..slots).map(|_| AtomicU32::new(never)).collect(),
        }
    }

    fn mark(&self, position: u32) -> &AtomicU32 {
        &self.ready[position as usize & (self.ready.len() - 1)]
    }

    /// Takes the next position, if fewer than `depth` (at most the ring's slots) are taken beyond
    /// those that `completed` counts. Whoever gets one must write its slot and say so.
    #[inline]
    pub fn reserve(&self, depth: u32, completed: impl Fn() -> u32) -> Option<u32> {
        loop {
            // In this order: what has completed was reserved before, so that `position` is not
            // behind it.
            let done = completed();
            let position = self.reserved.load(Ordering::Acquire);
            if position.wrapping_sub(done) >= depth {
                return None;
            }
            let (next, relaxed) = (position.wrapping_add(1), Ordering::Relaxed);
            if self.reserved.compare_exchange_weak(position, next, relaxed, relaxed).is_ok() {
                return Some(position);
            }
        }
    }

    /// The slot of a position that was reserved is written.
    #[inline]
    pub fn written(&self, position: u32) {
        self.mark(position).store(position.wrapping_add(1), Ordering::Release);
    }

    /// The position up to which everything from `position` on is written.
    #[inline]
    pub fn ready_from(&self, mut position: u32) -> u32 {
        while self.mark(position).load(Ordering::Acquire) == position.wrapping_add(1) {
            position = position.wrapping_add(1);
        }
        position
    }

    /// Sees to it that everything written so far is published: by this thread, through `publish`,
    /// which is told a position below which all is written; or by one that is at it. `publish` is
    /// never called by two threads at a time, nor with a position behind an earlier one.
    #[inline]
    pub fn combine(&self, publish: impl Fn(u32)) {
        if self.calls.fetch_add(1, Ordering::AcqRel) != 0 {
            return;
        }
        let mut seen = 1;
        loop {
            let before = self.published.load(Ordering::Relaxed);
            let position = self.ready_from(before);
            if position != before {
                self.published.store(position, Ordering::Relaxed);
                publish(position);
            }
            match self.calls.compare_exchange(seen, 0, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => return,
                Err(more) => seen = more,
            }
        }
    }

    /// Positions reserved so far, modulo 2^32.
    pub fn reserved(&self) -> u32 {
        self.reserved.load(Ordering::Acquire)
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::cell::Cell;

    use super::*;

    #[test]
    fn what_is_ready_is_published_in_order_and_a_gap_holds_back_what_is_behind() {
        let combiner = Combiner::new(4, u32::MAX - 1);
        let shown = Cell::new(u32::MAX - 1);
        let publish = || combiner.combine(|position| shown.set(position));
        let start = u32::MAX - 1;
        let taken: Vec<u32> = (0..4).map(|_| combiner.reserve(4, || start).unwrap()).collect();
        assert_eq!(taken, [u32::MAX - 1, u32::MAX, 0, 1]);
        assert_eq!(combiner.reserve(4, || start), None, "full");
        combiner.written(taken[1]);
        publish();
        assert_eq!(shown.get(), start, "the first is not written");
        combiner.written(taken[0]);
        publish();
        assert_eq!(shown.get(), 0, "both");
        combiner.written(taken[2]);
        combiner.written(taken[3]);
        publish();
        assert_eq!(shown.get(), 2);
        // The next round: the marks of the one before mean nothing.
        assert_eq!(combiner.reserve(4, || u32::MAX), Some(2));
        publish();
        assert_eq!(shown.get(), 2);
    }
}
