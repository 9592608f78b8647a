//! From a populated mapping to physical extents, cut so that each can be revoked alone.

use crate::pagemap::{Entry, Pagemap};
use crate::{Error, Memory, Result};

use super::SystemRam;

/// The granule that fits a huge page: 2 MiB.
pub const GRANULE: u64 = 2 << 20;

/// Page-table entries read at a time.
const BATCH: u64 = 32 * 1024;

/// A physically contiguous piece of a region. It never crosses a multiple of the granule, counted
/// from the region's start, so it is the unit that can be mapped and revoked alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Extent {
    /// First byte, from the region's start.
    pub offset: u64,
    /// Its physical address.
    pub phys: u64,
    /// Bytes; at most a granule.
    pub len: u64,
}

impl Extent {
    /// First byte after it, from the region's start.
    pub fn end(&self) -> u64 {
        self.offset + self.len
    }
}

/// The physical extents of `[offset, offset + len)` of a region, in order and without gaps, cut
/// at every multiple of `granule` ([`GRANULE`] or a smaller power of two, at least a page).
///
/// They come from `/proc/self/pagemap`, so every page must be mapped in
/// ([`Memory::populate`]): [`Error::Absent`] names the first that is not. Needs CAP_SYS_ADMIN
/// ([`Error::NoAddresses`]). Ordinary memory is refused ([`Error::NotPersistent`]): the zero page
/// behind a hole that was read is the kernel's, not the file's. Takes no lock of the file, so it
/// may run while an operation on it waits; what it says holds only under a pin.
pub fn extents(memory: &Memory, offset: u64, len: u64, granule: u64) -> Result<Vec<Extent>> {
    let pagemap = Pagemap::own()?;
    let page = pagemap.page_size();
    let size = memory.len() as u64;
    let end = offset.checked_add(len).filter(|end| len > 0 && *end <= size);
    let Some(end) = end else { return Err(Error::BadRange { offset, len }) };
    for (what, value) in [("offset", offset), ("length", len)] {
        if !value.is_multiple_of(page) {
            let path = memory.source().to_string().into();
            return Err(Error::Unaligned { path, what, value, page_size: page });
        }
    }
    if !granule.is_power_of_two() || granule < page {
        return Err(Error::BadGranule { granule, page_size: page });
    }
    let ram = SystemRam::read()?;
    let base = memory.as_ptr().as_ptr() as usize;
    let mut cutter = Cutter { granule, extents: Vec::new() };
    let mut at = offset;
    while at < end {
        let count = ((end - at) / page).min(BATCH);
        let entries = pagemap
            .entries(base + at as usize, count as usize)
            .map_err(|errno| Error::Pagemap { call: "read", errno })?;
        for entry in entries {
            let what = || memory.source().to_string();
            let phys = match entry {
                Entry::Absent => return Err(Error::Absent { what: what(), offset: at }),
                Entry::Hidden => return Err(Error::NoAddresses),
                Entry::At(phys) => phys,
            };
            if ram.contains(phys) {
                return Err(Error::NotPersistent { what: what(), offset: at, phys });
            }
            cutter.page(at, phys, page);
            at += page;
        }
    }
    Ok(cutter.extents)
}

/// Joins pages to extents.
struct Cutter {
    granule: u64,
    extents: Vec<Extent>,
}

impl Cutter {
    fn page(&mut self, offset: u64, phys: u64, len: u64) {
        match self.extents.last_mut() {
            Some(last)
                if !offset.is_multiple_of(self.granule)
                    && last.end() == offset
                    && last.phys + last.len == phys =>
            {
                last.len += len;
            }
            _ => self.extents.push(Extent { offset, phys, len }),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::Populate;

    const PAGE: u64 = 4096;

    proptest! {
        #[test]
        fn extents_cover_every_page_once_and_cross_no_granule(
            start in 0u64..64,
            jumps in proptest::collection::vec(prop_oneof![4 => Just(1u64), 1 => 2u64..9], 1..200),
            shift in 0u32..6,
        ) {
            let granule = PAGE << shift;
            let mut cutter = Cutter { granule, extents: Vec::new() };
            let mut pages = Vec::new();
            let mut phys = 1 << 32;
            for (index, jump) in jumps.iter().enumerate() {
                phys += jump * PAGE;
                pages.push(((start + index as u64) * PAGE, phys));
            }
            for (offset, phys) in &pages {
                cutter.page(*offset, *phys, PAGE);
            }
            let mut back = Vec::new();
            for extent in &cutter.extents {
                prop_assert!(extent.len > 0);
                prop_assert_eq!(extent.offset / granule, (extent.end() - 1) / granule);
                let count = extent.len / PAGE;
                back.extend((0..count).map(|n| (extent.offset + n * PAGE, extent.phys + n * PAGE)));
            }
            prop_assert_eq!(back, pages);
            // No two neighbours could have been one.
            for pair in cutter.extents.windows(2) {
                let contiguous = pair[0].phys + pair[0].len == pair[1].phys;
                prop_assert!(!contiguous || pair[1].offset.is_multiple_of(granule));
            }
        }
    }

    #[test]
    fn ordinary_memory_has_no_extents() {
        let memory = Memory::open(&"memfd".parse().unwrap(), 8192, Populate::Yes).unwrap();
        let error = extents(&memory, 0, 8192, GRANULE).unwrap_err();
        let refused = matches!(error, Error::NotPersistent { .. } | Error::NoAddresses);
        assert!(refused, "{error}");
    }

    #[test]
    fn a_range_that_is_none_is_refused() {
        let memory = Memory::open(&"memfd".parse().unwrap(), 8192, Populate::Yes).unwrap();
        for (offset, len, granule) in
            [(0, 0, GRANULE), (0, 12288, GRANULE), (1, 4096, GRANULE), (0, 4096, 3), (0, 4096, 64)]
        {
            let error = extents(&memory, offset, len, granule).unwrap_err();
            let refused = matches!(
                error,
                Error::BadRange { .. } | Error::Unaligned { .. } | Error::BadGranule { .. }
            );
            assert!(refused, "{offset} {len} {granule}: {error}");
        }
    }
}
