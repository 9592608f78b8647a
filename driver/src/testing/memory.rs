//! Heap pages under made-up bus addresses, for devices that run in this process.
#![allow(unsafe_code)]

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::collections::BTreeMap;
use std::ptr::NonNull;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use holdfast_wire::PAGE_SIZE;

use crate::dma::{AllocError, DmaAllocator, DmaBuffer};

#[derive(Default)]
struct Book {
    /// Where each page is, by bus address.
    pages: BTreeMap<u64, usize>,
    /// Bus addresses given out.
    given: u64,
    /// What was allocated.
    blocks: BTreeMap<usize, Layout>,
}

#[derive(Default, Clone)]
struct Pages(Arc<Mutex<Book>>);

impl Pages {
    fn lock(&self) -> MutexGuard<'_, Book> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A [`DmaAllocator`] whose pages a fake device reads and writes by bus address. Neighbouring
/// pages of a buffer are never neighbours on the bus, so a device that ignores page directories
/// fails.
#[derive(Default, Clone)]
pub struct HeapMemory {
    pages: Pages,
}

struct Owned {
    base: NonNull<u8>,
    addresses: Box<[u64]>,
    pages: Pages,
}

// SAFETY: the pages are plain memory, reached only by copies and atomics.
unsafe impl Send for Owned {}
// SAFETY: as above.
unsafe impl Sync for Owned {}

impl Drop for Owned {
    fn drop(&mut self) {
        let mut pages = self.pages.lock();
        for address in &self.addresses {
            pages.pages.remove(address);
        }
        if let Some(layout) = pages.blocks.remove(&self.base.as_ptr().addr()) {
            // SAFETY: allocated with this layout; no bus address leads here any more.
            unsafe { dealloc(self.base.as_ptr(), layout) };
        }
    }
}

impl DmaAllocator for HeapMemory {
    fn allocate(&self, len: usize) -> Result<DmaBuffer, AllocError> {
        let count = len.div_ceil(PAGE_SIZE).max(1);
        let refuse = || AllocError { len, source: "beyond the test's memory".into() };
        if count > 1 << 16 {
            return Err(refuse());
        }
        let layout = Layout::from_size_align(count * PAGE_SIZE, PAGE_SIZE).map_err(|_| refuse())?;
        // SAFETY: the layout is not empty.
        let raw = unsafe { alloc_zeroed(layout) };
        let Some(base) = NonNull::new(raw) else { handle_alloc_error(layout) };
        let mut pages = self.pages.lock();
        let addresses: Box<[u64]> = (0..count)
            .map(|i| {
                pages.given += 2;
                let address = 0x10_0000_0000 + pages.given * PAGE_SIZE as u64;
                pages.pages.insert(address, raw.addr() + i * PAGE_SIZE);
                address
            })
            .collect();
        pages.blocks.insert(raw.expose_provenance(), layout);
        drop(pages);
        let owner = Owned { base, addresses: addresses.clone(), pages: self.pages.clone() };
        // SAFETY: page aligned, valid until `owner` is dropped, never borrowed.
        Ok(unsafe { DmaBuffer::new(base, addresses, Box::new(owner)) })
    }
}

impl HeapMemory {
    /// Copies `buf.len()` bytes at a bus address out; false if they are not all in one page that
    /// exists.
    pub fn read(&self, address: u64, buf: &mut [u8]) -> bool {
        self.with(address, buf.len(), |at| {
            // SAFETY: `with` checked the range, and holds the lock that keeps the page alive.
            unsafe { std::ptr::copy_nonoverlapping(at, buf.as_mut_ptr(), buf.len()) }
        })
    }

    /// Copies `data` to a bus address; false if it is not all in one page that exists.
    pub fn write(&self, address: u64, data: &[u8]) -> bool {
        self.with(address, data.len(), |at| {
            // SAFETY: as in `read`.
            unsafe { std::ptr::copy_nonoverlapping(data.as_ptr(), at, data.len()) }
        })
    }

    /// The bus address of the `n`th page, counted modulo the pages that exist.
    pub fn nth_page(&self, n: usize) -> Option<u64> {
        let pages = self.pages.lock();
        let count = pages.pages.len();
        if count == 0 { None } else { pages.pages.keys().nth(n % count).copied() }
    }

    /// Pages that exist.
    pub fn page_count(&self) -> usize {
        self.pages.lock().pages.len()
    }

    /// Frees what the driver leaked because the device might still have reached it.
    ///
    /// # Safety
    /// The driver's objects are gone: no buffer of this memory is used any more.
    pub unsafe fn free_leaked(&self) {
        let mut pages = self.pages.lock();
        pages.pages.clear();
        for (base, layout) in std::mem::take(&mut pages.blocks) {
            // SAFETY: allocated with this layout, and not used any more (the caller's promise).
            unsafe { dealloc(std::ptr::with_exposed_provenance_mut(base), layout) };
        }
    }

    fn with(&self, address: u64, len: usize, access: impl FnOnce(*mut u8)) -> bool {
        let offset = address % PAGE_SIZE as u64;
        let pages = self.pages.lock();
        match pages.pages.get(&(address - offset)) {
            Some(page) if offset as usize + len <= PAGE_SIZE => {
                access(std::ptr::with_exposed_provenance_mut(page + offset as usize));
                true
            }
            _ => false,
        }
    }
}
