//! What the kernel answers, read from bytes: right answers are understood, wrong ones refused.

use holdfast_vfio::kernel::bar_address;
use holdfast_vfio::kernel::caps::{self, CapError};
use proptest::prelude::*;

const READ: u32 = 1;
const WRITE: u32 = 2;
const MMAP: u32 = 4;
const CAPS: u32 = 8;

/// A region's answer: fixed fields, then capabilities (id, body), chained.
fn region(flags: u32, size: u64, capabilities: &[(u16, Vec<u8>)]) -> Vec<u8> {
    let mut answer = Vec::new();
    for word in [0, flags, 0, if capabilities.is_empty() { 0 } else { 32 }] {
        answer.extend(u32::to_ne_bytes(word));
    }
    answer.extend(size.to_ne_bytes());
    answer.extend((7u64 << 40).to_ne_bytes());
    chain(answer, capabilities)
}

/// An IOMMU's answer.
fn iommu(flags: u32, sizes: u64, capabilities: &[(u16, Vec<u8>)]) -> Vec<u8> {
    let mut answer = Vec::new();
    answer.extend(0u32.to_ne_bytes());
    answer.extend(flags.to_ne_bytes());
    answer.extend(sizes.to_ne_bytes());
    answer.extend((if capabilities.is_empty() { 0u32 } else { 24 }).to_ne_bytes());
    answer.extend(0u32.to_ne_bytes());
    chain(answer, capabilities)
}

fn chain(mut answer: Vec<u8>, capabilities: &[(u16, Vec<u8>)]) -> Vec<u8> {
    for (i, (id, body)) in capabilities.iter().enumerate() {
        let next = answer.len() + 8 + body.len();
        let next = if i + 1 == capabilities.len() { 0 } else { next as u32 };
        answer.extend(id.to_ne_bytes());
        answer.extend(1u16.to_ne_bytes());
        answer.extend(next.to_ne_bytes());
        answer.extend(body);
    }
    answer
}

fn pairs(claimed: u32, pairs: &[(u64, u64)]) -> Vec<u8> {
    let mut body = claimed.to_ne_bytes().to_vec();
    body.extend([0; 4]);
    for (a, b) in pairs {
        body.extend(a.to_ne_bytes());
        body.extend(b.to_ne_bytes());
    }
    body
}

#[test]
fn a_region_says_what_can_be_mapped() {
    let sparse = |areas: &[(u64, u64)]| vec![(1, pairs(areas.len() as u32, areas))];
    let msix = vec![(3, vec![])];
    type Case = (u32, u64, Vec<(u16, Vec<u8>)>, Vec<(u64, u64)>);
    let cases: [Case; 8] = [
        (READ | WRITE, 0x4000, vec![], vec![]),
        (READ | WRITE | MMAP, 0x4000, vec![], vec![(0, 0x4000)]),
        (READ | WRITE | MMAP, 0x100, vec![], vec![]),
        (READ | MMAP, 0, vec![], vec![]),
        (
            READ | MMAP | CAPS,
            0x8000,
            sparse(&[(0, 0x1000), (0x3000, 0x5000)]),
            vec![(0, 0x1000), (0x3000, 0x5000)],
        ),
        (READ | MMAP | CAPS, 0x8000, sparse(&[(0x800, 0x2000)]), vec![(0x1000, 0x1000)]),
        (READ | MMAP | CAPS, 0x8000, msix, vec![(0, 0x8000)]),
        (READ | CAPS, 0x8000, sparse(&[(0, 0x1000)]), vec![]),
    ];
    for (flags, size, capabilities, mappable) in cases {
        let found = caps::region(&region(flags, size, &capabilities)).unwrap();
        assert_eq!(found.info.mappable, mappable, "flags {flags:#x}, size {size:#x}");
        assert_eq!(found.info.size, size);
        assert_eq!(found.info.readable, flags & READ != 0);
        assert_eq!(found.info.writable, flags & WRITE != 0);
        assert_eq!(found.offset, 7 << 40);
    }
}

#[test]
fn a_type1_container_says_its_ranges_and_what_is_left_of_its_limit() {
    let ranges = [(0, 0xfedf_ffff), (0xfef0_0000, u64::MAX)];
    let capabilities =
        [(2, vec![0; 24]), (1, pairs(2, &ranges)), (3, 65535u32.to_ne_bytes().to_vec())];
    let info = caps::iommu_info(&iommu(3, 0x4020_1000, &capabilities)).unwrap();
    assert_eq!(info.page_sizes, 0x4020_1000);
    assert_eq!(info.ranges.as_deref(), Some(&ranges[..]));
    assert_eq!(info.available, Some(65535));

    let silent = caps::iommu_info(&iommu(0, 7, &[])).unwrap();
    assert_eq!((silent.page_sizes, silent.ranges, silent.available), (4096, None, None));
}

