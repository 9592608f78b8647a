//! Why a file is not DAX, and what to do about it.

use std::fmt;
use std::fs;
use std::os::fd::BorrowedFd;
use std::path::PathBuf;

use nix::sys::statfs::fstatfs;

use super::{Mount, MountDax};
use crate::{Error, FileId, Result};

/// Why a file is not DAX.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum NotDax {
    /// The file system cannot do it.
    FileSystem {
        /// Its type, or its magic number.
        fs_type: String,
    },
    /// The block device is not persistent memory with DAX.
    Device {
        /// The device.
        device: String,
        /// Whether it is persistent memory at all (a namespace in raw or sector mode).
        pmem: bool,
    },
    /// Mounted with `dax=never`.
    Never {
        /// Where.
        point: PathBuf,
    },
    /// Mounted so that files are DAX by their flag, and this one has none.
    NoFlag {
        /// Where it is mounted.
        point: PathBuf,
        /// The device.
        device: String,
    },
    /// The mount makes files DAX, but not this one.
    Inode {
        /// The file system's type.
        fs_type: String,
    },
}

impl fmt::Display for NotDax {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::FileSystem { fs_type } => write!(
                f,
                "{fs_type} gives no access to persistent memory here: use ext4 or xfs on a pmem \
                 device ('mkfs.ext4 -b 4096 -E stride=512,stripe_width=512' or 'mkfs.xfs -d \
                 su=2m,sw=1' keep files aligned to 2 MiB), mounted with -o dax"
            ),
            Self::Device { device, pmem: true } => write!(
                f,
                "{device} is persistent memory without DAX, a namespace in raw or sector mode: \
                 'ndctl create-namespace -f -e NAMESPACE -m fsdax' makes it an fsdax one (and \
                 erases it)"
            ),
            Self::Device { device, pmem: false } => write!(
                f,
                "{device} is not persistent memory: put the file on a file system on /dev/pmemN, \
                 or register it through the page cache"
            ),
            Self::Never { point } => {
                let point = point.display();
                write!(
                    f,
                    "{point} is mounted with dax=never: 'umount {point}' and mount it with -o dax"
                )
            }
            Self::NoFlag { point, device } => {
                let point = point.display();
                write!(
                    f,
                    "{point} is mounted without -o dax, so only files with the DAX flag are: \
                     'umount {point}; mount -o dax {device} {point}', or set the flag on the \
                     folder (xfs_io -c 'chattr +x' FOLDER) and copy the file within it"
                )
            }
            Self::Inode { fs_type } => write!(
                f,
                "the {fs_type} file has a property that excludes DAX: it is encrypted, under \
                 fs-verity, journals its data, holds its data inline, or lies on xfs's realtime \
                 device; copy it to a new file"
            ),
        }
    }
}

/// Looks for the reason why `fd`, known not to be DAX, is not. Takes no lock of the file.
pub(crate) fn why_not_dax(fd: BorrowedFd<'_>) -> Result<NotDax> {
    let id = FileId::of(fd).map_err(Error::identity)?;
    let Some(mount) = Mount::of(id) else {
        let magic = fstatfs(fd).map(|fs| fs.filesystem_type().0).unwrap_or(0);
        return Ok(NotDax::FileSystem { fs_type: format!("file system {magic:#x}") });
    };
    let device = Device::of(id);
    Ok(decide(mount, device))
}

/// What sysfs says of the block device under a file system.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Device {
    dax: bool,
    pmem: bool,
}

impl Device {
    fn of(id: FileId) -> Option<Self> {
        let device = format!("/sys/dev/block/{}:{}", id.major(), id.minor());
        // A partition has its queue one folder up.
        let dax = ["queue/dax", "../queue/dax"]
            .iter()
            .find_map(|attribute| fs::read_to_string(format!("{device}/{attribute}")).ok())?;
        let name = fs::read_link(&device).ok()?.to_string_lossy().into_owned();
        Some(Self { dax: dax.trim() == "1", pmem: name.contains("/pmem") })
    }
}

fn decide(mount: Mount, device: Option<Device>) -> NotDax {
    let Mount { point, fs_type, device: name, dax } = mount;
    if !matches!(&*fs_type, "ext2" | "ext4" | "xfs") {
        return NotDax::FileSystem { fs_type };
    }
    match (device, dax) {
        (Some(Device { dax: false, pmem }), _) => NotDax::Device { device: name, pmem },
        (_, MountDax::Never) => NotDax::Never { point },
        (_, MountDax::Inode) => NotDax::NoFlag { point, device: name },
        (_, MountDax::Always) => NotDax::Inode { fs_type },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_reason_says_what_to_do() {
        let mount = |fs_type: &str, dax| Mount {
            point: "/mnt".into(),
            fs_type: fs_type.into(),
            device: "/dev/pmem0".into(),
            dax,
        };
        let yes = Some(Device { dax: true, pmem: true });
        let raw = Some(Device { dax: false, pmem: true });
        let disk = Some(Device { dax: false, pmem: false });
        // (mount, device, words of the advice)
        for (mount, device, words) in [
            (mount("tmpfs", MountDax::Inode), None, "use ext4 or xfs on a pmem device"),
            (mount("btrfs", MountDax::Inode), disk, "use ext4 or xfs on a pmem device"),
            (mount("ext4", MountDax::Inode), disk, "is not persistent memory"),
            (mount("ext4", MountDax::Inode), raw, "-m fsdax"),
            (mount("xfs", MountDax::Never), yes, "dax=never"),
            (mount("xfs", MountDax::Inode), yes, "mount -o dax /dev/pmem0 /mnt"),
            (mount("ext4", MountDax::Always), yes, "encrypted"),
        ] {
            let text = decide(mount, device).to_string();
            assert!(text.contains(words), "{words}: {text}");
        }
    }
}
