//! Memory barriers, named by intent as in rdma-core's `util/udma_barrier.h`.
//!
//! The device is another observer of normal, cache-coherent memory, so the barriers between
//! threads are the barriers towards it. On x86-64 every one here but [`before_command`] costs
//! nothing at run time: stores are not reordered with stores, nor loads with loads.

use std::sync::atomic::{AtomicU32, Ordering, fence};

/// Stores an index that tells the device about everything written before it.
#[inline(always)]
pub(crate) fn publish(word: &AtomicU32, value: u32) {
    word.store(value, Ordering::Release);
}

/// Loads an index the device writes; what it wrote before the index can be read after it.
#[inline(always)]
pub(crate) fn observe(word: &AtomicU32) -> u32 {
    word.load(Ordering::Acquire)
}

/// Orders everything written so far before the register write that starts a command, and
/// everything read after it behind it.
pub(crate) fn before_command() {
    fence(Ordering::SeqCst);
}

/// Orders reads of what a register read said is there behind that read.
pub(crate) fn from_device() {
    fence(Ordering::Acquire);
}
