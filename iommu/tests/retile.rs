//! A range laid out anew: other memory, cut elsewhere, and whatever fails, nothing that was not
//! given stands behind it.

mod fake;

use std::collections::BTreeMap;
use std::sync::Arc;

use fake::{Fake, limits, range};
use holdfast_iommu::{
    AddressSpace, Backing, Behind, Error, IovaRange, Limits, Mapping, Part, Piece, Prot, Scrap,
    Target, Tenant, retarget_all,
};
use proptest::prelude::*;

const PAGE: u64 = 4096;
const OLD: usize = 0x10_0000_0000;
const NEW: usize = 0x20_0000_0000;
const PAGES: u64 = 16;

fn piece(va: usize, pages: u64) -> Piece<'static> {
    #[allow(unsafe_code)]
    // SAFETY: the fake domain only records the address.
    let backing = unsafe { Backing::memory(va, None) };
    Piece { backing, len: pages * PAGE }
}

fn memory(at_page: u64, pages: u64) -> Part<'static> {
    Part::Memory(piece(NEW + (at_page * PAGE) as usize, pages))
}

fn scrap(pages: u64) -> Part<'static> {
    Part::Scrap { len: pages * PAGE }
}

struct Set {
    fake: Arc<Fake>,
    space: Arc<AddressSpace>,
    scrap: Scrap,
    mapping: Mapping,
}

/// Sixteen pages in chunks of `granule` pages, and a scrap of four pages.
fn set(limits: Limits, granule: u64) -> Set {
    set_with_scrap(limits, granule, 4)
}

fn set_with_scrap(limits: Limits, granule: u64, scrap_pages: u64) -> Set {
    let fake = Fake::new(limits);
    let space = AddressSpace::new(Arc::clone(&fake) as Arc<_>).unwrap();
    let scrap = space.scrap(scrap_pages * PAGE).unwrap();
    let granule = Some(granule * PAGE);
    let mapping = space.map_pieces(&[piece(OLD, PAGES)], Prot::ReadWrite, granule).unwrap();
    Set { fake, space, scrap, mapping }
}

impl Set {
    fn range(&self) -> IovaRange {
        self.mapping.range()
    }

    fn pages(&self, from: u64, count: u64) -> IovaRange {
        range(self.range().start() + from * PAGE, count * PAGE)
    }

