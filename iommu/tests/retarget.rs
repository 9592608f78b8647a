//! Taking memory away and giving it back: no chunk keeps its memory unless the call says so.

mod fake;

use std::sync::Arc;
use std::time::Duration;

use fake::{Fake, limits, range};
use holdfast_iommu::{
    AddressSpace, Backing, Behind, Error, IovaRange, Limits, Mapping, Piece, Prot, Scrap,
};

const PAGE: u64 = 4096;
const MEMORY: usize = 0x10_0000_0000;

fn memory(va: usize, len: u64) -> [Piece<'static>; 1] {
    #[allow(unsafe_code)]
    // SAFETY: the fake domain only records the address.
    let backing = unsafe { Backing::memory(va, None) };
    [Piece { backing, len }]
}

struct Set {
    fake: Arc<Fake>,
    space: Arc<AddressSpace>,
    scrap: Scrap,
    mapping: Mapping,
}

/// Four chunks of two pages, and a scrap of `scrap` pages.
fn set(limits: Limits, scrap: u64) -> Set {
    let fake = Fake::new(limits);
    let space = AddressSpace::new(Arc::clone(&fake) as Arc<_>).unwrap();
    let scrap = space.scrap(scrap * PAGE).unwrap();
    let mapping =
        space.map_pieces(&memory(MEMORY, 8 * PAGE), Prot::ReadWrite, Some(2 * PAGE)).unwrap();
    Set { fake, space, scrap, mapping }
}

impl Set {
    fn range(&self) -> IovaRange {
        self.mapping.range()
    }

    fn chunk(&self, index: u64) -> IovaRange {
        range(self.range().start() + index * 2 * PAGE, 2 * PAGE)
    }

    fn behind(&self) -> Vec<Behind> {
        self.space.chunks(self.range()).iter().map(|chunk| chunk.behind).collect()
    }

    /// Pages of the mapping that still translate to the old memory.
    fn exposed(&self) -> usize {
        let old = MEMORY..MEMORY + 8 * PAGE as usize;
        let pages = self.mapping.pages(PAGE);
        pages.filter(|page| self.fake.translate(*page).is_some_and(|va| old.contains(&va))).count()
    }
}

fn both() -> [Limits; 2] {
    [limits(), Limits { unmap_spans: false, ..limits() }]
}

#[test]
fn retarget_takes_every_chunk_and_restore_brings_it_back() {
    for limits in both() {
        for scrap in [1, 2, 16] {
            let set = set(limits.clone(), scrap);
            let done = set.space.retarget(set.range(), &set.scrap).unwrap();
            assert_eq!((done.chunks, done.holes), (4, 0));
            assert!(done.window <= done.total);
            assert_eq!(set.exposed(), 0);
            assert_eq!(set.behind(), [Behind::Scrap; 4]);
            assert_eq!(set.scrap.users(), 4);
            let pages = set.mapping.pages(PAGE);
            assert!(pages.into_iter().all(|page| set.fake.translate(page).is_some()));
            assert!(set.fake.mapped().iter().all(|(_, entry)| entry.prot == Prot::ReadWrite));

            let again = set.space.retarget(set.range(), &set.scrap).unwrap();
            assert_eq!(again.chunks, 0, "what is on scrap stays there");

            let moved = MEMORY + 0x1000_0000;
            let done = set.space.restore(set.range(), &memory(moved, 8 * PAGE)).unwrap();
            assert_eq!(done.chunks, 4);
            assert_eq!(set.behind(), [Behind::Memory; 4]);
            let last = set.range().end() - PAGE;
            assert_eq!(set.fake.translate(last), Some(moved + 7 * PAGE as usize));
            assert_eq!(set.scrap.users(), 0);
            assert_eq!(set.space.mappings(), 4);

            set.space.retarget(set.chunk(1), &set.scrap).unwrap();
            let (fake, space) = (Arc::clone(&set.fake), Arc::clone(&set.space));
            set.mapping.unmap().unwrap();
            assert_eq!(fake.mapped(), []);
            assert_eq!(space.mappings(), 0);
            assert_eq!(set.scrap.users(), 0);
        }
    }
}

