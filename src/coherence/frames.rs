//! Which page frames the kernel pinned for a device, so that pages that took their place are found.
//!
//! A hole that is filled again before anybody looks leaves the file as it was, by its size, its
//! holes and the number of its pages; but the device goes on with pages that are the file's no more.
//! A pinned page stays in its frame, whatever reclaim, migration or huge pages do to the page tables
//! around it. So where another frame is in a page table, the file has another page, for certain.
//!
//! Only who has CAP_SYS_ADMIN is told frames (`/proc/self/pagemap`); others have nothing to compare.

use std::sync::Mutex;

use holdfast_dax::{Memory, PageEntry, Pagemap};

use super::event::Part;
use crate::lock::lock;

/// Pages looked up at a time.
const BATCH: u64 = 512;
/// Of a page that was replaced while it was pinned: which of the two the device has is not known.
const EITHER: u64 = 1;

/// The frames of a region's pages, by their physical address; 0 where none is known.
#[derive(Debug, Default)]
pub struct Frames(Mutex<Vec<u64>>);

/// What page tables showed of some pages before they were pinned.
#[derive(Debug)]
pub struct Before(Vec<Vec<u64>>);

impl Frames {
    /// Looks before `parts` are pinned. They were faulted in.
    pub fn before(memory: &Memory, parts: &[Part]) -> Before {
        Before(parts.iter().map(|part| look(memory, *part)).collect())
    }

    /// Looks again now that they are pinned, and keeps what was the same.
    pub fn pinned(&self, memory: &Memory, parts: &[Part], before: Before) {
        for (part, before) in parts.iter().zip(before.0) {
            let after = look(memory, *part);
            let mut known = lock(&self.0);
            if known.is_empty() && after.iter().any(|frame| *frame != 0) {
                known.resize(memory.len() / memory.page_size(), 0);
            }
            let first = (part.start / memory.page_size() as u64) as usize;
            for ((known, before), after) in known.iter_mut().skip(first).zip(before).zip(after) {
                *known = if before == after || before == 0 || after == 0 { after } else { EITHER };
            }
        }
    }

    /// Whether there is anything to compare.
    pub fn is_known(&self) -> bool {
        !lock(&self.0).is_empty()
    }

    /// What of `parts`, which are pinned, is another page by now. Pages that are in no page table are
    /// faulted in for that; holes are the business of others.
    pub fn replaced(&self, memory: &Memory, parts: &[Part]) -> Vec<Part> {
        let page = memory.page_size() as u64;
        let mut replaced: Vec<Part> = Vec::new();
        for part in parts {
            let mut at = part.start;
            while at < part.end {
                let batch = Part { start: at, end: part.end.min(at + BATCH * page) };
                at = batch.end;
                let first = (batch.start / page) as usize;
                let mut now = look(memory, batch);
                let known: Vec<u64> =
                    lock(&self.0).iter().skip(first).take(now.len()).copied().collect();
                if now.iter().zip(&known).any(|(now, known)| *now == 0 && *known != 0) {
                    if memory.populate(batch.start, batch.len()).is_err() {
                        // It was cut, which is told by others.
                        continue;
                    }
                    now = look(memory, batch);
                }
                for (index, (now, known)) in now.into_iter().zip(known).enumerate() {
                    if now == known || now == 0 || known == 0 {
                        continue;
                    }
                    let start = batch.start + index as u64 * page;
                    match replaced.last_mut() {
                        Some(last) if last.end == start => last.end += page,
                        _ => replaced.push(Part { start, end: start + page }),
                    }
                }
            }
        }
        replaced
    }
}

/// The frames of a part's pages; nothing where page tables cannot be read.
fn look(memory: &Memory, part: Part) -> Vec<u64> {
    let count = (part.len() / memory.page_size() as u64) as usize;
    let start = memory.as_ptr().as_ptr().addr() + part.start as usize;
    let entries = Pagemap::own().ok().and_then(|pagemap| pagemap.entries(start, count).ok());
    let frame = |entry| match entry {
        PageEntry::At(frame) => frame,
        PageEntry::Absent | PageEntry::Hidden => 0,
    };
    entries.unwrap_or_default().into_iter().map(frame).collect()
}

#[cfg(test)]
mod tests;
