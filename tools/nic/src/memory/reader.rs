//! The processor's side of a space: translation without locks.
#![allow(unsafe_code)]

use std::sync::Arc;

use super::Span;
use super::fence::Quiescer;
use super::radix::{READ, WRITE};
use super::sigbus;
use super::space::Shared;
use crate::engine::host::Miss;

/// Slots of the software TLB, a power of two.
const SLOTS: usize = 128;
/// How far a fill looks ahead for contiguous pages, in bytes.
const LOOK_AHEAD: u64 = 64 << 10;

#[derive(Clone, Copy)]
struct Entry {
    start: u64,
    end: u64,
    // Host address of `start`.
    host: u64,
    // Epoch << 2 | access bits; an entry of another epoch is void.
    tag: u64,
}

/// Translates for one thread, the processor's. Spans it gives are good until the next
/// [`Reader::quiesce`] or [`Reader::offline`].
pub struct Reader {
    epoch: u64,
    faults: u32,
    tlb: Box<[Entry; SLOTS]>,
    shared: Arc<Shared>,
    quiescer: Quiescer,
}

impl std::fmt::Debug for Reader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Reader(epoch {})", self.epoch)
    }
}

impl Reader {
    pub(super) fn new(shared: Arc<Shared>, quiescer: Quiescer) -> Self {
        let void = Entry { start: 1, end: 0, host: 0, tag: 0 };
        Self { epoch: 1, faults: 0, tlb: Box::new([void; SLOTS]), shared, quiescer }
    }

    /// Passes a quiescent point: no span is held now. One load when nothing was unmapped.
    #[inline]
    pub fn quiesce(&mut self) {
        if self.quiescer.quiesce() {
            self.epoch += 1;
        }
    }

    /// Goes offline, before sleeping: no span is held, none is asked for until
    /// [`Reader::online`], and unmaps do not wait.
    pub fn offline(&mut self) {
        self.quiescer.offline();
    }

    /// Comes back online.
    pub fn online(&mut self) {
        self.faults = sigbus::faults();
        self.quiescer.online();
        // Another thread may have been the reader meanwhile (or met faults): start afresh.
        self.epoch += 1;
    }

    /// A number that changes whenever a translation may have become void: pointers cached under
    /// one epoch are good as long as it is the current one, and no longer than until the next
    /// quiescent point without looking again.
    #[inline]
    pub fn epoch(&mut self) -> u64 {
        self.note_faults();
        self.epoch
    }

    #[inline]
    fn note_faults(&mut self) {
        let faults = sigbus::faults();
        if faults != self.faults {
            self.faults = faults;
            self.epoch += 1;
        }
    }

    /// Translates the start of `iova..iova + len`: a span of 1 to `len` bytes. `len` is not 0.
    #[inline]
    pub fn translate(&mut self, iova: u64, len: usize, write: bool) -> Result<Span, Miss> {
        debug_assert!(self.quiescer.is_online() && len > 0);
        self.note_faults();
        let entry = &self.tlb[slot(iova)];
        let need = self.epoch << 2 | if write { WRITE } else { READ };
        if entry.start <= iova && iova < entry.end && entry.tag & (!0b11 | need) == need {
            return Ok(span(entry, iova, len));
        }
        self.fill(iova, len, write)
    }

    #[cold]
    #[inline(never)]
    fn fill(&mut self, iova: u64, len: usize, write: bool) -> Result<Span, Miss> {
        let miss = Miss { iova };
        let want = (len as u64).max(LOOK_AHEAD);
        let leaf = self.shared.radix.walk(iova, want).ok_or(miss)?;
        if leaf.access & if write { WRITE } else { READ } == 0 {
            return Err(miss);
        }
        let mut entry = Entry {
            start: leaf.iova,
            end: leaf.iova + leaf.len,
            host: leaf.host,
            tag: self.epoch << 2 | leaf.access,
        };
        if self.shared.account.is_poisoned() {
            // Rare: only this much is known to be clean, from `iova` on.
            entry.host += iova - entry.start;
            entry.start = iova;
            let bytes = (entry.end - iova).min(want) as usize;
            let clean = sigbus::clean_prefix(entry.host as usize, bytes);
            entry.end = iova + clean as u64;
            if clean == 0 {
                return Err(miss);
            }
        }
        self.tlb[slot(iova)] = entry;
        Ok(span(&entry, iova, len))
    }
}

/// Where the translation of an address is kept. A page's number is multiplied by 2^64 over the
/// golden ratio: were its low bits taken as they are, the two ends of a transfer between regions
/// that are apart by a power of two would evict each other with every request.
#[inline]
fn slot(iova: u64) -> usize {
    ((iova >> 12).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> (64 - SLOTS.ilog2())) as usize
}

#[inline]
fn span(entry: &Entry, iova: u64, len: usize) -> Span {
    let ptr = std::ptr::with_exposed_provenance_mut((entry.host + (iova - entry.start)) as usize);
    let len = len.min((entry.end - iova) as usize);
    // SAFETY: the entry came from the table in this epoch, so the range is mapped with the access
    // asked for until the fence, which waits for this reader's next quiescent point.
    unsafe { Span::new(ptr, len) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_a_power_of_two_apart_do_not_evict_each_other() {
        for first in [0u64, 1 << 12, 0x1234_5000, 0x7_fedc_ba98_7000] {
            for shift in 12..45 {
                assert_ne!(slot(first), slot(first + (1 << shift)), "{first:#x}, 2^{shift}");
            }
        }
    }
}
