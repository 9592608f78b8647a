//! Fencing first and covering later, what the callers are told when, and mappings that somebody
//! else took away.

mod fake;

use std::cell::Cell;
use std::sync::Arc;

use fake::{Fake, limits, range};
use holdfast_iommu::{
    AddressSpace, Backing, Behind, Error, IovaRange, Limits, Mapping, Order, Piece, Prot, Scrap,
    Target, retarget_all,
};

const PAGE: u64 = 4096;
const MEMORY: usize = 0x10_0000_0000;
const CHUNKS: usize = 512;
const LEN: u64 = CHUNKS as u64 * 2 * PAGE;

fn memory(va: usize, len: u64) -> Piece<'static> {
    #[allow(unsafe_code)]
    // SAFETY: the fake domain only records the address.
    let backing = unsafe { Backing::memory(va, None) };
    Piece { backing, len }
}

struct Set {
    fake: Arc<Fake>,
    space: Arc<AddressSpace>,
    scrap: Scrap,
    mapping: Mapping,
}

/// 512 chunks of two pages.
fn set(limits: Limits) -> Set {
    let fake = Fake::new(limits);
    let space = AddressSpace::new(Arc::clone(&fake) as Arc<_>).unwrap();
    let scrap = space.scrap(2 * PAGE).unwrap();
    let mapping =
        space.map_pieces(&[memory(MEMORY, LEN)], Prot::ReadWrite, Some(2 * PAGE)).unwrap();
    Set { fake, space, scrap, mapping }
}

impl Set {
    fn range(&self) -> IovaRange {
        self.mapping.range()
    }

    fn target(&self) -> Target<'_> {
        Target { space: &self.space, range: self.range(), scrap: &self.scrap }
    }

    fn chunk(&self, index: u64) -> IovaRange {
        range(self.range().start() + index * 2 * PAGE, 2 * PAGE)
    }

    /// Chunks on memory, on scrap, on nothing, by the books.
    fn behind(&self) -> [usize; 3] {
        let chunks = self.space.chunks(self.range());
        let count = |what| chunks.iter().filter(|chunk| chunk.behind == what).count();
        [count(Behind::Memory), count(Behind::Scrap), count(Behind::Nothing)]
    }

    /// Pages that still translate to the old memory.
    fn exposed(&self) -> usize {
        let old = MEMORY..MEMORY + LEN as usize;
        let pages = self.mapping.pages(PAGE);
        pages.filter(|page| self.fake.translate(*page).is_some_and(|va| old.contains(&va))).count()
    }

    fn calls(&self) -> (usize, usize) {
        let state = self.fake.state.lock().unwrap();
        (state.maps, state.unmaps)
    }
}

#[test]
fn a_large_range_is_fenced_by_one_call_where_an_unmap_spans_mappings() {
    for (limits, unmaps) in [(limits(), 1), (Limits { unmap_spans: false, ..limits() }, CHUNKS)] {
        let set = set(limits);
        let before = set.calls();
        let fenced = set.space.fence(set.range()).unwrap();
        assert_eq!((fenced.chunks, fenced.vanished), (CHUNKS, 0));
        assert_eq!(set.calls(), (before.0, before.1 + unmaps));
        assert_eq!((set.exposed(), set.behind()), (0, [0, 0, CHUNKS]));
        assert_eq!((set.fake.mapped(), set.space.mappings()), (vec![], 0));
        let covered = set.space.cover(set.range(), &set.scrap).unwrap();
        assert_eq!((covered.chunks, covered.holes), (CHUNKS, 0));
        assert!(covered.window >= covered.total, "the last hole has been one since the fence");
        assert_eq!(set.behind(), [0, CHUNKS, 0]);
        let again = set.space.fence(set.range()).unwrap();
        assert_eq!((again.chunks, set.behind()), (0, [0, CHUNKS, 0]), "scrap is no danger");
    }
}

