//! Page directories: naming scattered memory to the device.

use holdfast_wire::{PAGE_SIZE, pdir};

use crate::dma::{DmaAllocator, DmaBuffer};
use crate::error::{Error, Result};

/// A two-level directory of bus addresses, in memory the device can read.
#[derive(Debug)]
pub(crate) struct PageDirectory {
    memory: DmaBuffer,
    count: usize,
}

impl PageDirectory {
    /// Lists `pages`, the bus addresses of 4 KiB pages in order.
    pub(crate) fn new(dma: &dyn DmaAllocator, pages: &[u64]) -> Result<Self> {
        Error::check_limit(
            "pages in one directory (1 GiB)",
            pages.len() as u64,
            pdir::MAX_PAGES as u64,
        )?;
        if let Some(page) = pages.iter().find(|page| !page.is_multiple_of(PAGE_SIZE as u64)) {
            tracing::debug!(page, "a page address is not aligned");
            return Err(Error::Invalid("a page's bus address is not a multiple of 4096"));
        }
        let tables = pdir::tables(pages.len());
        // The directory page, then the tables.
        let memory = dma.allocate((1 + tables) * PAGE_SIZE)?;
        for (table, address) in memory.pages()[1..=tables].iter().enumerate() {
            memory.write_entry(table * 8, *address);
        }
        for (page, address) in pages.iter().enumerate() {
            let (table, entry) =
                pdir::position(page).ok_or(Error::Invalid("page beyond a directory"))?;
            memory.write_entry((1 + table) * PAGE_SIZE + entry * 8, *address);
        }
        Ok(Self { memory, count: pages.len() })
    }

    /// Bus address of the directory page.
    pub(crate) fn address(&self) -> u64 {
        self.memory.pages()[0]
    }

    /// Number of pages listed.
    pub(crate) fn count(&self) -> u32 {
        self.count as u32
    }
}
