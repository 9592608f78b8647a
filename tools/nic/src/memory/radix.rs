//! The translation table: a radix tree of atomic entries that one side edits while the other walks.
//!
//! Four levels of 512 entries cover 48 bits of IOVA. An entry is empty, a leaf (host address and
//! access bits) or a pointer to a table one level down; leaves may stand at every level. Writers
//! are serialised by their owner. A table that becomes empty is unlinked and handed back to the
//! writer, who frees it after the fence; the reader can therefore follow any pointer it loads
//! until its next quiescent point.
#![allow(unsafe_code)]

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

const PAGE_SHIFT: u32 = 12;
const BITS: u32 = 9;
const ENTRIES: usize = 1 << BITS;
const TOP: u32 = 3;

/// The entry's range may be read.
pub(super) const READ: u64 = 1;
/// The entry's range may be written.
pub(super) const WRITE: u64 = 2;
const LEAF: u64 = 4;
const TABLE: u64 = 8;
const FLAGS: u64 = 15;

/// Most tables of one space, 4 KiB each.
pub(super) const MAX_TABLES: usize = 32768;
/// Most tables that one more range can need: a chain at each end.
const TABLES_PER_RANGE: usize = 2 * TOP as usize;

#[repr(align(64))]
pub(super) struct Table {
    entries: [AtomicU64; ENTRIES],
    // Entries in use; only the writer looks at it.
    used: AtomicU32,
}

impl Table {
    fn new() -> Box<Self> {
        Box::new(Self { entries: [const { AtomicU64::new(0) }; ENTRIES], used: AtomicU32::new(0) })
    }
}

/// What a walk found: `len` contiguous host bytes for `iova..iova + len`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Leaf {
    pub(super) iova: u64,
    pub(super) len: u64,
    pub(super) host: u64,
    pub(super) access: u64,
}

/// The tree. `set` and `clear` belong to one writer at a time, `walk` to any thread that keeps
/// the fence's rules.
pub(super) struct Radix {
    root: Box<Table>,
    tables: AtomicU32,
}

/// Tables that left the tree and may be freed once the fence was passed.
#[derive(Default)]
pub(super) struct Retired(Vec<*mut Table>);

// SAFETY: the tables were unlinked and belong to this list alone.
unsafe impl Send for Retired {}

impl Drop for Retired {
    fn drop(&mut self) {
        for &table in &self.0 {
            // SAFETY: made by Box::into_raw, unlinked, and listed once.
            drop(unsafe { Box::from_raw(table) });
        }
    }
}

const fn shift(level: u32) -> u32 {
    PAGE_SHIFT + BITS * level
}

fn index(iova: u64, level: u32) -> usize {
    (iova >> shift(level)) as usize & (ENTRIES - 1)
}

fn child(entry: u64) -> *mut Table {
    std::ptr::with_exposed_provenance_mut((entry & !FLAGS) as usize)
}

impl Radix {
    pub(super) fn new() -> Self {
        Self { root: Table::new(), tables: AtomicU32::new(1) }
    }

    /// Whether one more range is sure to find tables.
    pub(super) fn has_room(&self) -> bool {
        self.tables() + TABLES_PER_RANGE <= MAX_TABLES
    }

    /// Tables in use.
    pub(super) fn tables(&self) -> usize {
        self.tables.load(Ordering::Relaxed) as usize
    }

    /// Makes `iova..iova + len` (page aligned, free, below 48 bits) translate to `host`.
    pub(super) fn set(&self, iova: u64, len: u64, host: u64, access: u64) {
        debug_assert!(host & ((1 << PAGE_SHIFT) - 1) == 0 && access & !(READ | WRITE) == 0);
        self.fill(&self.root, TOP, iova, iova + len, host | access | LEAF);
    }

    fn fill(&self, table: &Table, level: u32, mut iova: u64, end: u64, mut leaf: u64) {
        let size = 1u64 << shift(level);
        while iova < end {
            let slot = &table.entries[index(iova, level)];
            let next = ((iova & !(size - 1)) + size).min(end);
            if next - iova == size {
                slot.store(leaf, Ordering::Release);
                table.used.fetch_add(1, Ordering::Relaxed);
            } else {
                let mut entry = slot.load(Ordering::Relaxed);
                if entry == 0 {
                    let new = Box::into_raw(Table::new());
                    entry = new.expose_provenance() as u64 | TABLE;
                    slot.store(entry, Ordering::Release);
                    table.used.fetch_add(1, Ordering::Relaxed);
                    self.tables.fetch_add(1, Ordering::Relaxed);
                }
                // SAFETY: a table entry points to a live table until `wipe` unlinks it.
                let below = unsafe { &*child(entry) };
                self.fill(below, level - 1, iova, next, leaf);
            }
            leaf += next - iova;
            iova = next;
        }
    }

    /// Empties `iova..iova + len`, which one `set` had filled.
    pub(super) fn clear(&self, iova: u64, len: u64, retired: &mut Retired) {
        self.wipe(&self.root, TOP, iova, iova + len, retired);
    }