#[test]
fn only_the_range_asked_for_is_taken() {
    let set = set(limits(), 2);
    set.space.retarget(set.chunk(2), &set.scrap).unwrap();
    assert_eq!(set.behind(), [Behind::Memory, Behind::Memory, Behind::Scrap, Behind::Memory]);
    assert_eq!(set.exposed(), 6);
}

#[test]
fn where_scrap_cannot_be_mapped_a_hole_is_left_and_the_rest_is_taken() {
    let set = set(limits(), 2);
    set.fake.faults(|faults| faults.maps_left = Some(1));
    let done = set.space.retarget(set.range(), &set.scrap).unwrap();
    assert_eq!((done.chunks, done.holes), (4, 3));
    assert_eq!(set.exposed(), 0);
    assert_eq!(set.behind(), [Behind::Scrap, Behind::Nothing, Behind::Nothing, Behind::Nothing]);
    assert_eq!(set.space.mappings(), 1);

    set.fake.faults(|faults| faults.maps_left = None);
    let filled = set.space.retarget(set.range(), &set.scrap).unwrap();
    assert_eq!((filled.chunks, filled.holes), (3, 0), "holes are filled when that is possible");
    assert_eq!(set.behind(), [Behind::Scrap; 4]);

    set.fake.faults(|faults| faults.maps_left = Some(0));
    set.space.restore(set.range(), &memory(MEMORY, 8 * PAGE)).unwrap_err();
    assert_eq!(set.behind()[0], Behind::Nothing);
    let (fake, mapping) = (set.fake, set.mapping);
    mapping.unmap().unwrap();
    assert_eq!(fake.mapped(), [], "holes and mappings are unmapped together");
}

#[test]
fn scrap_that_would_exceed_the_mapping_limit_leaves_holes() {
    // Chunks of two pages on a scrap of one take two mappings each.
    let set = set(Limits { max_mappings: Some(5), ..limits() }, 1);
    let done = set.space.retarget(set.range(), &set.scrap).unwrap();
    assert_eq!(set.exposed(), 0);
    assert_eq!((done.chunks, set.space.mappings()), (4, set.fake.mapped().len() as u64));
    assert!(set.space.mappings() <= 5);
    assert!(done.holes > 0);
}

#[test]
fn a_chunk_that_cannot_be_taken_is_reported_after_all_others_were() {
    for short in [false, true] {
        let set = set(limits(), 2);
        let stuck = set.chunk(1);
        set.fake.faults(|faults| {
            let at = Some(stuck.start());
            if short { faults.short = at } else { faults.stuck = at }
        });
        let error = set.space.retarget(set.range(), &set.scrap).unwrap_err();
        let Error::RetargetIncomplete { count, first, .. } = error else { panic!("{error}") };
        assert_eq!((count, first), (1, stuck));
        assert_eq!(set.behind(), [Behind::Scrap, Behind::Memory, Behind::Scrap, Behind::Scrap]);
        if !short {
            assert_eq!(set.exposed(), 2);
            set.fake.faults(|faults| faults.stuck = None);
            let again = set.space.retarget(set.range(), &set.scrap).unwrap();
            assert_eq!(again.chunks, 1);
            assert_eq!(set.exposed(), 0);
        }
    }
}

#[test]
fn a_restore_that_fails_leaves_scrap_and_says_where() {
    for scrap in [1, 2] {
        let set = set(limits(), scrap);
        set.space.retarget(set.range(), &set.scrap).unwrap();
        let stuck = set.chunk(2);
        set.fake.faults(|faults| faults.stuck = Some(stuck.start()));
        let error = set.space.restore(set.range(), &memory(MEMORY, 8 * PAGE)).unwrap_err();
        assert!(matches!(error, Error::RestoreIncomplete { chunk, .. } if chunk == stuck));
        assert_eq!(set.behind(), [Behind::Memory, Behind::Memory, Behind::Scrap, Behind::Scrap]);
        assert_eq!(set.exposed(), 4);
        set.fake.faults(|faults| faults.stuck = None);
        set.space.retarget(set.range(), &set.scrap).unwrap();
        assert_eq!(set.exposed(), 0);
    }
}

