//! Objects by handle: a slab whose freed handles are reused last, each time with a new generation.
//!
//! A handle is an index, found without hashing. The generation (1 to 255) is for names that leave
//! the NIC, memory keys and queue pair numbers, so that a stale one is refused. Each index starts
//! with one of its own that cannot be foretold; it wraps after 255 reuses of the index.

use std::collections::VecDeque;
use std::hash::{BuildHasher, RandomState};

use super::error::Error;

/// Most objects of one kind: handles are 16 bits wide.
const MAX_HANDLES: u32 = 1 << 16;

struct Slot<T> {
    generation: u8,
    value: Option<T>,
}

/// A table of at most `limit` objects.
pub(crate) struct Table<T> {
    what: &'static str,
    limit: u32,
    /// Handles below are only given out by [`Table::insert_at`].
    reserved: u32,
    /// What first generations are made of.
    seed: RandomState,
    slots: Vec<Slot<T>>,
    free: VecDeque<u32>,
}

impl<T> Table<T> {
    pub(crate) fn new(what: &'static str, limit: u32) -> Self {
        Self::with_reserved(what, limit, 0)
    }

    /// A table that gives out its first `reserved` handles only by name.
    pub(crate) fn with_reserved(what: &'static str, limit: u32, reserved: u32) -> Self {
        let limit = limit.min(MAX_HANDLES);
        let reserved = reserved.min(limit);
        let (seed, free) = (RandomState::new(), VecDeque::new());
        let mut table = Self { what, limit, reserved, seed, slots: Vec::new(), free };
        for _ in 0..reserved {
            table.add_slot();
        }
        table
    }

    fn add_slot(&mut self) -> u32 {
        let index = self.slots.len() as u32;
        let generation = (self.seed.hash_one(index) % u64::from(u8::MAX)) as u8 + 1;
        self.slots.push(Slot { generation, value: None });
        index
    }

    /// Puts in what `make` makes of its index and generation, and gives the index.
    pub(crate) fn insert(&mut self, make: impl FnOnce(u32, u8) -> T) -> Result<u32, Error> {
        let index = if (self.slots.len() as u32) < self.limit {
            self.add_slot()
        } else {
            self.free.pop_front().ok_or(Error::Exhausted { what: self.what, limit: self.limit })?
        };
        let slot = &mut self.slots[index as usize];
        slot.value = Some(make(index, slot.generation));
        Ok(index)
    }

    /// As `insert`, at a reserved handle.
    pub(crate) fn insert_at(
        &mut self,
        handle: u32,
        make: impl FnOnce(u32, u8) -> T,
    ) -> Result<u32, Error> {
        let full = Error::Exhausted { what: self.what, limit: self.limit };
        let slot = self.slots.get_mut(handle as usize).filter(|_| handle < self.reserved);
        let slot = slot.filter(|slot| slot.value.is_none()).ok_or(full)?;
        slot.value = Some(make(handle, slot.generation));
        Ok(handle)
    }

    #[inline]
    pub(crate) fn get(&self, index: u32) -> Option<&T> {
        self.slots.get(index as usize)?.value.as_ref()
    }

    #[inline]
    pub(crate) fn get_mut(&mut self, index: u32) -> Option<&mut T> {
        self.slots.get_mut(index as usize)?.value.as_mut()
    }

    /// As `get_mut`, with the refusal a command gives.
    pub(crate) fn find(&mut self, handle: u32) -> Result<&mut T, Error> {
        let what = self.what;
        self.get_mut(handle).ok_or(Error::NoSuch { what, handle })
    }

    pub(crate) fn remove(&mut self, handle: u32) -> Result<T, Error> {
        let gone = self.slots.get_mut(handle as usize).and_then(|slot| {
            let gone = slot.value.take()?;
            slot.generation = if slot.generation == u8::MAX { 1 } else { slot.generation + 1 };
            Some(gone)
        });
        let gone = gone.ok_or(Error::NoSuch { what: self.what, handle })?;
        if handle >= self.reserved {
            self.free.push_back(handle);
        }
        Ok(gone)
    }

    /// Drops everything; generations live on.
    pub(crate) fn clear(&mut self) {
        for index in 0..self.slots.len() as u32 {
            let _ = self.remove(index);
        }
    }

    /// Every handle in use.
    pub(crate) fn handles(&self) -> impl Iterator<Item = u32> {
        self.slots.iter().enumerate().filter(|(_, s)| s.value.is_some()).map(|(i, _)| i as u32)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn generations_cannot_be_foretold_from_another_table() {
        let generations = || {
            let mut table = Table::new("thing", 64);
            let mut seen = Vec::new();
            for _ in 0..64 {
                table.insert(|_, generation| seen.push(generation)).expect("room");
            }
            assert!(!seen.contains(&0));
            seen
        };
        assert_ne!(generations(), generations());
    }

    #[test]
    fn a_generation_changes_with_each_use_and_is_never_0() {
        let mut table = Table::new("thing", 1);
        let mut last = 0;
        for _ in 0..600 {
            let handle = table.insert(|_, generation| generation).expect("room");
            let generation = table.remove(handle).expect("it is there");
            assert!(generation != last && generation != 0);
            last = generation;
        }
    }

    #[test]
    fn reserved_handles_are_given_by_name_only() {
        let mut table = Table::with_reserved("thing", 4, 2);
        for round in 0..3 {
            assert_eq!(table.insert(|i, _| i), Ok(2));
            assert_eq!(table.insert(|i, _| i), Ok(3));
            assert!(table.insert(|i, _| i).is_err(), "full, in round {round}");
            assert_eq!(table.insert_at(1, |i, _| i), Ok(1));
            assert!(table.insert_at(1, |i, _| i).is_err(), "in use");
            assert!(table.insert_at(2, |i, _| i).is_err(), "not reserved");
            table.clear();
        }
    }
}
