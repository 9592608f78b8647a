//! Which operation comes next.

use crate::field::Field;
use crate::operation::{Kind, Operation, PAGE};
use crate::random::Random;

/// Kinds that free blocks of the file at once, which is what an unguarded region falls for.
const FREEING: [Kind; 4] = [Kind::Ftruncate, Kind::Truncate, Kind::OpenTruncate, Kind::Punch];

/// Any operation. Without a guard, one that frees blocks. Where nobody tells of an operation on a
/// file without a pin (`told` is false), one that leaves the file its first page, by which it is
/// pinned.
pub fn any(random: &mut Random, field: &Field, guarded: bool, told: bool) -> Operation {
    let kinds: Vec<Kind> = match guarded {
        false => FREEING.to_vec(),
        true => Kind::ALL
            .into_iter()
            .filter(|kind| kind.is_on(field.fs))
            .filter(|kind| told || *kind != Kind::OpenTruncate)
            .collect(),
    };
    let kind = random.pick(&kinds).unwrap_or(Kind::Punch);
    let first = u64::from(!told);
    let pages = field.size / PAGE;
    let from = first + random.below(pages - first - 1);
    let most = pages - from;
    // Small ones and large ones alike.
    let bound = 1 << random.below(u64::from(64 - most.leading_zeros()));
    let len = 1 + random.below(bound.min(most));
    let (offset, len) = match kind {
        Kind::Ftruncate | Kind::Truncate => match random.below(6) {
            0 => (field.size + len * PAGE, 0),
            1 => (from * PAGE + 1 + random.below(PAGE - 1), 0),
            2 if told => (0, 0),
            _ => (from * PAGE, 0),
        },
        // A collapse may not reach the end.
        Kind::Collapse => (from * PAGE, len.min(most - 1).max(1) * PAGE),
        // A write of everything would take long, and an insertion takes room in the file.
        Kind::Write | Kind::Insert => (from * PAGE, len.min(64) * PAGE),
        Kind::DedupeFrom | Kind::DedupeOnto => (from * PAGE, len.min(pages / 4) * PAGE),
        // Some beyond the end.
        Kind::Allocate if random.one_in(4) => (from * PAGE, (len + most) * PAGE),
        Kind::OpenTruncate | Kind::CloneFrom | Kind::CloneOnto | Kind::Sync => (0, 0),
        _ => (from * PAGE, len * PAGE),
    };
    let ring = kind.has_ring() && random.one_in(4);
    Operation { kind, offset, len, ring }
}
