//! What one thread counts: memory that it alone writes and others read.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::buckets;

/// Counts with one writer, on cache lines of their own.
#[repr(align(128))]
pub(super) struct Counts {
    pub operations: AtomicU64,
    pub bytes: AtomicU64,
    pub errors: AtomicU64,
    pub latency_sum_ns: AtomicU64,
    pub latencies: [AtomicU64; buckets::COUNT],
}

impl Default for Counts {
    fn default() -> Self {
        let zero = || AtomicU64::new(0);
        Self {
            operations: zero(),
            bytes: zero(),
            errors: zero(),
            latency_sum_ns: zero(),
            latencies: std::array::from_fn(|_| zero()),
        }
    }
}

/// The counts of one thread, which owns them: it may move to another thread, but is never shared.
/// Nothing here blocks, allocates or makes a system call.
pub struct Lane {
    counts: Arc<Counts>,
}

impl std::fmt::Debug for Lane {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Lane").field("operations", &self.counts.operations).finish_non_exhaustive()
    }
}

impl Lane {
    pub(super) fn over(counts: Arc<Counts>) -> Self {
        Self { counts }
    }

    /// So many operations are done, which moved so many bytes.
    #[inline(always)]
    pub fn done(&mut self, operations: u64, bytes: u64) {
        add(&self.counts.operations, operations);
        add(&self.counts.bytes, bytes);
    }

    /// So many operations have failed.
    #[inline(always)]
    pub fn failed(&mut self, operations: u64) {
        add(&self.counts.errors, operations);
    }

    /// An operation took so long.
    #[inline(always)]
    pub fn latency_ns(&mut self, ns: u64) {
        add(&self.counts.latency_sum_ns, ns);
        add(&self.counts.latencies[buckets::of(ns)], 1);
    }
}

/// Adds where nobody else writes: a load and a store, no locked exchange.
#[inline(always)]
fn add(count: &AtomicU64, more: u64) {
    count.store(count.load(Ordering::Relaxed).wrapping_add(more), Ordering::Relaxed);
}
