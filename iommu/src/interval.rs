//! What is mapped where: disjoint ranges, each with a value.
//!
//! Ranges never merge and never split, because a mapping does neither: the kernel refuses an
//! unmap that cuts one in two. The one interesting question is therefore [`IntervalMap::tiles`]:
//! is a range made up of whole entries, with no gap?

use std::collections::BTreeMap;

use crate::IovaRange;

/// Disjoint ranges in order, each with a value.
#[derive(Debug, Clone)]
pub struct IntervalMap<V> {
    entries: BTreeMap<u64, (IovaRange, V)>,
}

/// Why a range is not made up of whole entries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NotTiled {
    /// No entry holds this address.
    Gap(u64),
    /// An entry begins before the range, or ends after it.
    Bisects(IovaRange),
}

impl<V> Default for IntervalMap<V> {
    fn default() -> Self {
        Self { entries: BTreeMap::new() }
    }
}

impl<V> IntervalMap<V> {
    /// Nothing is mapped.
    pub fn new() -> Self {
        Self::default()
    }

    /// Number of entries.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there are no entries.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Adds an entry, unless it overlaps one, which is returned instead.
    pub fn insert(&mut self, range: IovaRange, value: V) -> Result<(), IovaRange> {
        if let Some((existing, _)) = self.overlapping(range).next() {
            return Err(existing);
        }
        self.entries.insert(range.start(), (range, value));
        Ok(())
    }

    /// Removes the entry that is exactly `range`.
    pub fn remove(&mut self, range: IovaRange) -> Option<V> {
        if self.entries.get(&range.start())?.0 != range {
            return None;
        }
        self.entries.remove(&range.start()).map(|(_, value)| value)
    }

    /// The entry that holds `address`.
    pub fn get(&self, address: u64) -> Option<(IovaRange, &V)> {
        let (_, (range, value)) = self.entries.range(..=address).next_back()?;
        range.contains(address).then_some((*range, value))
    }

    /// The value of the entry that is exactly `range`.
    pub fn get_mut(&mut self, range: IovaRange) -> Option<&mut V> {
        let (found, value) = self.entries.get_mut(&range.start())?;
        (*found == range).then_some(value)
    }

    /// Entries that share an address with `range`, in order.
    pub fn overlapping(&self, range: IovaRange) -> impl Iterator<Item = (IovaRange, &V)> {
        let first = self.get(range.start()).map_or(range.start(), |(found, _)| found.start());
        self.entries.range(first..range.end()).map(|(_, (found, value))| (*found, value))
    }

    /// The entries that make up `range` with neither gap nor overhang, in order; at least one.
    pub fn tiles(&self, range: IovaRange) -> Result<Vec<IovaRange>, NotTiled> {
        let mut tiles = Vec::new();
        self.list_tiles(range, &mut tiles)?;
        Ok(tiles)
    }

    /// [`IntervalMap::tiles`] at the end of a list.
    pub fn list_tiles(&self, range: IovaRange, tiles: &mut Vec<IovaRange>) -> Result<(), NotTiled> {
        let mut at = range.start();
        for (found, _) in self.overlapping(range) {
            if !range.covers(&found) {
                return Err(NotTiled::Bisects(found));
            }
            if found.start() != at {
                return Err(NotTiled::Gap(at));
            }
            at = found.end();
            tiles.push(found);
        }
        if at == range.end() { Ok(()) } else { Err(NotTiled::Gap(at)) }
    }
}