#[test]
fn impossible_answers_are_refused() {
    let all = READ | WRITE | MMAP | CAPS;
    let with_next = |next: u32| {
        let mut answer = region(all, 0x1000, &[(3, vec![]), (3, vec![])]);
        answer[36..40].copy_from_slice(&next.to_ne_bytes());
        answer
    };
    let with_first = |first: u32| {
        let mut answer = region(all, 0x1000, &[(3, vec![])]);
        answer[12..16].copy_from_slice(&first.to_ne_bytes());
        answer
    };
    let sparse = |claimed, areas: &[(u64, u64)]| region(all, 0x4000, &[(1, pairs(claimed, areas))]);
    let short = |e: &CapError| matches!(e, CapError::Short { .. });
    let backwards = |e: &CapError| matches!(e, CapError::Backwards { .. });
    let range = |e: &CapError| matches!(e, CapError::Range { .. });
    type Check = fn(&CapError) -> bool;
    let cases: [(&str, Vec<u8>, Check); 12] = [
        ("nothing", vec![], short),
        ("half the fields", region(READ, 1, &[])[..20].to_vec(), short),
        ("a chain that loops on itself", with_next(32), backwards),
        ("capabilities that overlap", with_next(33), backwards),
        ("a chain that goes back", with_next(8), backwards),
        ("a chain that leaves the answer", with_next(44), short),
        ("a first capability outside", with_first(u32::MAX), short),
        ("more areas than bytes", sparse(2, &[(0, 0x1000)]), short),
        ("as many areas as a count can say", sparse(u32::MAX, &[(0, 0x1000)]), short),
        ("an area beyond the region", sparse(1, &[(0x3000, 0x2000)]), range),
        ("an area that wraps", sparse(1, &[(u64::MAX, 2)]), range),
        ("a region that wraps", region(READ, u64::MAX, &[]), range),
    ];
    for (what, answer, fits) in cases {
        let error = caps::region(&answer).expect_err(what);
        assert!(fits(&error), "{what}: {error}");
    }
    let backwards_range = iommu(3, 4096, &[(1, pairs(1, &[(5, 4)]))]);
    assert!(matches!(caps::iommu_info(&backwards_range), Err(CapError::Range { .. })));
    let cut = iommu(3, 4096, &[(3, vec![1, 2])]);
    assert!(matches!(caps::iommu_info(&cut), Err(CapError::Short { .. })));
}

proptest! {
    #[test]
    fn no_answer_makes_the_parser_panic_or_run_on(mut answer in proptest::collection::vec(any::<u8>(), 0..256), first in 0..64u32) {
        // Steer: flags that ask for capabilities, and an offset that lies inside.
        for (at, word) in [(4, 0xffu32), (12, first), (16, first)] {
            if let Some(bytes) = answer.get_mut(at..at + 4) {
                bytes.copy_from_slice(&word.to_ne_bytes());
            }
        }
        caps::fuzz(&answer);
    }

    #[test]
    fn whatever_can_be_mapped_lies_inside_the_region(
        size in 0..1u64 << 20,
        areas in proptest::collection::vec((0..1u64 << 20, 0..1u64 << 20), 0..5),
    ) {
        let answer = region(READ | MMAP | CAPS, size, &[(1, pairs(areas.len() as u32, &areas))]);
        match caps::region(&answer) {
            Ok(found) => for (start, len) in found.info.mappable {
                prop_assert!(start + len <= size && start % 4096 == 0 && len % 4096 == 0 && len > 0);
            },
            Err(error) => {
                let outside = areas.iter().any(|(start, len)| start + len > size);
                prop_assert!(outside, "{}", error);
            }
        }
    }
}

#[test]
fn bus_addresses_come_from_the_resource_file() {
    let resource = "0x00000000febf0000 0x00000000febf0fff 0x0000000000040200\n\
                    0x0000000000000000 0x0000000000000000 0x0000000000000000\n\
                    0x0000004000000000 0x00000040001fffff 0x000000000014220c\n\
                    0x0000000000000000 0x0000000000000000 0x0000000000000000\n\
                    0x0000000000000000 0x0000000000000000 0x0000000000000000\n\
                    0x0000000000000000 0x0000000000000000 0x0000000000000000\n\
                    0x00000000feb80000 0x00000000febbffff 0x0000000000046200\n";
    let cases =
        [(0, Some(0xfebf_0000)), (1, None), (2, Some(0x40_0000_0000)), (6, None), (99, None)];
    for (index, address) in cases {
        assert_eq!(bar_address(resource, index), address, "BAR {index}");
    }
    assert_eq!(bar_address("what is this", 0), None);
}
