//! Which I/O virtual addresses are free.
//!
//! Free ranges are kept merged and are handed out first fit, lowest address first. Address 0 is
//! never handed out: a device that reads a forgotten descriptor finds a zero there. Large requests
//! are aligned so that the IOMMU can use its large pages.

use std::collections::BTreeMap;

use crate::IovaRange;

const MIB2: u64 = 2 << 20;
const GIB: u64 = 1 << 30;

/// Where PCI functions write their MSI and MSI-X messages on x86: the interrupt controller takes
/// such a write, whatever the IOMMU says.
pub const MSI_WINDOW: (u64, u64) = (0xfee0_0000, 0x10_0000);

/// Free I/O virtual addresses.
#[derive(Debug, Clone)]
pub struct IovaAllocator {
    // Start to end; disjoint, and no two touch.
    free: BTreeMap<u64, u64>,
    page: u64,
}

impl IovaAllocator {
    /// All whole pages of `usable` are free, except page 0 and every page that `reserved` touches.
    /// `usable` may overlap itself; `page` is a power of two.
    pub fn new(usable: &[IovaRange], reserved: &[IovaRange], page: u64) -> Self {
        debug_assert!(page.is_power_of_two());
        let mut allocator = Self { free: BTreeMap::new(), page };
        for range in usable {
            let start = range.start().max(1).checked_next_multiple_of(page);
            let end = range.end() & !(page - 1);
            if let Some(start) = start.filter(|start| *start < end) {
                allocator.add(start, end);
            }
        }
        for range in reserved {
            let start = range.start() & !(page - 1);
            let end = range.end().checked_next_multiple_of(page).unwrap_or(u64::MAX);
            allocator.remove(start, end);
        }
        allocator
    }

    /// The alignment in bytes that `len` bytes get: 1 GiB from 1 GiB on, 2 MiB from 2 MiB on, else
    /// `page`.
    pub fn alignment_for(len: u64, page: u64) -> u64 {
        match len {
            GIB.. => GIB.max(page),
            MIB2.. => MIB2.max(page),
            _ => page,
        }
    }

    /// Takes the lowest free range of `len` bytes at a multiple of `align`, a power of two.
    /// `None` when there is none; `len` is rounded up to whole pages.
    pub fn allocate(&mut self, len: u64, align: u64) -> Option<IovaRange> {
        debug_assert!(align.is_power_of_two());
        let len = len.max(1).checked_next_multiple_of(self.page)?;
        let align = align.max(self.page);
        let range = self.free.iter().find_map(|(start, end)| {
            let start = start.checked_next_multiple_of(align)?;
            (start.checked_add(len)? <= *end).then(|| IovaRange::new(start, len))?
        })?;
        self.remove(range.start(), range.end());
        Some(range)
    }

    /// Takes exactly `range`; false, and nothing taken, unless all of it is free.
    pub fn allocate_at(&mut self, range: IovaRange) -> bool {
        let free = self.is_free(range);
        if free {
            self.remove(range.start(), range.end());
        }
        free
    }

    /// Gives back a range that was taken. False, and nothing given back, if part of it is free.
    pub fn release(&mut self, range: IovaRange) -> bool {
        let before = self.free.range(..range.end()).next_back();
        if before.is_some_and(|(_, end)| *end > range.start()) {
            return false;
        }
        self.add(range.start(), range.end());
        true
    }

    /// Whether all of `range` is free.
    pub fn is_free(&self, range: IovaRange) -> bool {
        let around = self.free.range(..=range.start()).next_back();
        around.is_some_and(|(_, end)| *end >= range.end())
    }

    /// Free bytes, and bytes of the largest free range.
    pub fn free_bytes(&self) -> (u64, u64) {
        let lens = self.free.iter().map(|(start, end)| end - start);
        lens.fold((0, 0), |(sum, largest), len| (sum + len, largest.max(len)))
    }

    /// Free ranges, in order; no two touch.
    pub fn free_ranges(&self) -> impl Iterator<Item = IovaRange> {
        self.free.iter().filter_map(|(start, end)| IovaRange::between(*start, *end))
    }

    /// Adds `[start, end)`, merging with whatever it touches or overlaps.
    fn add(&mut self, mut start: u64, mut end: u64) {
        while let Some((&s, &e)) = self.free.range(..=end).next_back() {
            if e < start {
                break;
            }
            self.free.remove(&s);
            start = start.min(s);
            end = end.max(e);
        }
        self.free.insert(start, end);
    }

    /// Removes `[start, end)`, cutting what overlaps it.
    fn remove(&mut self, start: u64, end: u64) {
        while let Some((&s, &e)) = self.free.range(..end).next_back() {
            if e <= start {
                break;
            }
            self.free.remove(&s);
            if e > end {
                self.free.insert(end, e);
            }
            if s < start {
                self.free.insert(s, start);
            }
        }
    }
}
