//! An address space on a domain in memory: what is mapped is what the books say, whatever fails.

mod fake;

use std::sync::Arc;

use fake::{Fake, limits, range};
use holdfast_iommu::{
    AddressSpace, Backing, Behind, Error, IovaRange, Limits, Piece, Prot, SharedMemory,
};

const PAGE: u64 = 4096;
const MIB2: u64 = 2 << 20;

/// Memory at an address that the fake never touches.
fn piece(va: usize, len: u64) -> Piece<'static> {
    #[allow(unsafe_code)]
    // SAFETY: the fake domain only records the address.
    let backing = unsafe { Backing::memory(va, None) };
    Piece { backing, len }
}

fn space(fake: &Arc<Fake>) -> Arc<AddressSpace> {
    AddressSpace::new(Arc::clone(fake) as Arc<_>).unwrap()
}

fn behind(space: &AddressSpace, range: IovaRange) -> Vec<Behind> {
    space.chunks(range).iter().map(|chunk| chunk.behind).collect()
}

#[test]
fn a_mapping_lasts_as_long_as_its_guard_and_its_addresses_come_back() {
    let fake = Fake::type1();
    let space = space(&fake);
    let mapping = space.map(piece(0x7000_0000, 3 * PAGE), Prot::ReadWrite, None).unwrap();
    let first = mapping.range();
    assert_ne!(first.start(), 0);
    assert_eq!(mapping.pages(PAGE).len(), 3);
    assert_eq!(fake.mapped().len(), 1);
    assert_eq!(fake.translate(first.start() + 5000), Some(0x7000_0000 + 5000));
    drop(mapping);
    assert_eq!(fake.mapped(), []);
    let again = space.map(piece(0x7000_0000, PAGE), Prot::Read, None).unwrap();
    assert_eq!(again.iova(), first.start());
    again.unmap().unwrap();
    assert_eq!(space.mappings(), 0);
}

#[test]
fn pieces_lie_end_to_end_and_are_cut_by_the_granule() {
    let fake = Fake::type1();
    let space = space(&fake);
    let pieces = [piece(0x1000_0000, 5 * PAGE), piece(0x9000_0000, 2 * PAGE)];
    let mapping = space.map_pieces(&pieces, Prot::ReadWrite, Some(2 * PAGE)).unwrap();
    let at = mapping.iova();
    let found: Vec<(u64, u64, usize)> =
        fake.mapped().iter().map(|(start, e)| (start - at, e.len, e.va)).collect();
    assert_eq!(
        found,
        [
            (0, 2 * PAGE, 0x1000_0000),
            (2 * PAGE, 2 * PAGE, 0x1000_2000),
            (4 * PAGE, PAGE, 0x1000_4000),
            (5 * PAGE, 2 * PAGE, 0x9000_0000),
        ]
    );
    assert_eq!(space.mappings(), 4);
    mapping.unmap().unwrap();
    assert_eq!(fake.state.lock().unwrap().unmaps, 1, "one unmap takes a run of mappings");
}

#[test]
fn large_memory_gets_aligned_addresses_outside_the_msi_window() {
    // A domain that does not know of the MSI window.
    let all = Limits { ranges: vec![range(0, 1 << 39)], ..limits() };
    let fake = Fake::new(all);
    let space = space(&fake);
    let window = IovaRange::new(0xfee0_0000, 0x10_0000).unwrap();
    let mut held = Vec::new();
    for (len, align) in [(PAGE, PAGE), (MIB2, MIB2), (1 << 30, 1 << 30), (3 << 30, 1 << 30)] {
        let mapping = space.map(piece(0x1000, len), Prot::Read, None).unwrap();
        assert!(mapping.iova().is_multiple_of(align), "{:#x}", mapping.iova());
        assert!(!mapping.range().overlaps(&window));
        held.push(mapping);
    }
    let error = space.map_at(0xfee0_0000, &[piece(0x1000, PAGE)], Prot::Read, None).unwrap_err();
    assert!(matches!(error, Error::Reserved { .. }), "{error}");
    let error = space.map_at(0, &[piece(0x1000, PAGE)], Prot::Read, None).unwrap_err();
    assert!(matches!(error, Error::Reserved { .. }), "{error}");
    let taken = held[0].range();
    let error = space.map_at(taken.start(), &[piece(0x1000, PAGE)], Prot::Read, None).unwrap_err();
    assert!(matches!(error, Error::Overlap { existing, .. } if existing == taken), "{error}");
    let fixed = space.map_at(1 << 38, &[piece(0x1000, PAGE)], Prot::Read, None).unwrap();
    assert_eq!(fixed.iova(), 1 << 38);
}