#[test]
fn memory_for_a_restore_must_fit_range_and_chunks() {
    let set = set(limits(), 2);
    set.space.retarget(set.range(), &set.scrap).unwrap();
    let [a] = memory(MEMORY, 3 * PAGE);
    let [b] = memory(MEMORY + 0x100_0000, 5 * PAGE);
    for pieces in [vec![a, b], vec![a]] {
        let error = set.space.restore(set.range(), &pieces).unwrap_err();
        assert!(matches!(error, Error::Usage(_)), "{error}");
    }
    assert_eq!(set.behind(), [Behind::Scrap; 4]);
    let [a] = memory(MEMORY, 4 * PAGE);
    let [b] = memory(MEMORY + 0x100_0000, 4 * PAGE);
    set.space.restore(set.range(), &[a, b]).unwrap();
    let third = set.fake.translate(set.chunk(2).start());
    assert_eq!(third, Some(MEMORY + 0x100_0000));
}

#[test]
fn scrap_serves_one_address_space_only() {
    let (one, other) = (set(limits(), 2), set(limits(), 2));
    let error = one.space.retarget(one.range(), &other.scrap).unwrap_err();
    assert!(matches!(error, Error::ForeignScrap), "{error}");
    assert_eq!(one.exposed(), 8);
}

#[test]
fn scrap_is_clean_whenever_it_starts_to_stand_in() {
    let set = set(limits(), 2);
    let dirty = |scrap: &Scrap| {
        let mut bytes = vec![0; 2 * PAGE as usize];
        scrap.read(0, &mut bytes);
        bytes.iter().filter(|byte| **byte != 0).count()
    };
    set.space.retarget(set.range(), &set.scrap).unwrap();
    // What a device would do: write through an address that stands on scrap.
    let va = set.fake.translate(set.chunk(0).start()).unwrap();
    #[allow(unsafe_code)]
    // SAFETY: the fake translates to the scrap's own mapping, two pages long and writable.
    unsafe {
        std::ptr::with_exposed_provenance_mut::<u8>(va).write_bytes(0xaa, 100);
    }
    assert_eq!(dirty(&set.scrap), 100);
    set.space.restore(set.chunk(0), &memory(MEMORY, 2 * PAGE)).unwrap();
    assert_eq!(dirty(&set.scrap), 100, "three chunks still stand on it");
    let rest = range(set.chunk(1).start(), 6 * PAGE);
    set.space.restore(rest, &memory(MEMORY, 6 * PAGE)).unwrap();
    assert_eq!(dirty(&set.scrap), 0);
}

#[test]
fn chunks_keep_their_scrap_alive() {
    let Set { fake, space, scrap, mapping } = set(limits(), 2);
    space.retarget(mapping.range(), &scrap).unwrap();
    drop(scrap);
    mapping.unmap().unwrap();
    assert_eq!(fake.mapped(), []);
}

#[test]
fn a_retarget_waits_for_a_chunk_of_what_others_map_and_not_for_all_of_it() {
    let set = set(limits(), 2);
    set.fake.faults(|faults| faults.slow = Duration::from_millis(1));
    let maps = || set.fake.state.lock().unwrap().maps;
    std::thread::scope(|scope| {
        let other = scope.spawn(|| {
            let pages = memory(2 * MEMORY, 2000 * PAGE);
            set.space.map_pieces(&pages, Prot::ReadWrite, Some(PAGE)).unwrap()
        });
        while maps() < 10 {
            std::thread::yield_now();
        }
        let mut meanwhile = [0; 21];
        for count in &mut meanwhile {
            let before = maps();
            let fenced = set.space.fence(set.range()).unwrap();
            *count = maps() - before;
            assert_eq!((fenced.chunks, set.exposed()), (4, 0));
            set.space.cover(set.range(), &set.scrap).unwrap();
            set.space.restore(set.range(), &memory(MEMORY, 8 * PAGE)).unwrap();
        }
        meanwhile.sort_unstable();
        // This thread may lose its processor in between, but seldom.
        assert!(meanwhile[15] < 3, "chunks mapped before a fence got its turn: {meanwhile:?}");
        drop(other.join().unwrap());
    });
}
