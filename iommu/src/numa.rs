//! Which NUMA node memory is on.
//!
//! Memory on the node of the processor that reads it, or of the device that writes it, is nearer by
//! some ten nanoseconds an access than that of another node. The kernel gives a file's pages from the
//! node where they are first touched; [`crate::SharedMemory::on_node`] asks for another before they are
//! (`mbind(2)`), and [`crate::SharedMemory::node`] says what was given. On a machine with one node
//! there is nothing to choose.
#![allow(unsafe_code)]

use std::fs;
use std::path::Path;
use std::ptr::NonNull;

use nix::errno::Errno;

/// Take pages of this node while it has some, and of others then: `set_mempolicy(2)`.
const MPOL_PREFERRED: libc::c_int = 1;
/// Tell the node of the page at an address: `get_mempolicy(2)`.
const MPOL_F_NODE: libc::c_ulong = 1;
const MPOL_F_ADDR: libc::c_ulong = 2;
/// Nodes that a mask has room for; Linux has 1024 at most.
const NODES: usize = 1024;
const WORD: usize = libc::c_ulong::BITS as usize;

/// The nodes that have memory which this process may use (its cpuset may leave some out), in order;
/// none where the kernel has no NUMA.
pub fn nodes() -> Vec<u32> {
    nodes_under(Path::new("/"))
}

fn nodes_under(root: &Path) -> Vec<u32> {
    let text = |path: &str| fs::read_to_string(root.join(path)).unwrap_or_default();
    let mut nodes = list(&text("sys/devices/system/node/has_memory"));
    let status = text("proc/self/status");
    let allowed = status.lines().find_map(|line| line.strip_prefix("Mems_allowed_list:"));
    if let Some(allowed) = allowed.map(list) {
        nodes.retain(|node| allowed.contains(node));
    }
    nodes
}

/// The numbers of a list as sysfs has them, of nodes or processors: `0-2,5`.
pub fn list(text: &str) -> Vec<u32> {
    let range = |part: &str| {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        Some(first.trim().parse().ok()?..=last.trim().parse().ok()?)
    };
    text.split(',').filter_map(range).flatten().collect()
}

/// Has pages of this mapping, and of the file behind it where it is a shared one, come from `node`
/// while that has some. Pages that are there stay where they are.
///
/// # Errors
/// EINVAL: no such node, or not one of this process's cpuset. ENOSYS: a kernel without NUMA.
pub(crate) fn prefer(base: NonNull<u8>, len: usize, node: u32) -> Result<(), Errno> {
    let mut mask = [0 as libc::c_ulong; NODES / WORD];
    let at = node as usize;
    let word = mask.get_mut(at / WORD).ok_or(Errno::EINVAL)?;
    *word |= 1 << (at % WORD);
    // The kernel takes one bit less than it is told of.
    // SAFETY: changes where pages will come from, and no content; the mask outlives the call.
    let done = unsafe {
        libc::syscall(
            libc::SYS_mbind,
            base.as_ptr(),
            len,
            MPOL_PREFERRED,
            mask.as_ptr(),
            NODES + 1,
            0 as libc::c_ulong,
        )
    };
    Errno::result(done).map(drop)
}

/// The node of the page at an address, which is brought in if it is not there. `None` where the
/// kernel has no NUMA, or nothing is mapped.
pub(crate) fn of(address: NonNull<u8>) -> Option<u32> {
    let mut node: libc::c_int = -1;
    // SAFETY: writes one int, which outlives the call; the address is only looked up.
    let done = unsafe {
        libc::syscall(
            libc::SYS_get_mempolicy,
            &raw mut node,
            std::ptr::null_mut::<libc::c_ulong>(),
            0 as libc::c_ulong,
            address.as_ptr(),
            MPOL_F_NODE | MPOL_F_ADDR,
        )
    };
    Errno::result(done).ok()?;
    u32::try_from(node).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nodes_are_read_from_sysfs() {
        let root = tempfile::tempdir().unwrap();
        assert!(nodes_under(root.path()).is_empty(), "a kernel without NUMA");
        for folder in ["sys/devices/system/node", "proc/self"] {
            fs::create_dir_all(root.path().join(folder)).unwrap();
        }
        let write = |path: &str, text: &str| fs::write(root.path().join(path), text).unwrap();
        for (text, expected) in [("0\n", vec![0]), ("0-2,5\n", vec![0, 1, 2, 5]), ("\n", vec![])] {
            write("sys/devices/system/node/has_memory", text);
            assert_eq!(nodes_under(root.path()), expected, "{text:?}");
        }
        write("sys/devices/system/node/has_memory", "0-3\n");
        write("proc/self/status", "Name:\tx\nMems_allowed_list:\t1,3-7\n");
        assert_eq!(nodes_under(root.path()), [1, 3]);
    }
}
