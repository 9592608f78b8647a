//! The pages behind a ring, with their translations kept from one use to the next.
//!
//! A translation is good for one epoch of the [`Reader`]; a page is translated anew the first time
//! it is used in another. While the client unmaps nothing, a ring access is one comparison.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use holdfast_wire::PAGE_SIZE;

use crate::engine::host::Miss;
use crate::memory::{Reader, Span};

/// Most queue pages of one NIC. The NIC keeps 32 bytes for each, and a client may name the same
/// page of memory any number of times.
pub const MAX_QUEUE_PAGES: usize = 1 << 20;

/// What is left of a NIC's queue pages.
#[derive(Debug, Clone, Default)]
pub struct PageBudget(Arc<AtomicUsize>);

impl PageBudget {
    /// Takes `pages` pages; `None` when that would be more than [`MAX_QUEUE_PAGES`].
    pub fn take(&self, pages: usize) -> Option<PageLease> {
        let taken = self
            .0
            .load(Ordering::Relaxed)
            .checked_add(pages)
            .filter(|&taken| taken <= MAX_QUEUE_PAGES)?;
        self.0.store(taken, Ordering::Relaxed);
        Some(PageLease { pages, budget: self.clone() })
    }
}

/// Pages taken from a budget, given back when dropped.
#[derive(Debug)]
pub struct PageLease {
    pages: usize,
    budget: PageBudget,
}

impl Drop for PageLease {
    fn drop(&mut self) {
        self.budget.0.fetch_sub(self.pages, Ordering::Relaxed);
    }
}

/// The pages of a queue: page 0 is its state page.
#[derive(Debug)]
pub struct QueuePages {
    epoch: u64,
    iovas: Box<[u64]>,
    spans: Box<[Option<Span>]>,
    _lease: PageLease,
}

impl QueuePages {
    /// Pages by bus address, none translated yet, with what they take of the NIC's budget.
    pub fn new(iovas: Box<[u64]>, lease: PageLease) -> Self {
        let spans = vec![None; iovas.len()].into_boxed_slice();
        Self { epoch: 0, iovas, spans, _lease: lease }
    }

    /// Number of pages.
    pub fn len(&self) -> usize {
        self.iovas.len()
    }

    /// Bus address of page `index`.
    pub fn iova(&self, index: usize) -> u64 {
        self.iovas[index]
    }

    /// Page `index`, writable, all 4 KiB of it, for use before the next quiescent point.
    ///
    /// # Panics
    /// When there is no such page.
    #[inline]
    pub fn page(&mut self, reader: &mut Reader, index: usize) -> Result<Span, Miss> {
        if self.epoch == reader.epoch()
            && let Some(span) = self.spans[index]
        {
            return Ok(span);
        }
        self.translate(reader, index)
    }

    #[cold]
    fn translate(&mut self, reader: &mut Reader, index: usize) -> Result<Span, Miss> {
        let epoch = reader.epoch();
        if self.epoch != epoch {
            self.spans.fill(None);
            self.epoch = epoch;
        }
        let iova = self.iovas[index];
        let span = reader.translate(iova, PAGE_SIZE, true)?;
        if span.len() < PAGE_SIZE {
            return Err(Miss { iova });
        }
        self.spans[index] = Some(span);
        Ok(span)
    }

    /// The page that holds slot `slot` of a ring of `stride`-byte slots (a power of two up to the
    /// page size) whose first page is `first`, and the slot's offset in it.
    #[inline]
    pub fn slot(
        &mut self,
        reader: &mut Reader,
        first: usize,
        stride: usize,
        slot: u32,
    ) -> Result<Span, Miss> {
        let byte = slot as usize * stride;
        let page = self.page(reader, first + byte / PAGE_SIZE)?;
        Ok(page.slice(byte % PAGE_SIZE, stride))
    }
}