    fn retile(
        &self,
        over: IovaRange,
        parts: &[Part<'_>],
        granule: Option<u64>,
    ) -> Result<(), Error> {
        let permit = self.space.permit(over).unwrap();
        self.space.retile(&permit, parts, granule.map(|g| g * PAGE), &self.scrap).map(drop)
    }

    /// Chunks as (pages, what is behind).
    fn chunks(&self) -> Vec<(u64, Behind)> {
        let chunks = self.space.chunks(self.range());
        chunks.iter().map(|chunk| (chunk.range.len() / PAGE, chunk.behind)).collect()
    }

    /// What each page stands on: a virtual address of memory, or `None` for scrap and nothing.
    /// Checks on the way that the books say what the domain does.
    fn check(&self) -> Vec<Option<usize>> {
        let va = self.scrap_va();
        let mut found = Vec::new();
        let mut at = self.range().start();
        for chunk in self.space.chunks(self.range()) {
            assert_eq!(chunk.range.start(), at, "the chunks tile the range");
            at = chunk.range.end();
            for page in chunk.range.steps(PAGE) {
                let to = self.fake.translate(page.start());
                let on_scrap = to.is_some_and(|to| va.contains(&to));
                match chunk.behind {
                    Behind::Nothing => assert_eq!(to, None),
                    Behind::Scrap => assert!(on_scrap, "{to:x?}"),
                    Behind::Memory => assert!(to.is_some() && !on_scrap, "{to:x?}"),
                }
                found.push(to.filter(|_| chunk.behind == Behind::Memory));
            }
        }
        assert_eq!(at, self.range().end());
        assert_eq!(self.space.mappings(), self.fake.mapped().len() as u64);
        found
    }

    /// Where the scrap is: by mapping it once.
    fn scrap_va(&self) -> std::ops::Range<usize> {
        let faults = std::mem::take(&mut self.fake.state.lock().unwrap().faults);
        let other = self.space.map(piece(0x1000, 1), Prot::Read, None).unwrap();
        self.space.retarget(other.range(), &self.scrap).unwrap();
        let va = self.fake.translate(other.iova()).unwrap();
        other.unmap().unwrap();
        self.fake.faults(|now| *now = faults);
        va..va + self.scrap.len() as usize
    }
}

fn both() -> [Limits; 2] {
    [limits(), Limits { unmap_spans: false, ..limits() }]
}

#[test]
fn a_range_gets_new_memory_in_new_chunks_at_the_same_addresses() {
    for limits in both() {
        let set = set(limits, 4);
        set.space.retarget(set.range(), &set.scrap).unwrap();
        let permit = set.space.permit(set.range()).unwrap();
        let parts = [memory(100, 3), memory(50, 6), scrap(2), memory(10, 5)];
        let done = set.space.retile(&permit, &parts, Some(2 * PAGE), &set.scrap).unwrap();
        use Behind::{Memory, Scrap};
        let wanted = [2, 1, 2, 2, 2, 2, 2, 2, 1].into_iter();
        let behind = [Memory, Memory, Memory, Memory, Memory, Scrap, Memory, Memory, Memory];
        assert_eq!(set.chunks(), wanted.zip(behind).collect::<Vec<_>>());
        assert_eq!((done.memory, done.scrap, done.holes), (8, 1, 0));
        assert!(done.window <= done.total);
        let found = set.check();
        let at = |page: u64| Some(NEW + (page * PAGE) as usize);
        assert_eq!(found[..3], [at(100), at(101), at(102)]);
        assert_eq!((found[8], found[9], found[10], found[11]), (at(55), None, None, at(10)));
        assert!(set.fake.mapped().iter().all(|(_, entry)| entry.prot == Prot::ReadWrite));

        // The next change finds the new chunks.
        set.space.retarget(set.pages(2, 1), &set.scrap).unwrap();
        set.space.retarget(set.range(), &set.scrap).unwrap();
        assert!(set.check().iter().all(Option::is_none));
        let (fake, space) = (Arc::clone(&set.fake), Arc::clone(&set.space));
        set.mapping.unmap().unwrap();
        assert_eq!((fake.mapped(), space.mappings()), (vec![], 0), "the owner is the same");
    }
}

#[test]
fn what_stays_on_scrap_is_not_touched() {
    let set = set(limits(), 4);
    set.space.retarget(set.range(), &set.scrap).unwrap();
    let calls = |set: &Set| {
        let state = set.fake.state.lock().unwrap();
        (state.maps, state.unmaps)
    };
    let before = calls(&set);
    set.retile(set.range(), &[scrap(PAGES)], None).unwrap();
    assert_eq!(calls(&set), before);
    assert_eq!(set.chunks(), [(4, Behind::Scrap); 4]);
    // Pages 4 to 7 only: the other chunks are not in the way.
    set.retile(set.range(), &[scrap(4), memory(0, 4), scrap(8)], None).unwrap();
    assert_eq!(calls(&set), (before.0 + 1, before.1 + 1));
}

#[test]
fn memory_is_never_replaced_unseen() {
    let set = set(limits(), 4);
    set.space.retarget(set.pages(0, 8), &set.scrap).unwrap();
    let error = set.retile(set.range(), &[memory(0, PAGES)], None).unwrap_err();
    assert!(matches!(error, Error::OnMemory { chunk } if chunk == set.pages(8, 4)), "{error}");
    let before = set.check();
    for parts in
        [&[memory(0, 7)][..], &[memory(0, 9)], &[], &[memory(0, 4), scrap(0), memory(0, 4)]]
    {
        let error = set.retile(set.pages(0, 8), parts, None).unwrap_err();
        assert!(matches!(error, Error::Usage(_)), "{error}");
    }
    assert_eq!(set.check(), before);
}

#[test]
fn a_permit_ends_when_its_range_is_taken_away_again() {
    let set = set(limits(), 4);
    set.space.retarget(set.range(), &set.scrap).unwrap();
    let taken: [&dyn Fn(IovaRange); 2] =
        [&|range| assert!(set.space.retarget(range, &set.scrap).is_ok()), &|range| {
            set.space.fence(range).map(drop).unwrap()
        }];
    for take in taken {
        let permit = set.space.permit(set.pages(0, 8)).unwrap();
        let other = set.space.permit(set.pages(8, 8)).unwrap();
        take(set.pages(4, 4));
        assert!(permit.has_ended() && !other.has_ended());
        let error = set.space.retile(&permit, &[memory(0, 8)], None, &set.scrap).unwrap_err();
        assert!(matches!(error, Error::Superseded { .. }), "{error}");
        assert!(set.check().iter().all(Option::is_none));
        set.space.retile(&other, &[memory(0, 8)], None, &set.scrap).unwrap();
        set.space.retarget(set.range(), &set.scrap).unwrap();
    }
    let permit = set.space.permit(set.range()).unwrap();
    set.space.unmap(set.pages(0, 4)).unwrap();
    assert!(permit.has_ended());
    let foreign = self::set(limits(), 4);
    let permit = foreign.space.permit(foreign.range()).unwrap();
    let error = set.space.retile(&permit, &[memory(0, PAGES)], None, &set.scrap).unwrap_err();
    assert!(matches!(error, Error::Usage(_)), "{error}");
}

#[test]
fn scrap_of_another_tenant_never_stands_in() {
    let set = set(limits(), 4);
    let (mine, other) = (Tenant::new(), Tenant::new());
    set.mapping.assign(mine).unwrap();
    let scraps =
        [set.space.scrap_for(other, 4 * PAGE).unwrap(), set.space.scrap(4 * PAGE).unwrap()];
    for scrap in &scraps {
        let target = Target { space: &set.space, range: set.range(), scrap };
        let before = set.fake.mapped();
        let foreign = |result: Result<(), Error>| {
            let error = result.unwrap_err();
            assert!(matches!(error, Error::ForeignScrap), "{error}");
        };
        foreign(set.space.retarget(set.range(), scrap).map(drop));
        assert_eq!(set.fake.mapped(), before);
        set.space.fence(set.range()).unwrap();
        foreign(set.space.cover(set.range(), scrap).map(drop));
        let permit = set.space.permit(set.range()).unwrap();
        foreign(set.space.retile(&permit, &[memory(0, PAGES)], None, scrap).map(drop));
        foreign(retarget_all([target], holdfast_iommu::Order::FenceFirst, |_| {}).map(drop));
        assert_eq!(set.fake.mapped(), []);
        set.space.restore(set.range(), &[piece(OLD, PAGES)]).unwrap();
    }
    let own = set.space.scrap_for(mine, 4 * PAGE).unwrap();
    set.space.retarget(set.range(), &own).unwrap();
    let error = set.mapping.assign(other).unwrap_err();
    assert!(matches!(error, Error::ForeignScrap), "it stands on the first one's scrap: {error}");
    // What one tenant's device writes, the other's does not read.
    let neighbour = set.space.map(piece(OLD, 4), Prot::ReadWrite, None).unwrap();
    neighbour.assign(other).unwrap();
    set.space.retarget(neighbour.range(), &scraps[0]).unwrap();
    let (a, b) = (set.fake.translate(set.range().start()), set.fake.translate(neighbour.iova()));
    assert!(a.is_some() && b.is_some() && a != b, "{a:x?} {b:x?}");
}

#[test]
fn a_read_only_range_stands_on_read_only_scrap() {
    let set = set(limits(), 4);
    let mapping = set.space.map(piece(OLD, 4), Prot::Read, None).unwrap();
    let prot = |set: &Set| {
        let mapped = set.fake.mapped();
        mapped.iter().find(|(at, _)| *at == mapping.iova()).unwrap().1.prot
    };
    set.space.retarget(mapping.range(), &set.scrap).unwrap();
    assert_eq!(prot(&set), Prot::Read);
    set.space.fence(mapping.range()).unwrap();
    set.space.restore(mapping.range(), &[piece(OLD, 4)]).unwrap();
    set.space.fence(mapping.range()).unwrap();
    set.space.cover(mapping.range(), &set.scrap).unwrap();
    assert_eq!(prot(&set), Prot::Read);
    let permit = set.space.permit(mapping.range()).unwrap();
    set.space.retile(&permit, &[memory(0, 2), scrap(2)], None, &set.scrap).unwrap();
    assert_eq!(prot(&set), Prot::Read);
    let end = mapping.iova() + 2 * PAGE;
    assert!(set.fake.mapped().iter().any(|(at, e)| *at == end && e.prot == Prot::Read));
}

/// What happens to the range.
#[derive(Debug, Clone)]
enum Step {
    Retarget,
    Fence,
    Cover,
    /// Over some of the current chunks: from which and how many; lengths of the parts and whether
    /// they are memory; the granule.
    Retile {
        from: usize,
        count: usize,
        parts: Vec<(u64, bool)>,
        granule: Option<u64>,
    },
    /// Somebody else empties the domain.
    Vanish,
    /// So many more maps succeed.
    MapsLeft(Option<usize>),
    /// Unmaps fail at this page.
    Stuck(Option<u64>),
}

fn step() -> impl Strategy<Value = Step> {
    let parts = prop::collection::vec((1u64..6, any::<bool>()), 1..6);
    let granule = prop::option::of(1u64..4);
    prop_oneof![
        2 => Just(Step::Retarget),
        2 => Just(Step::Fence),
        2 => Just(Step::Cover),
        6 => (0usize..16, 1usize..16, parts, granule).prop_map(|(from, count, parts, granule)| {
            Step::Retile { from, count, parts, granule }
        }),
        1 => Just(Step::Vanish),
        1 => prop::option::of(0usize..6).prop_map(Step::MapsLeft),
        1 => prop::option::of(0..PAGES).prop_map(Step::Stuck),
    ]
}

proptest! {
    #[test]
    fn whatever_happens_no_page_reaches_what_it_was_not_given(
        spans in any::<bool>(),
        granule in 1u64..6,
        steps in prop::collection::vec(step(), 1..30),
    ) {
        // A chunk that stands on scrap several times over can go in part; if what went cannot be put
        // back either, it has a hole that the books call scrap. That harms nobody, and is left out
        // here by a scrap as long as any chunk.
        let set = set_with_scrap(Limits { unmap_spans: spans, ..limits() }, granule, PAGES);
        let base = set.range().start();
        // What each page may stand on.
        let mut allowed: BTreeMap<u64, usize> =
            (0..PAGES).map(|page| (page, OLD + (page * PAGE) as usize)).collect();
        let mut fresh = 0;
        for step in steps {
            let mut vanished = false;
            match step {
                Step::Retarget => {
                    if set.space.retarget(set.range(), &set.scrap).is_ok() {
                        allowed.clear();
                    }
                }
                Step::Fence => {
                    if set.space.fence(set.range()).is_ok() {
                        allowed.clear();
                        prop_assert!(set.space.chunks(set.range()).iter().all(|c| c.behind != Behind::Memory));
                    }
                }
                Step::Cover => {
                    let done = set.space.cover(set.range(), &set.scrap).unwrap();
                    let left = set.space.chunks(set.range());
                    let left = left.iter().filter(|chunk| chunk.behind == Behind::Nothing).count();
                    prop_assert_eq!(done.holes, left);
                }
                Step::Retile { from, count, parts, granule } => {
                    let chunks = set.space.chunks(set.range());
                    let from = from % chunks.len();
                    let last = (from + count - 1).min(chunks.len() - 1);
                    let over = IovaRange::between(chunks[from].range.start(), chunks[last].range.end()).unwrap();
                    // Parts until the range is full.
                    let (mut left, mut given, mut at) = (over.len() / PAGE, Vec::new(), (over.start() - base) / PAGE);
                    let mut promised = Vec::new();
                    for (len, is_memory) in parts.iter().cycle() {
                        let len = (*len).min(left);
                        if *is_memory {
                            given.push(memory(fresh, len));
                            promised.extend((0..len).map(|i| (at + i, NEW + ((fresh + i) * PAGE) as usize)));
                            fresh += len + 1;
                        } else {
                            given.push(scrap(len));
                        }
                        at += len;
                        left -= len;
                        if left == 0 { break }
                    }
                    let on_memory = chunks[from..=last].iter().any(|chunk| chunk.behind == Behind::Memory);
                    match set.retile(over, &given, granule) {
                        Ok(()) => {
                            prop_assert!(!on_memory);
                            let found = set.check();
                            for (page, va) in &promised {
                                prop_assert_eq!(found[*page as usize], Some(*va));
                            }
                            allowed.extend(promised);
                        }
                        Err(Error::OnMemory { .. }) => prop_assert!(on_memory),
                        Err(Error::RetileIncomplete { chunk, .. }) => {
                            let found = set.check();
                            for (page, va) in &promised {
                                if base + page * PAGE < chunk.start() {
                                    prop_assert_eq!(found[*page as usize], Some(*va));
                                }
                            }
                            allowed.extend(promised);
                        }
                        Err(error) => panic!("{error}"),
                    }
                }
                Step::Vanish => {
                    set.fake.state.lock().unwrap().mapped.clear();
                    vanished = true;
                }
                Step::MapsLeft(left) => set.fake.faults(|faults| faults.maps_left = left),
                Step::Stuck(page) => {
                    let at = page.map(|page| base + page * PAGE);
                    set.fake.faults(|faults| faults.stuck = at);
                }
            }
            for page in 0..PAGES {
                let to = set.fake.translate(base + page * PAGE);
                let memory = to.filter(|to| (OLD..OLD + (1 << 36)).contains(to));
                prop_assert!(memory.is_none() || memory == allowed.get(&page).copied(), "page {page}: {to:x?}");
            }
            if vanished {
                // The books do not know yet; a retarget and what follows set them right.
                set.fake.faults(|faults| *faults = Default::default());
                set.space.retarget(set.range(), &set.scrap).unwrap();
                set.space.fence(set.range()).unwrap();
                set.space.cover(set.range(), &set.scrap).unwrap();
                allowed.clear();
                // Scrap that vanished is put back only with what replaces it.
                let parts = [scrap(PAGES)];
                set.retile(set.range(), &parts, None).unwrap();
                for chunk in set.space.chunks(set.range()) {
                    set.space.unmap(chunk.range).unwrap();
                }
                prop_assert_eq!((set.fake.mapped(), set.space.mappings()), (vec![], 0));
                return Ok(());
            }
            set.check();
        }
        set.fake.faults(|faults| *faults = Default::default());
        let (fake, space) = (Arc::clone(&set.fake), Arc::clone(&set.space));
        set.mapping.unmap().unwrap();
        prop_assert_eq!(fake.mapped(), vec![]);
        prop_assert_eq!(space.mappings(), 0);
    }
}
