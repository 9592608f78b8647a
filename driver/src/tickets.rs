//! The account of a shared receive queue: tickets, as its requests complete in any order.

use std::sync::atomic::{AtomicU64, Ordering};

/// The account of a queue whose requests complete in any order and into several completion queues:
/// each outstanding request holds a ticket.
#[derive(Debug)]
pub(crate) struct Tickets {
    held: Box<[AtomicU64]>,
    ids: Box<[AtomicU64]>,
}

impl Tickets {
    pub(crate) fn new(depth: u32) -> Self {
        let words = depth.div_ceil(64);
        let held: Box<[AtomicU64]> = (0..words).map(|_| AtomicU64::new(0)).collect();
        if !depth.is_multiple_of(64)
            && let Some(last) = held.last()
        {
            // Tickets beyond the depth do not exist: they are held for ever.
            last.store(!0 << (depth % 64), Ordering::Relaxed);
        }
        Self { held, ids: (0..depth).map(|_| AtomicU64::new(0)).collect() }
    }

    /// Work queue (one owner): takes a free ticket, looking first where `hint` says.
    #[inline]
    pub(crate) fn take(&self, hint: &mut u32, id: u64) -> Option<u32> {
        let words = self.held.len();
        let first = *hint as usize;
        for step in 0..words {
            let at = if first + step < words { first + step } else { first + step - words };
            let held = self.held[at].load(Ordering::Acquire);
            if held != !0 {
                let bit = held.trailing_ones();
                let ticket = at as u32 * 64 + bit;
                self.ids[ticket as usize].store(id, Ordering::Relaxed);
                // Only the owner sets bits, so this one is still clear.
                self.held[at].fetch_or(1 << bit, Ordering::Release);
                *hint = at as u32;
                return Some(ticket);
            }
        }
        None
    }

    /// Completion queue (any number of them): gives a ticket back; `None` if it is not held.
    #[inline]
    pub(crate) fn retire(&self, ticket: u32) -> Option<u64> {
        let id = self.ids.get(ticket as usize)?;
        let word = &self.held[ticket as usize / 64];
        let bit = 1u64 << (ticket % 64);
        if word.load(Ordering::Acquire) & bit == 0 {
            return None;
        }
        let id = id.load(Ordering::Relaxed);
        if word.fetch_and(!bit, Ordering::AcqRel) & bit == 0 { None } else { Some(id) }
    }

    /// Tickets held.
    pub(crate) fn outstanding(&self) -> u32 {
        let held: u32 =
            self.held.iter().map(|word| word.load(Ordering::Acquire).count_ones()).sum();
        held - (self.held.len() as u32 * 64 - self.ids.len() as u32)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn tickets_agree_with_a_set(
            depth in 1u32..200,
            steps in prop::collection::vec((any::<bool>(), 0u32..256), 1..400),
        ) {
            let tickets = Tickets::new(depth);
            let mut model = std::collections::BTreeMap::new();
            let mut hint = 0;
            for (take, number) in steps {
                if take {
                    let id = u64::from(number) + 1000;
                    match tickets.take(&mut hint, id) {
                        Some(ticket) => {
                            prop_assert!(ticket < depth);
                            prop_assert!(model.insert(ticket, id).is_none());
                        }
                        None => prop_assert_eq!(model.len() as u32, depth),
                    }
                } else {
                    prop_assert_eq!(tickets.retire(number), model.remove(&number));
                }
                prop_assert_eq!(tickets.outstanding() as usize, model.len());
            }
        }
    }
}
