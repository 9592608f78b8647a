//! Which addresses are registered: a map of disjoint segments, each with a count of the regions
//! over it.

use std::collections::BTreeMap;
use std::ops::Range;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Segment {
    end: u64,
    users: u32,
}

/// Address ranges that may overlap and repeat.
#[derive(Debug, Default)]
pub(crate) struct Ranges {
    /// By start; no two touch the same address.
    segments: BTreeMap<u64, Segment>,
}

impl Ranges {
    /// Adds a range once more.
    pub(crate) fn insert(&mut self, range: Range<u64>) {
        self.split(range.start);
        self.split(range.end);
        let mut at = range.start;
        let covered: Vec<_> =
            self.segments.range(range.clone()).map(|(start, s)| (*start, s.end)).collect();
        for (start, end) in covered {
            if at < start {
                self.segments.insert(at, Segment { end: start, users: 1 });
            }
            if let Some(segment) = self.segments.get_mut(&start) {
                segment.users += 1;
            }
            at = end;
        }
        if at < range.end {
            self.segments.insert(at, Segment { end: range.end, users: 1 });
        }
    }

    /// Takes a range away that was added before.
    pub(crate) fn remove(&mut self, range: Range<u64>) {
        self.split(range.start);
        self.split(range.end);
        let covered: Vec<u64> = self.segments.range(range).map(|(start, _)| *start).collect();
        for start in covered {
            if let Some(segment) = self.segments.get_mut(&start) {
                segment.users -= 1;
                if segment.users == 0 {
                    self.segments.remove(&start);
                }
            }
        }
    }

    /// How many bytes from `address` on are registered, as far as one segment says; 0 for none.
    #[inline]
    pub(crate) fn reach(&self, address: u64) -> u64 {
        match self.segments.range(..=address).next_back() {
            Some((_, segment)) => segment.end.saturating_sub(address),
            None => 0,
        }
    }

    /// Makes `address` a boundary, if it is inside a segment.
    fn split(&mut self, address: u64) {
        if let Some((start, segment)) = self.segments.range_mut(..address).next_back()
            && segment.end > address
            && *start < address
        {
            let rest = *segment;
            segment.end = address;
            self.segments.insert(address, rest);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn an_address_is_registered_while_some_range_covers_it(
            ranges in prop::collection::vec((0..60u64, 1..20u64), 1..12),
            removed in prop::collection::vec(any::<bool>(), 12),
        ) {
            let ranges: Vec<_> = ranges.into_iter().map(|(at, len)| at..at + len).collect();
            let mut map = Ranges::default();
            ranges.iter().for_each(|r| map.insert(r.clone()));
            let mut left = Vec::new();
            for (range, gone) in ranges.into_iter().zip(removed) {
                if gone { map.remove(range) } else { left.push(range) }
            }
            for address in 0..80 {
                let covered = left.iter().any(|r| r.contains(&address));
                let reach = map.reach(address);
                prop_assert_eq!(reach > 0, covered, "address {}", address);
                for further in address..address + reach {
                    prop_assert!(left.iter().any(|r| r.contains(&further)));
                }
            }
            left.into_iter().for_each(|r| map.remove(r));
            prop_assert!(map.segments.is_empty());
        }
    }
}
