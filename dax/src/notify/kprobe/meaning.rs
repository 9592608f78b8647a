//! What the values of an event mean: which operation has begun, on which files and ranges.
//!
//! `dev`, `ino` and `ino2` come first; each function names the values after them. A value that
//! could not be fetched makes the range, or all of it, unknown.

use std::ops::Range;

use super::line::MAX_VALUES;
use crate::notify::Cause;

/// What is done to the first file, and to the second one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Operation {
    pub first: (Cause, Option<Range<u64>>),
    pub second: (Cause, Option<Range<u64>>),
}

impl Operation {
    fn one(cause: Cause, range: Option<Range<u64>>) -> Self {
        Self { first: (cause, range), second: (Cause::Unknown, None) }
    }
}

/// `FALLOC_FL_*` of linux/falloc.h.
const PUNCH_HOLE: u64 = 0x02;
const COLLAPSE_RANGE: u64 = 0x08;
const ZERO_RANGE: u64 = 0x10;
const INSERT_RANGE: u64 = 0x20;
const UNSHARE_RANGE: u64 = 0x40;
const WRITE_ZEROES: u64 = 0x80;
/// `ATTR_OPEN` of linux/fs.h: the truncation of an `open`.
const ATTR_OPEN: u64 = 1 << 15;
/// `len` bytes from `start` on, or all from there on.
fn span(start: Option<u64>, len: Option<u64>) -> Option<Range<u64>> {
    Some(start?..start?.saturating_add(len?))
}

/// As for cloning, where a length of 0 means all from there on.
fn span_or_rest(start: Option<u64>, len: Option<u64>) -> Option<Range<u64>> {
    match len? {
        0 => Some(start?..u64::MAX),
        _ => span(start, len),
    }
}

/// `valid`, `size`, `old`.
pub fn set_size(v: &[Option<u64>; MAX_VALUES]) -> Operation {
    let (Some(valid), Some(size), Some(old)) = (v[2], v[3], v[4]) else {
        return Operation::one(Cause::Unknown, None);
    };
    if size > old {
        Operation::one(Cause::Grow { size }, Some(old..size))
    } else if valid & ATTR_OPEN != 0 {
        Operation::one(Cause::OpenTruncate, Some(size..old))
    } else {
        Operation::one(Cause::Truncate { size }, Some(size..old))
    }
}

/// `mode`, `offset`, `len`.
pub fn fallocate(v: &[Option<u64>; MAX_VALUES]) -> Operation {
    let range = span(v[3], v[4]);
    let rest = v[3].map(|offset| offset..u64::MAX);
    let Some(mode) = v[2] else { return Operation::one(Cause::Unknown, None) };
    for (flag, cause, range) in [
        (PUNCH_HOLE, Cause::PunchHole, &range),
        (COLLAPSE_RANGE, Cause::CollapseRange, &rest),
        (INSERT_RANGE, Cause::InsertRange, &rest),
        (ZERO_RANGE | WRITE_ZEROES, Cause::ZeroRange, &range),
        (UNSHARE_RANGE, Cause::UnshareRange, &range),
    ] {
        if mode & flag != 0 {
            return Operation::one(cause, range.clone());
        }
    }
    Operation::one(Cause::Allocate, range)
}

/// `pos`, `pos2`, `len`.
pub fn remap(v: &[Option<u64>; MAX_VALUES]) -> Operation {
    Operation {
        first: (Cause::CloneFrom, span_or_rest(v[3], v[5])),
        second: (Cause::CloneOnto, span_or_rest(v[4], v[5])),
    }
}

/// `pos`, `pos2`, `len`.
pub fn dedupe(v: &[Option<u64>; MAX_VALUES]) -> Operation {
    Operation {
        first: (Cause::Dedupe, span(v[3], v[5])),
        second: (Cause::Dedupe, span(v[4], v[5])),
    }
}

/// `pos`, `pos2`, `len`, `flags`; with `XFS_EXCHANGE_RANGE_TO_EOF` (bit 0) the length is void.
pub fn exchange(v: &[Option<u64>; MAX_VALUES]) -> Operation {
    let to_end = v[6].is_none_or(|flags| flags & 1 != 0);
    let range = |start: Option<u64>| match to_end {
        true => start.map(|start| start..u64::MAX),
        false => span(start, v[5]),
    };
    Operation {
        first: (Cause::ExchangeRange, range(v[3])),
        second: (Cause::ExchangeRange, range(v[4])),
    }
}

