//! The mount a file is on, from /proc/self/mountinfo: file system, device and DAX option.

use std::fs;
use std::path::PathBuf;

use crate::FileId;

/// What a mount says of DAX.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MountDax {
    /// `dax` or `dax=always`: every regular file.
    Always,
    /// `dax=never`: no file.
    Never,
    /// `dax=inode`, or nothing: files with the DAX flag (FS_XFLAG_DAX).
    Inode,
}

/// A mounted file system.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Mount {
    /// Where it is mounted.
    pub point: PathBuf,
    /// Its type, such as `ext4`.
    pub fs_type: String,
    /// What is mounted, such as `/dev/pmem0`.
    pub device: String,
    /// What it says of DAX.
    pub dax: MountDax,
}

impl Mount {
    /// The mount of the file system that a file is on; the first, if it is mounted more than once.
    pub fn of(file: FileId) -> Option<Self> {
        let text = fs::read_to_string("/proc/self/mountinfo").ok()?;
        parse(&text, file.major(), file.minor())
    }
}

fn parse(text: &str, major: u32, minor: u32) -> Option<Mount> {
    let wanted = format!("{major}:{minor}");
    text.lines().find_map(|line| {
        let (left, right) = line.split_once(" - ")?;
        let mut left = left.split(' ').skip(2);
        if left.next()? != wanted {
            return None;
        }
        let point = PathBuf::from(unescape(left.nth(1)?));
        let options = left.next()?;
        let mut right = right.split(' ');
        let (fs_type, device) = (right.next()?.to_owned(), unescape(right.next()?));
        let super_options = right.next().unwrap_or_default();
        let mut dax = MountDax::Inode;
        for option in options.split(',').chain(super_options.split(',')) {
            match option {
                "dax" | "dax=always" => dax = MountDax::Always,
                "dax=never" => dax = MountDax::Never,
                _ => {}
            }
        }
        Some(Mount { point, fs_type, device, dax })
    })
}

/// Undoes the octal escapes of spaces and the like.
fn unescape(text: &str) -> String {
    text.replace("\\040", " ").replace("\\011", "\t").replace("\\012", "\n").replace("\\134", "\\")
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "\
22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw
40 22 259:0 / /mnt/with\\040space rw,relatime shared:2 master:3 - xfs /dev/pmem0 rw,dax=always,su=2m
41 22 259:1 / /mnt/never rw - ext4 /dev/pmem1 rw,dax=never
42 22 259:2 / /mnt/old rw - ext4 /dev/pmem2 rw,dax
";

    #[test]
    fn a_mount_is_found_by_its_device() {
        let root = parse(TEXT, 254, 0).unwrap();
        assert_eq!((root.point, root.dax), ("/".into(), MountDax::Inode));
        let xfs = parse(TEXT, 259, 0).unwrap();
        assert_eq!(xfs.point, PathBuf::from("/mnt/with space"));
        assert_eq!((&*xfs.fs_type, &*xfs.device), ("xfs", "/dev/pmem0"));
        assert_eq!(xfs.dax, MountDax::Always);
        assert_eq!(parse(TEXT, 259, 1).unwrap().dax, MountDax::Never);
        assert_eq!(parse(TEXT, 259, 2).unwrap().dax, MountDax::Always);
        assert_eq!(parse(TEXT, 259, 3), None);
    }
}