#[test]
fn whoever_waits_is_told_when_all_ranges_are_fenced_and_not_before() {
    for order in [Order::FenceFirst, Order::ChunkByChunk] {
        let (one, other) = (set(limits()), set(limits()));
        let told = Cell::new(false);
        let done = retarget_all([one.target(), other.target()], order, |_| {
            told.set(true);
            assert_eq!((one.exposed(), other.exposed()), (0, 0));
            // Memory that is let go here is not made to wait for scrap.
            let holes = if order == Order::FenceFirst { CHUNKS } else { 0 };
            assert_eq!((one.behind()[2], other.behind()[2]), (holes, holes));
        });
        let done = done.unwrap();
        assert!(told.get());
        assert_eq!((done.chunks, done.vanished, done.holes), (2 * CHUNKS, 0, 0));
        assert!(done.fenced <= done.total && done.window <= done.total);
        assert_eq!((one.behind(), other.behind()), ([0, CHUNKS, 0], [0, CHUNKS, 0]));
    }
}

#[test]
fn nobody_is_told_while_one_chunk_may_reach_its_memory() {
    for order in [Order::FenceFirst, Order::ChunkByChunk] {
        let (one, other) = (set(limits()), set(limits()));
        let stuck = one.chunk(7);
        one.fake.faults(|faults| faults.stuck = Some(stuck.start()));
        let targets = [one.target(), other.target()];
        let error = retarget_all(targets, order, |_| panic!("told too early")).unwrap_err();
        let Error::RetargetIncomplete { count, first, .. } = error else { panic!("{error}") };
        assert_eq!((count, first), (1, stuck));
        assert_eq!((one.exposed(), other.exposed()), (2, 0), "all others were taken");
        assert_eq!(one.behind(), [1, CHUNKS - 1, 0], "and covered");
        one.fake.faults(|faults| faults.stuck = None);
        let told = Cell::new(false);
        let again = retarget_all(targets, order, |_| told.set(true)).unwrap();
        assert_eq!((again.chunks, told.get(), one.exposed()), (1, true, 0));
    }
}

#[test]
fn where_scrap_cannot_be_had_the_fence_stands_and_holes_are_counted() {
    let set = set(limits());
    set.fake.faults(|faults| faults.maps_left = Some(10));
    let told = Cell::new(false);
    let done = retarget_all([set.target()], Order::FenceFirst, |_| told.set(true)).unwrap();
    assert_eq!((done.holes, told.get()), (CHUNKS - 10, true));
    assert_eq!(set.behind(), [0, 10, CHUNKS - 10]);
    set.fake.faults(|faults| faults.maps_left = None);
    assert_eq!(set.space.cover(set.range(), &set.scrap).unwrap().chunks, CHUNKS - 10);
}

#[test]
fn mappings_that_somebody_else_took_away_count_as_fenced() {
    for spans in [true, false] {
        // All of them, or all but a few in the middle.
        for left in [0..0, 100..110] {
            for order in [Order::FenceFirst, Order::ChunkByChunk] {
                let set = set(Limits { unmap_spans: spans, ..limits() });
                let keep: Vec<u64> = left.clone().map(|at| set.chunk(at).start()).collect();
                set.fake.state.lock().unwrap().mapped.retain(|at, _| keep.contains(at));
                let done = retarget_all([set.target()], order, |_| {}).unwrap();
                assert_eq!((done.chunks, done.holes, set.exposed()), (CHUNKS, 0, 0));
                // One call that finds some of them cannot tell which; all are gone then.
                let some = order == Order::FenceFirst && spans;
                let vanished = if some { CHUNKS } else { CHUNKS - keep.len() };
                assert_eq!(done.vanished, vanished, "{order:?} {spans} {left:?}");
                assert_eq!(set.behind(), [0, CHUNKS, 0]);
                assert_eq!(set.space.mappings(), set.fake.mapped().len() as u64);
                set.space.restore(set.range(), &[memory(MEMORY, LEN)]).unwrap();
                assert_eq!(set.exposed(), 2 * CHUNKS);
            }
        }
    }
}

#[test]
fn a_mapping_that_vanished_can_be_unmapped_and_its_addresses_come_back() {
    for scrap in [false, true] {
        let set = set(limits());
        if scrap {
            set.space.retarget(set.range(), &set.scrap).unwrap();
        }
        set.fake.state.lock().unwrap().mapped.clear();
        let (space, start) = (Arc::clone(&set.space), set.range().start());
        set.mapping.unmap().unwrap();
        assert_eq!(space.mappings(), 0);
        let again = space.map(memory(MEMORY, LEN), Prot::Read, None).unwrap();
        assert_eq!(again.iova(), start);
    }
}