pub fn swap_extents(_: &[Option<u64>; MAX_VALUES]) -> Operation {
    Operation { first: (Cause::SwapExtents, None), second: (Cause::SwapExtents, None) }
}

/// `bits`, `block`, `block2`, `len`.
pub fn move_extents(v: &[Option<u64>; MAX_VALUES]) -> Operation {
    let range = |block: Option<u64>| {
        let bytes = |blocks: u64| blocks.checked_shl(v[3]? as u32);
        span(bytes(block?), bytes(v[6]?))
    };
    Operation {
        first: (Cause::MoveExtents, range(v[4])),
        second: (Cause::MoveExtents, range(v[5])),
    }
}

pub fn swap_boot(_: &[Option<u64>; MAX_VALUES]) -> Operation {
    Operation::one(Cause::SwapBoot, None)
}

pub fn attributes(_: &[Option<u64>; MAX_VALUES]) -> Operation {
    Operation::one(Cause::Attributes, None)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(some: &[u64]) -> [Option<u64>; MAX_VALUES] {
        let mut values = [None; MAX_VALUES];
        values.iter_mut().zip(some).for_each(|(value, some)| *value = Some(*some));
        values
    }

    #[test]
    fn sizes_tell_truncation_from_growth() {
        for (valid, size, old, cause, range) in [
            (8, 0, 8192, Cause::Truncate { size: 0 }, 0..8192),
            (8 | ATTR_OPEN, 0, 8192, Cause::OpenTruncate, 0..8192),
            (8, 8192, 8192, Cause::Truncate { size: 8192 }, 8192..8192),
            (8, 9000, 8192, Cause::Grow { size: 9000 }, 8192..9000),
        ] {
            let operation = set_size(&values(&[1, 2, valid, size, old]));
            assert_eq!(operation.first, (cause, Some(range)));
        }
    }

    #[test]
    fn modes_of_fallocate_tell_cause_and_range() {
        let rest = 4096..u64::MAX;
        for (mode, cause, range) in [
            (0, Cause::Allocate, 4096..12288),
            (1, Cause::Allocate, 4096..12288),
            (3, Cause::PunchHole, 4096..12288),
            (8, Cause::CollapseRange, rest.clone()),
            (0x10, Cause::ZeroRange, 4096..12288),
            (0x20, Cause::InsertRange, rest),
            (0x40, Cause::UnshareRange, 4096..12288),
            (0x80, Cause::ZeroRange, 4096..12288),
        ] {
            let operation = fallocate(&values(&[1, 2, mode, 4096, 8192]));
            assert_eq!(operation.first, (cause, Some(range)), "{mode:#x}");
        }
    }

    #[test]
    fn operations_on_two_files_have_two_ranges() {
        let clone = remap(&values(&[1, 2, 3, 4096, 8192, 4096]));
        assert_eq!(clone.first, (Cause::CloneFrom, Some(4096..8192)));
        assert_eq!(clone.second, (Cause::CloneOnto, Some(8192..12288)));
        let whole = remap(&values(&[1, 2, 3, 4096, 0, 0]));
        assert_eq!(whole.first, (Cause::CloneFrom, Some(4096..u64::MAX)));
        let part = exchange(&values(&[1, 2, 3, 0, 4096, 4096, 0]));
        assert_eq!(part.second, (Cause::ExchangeRange, Some(4096..8192)));
        let rest = exchange(&values(&[1, 2, 3, 0, 4096, 4096, 1]));
        assert_eq!(rest.second, (Cause::ExchangeRange, Some(4096..u64::MAX)));
        let moved = move_extents(&values(&[1, 2, 3, 12, 1, 2, 3]));
        assert_eq!(moved.first, (Cause::MoveExtents, Some(4096..16384)));
    }

    /// A value that could not be fetched makes the range, or all of it, unknown: never a guess.
    #[test]
    fn what_could_not_be_fetched_is_taken_for_anything() {
        assert_eq!(set_size(&[None; MAX_VALUES]), Operation::one(Cause::Unknown, None));
        assert_eq!(fallocate(&[None; MAX_VALUES]), Operation::one(Cause::Unknown, None));
        assert_eq!(remap(&[None; MAX_VALUES]).first.1, None);
        assert_eq!(exchange(&[None; MAX_VALUES]).first.1, None);
        assert_eq!(move_extents(&[None; MAX_VALUES]).first.1, None);
    }
}
