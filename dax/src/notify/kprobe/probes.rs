//! Which kernel functions are probed, what is taken from their arguments, and what it means.
//!
//! One of them waits for pins ([`WAIT`]); the others are the ways into a file system on which a
//! thread comes there, and tell what it wants. They differ between kernels: each is placed where
//! it exists with these arguments, and the notifier's statement names those that do not.

use super::line::MAX_VALUES;
use super::meaning::{
    Operation, attributes, dedupe, exchange, fallocate, move_extents, remap, set_size, swap_boot,
    swap_extents,
};
use crate::notify::Cause;

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

    #[test]
    fn names_of_events_cannot_be_made_up_by_a_process() {
        for probe in WAYS.iter().chain([&WAIT]) {
            assert!(probe.event.starts_with(PREFIX) && PREFIX.len() > 15, "{}", probe.event);
            assert!(probe.values.len() <= MAX_VALUES);
            assert_eq!(probe.values[0].0, "dev");
        }
    }
}
