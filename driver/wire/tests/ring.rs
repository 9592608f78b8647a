//! Ring arithmetic against a plain model: a queue that only counts.

use holdfast_wire::{pdir, ring::RingSize, wqe};
use proptest::prelude::*;

proptest! {
    #[test]
    fn a_ring_agrees_with_a_queue_that_counts(log in 0u32..12, start in any::<u32>(), ops in prop::collection::vec((any::<bool>(), 1u32..9), 1..400)) {
        let n = 1u32 << log;
        let ring = RingSize::new(n).unwrap();
        let start = start & (2 * n - 1);
        let (mut head, mut tail, mut count) = (start, start, 0u32);
        for (push, amount) in ops {
            for _ in 0..amount {
                if push && count < n {
                    prop_assert!(!ring.is_full(tail, head));
                    tail = ring.next(tail);
                    count += 1;
                } else if !push && count > 0 {
                    prop_assert!(!ring.is_empty(tail, head));
                    head = ring.next(head);
                    count -= 1;
                }
                prop_assert_eq!(ring.queued(tail, head), Some(count));
                prop_assert_eq!(ring.is_full(tail, head), count == n);
                prop_assert_eq!(ring.is_empty(tail, head), count == 0);
                prop_assert!(ring.is_valid(tail) && ring.is_valid(head));
                prop_assert!(ring.slot(tail) < n);
            }
        }
    }

    #[test]
    fn nonsense_from_the_other_side_is_never_counted(log in 0u32..12, tail in any::<u32>(), head in any::<u32>()) {
        let n = 1u32 << log;
        let ring = RingSize::new(n).unwrap();
        match ring.queued(tail, head) {
            Some(count) => {
                prop_assert!(count <= n && tail < 2 * n && head < 2 * n);
                prop_assert_eq!(ring.advance(head, count), tail);
            }
            None => prop_assert!(tail >= 2 * n || head >= 2 * n || (tail.wrapping_sub(head) & (2 * n - 1)) > n),
        }
    }

    #[test]
    fn consecutive_slots_are_distinct_until_the_ring_is_full(log in 0u32..10, start in any::<u32>()) {
        let n = 1u32 << log;
        let ring = RingSize::new(n).unwrap();
        let start = start & (2 * n - 1);
        let slots: std::collections::HashSet<u32> = (0..n).map(|i| ring.slot(ring.advance(start, i))).collect();
        prop_assert_eq!(slots.len(), n as usize);
    }

    #[test]
    fn directory_positions_are_a_bijection(page in 0usize..pdir::MAX_PAGES) {
        let (dir, table) = pdir::position(page).unwrap();
        prop_assert!(dir < pdir::ENTRIES && table < pdir::ENTRIES);
        prop_assert_eq!(dir * pdir::ENTRIES + table, page);
        prop_assert!(pdir::tables(page + 1) == dir + 1);
    }
}

#[test]
fn the_four_page_notification_ring_masks_as_linux_does() {
    let ring = RingSize::of_device_ring(4, 4).unwrap();
    assert_eq!(ring.slots(), 3072);
    assert!(!ring.is_exact());
    let mut index = 0;
    let mut slots = std::collections::HashSet::new();
    for _ in 0..10_000 {
        slots.insert(ring.slot(index));
        index = ring.next(index);
        assert!(ring.is_valid(index));
    }
    assert_eq!(slots.len(), 1024, "both sides mask alike, so a third of the ring is used");
}

#[test]
fn strides_are_those_of_the_interface() {
    assert_eq!([1, 2, 3, 4].map(|s| wqe::send_stride(s, 0)), [128, 128, 128, 256]);
    assert_eq!([1, 2, 3, 4].map(wqe::recv_stride), [32, 64, 64, 128]);
    assert_eq!(wqe::send_stride(1, 176), 256);
    assert_eq!(pdir::position(pdir::MAX_PAGES), None);
}