#[test]
fn a_map_that_fails_halfway_leaves_nothing_behind() {
    let fake = Fake::type1();
    let space = space(&fake);
    for succeed in 0..4 {
        fake.faults(|faults| faults.maps_left = Some(succeed));
        let error = space.map(piece(0x1000, 4 * PAGE), Prot::Read, Some(PAGE)).unwrap_err();
        assert!(matches!(error, Error::Map { .. }), "{error}");
        assert_eq!(fake.mapped(), []);
        assert_eq!(space.mappings(), 0);
    }
    fake.faults(|faults| faults.maps_left = None);
    let mapping = space.map(piece(0x1000, 4 * PAGE), Prot::Read, Some(PAGE)).unwrap();
    assert_eq!(mapping.iova(), PAGE, "the addresses of the failed attempts are free again");
}

#[test]
fn a_failed_map_that_cannot_be_undone_says_so_and_keeps_the_addresses() {
    let fake = Fake::type1();
    let space = space(&fake);
    fake.faults(|faults| {
        faults.maps_left = Some(2);
        faults.stuck = Some(PAGE);
    });
    let error = space.map(piece(0x1000, 4 * PAGE), Prot::Read, Some(PAGE)).unwrap_err();
    let Error::MapUndo { range: left, .. } = error else { panic!("{error}") };
    assert_eq!(left, range(PAGE, PAGE), "the other chunk could be unmapped");
    fake.faults(|faults| faults.maps_left = None);
    let next = space.map(piece(0x1000, 4 * PAGE), Prot::Read, None).unwrap();
    assert!(!next.range().overlaps(&left));
    fake.faults(|faults| faults.stuck = None);
    space.unmap(left).unwrap();
}

#[test]
fn an_unmap_must_take_exactly_what_was_asked() {
    for short in [true, false] {
        let fake = Fake::type1();
        let space = space(&fake);
        let mapping = space.map(piece(0x1000, 2 * PAGE), Prot::Read, None).unwrap();
        let range = mapping.range();
        fake.faults(|faults| {
            if short {
                faults.short = Some(range.start());
            } else {
                faults.stuck = Some(range.start());
            }
        });
        let error = mapping.unmap().unwrap_err();
        match error {
            Error::PartialUnmap { unmapped, .. } if short => assert_eq!(unmapped, PAGE),
            Error::Unmap { .. } if !short => {}
            error => panic!("{error}"),
        }
        let other = space.map(piece(0x1000, PAGE), Prot::Read, None).unwrap();
        assert!(!other.range().overlaps(&range), "addresses in doubt are not given out again");
    }
}

#[test]
fn no_call_cuts_a_mapping_or_passes_over_a_gap() {
    let fake = Fake::type1();
    let space = space(&fake);
    let scrap = space.scrap(MIB2).unwrap();
    let mapping = space.map(piece(0x10_0000, 4 * PAGE), Prot::Read, Some(2 * PAGE)).unwrap();
    let at = mapping.iova();
    let before = fake.mapped();
    let bisects = range(at + PAGE, 3 * PAGE);
    let beyond = range(at, 6 * PAGE);
    for (range, gap) in [(bisects, false), (beyond, true)] {
        let memory = [piece(0x20_0000, range.len())];
        for error in [
            space.unmap(range).unwrap_err(),
            space.retarget(range, &scrap).unwrap_err(),
            space.restore(range, &memory).unwrap_err(),
        ] {
            match error {
                Error::NotMapped { at: hole, .. } if gap => assert_eq!(hole, at + 4 * PAGE),
                Error::Bisects { .. } if !gap => {}
                error => panic!("{error}"),
            }
        }
    }
    assert_eq!(fake.mapped(), before);
}

