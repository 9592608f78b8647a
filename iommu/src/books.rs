//! The books of an address space: which addresses are free, and what stands behind the others.

use crate::chunk::{Chunk, On};
use crate::interval::{IntervalMap, NotTiled};
use crate::iova::IovaAllocator;
use crate::permit::Permits;
use crate::{Error, IovaRange, Limits, Result};

/// The books.
pub(crate) struct State {
    pub(crate) free: IovaAllocator,
    pub(crate) chunks: IntervalMap<Chunk>,
    /// Mappings that exist in the domain.
    pub(crate) mappings: u64,
    pub(crate) permits: Permits,
    /// A list with room for all chunks, so that taking memory away need not allocate one.
    list: Vec<IovaRange>,
}

impl State {
    /// Nothing is mapped, and these addresses are free.
    pub(crate) fn new(free: IovaAllocator) -> Self {
        let (chunks, permits) = (IntervalMap::new(), Permits::default());
        Self { free, chunks, mappings: 0, permits, list: Vec::new() }
    }

    /// The chunks that make up `range`.
    pub(crate) fn tiles(&self, range: IovaRange) -> Result<Vec<IovaRange>> {
        self.chunks.tiles(range).map_err(|why| why.of(range))
    }

    /// The same in the list that is kept for that: [`State::put_away`] afterwards.
    pub(crate) fn take_tiles(&mut self, range: IovaRange) -> Result<Vec<IovaRange>> {
        let mut list = std::mem::take(&mut self.list);
        match self.chunks.list_tiles(range, &mut list) {
            Ok(()) => Ok(list),
            Err(why) => {
                self.put_away(list);
                Err(why.of(range))
            }
        }
    }

    /// The list that was taken is not needed any more.
    pub(crate) fn put_away(&mut self, mut list: Vec<IovaRange>) {
        list.clear();
        self.list = list;
    }

    /// Adds a chunk, and room for it in the list.
    pub(crate) fn add(&mut self, range: IovaRange, chunk: Chunk) -> Result<(), IovaRange> {
        self.chunks.insert(range, chunk)?;
        self.list.reserve(self.chunks.len());
        Ok(())
    }

    /// Records what a chunk stands on, keeps the count of mappings, and gives what it stood on.
    pub(crate) fn set(&mut self, tile: IovaRange, on: On) -> Option<On> {
        let chunk = self.chunks.get_mut(tile)?;
        let before = chunk.mappings(tile.len());
        let old = std::mem::replace(&mut chunk.on, on);
        let after = chunk.mappings(tile.len());
        self.mappings = self.mappings - before + after;
        Some(old)
    }

    /// Whether the domain has room for `more` mappings.
    pub(crate) fn check_room(&self, limits: &Limits, more: u64) -> Result<()> {
        match limits.max_mappings {
            Some(limit) if self.mappings.saturating_add(more) > limit => {
                Err(Error::MappingLimit { limit })
            }
            _ => Ok(()),
        }
    }
}

impl NotTiled {
    fn of(self, range: IovaRange) -> Error {
        match self {
            Self::Gap(at) => Error::NotMapped { range, at },
            Self::Bisects(mapping) => Error::Bisects { range, mapping },
        }
    }
}
