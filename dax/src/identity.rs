//! Which file it is: device and inode number, as `stat` tells them, and as the kernel's own
//! structures hold them.

use std::fmt;
use std::os::fd::{AsFd, BorrowedFd};

use nix::errno::Errno;
use nix::sys::stat::fstat;

/// Identity of a file while it exists: two descriptors are of one file exactly when their ids are
/// equal. An inode number is used again after the file is gone; whoever keeps an id keeps a
/// descriptor too.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FileId {
    /// `st_dev`: the device of its file system, in the C library's encoding.
    pub dev: u64,
    /// `st_ino`: its inode number there.
    pub ino: u64,
}

impl FileId {
    /// The id of an open file. Takes no lock of the file, so it may be asked for while an
    /// operation on the file waits.
    pub fn of(file: BorrowedFd<'_>) -> Result<Self, Errno> {
        let stat = fstat(file.as_fd())?;
        Ok(Self { dev: stat.st_dev, ino: stat.st_ino })
    }

    /// Major number of the device.
    pub fn major(&self) -> u32 {
        nix::sys::stat::major(self.dev) as u32
    }

    /// Minor number of the device.
    pub fn minor(&self) -> u32 {
        nix::sys::stat::minor(self.dev) as u32
    }

    /// The device as the kernel holds it in `super_block.s_dev` (`MKDEV` of linux/kdev_t.h: the
    /// major number above 20 bits of minor). On ext4, xfs and tmpfs it is the device that `stat`
    /// tells; btrfs tells another one for each subvolume.
    pub fn kernel_dev(&self) -> u32 {
        (self.major() << 20) | (self.minor() & 0xf_ffff)
    }
}

impl fmt::Display for FileId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}/{}", self.major(), self.minor(), self.ino)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::stat::makedev;

    #[test]
    fn two_descriptors_of_one_file_have_one_id() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let again = file.reopen().unwrap();
        let other = tempfile::tempfile().unwrap();
        let id = |f: &std::fs::File| FileId::of(f.as_fd()).unwrap();
        assert_eq!(id(file.as_file()), id(&again));
        assert_ne!(id(file.as_file()), id(&other));
    }

    #[test]
    fn the_kernels_device_number_has_twenty_bits_of_minor() {
        for (major, minor, kernel) in [
            (8, 1, 0x80_0001),
            (259, 0, 0x1030_0000),
            (0, 70_000, 70_000),
            (253, 0xfffff, 0xfdfffff),
        ] {
            let id = FileId { dev: makedev(major, minor), ino: 7 };
            assert_eq!(id.kernel_dev(), kernel);
            assert_eq!(id.to_string(), format!("{major}:{minor}/7"));
        }
    }
}
