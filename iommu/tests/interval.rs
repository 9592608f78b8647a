//! The books against a model so simple that it cannot be wrong: one entry per page.

use std::collections::BTreeSet;

use holdfast_iommu::IovaRange;
use holdfast_iommu::interval::{IntervalMap, NotTiled};
use holdfast_iommu::iova::IovaAllocator;
use proptest::prelude::*;

const PAGE: u64 = 4096;
const PAGES: u64 = 64;

fn pages(start: u64, len: u64) -> IovaRange {
    IovaRange::new(start * PAGE, len * PAGE).unwrap()
}

#[derive(Debug, Clone)]
enum Op {
    Insert(u64, u64),
    Remove(u64, u64),
    Tiles(u64, u64),
}

fn op() -> impl Strategy<Value = Op> {
    let span = || (0..PAGES, 1..9u64);
    prop_oneof![
        span().prop_map(|(start, len)| Op::Insert(start, len)),
        span().prop_map(|(start, len)| Op::Remove(start, len)),
        span().prop_map(|(start, len)| Op::Tiles(start, len)),
    ]
}

proptest! {
    #[test]
    fn the_interval_map_is_the_page_map(ops in proptest::collection::vec(op(), 1..200)) {
        let mut map = IntervalMap::new();
        // Which entry, if any, holds each page.
        let mut model: Vec<Option<(u64, u64)>> = vec![None; (PAGES + 16) as usize];
        for op in ops {
            match op {
                Op::Insert(start, len) => {
                    let taken = (start..start + len).find_map(|page| model[page as usize]);
                    let inserted = map.insert(pages(start, len), (start, len));
                    prop_assert_eq!(inserted.err(), taken.map(|(s, l)| pages(s, l)));
                    if taken.is_none() {
                        model[start as usize..(start + len) as usize].fill(Some((start, len)));
                    }
                }
                Op::Remove(start, len) => {
                    let exact = model[start as usize] == Some((start, len));
                    prop_assert_eq!(map.remove(pages(start, len)).is_some(), exact);
                    if exact {
                        model[start as usize..(start + len) as usize].fill(None);
                    }
                }
                Op::Tiles(start, len) => {
                    let found = map.tiles(pages(start, len));
                    prop_assert_eq!(found, model_tiles(&model, start, len));
                }
            }
            for (page, held) in model.iter().enumerate() {
                let found = map.get(page as u64 * PAGE + 17).map(|(_, value)| *value);
                prop_assert_eq!(found, *held);
            }
            let entries = model.iter().flatten().collect::<BTreeSet<_>>().len();
            prop_assert_eq!(map.len(), entries);
        }
    }

    #[test]
    fn the_allocator_is_first_fit_over_the_page_map(
        ops in proptest::collection::vec((any::<bool>(), 1..12u64, 0..4u32, any::<usize>()), 1..200),
        hole in 1..PAGES - 2,
    ) {
        let usable = [pages(0, 20), pages(16, PAGES - 16)];
        let mut allocator = IovaAllocator::new(&usable, &[pages(hole, 2)], PAGE);
        let mut free: Vec<bool> = vec![true; PAGES as usize];
        free[0] = false;
        free[hole as usize..hole as usize + 2].fill(false);
        let mut held: Vec<IovaRange> = Vec::new();
        for (allocate, len, align, pick) in ops {
            if allocate || held.is_empty() {
                let align = 1u64 << align;
                let fits = |start: &u64| {
                    let end = start + len;
                    end <= PAGES && free[*start as usize..end as usize].iter().all(|free| *free)
                };
                let wanted = (0..PAGES).step_by(align as usize).find(fits);
                let found = allocator.allocate(len * PAGE, align * PAGE);
                prop_assert_eq!(found, wanted.map(|start| pages(start, len)));
                if let Some(start) = wanted {
                    free[start as usize..(start + len) as usize].fill(false);
                    held.push(pages(start, len));
                }
            } else {
                let range = held.swap_remove(pick % held.len());
                prop_assert!(allocator.release(range));
                prop_assert!(!allocator.release(range), "{} was released twice", range);
                let (start, end) = (range.start() / PAGE, range.end() / PAGE);
                free[start as usize..end as usize].fill(true);
            }
            let found: Vec<u64> = allocator.free_ranges().flat_map(|r| r.steps(PAGE)).map(|r| r.start() / PAGE).collect();
            let wanted: Vec<u64> = (0..PAGES).filter(|page| free[*page as usize]).collect();
            prop_assert_eq!(found, wanted);
            let ranges: Vec<IovaRange> = allocator.free_ranges().collect();
            prop_assert!(ranges.windows(2).all(|pair| pair[0].end() < pair[1].start()), "not merged: {:?}", ranges);
        }
    }

    #[test]
    fn steps_cover_a_range_in_order(start in 0..1u64 << 40, len in 1..1u64 << 20, step in 1..1u64 << 21) {
        let range = IovaRange::new(start, len).unwrap();
        prop_assume!(len / step < 10_000);
        let mut at = start;
        for part in range.steps(step) {
            prop_assert_eq!(part.start(), at);
            prop_assert!(part.len() == step || part.end() == range.end());
            at = part.end();
        }
        prop_assert_eq!(at, range.end());
    }
}

