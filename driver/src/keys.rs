//! Keys of work queues: small indices, each with a generation that changes when it is used again.

use crate::account::Key;
use crate::error::{Error, Result};

/// Indices that a key can hold.
const MAX_KEYS: usize = 1 << 16;

/// What became of the key last issued for an index.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Life {
    Used,
    /// Its work queue is gone, but completion queues may still know it.
    Retired,
    Free,
}

/// Issues keys.
#[derive(Debug, Default)]
pub(crate) struct KeyPool {
    /// By index: the generation last issued, and what became of it.
    slots: Vec<(u16, Life)>,
    free: Vec<u16>,
}

impl KeyPool {
    pub(crate) fn issue(&mut self) -> Result<Key> {
        let index = match self.free.pop() {
            Some(index) => index,
            None => {
                let next = self.slots.len();
                Error::check_limit("work queues", next as u64 + 1, MAX_KEYS as u64)?;
                self.slots.push((0, Life::Free));
                next as u16
            }
        };
        let slot = &mut self.slots[usize::from(index)];
        // Generation 0 is nobody's.
        slot.0 = if slot.0 == u16::MAX { 1 } else { slot.0 + 1 };
        slot.1 = Life::Used;
        Ok(Key(u32::from(slot.0) << 16 | u32::from(index)))
    }

    /// Says that the work queue is gone. Do so before completion queues forget the key: whoever
    /// polls one meanwhile must find it in one of the two places.
    pub(crate) fn retire(&mut self, key: Key) {
        if let Some(slot) = self.slots.get_mut(key.index())
            && u32::from(slot.0) == key.0 >> 16
            && slot.1 == Life::Used
        {
            slot.1 = Life::Retired;
        }
    }

    /// Retires the key if that was not done, and lets its index be used again.
    pub(crate) fn release(&mut self, key: Key) {
        if let Some(slot) = self.slots.get_mut(key.index())
            && u32::from(slot.0) == key.0 >> 16
            && slot.1 != Life::Free
        {
            slot.1 = Life::Free;
            // Oldest first would be better still for telling generations apart, but 65535 of
            // them per index are enough.
            self.free.push(key.index() as u16);
        }
    }

    /// Whether the key was issued once and its work queue is gone.
    pub(crate) fn is_retired(&self, key: Key) -> bool {
        let generation = key.0 >> 16;
        self.slots.get(key.index()).is_some_and(|(issued, life)| {
            let issued = u32::from(*issued);
            generation != 0 && (generation < issued || generation == issued && *life != Life::Used)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_index_that_is_used_again_gets_another_key() {
        let mut pool = KeyPool::default();
        let first = pool.issue().unwrap();
        assert!(!pool.is_retired(first), "in use");
        pool.retire(first);
        assert!(pool.is_retired(first));
        let other = pool.issue().unwrap();
        assert_ne!(first.index(), other.index(), "retired is not free");
        pool.release(first);
        assert!(pool.is_retired(first));
        let second = pool.issue().unwrap();
        assert_eq!(first.index(), second.index());
        assert_ne!(first, second);
        assert!(pool.is_retired(first) && !pool.is_retired(second));
        assert!(!pool.is_retired(Key(second.0 & 0xffff)), "generation 0 was never issued");
        assert!(!pool.is_retired(Key(0x7fff_0000 | second.0 & 0xffff)), "not issued yet");
    }

    #[test]
    fn releasing_twice_changes_nothing() {
        let mut pool = KeyPool::default();
        let key = pool.issue().unwrap();
        pool.release(key);
        pool.release(key);
        let (a, b) = (pool.issue().unwrap(), pool.issue().unwrap());
        assert_ne!(a.index(), b.index());
    }
}
