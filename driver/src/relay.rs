//! Doorbells that wait for the next poll: [`crate::DoorbellPolicy::Coalesced`].
//!
//! A coalesced work queue shows its tail not to the device but here, and rings a word that nobody
//! hears. The completion queue's owner, at every poll, shows the device what stands here and rings,
//! if that is more than the device has seen. So the work queue does exactly what it does otherwise,
//! and the device's words have one writer as ever.
#![allow(unsafe_code)]

use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::ring::TailWord;
use crate::uar::Doorbell;

/// A tail on its way to the device.
pub(crate) struct Relay {
    /// Written by the work queue.
    offered: AtomicU32,
    /// Rung by the work queue.
    unheard: AtomicU32,
    /// What the device has been shown. Read and written by the completion queue alone.
    shown: AtomicU32,
    tail: TailWord,
    doorbell: Doorbell,
    doorbell_word: u32,
}

impl std::fmt::Debug for Relay {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Relay(doorbell {:#x})", self.doorbell_word)
    }
}

impl Relay {
    /// From a queue that has offered nothing to the device's `tail`.
    pub(crate) fn new(tail: TailWord, doorbell: Doorbell, doorbell_word: u32) -> Arc<Self> {
        let [offered, unheard, shown] = [0; 3].map(AtomicU32::new);
        Arc::new(Self { offered, unheard, shown, tail, doorbell, doorbell_word })
    }

    /// The same for a queue that starts over.
    pub(crate) fn afresh(&self) -> Arc<Self> {
        Self::new(self.tail.clone(), self.doorbell.clone(), self.doorbell_word)
    }

    /// The word that stands for the device's tail.
    pub(crate) fn offered(self: &Arc<Self>) -> TailWord {
        // SAFETY: a field of what is shared, which never moves.
        unsafe { TailWord::new(NonNull::from(&self.offered), self.clone()) }
    }

    /// The doorbell that stands for the device's.
    pub(crate) fn unheard(self: &Arc<Self>) -> Doorbell {
        // SAFETY: as above.
        unsafe { self.doorbell.instead(NonNull::from(&self.unheard), self.clone()) }
    }

    /// Completion queue: passes on what was offered.
    #[inline]
    pub(crate) fn pass_on(&self) {
        let offered = self.offered.load(Ordering::Acquire);
        if offered != self.shown.load(Ordering::Relaxed) {
            self.shown.store(offered, Ordering::Relaxed);
            self.tail.show(offered);
            self.doorbell.ring(self.doorbell_word);
        }
    }
}
