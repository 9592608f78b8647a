//! Which kernel functions are probed, what is taken from their arguments, and what it means.
//!
//! One of them waits for pins ([`WAIT`]); the others are the ways into a file system on which a
//! thread comes there, and tell what it wants. They differ between kernels: each is placed where
//! it exists with these arguments, and the notifier's statement names those that do not.

use std::ops::Range;

use crate::notify::Cause;

use super::line::MAX_VALUES;

/// Begins the name of every event; longer than a process's name can be.
pub const PREFIX: &str = "holdfast_layout_";

/// A probe at the start of a function.
#[derive(Debug)]
pub struct Probe {
    /// Name of its events.
    pub event: &'static str,
    /// The module that has the function, where it may be one.
    pub module: Option<&'static str>,
    /// The function.
    pub function: &'static str,
    /// Names and paths of the values to take. `dev` and `ino` are the file; `ino2` is a second
    /// one on the same file system.
    pub values: &'static [(&'static str, &'static str)],
    /// What must hold besides the file being watched.
    pub only: Option<&'static str>,
    /// What the values after `dev`, `ino` and `ino2` mean.
    pub meaning: Meaning,
}

/// What an event says.
#[derive(Debug)]
pub enum Meaning {
    /// The thread looks for pins of the file, and waits for those it finds.
    Wait,
    /// The thread has begun this, which comes to waiting.
    Begin(fn(&[Option<u64>; MAX_VALUES]) -> Operation),
    /// The thread has begun this, which waits for nobody.
    Unstoppable(fn(&[Option<u64>; MAX_VALUES]) -> Operation),
    /// This happens to all files of the file system.
    WholeDevice(Cause),
}

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
fn set_size(v: &[Option<u64>; MAX_VALUES]) -> Operation {
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
fn fallocate(v: &[Option<u64>; MAX_VALUES]) -> Operation {
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
fn remap(v: &[Option<u64>; MAX_VALUES]) -> Operation {
    Operation {
        first: (Cause::CloneFrom, span_or_rest(v[3], v[5])),
        second: (Cause::CloneOnto, span_or_rest(v[4], v[5])),
    }
}

/// `pos`, `pos2`, `len`.
fn dedupe(v: &[Option<u64>; MAX_VALUES]) -> Operation {
    Operation {
        first: (Cause::Dedupe, span(v[3], v[5])),
        second: (Cause::Dedupe, span(v[4], v[5])),
    }
}

/// `pos`, `pos2`, `len`, `flags`; with `XFS_EXCHANGE_RANGE_TO_EOF` (bit 0) the length is void.
fn exchange(v: &[Option<u64>; MAX_VALUES]) -> Operation {
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

fn swap_extents(_: &[Option<u64>; MAX_VALUES]) -> Operation {
    Operation { first: (Cause::SwapExtents, None), second: (Cause::SwapExtents, None) }
}

/// `bits`, `block`, `block2`, `len`.
fn move_extents(v: &[Option<u64>; MAX_VALUES]) -> Operation {
    let range = |block: Option<u64>| {
        let bytes = |blocks: u64| blocks.checked_shl(v[3]? as u32);
        span(bytes(block?), bytes(v[6]?))
    };
    Operation {
        first: (Cause::MoveExtents, range(v[4])),
        second: (Cause::MoveExtents, range(v[5])),
    }
}

fn swap_boot(_: &[Option<u64>; MAX_VALUES]) -> Operation {
    Operation::one(Cause::SwapBoot, None)
}

fn attributes(_: &[Option<u64>; MAX_VALUES]) -> Operation {
    Operation::one(Cause::Attributes, None)
}

/// Where a file system looks for pins before it frees or moves blocks.
pub const WAIT: Probe = Probe {
    event: "holdfast_layout_wait",
    module: None,
    function: "dax_layout_busy_page_range",
    values: &[("dev", "mapping->host->i_sb->s_dev"), ("ino", "mapping->host->i_ino")],
    only: None,
    meaning: Meaning::Wait,
};

const FALLOCATE: &[(&str, &str)] = &[
    ("dev", "file->f_inode->i_sb->s_dev"),
    ("ino", "file->f_inode->i_ino"),
    ("mode", "mode"),
    ("offset", "offset"),
    ("len", "len"),
];

const REMAP: &[(&str, &str)] = &[
    ("dev", "file_in->f_inode->i_sb->s_dev"),
    ("ino", "file_in->f_inode->i_ino"),
    ("ino2", "file_out->f_inode->i_ino"),
    ("pos", "pos_in"),
    ("pos2", "pos_out"),
    ("len", "len"),
];

/// The ways there, and those that pass by.
pub const WAYS: &[Probe] = &[
    Probe {
        // Truncation by any caller: truncate, ftruncate, O_TRUNC, io_uring, nfsd, overlayfs.
        event: "holdfast_layout_setattr",
        module: None,
        function: "notify_change",
        values: &[
            ("dev", "dentry->d_inode->i_sb->s_dev"),
            ("ino", "dentry->d_inode->i_ino"),
            ("valid", "attr->ia_valid"),
            ("size", "attr->ia_size"),
            ("old", "dentry->d_inode->i_size"),
        ],
        only: Some("valid & 8"),
        meaning: Meaning::Begin(set_size),
    },
    Probe {
        event: "holdfast_layout_fallocate",
        module: None,
        function: "vfs_fallocate",
        values: FALLOCATE,
        only: None,
        meaning: Meaning::Begin(fallocate),
    },
    // The loop device comes straight here.
    Probe {
        event: "holdfast_layout_ext4_fallocate",
        module: Some("ext4"),
        function: "ext4_fallocate",
        values: FALLOCATE,
        only: None,
        meaning: Meaning::Begin(fallocate),
    },
    Probe {
        event: "holdfast_layout_xfs_fallocate",
        module: Some("xfs"),
        function: "xfs_file_fallocate",
        values: FALLOCATE,
        only: None,
        meaning: Meaning::Begin(fallocate),
    },
    Probe {
        event: "holdfast_layout_clone",
        module: None,
        function: "vfs_clone_file_range",
        values: REMAP,
        only: None,
        meaning: Meaning::Begin(remap),
    },
    Probe {
        event: "holdfast_layout_copy",
        module: None,
        function: "vfs_copy_file_range",
        values: REMAP,
        only: None,
        meaning: Meaning::Begin(remap),
    },
    Probe {
        event: "holdfast_layout_dedupe",
        module: None,
        function: "vfs_dedupe_file_range_one",
        values: &[
            ("dev", "src_file->f_inode->i_sb->s_dev"),
            ("ino", "src_file->f_inode->i_ino"),
            ("ino2", "dst_file->f_inode->i_ino"),
            ("pos", "src_pos"),
            ("pos2", "dst_pos"),
            ("len", "len"),
        ],
        only: None,
        meaning: Meaning::Begin(dedupe),
    },
    Probe {
        event: "holdfast_layout_exchange",
        module: Some("xfs"),
        function: "xfs_exchange_range",
        values: &[
            ("dev", "fxr->file1->f_inode->i_sb->s_dev"),
            ("ino", "fxr->file1->f_inode->i_ino"),
            ("ino2", "fxr->file2->f_inode->i_ino"),
            ("pos", "fxr->file1_offset"),
            ("pos2", "fxr->file2_offset"),
            ("len", "fxr->length"),
            ("flags", "fxr->flags"),
        ],
        only: None,
        meaning: Meaning::Begin(exchange),
    },
    Probe {
        event: "holdfast_layout_swapext",
        module: Some("xfs"),
        function: "xfs_swap_extents",
        values: &[
            ("dev", "ip->i_vnode.i_sb->s_dev"),
            ("ino", "ip->i_vnode.i_ino"),
            ("ino2", "tip->i_vnode.i_ino"),
        ],
        only: None,
        meaning: Meaning::Unstoppable(swap_extents),
    },
    Probe {
        event: "holdfast_layout_moveext",
        module: Some("ext4"),
        function: "ext4_move_extents",
        values: &[
            ("dev", "o_filp->f_inode->i_sb->s_dev"),
            ("ino", "o_filp->f_inode->i_ino"),
            ("ino2", "d_filp->f_inode->i_ino"),
            ("bits", "o_filp->f_inode->i_blkbits"),
            ("block", "orig_blk"),
            ("block2", "donor_blk"),
            ("len", "len"),
        ],
        only: None,
        meaning: Meaning::Unstoppable(move_extents),
    },
    Probe {
        event: "holdfast_layout_swap_boot",
        module: Some("ext4"),
        function: "ext4_ioctl",
        values: &[
            ("dev", "filp->f_inode->i_sb->s_dev"),
            ("ino", "filp->f_inode->i_ino"),
            ("command", "cmd"),
        ],
        // EXT4_IOC_SWAP_BOOT
        only: Some("command == 0x6611"),
        meaning: Meaning::Unstoppable(swap_boot),
    },
    Probe {
        event: "holdfast_layout_attributes",
        module: None,
        function: "vfs_fileattr_set",
        values: &[("dev", "dentry->d_inode->i_sb->s_dev"), ("ino", "dentry->d_inode->i_ino")],
        only: None,
        meaning: Meaning::Unstoppable(attributes),
    },
    Probe {
        event: "holdfast_layout_xfs_down",
        module: Some("xfs"),
        function: "xfs_do_force_shutdown",
        values: &[("dev", "mp->m_super->s_dev")],
        only: None,
        meaning: Meaning::WholeDevice(Cause::Shutdown),
    },
    Probe {
        event: "holdfast_layout_ext4_down",
        module: Some("ext4"),
        function: "ext4_ioctl",
        values: &[("dev", "filp->f_inode->i_sb->s_dev"), ("command", "cmd")],
        // EXT4_IOC_SHUTDOWN
        only: Some("command == 0x8004587d"),
        meaning: Meaning::WholeDevice(Cause::Shutdown),
    },
];

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

    #[test]
    fn names_of_events_cannot_be_made_up_by_a_process() {
        for probe in WAYS.iter().chain([&WAIT]) {
            assert!(probe.event.starts_with(PREFIX) && PREFIX.len() > 15, "{}", probe.event);
            assert!(probe.values.len() <= MAX_VALUES);
            assert_eq!(probe.values[0].0, "dev");
        }
    }
}