fn model_tiles(
    model: &[Option<(u64, u64)>],
    start: u64,
    len: u64,
) -> Result<Vec<IovaRange>, NotTiled> {
    let mut tiles = Vec::new();
    let mut page = start;
    let mut gap = None;
    while page < start + len {
        match model[page as usize] {
            None => {
                gap = gap.or(Some(page));
                page += 1;
            }
            Some((s, l)) if s < start || s + l > start + len => {
                // A gap is only seen once the next entry, or the end, is reached.
                return Err(NotTiled::Bisects(pages(s, l)));
            }
            Some((s, l)) => {
                if let Some(gap) = gap {
                    return Err(NotTiled::Gap(gap * PAGE));
                }
                tiles.push(pages(s, l));
                page = s + l;
            }
        }
    }
    match gap {
        Some(gap) => Err(NotTiled::Gap(gap * PAGE)),
        None => Ok(tiles),
    }
}

#[test]
fn large_requests_are_aligned_for_large_pages() {
    const MIB2: u64 = 2 << 20;
    const GIB: u64 = 1 << 30;
    for (len, align) in [
        (PAGE, PAGE),
        (MIB2 - PAGE, PAGE),
        (MIB2, MIB2),
        (GIB - PAGE, MIB2),
        (GIB, GIB),
        (2 * GIB, GIB),
    ] {
        assert_eq!(IovaAllocator::alignment_for(len, PAGE), align, "{len:#x}");
    }
}

#[test]
fn the_ends_of_the_address_space_do_not_wrap() {
    assert_eq!(IovaRange::new(u64::MAX - PAGE + 1, PAGE), None);
    assert_eq!(IovaRange::new(0, 0), None);
    let all = IovaRange::between(0, u64::MAX).unwrap();
    let mut allocator = IovaAllocator::new(&[all], &[], PAGE);
    assert_eq!(allocator.allocate(u64::MAX, PAGE), None);
    let (free, largest) = allocator.free_bytes();
    assert_eq!((free, largest), (u64::MAX - 2 * PAGE + 1, free));
    let first = allocator.allocate(1, PAGE).unwrap();
    assert_eq!(first, IovaRange::new(PAGE, PAGE).unwrap(), "page 0 is never handed out");
    assert_eq!(allocator.allocate(largest, PAGE), None);
    assert!(allocator.allocate(largest - PAGE, PAGE).is_some());
    assert_eq!(allocator.free_bytes(), (0, 0));
}

#[test]
fn reserved_pages_are_taken_out_whole() {
    let reserved = IovaRange::between(5 * PAGE + 1, 6 * PAGE + 1).unwrap();
    let allocator = IovaAllocator::new(&[pages(0, 10)], &[reserved], PAGE);
    let free: Vec<IovaRange> = allocator.free_ranges().collect();
    assert_eq!(free, [pages(1, 4), pages(7, 3)]);
}
