//! What a poll loop counts: its turns, and what they found.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::Counter;

/// What a poll loop has counted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
pub struct TurnCounts {
    /// Turns.
    pub turns: u64,
    /// Those in which there was no completion.
    pub empty_turns: u64,
    /// Completions taken.
    pub completions: u64,
}

/// Counts with one writer, on cache lines of their own.
#[derive(Debug, Default)]
#[repr(align(128))]
pub(super) struct Cells {
    turns: AtomicU64,
    /// Turns with completions: the rare kind is the one that pays for counting.
    busy: AtomicU64,
    completions: AtomicU64,
}

impl Cells {
    fn read(&self) -> TurnCounts {
        // In this order, so that there are never more busy turns than turns.
        let busy = self.busy.load(Ordering::Acquire);
        let completions = self.completions.load(Ordering::Acquire);
        let turns = self.turns.load(Ordering::Relaxed);
        TurnCounts { turns, empty_turns: turns.saturating_sub(busy), completions }
    }

    /// As others are shown them.
    pub(super) fn counters(&self, name: &str) -> [Counter; 3] {
        let counts = self.read();
        let counter = |counter, help, value| {
            let labels = vec![("loop", name.to_owned())];
            Counter { name: counter, help, labels, value }
        };
        [
            counter("poll_turns", "Turns of a poll loop.", counts.turns),
            counter("poll_empty_turns", "Turns without a completion.", counts.empty_turns),
            counter("poll_completions", "Completions that turns took.", counts.completions),
        ]
    }
}

/// The counts of one poll loop, which owns them: it may move to another thread, but is never shared.
/// Counting is a load and a store of memory that nobody else writes; nothing here blocks, allocates
/// or makes a system call.
#[derive(Debug, Default)]
pub struct Turns {
    cells: Arc<Cells>,
}

impl Turns {
    pub(super) fn over(cells: Arc<Cells>) -> Self {
        Self { cells }
    }

    /// A turn has ended, which took so many completions.
    #[inline(always)]
    pub fn turn(&mut self, completions: u64) {
        add(&self.cells.turns, 1);
        if completions > 0 {
            self.took(completions);
            add(&self.cells.busy, 1);
        }
    }

    /// So many completions were taken in a turn that does not end.
    #[inline(always)]
    pub fn took(&mut self, completions: u64) {
        add(&self.cells.completions, completions);
    }

    /// What was counted until now.
    pub fn counts(&self) -> TurnCounts {
        self.cells.read()
    }
}

/// Adds where nobody else writes: a load and a store, no locked exchange.
#[inline(always)]
fn add(count: &AtomicU64, more: u64) {
    count.store(count.load(Ordering::Relaxed).wrapping_add(more), Ordering::Release);
}