    fn wipe(&self, table: &Table, level: u32, mut iova: u64, end: u64, retired: &mut Retired) {
        let size = 1u64 << shift(level);
        while iova < end {
            let slot = &table.entries[index(iova, level)];
            let next = ((iova & !(size - 1)) + size).min(end);
            let entry = slot.load(Ordering::Relaxed);
            if entry & LEAF != 0 {
                slot.store(0, Ordering::Release);
                table.used.fetch_sub(1, Ordering::Relaxed);
            } else if entry & TABLE != 0 {
                // SAFETY: as in `fill`.
                let below = unsafe { &*child(entry) };
                self.wipe(below, level - 1, iova, next, retired);
                if below.used.load(Ordering::Relaxed) == 0 {
                    slot.store(0, Ordering::Release);
                    table.used.fetch_sub(1, Ordering::Relaxed);
                    self.tables.fetch_sub(1, Ordering::Relaxed);
                    retired.0.push(child(entry));
                }
            }
            iova = next;
        }
    }

    /// Looks `iova` up. Neighbouring leaves of the same table that continue the host range are
    /// joined until `want` bytes from `iova` on are covered.
    pub(super) fn walk(&self, iova: u64, want: u64) -> Option<Leaf> {
        if iova >= super::IOVA_LIMIT {
            return None;
        }
        let mut table: &Table = &self.root;
        let mut level = TOP;
        loop {
            let slot = index(iova, level);
            let entry = table.entries[slot].load(Ordering::Acquire);
            if entry & LEAF != 0 {
                let size = 1u64 << shift(level);
                let base = iova & !(size - 1);
                let mut len = size;
                let mut last = entry;
                for next in &table.entries[slot + 1..] {
                    if len - (iova - base) >= want || next.load(Ordering::Acquire) != last + size {
                        break;
                    }
                    last += size;
                    len += size;
                }
                return Some(Leaf {
                    iova: base,
                    len,
                    host: entry & !FLAGS,
                    access: entry & (READ | WRITE),
                });
            }
            if entry & TABLE == 0 {
                return None;
            }
            // SAFETY: loaded with Acquire, so the table is initialised; it is freed only after
            // the fence, which waits for this thread.
            table = unsafe { &*child(entry) };
            level -= 1;
        }
    }
}

impl Drop for Radix {
    fn drop(&mut self) {
        fn free(table: &Table) {
            for entry in &table.entries {
                let entry = entry.load(Ordering::Relaxed);
                if entry & TABLE != 0 {
                    // SAFETY: nobody else holds the tree any more.
                    let below = unsafe { Box::from_raw(child(entry)) };
                    free(&below);
                }
            }
        }
        free(&self.root);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    const PAGE: u64 = 4096;

    #[test]
    fn a_huge_aligned_range_takes_one_entry() {
        let radix = Radix::new();
        radix.set(1 << 30, 4 << 30, 0x7000_0000_1000, READ | WRITE);
        assert_eq!(radix.tables(), 2);
        let leaf = radix.walk((3 << 30) + 5, 1).unwrap();
        assert_eq!((leaf.iova, leaf.len), (3 << 30, 1 << 30));
        assert_eq!(leaf.host, 0x7000_0000_1000 + (2 << 30));
    }

    #[test]
    fn contiguous_pages_are_joined_as_far_as_asked() {
        let radix = Radix::new();
        for page in 0..8 {
            radix.set(page * PAGE, PAGE, 0x10_0000 + page * PAGE, READ);
        }
        assert_eq!(radix.walk(PAGE + 1, 4095).unwrap().len, PAGE);
        assert_eq!(radix.walk(PAGE + 1, 4096).unwrap().len, 2 * PAGE);
        assert_eq!(radix.walk(PAGE, 1 << 20).unwrap().len, 7 * PAGE);
    }

    #[test]
    fn empty_tables_are_given_back() {
        let radix = Radix::new();
        radix.set(5 << 39 | 7 << 21, PAGE, 0x1000, READ);
        assert_eq!(radix.tables(), 4);
        let mut retired = Retired::default();
        radix.clear(5 << 39 | 7 << 21, PAGE, &mut retired);
        assert_eq!((radix.tables(), retired.0.len()), (1, 3));
        assert_eq!(radix.walk(5 << 39 | 7 << 21, 1), None);
    }

    proptest! {
        #[test]
        fn agrees_with_an_interval_map(
            ranges in proptest::collection::vec((0u64..1 << 20, 1u64..3000, any::<bool>()), 1..40),
            probes in proptest::collection::vec(0u64..(1 << 20) + 3000, 64),
        ) {
            let radix = Radix::new();
            let mut model: BTreeMap<u64, (u64, u64)> = BTreeMap::new();
            for (n, &(start, pages, remove)) in ranges.iter().enumerate() {
                if remove && let Some((iova, (len, _))) = model.pop_first() {
                    let mut retired = Retired::default();
                    radix.clear(iova, len, &mut retired);
                }
                let (iova, len) = (start * PAGE, pages * PAGE);
                let free = model.range(..iova + len).next_back()
                    .is_none_or(|(s, (l, _))| s + l <= iova);
                if free {
                    let host = (n as u64 + 1) << 40;
                    radix.set(iova, len, host, READ);
                    model.insert(iova, (len, host));
                }
            }
            for probe in probes {
                let iova = probe * PAGE + 17;
                let expected = model.range(..=iova).next_back()
                    .filter(|(s, (l, _))| iova < **s + l)
                    .map(|(s, (_, host))| host + (iova - s));
                let found = radix.walk(iova, 1).map(|leaf| leaf.host + (iova - leaf.iova));
                prop_assert_eq!(found, expected);
            }
            let mut retired = Retired::default();
            for (iova, (len, _)) in model {
                radix.clear(iova, len, &mut retired);
            }
            prop_assert_eq!(radix.tables(), 1);
        }
    }
}