#[test]
fn a_part_that_is_made_of_whole_chunks_can_be_unmapped_alone() {
    let fake = Fake::type1();
    let space = space(&fake);
    let mapping = space.map(piece(0x10_0000, 4 * PAGE), Prot::Read, Some(PAGE)).unwrap();
    let at = mapping.iova();
    space.unmap(range(at + PAGE, 2 * PAGE)).unwrap();
    assert_eq!(fake.mapped().len(), 2);
    // Another mapping may get the freed addresses; the first one's end must not touch it.
    let other = space.map(piece(0x20_0000, PAGE), Prot::Read, None).unwrap();
    assert!(other.range().overlaps(&range(at + PAGE, 2 * PAGE)), "{}", other.range());
    drop(mapping);
    assert_eq!(fake.mapped().len(), 1);
    other.unmap().unwrap();
    assert_eq!(fake.mapped(), []);
}

#[test]
fn the_mapping_limit_is_met_before_the_domain_is_asked() {
    let fake = Fake::new(Limits { max_mappings: Some(4), ..limits() });
    let space = space(&fake);
    let _held = space.map(piece(0x1000, 2 * PAGE), Prot::Read, Some(PAGE)).unwrap();
    let error = space.map(piece(0x9000, 3 * PAGE), Prot::Read, Some(PAGE)).unwrap_err();
    assert!(matches!(error, Error::MappingLimit { limit: 4 }), "{error}");
    assert!(error.to_string().contains("dma_entry_limit"));
    assert_eq!(fake.mapped().len(), 2);
    let _fits = space.map(piece(0x9000, 3 * PAGE), Prot::Read, None).unwrap();
}

#[test]
fn arguments_that_make_no_sense_are_refused() {
    let space = space(&Fake::type1());
    let unaligned = [
        (piece(0x1001, PAGE), None),
        (piece(0x1000, PAGE + 1), None),
        (piece(0x1000, PAGE), Some(PAGE / 2)),
    ];
    for (piece, granule) in unaligned {
        let error = space.map(piece, Prot::Read, granule).unwrap_err();
        assert!(matches!(error, Error::Unaligned { .. }), "{error}");
    }
    let usage = [
        (vec![], None),
        (vec![piece(0x1000, 0)], None),
        (vec![piece(0x1000, PAGE)], Some(0)),
        (vec![piece(usize::MAX - PAGE as usize + 1, 2 * PAGE)], None),
        (vec![piece(0, u64::MAX - PAGE + 1), piece(0, PAGE)], None),
    ];
    for (pieces, granule) in usage {
        let error = space.map_pieces(&pieces, Prot::Read, granule).unwrap_err();
        assert!(matches!(error, Error::Usage(_)), "{error}");
    }
    let error = space.map(piece(0, 1 << 40), Prot::Read, None).unwrap_err();
    assert!(matches!(error, Error::IovaExhausted { .. }), "{error}");
}

#[test]
fn a_domain_without_addresses_or_pages_is_refused() {
    for nothing in [
        Limits { page_sizes: 0, ..limits() },
        Limits { page_sizes: 1 << 63, ..limits() },
        Limits { ranges: vec![], ..limits() },
        Limits { ranges: vec![range(0, PAGE), range(0xfee0_0000, PAGE)], ..limits() },
    ] {
        let error = AddressSpace::new(Fake::new(nothing)).unwrap_err();
        assert!(matches!(error, Error::NoSpace(_)), "{error}");
    }
}

#[test]
fn threads_map_and_unmap_without_meeting() {
    let fake = Fake::type1();
    let space = space(&fake);
    std::thread::scope(|scope| {
        for thread in 0..4usize {
            let space = &space;
            scope.spawn(move || {
                for round in 0..200 {
                    let va = (thread + 1) << 32 | round << 12;
                    let len = PAGE * (1 + round as u64 % 5);
                    let mapping = space.map(piece(va, len), Prot::Read, Some(PAGE)).unwrap();
                    assert_eq!(behind(space, mapping.range()).len(), 1 + round % 5);
                }
            });
        }
    });
    assert_eq!(fake.mapped(), []);
    assert_eq!(space.mappings(), 0);
}

#[test]
fn shared_memory_is_zeroed_sealed_and_whole_pages() {
    let memory = SharedMemory::new(5000).unwrap();
    assert_eq!(memory.len(), 8192);
    let mut bytes = [1; 8192];
    memory.read(0, &mut bytes);
    assert_eq!(bytes, [0; 8192]);
    memory.write(4090, b"hello");
    memory.read(4090, &mut bytes[..5]);
    assert_eq!(&bytes[..5], b"hello");
    let shrunk = nix::unistd::ftruncate(&memory, 0);
    assert_eq!(shrunk, Err(nix::errno::Errno::EPERM), "its size cannot change under a device");
}
