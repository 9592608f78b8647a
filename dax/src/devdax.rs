//! Persistent memory without a file system (`/dev/daxX.Y`): size and alignment, as sysfs has them.

use std::fs;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::sys::stat::{major, minor};

use crate::open::errno_of;
use crate::{Error, Result};

/// What sysfs says of a devdax device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Device {
    /// Bytes.
    pub size: u64,
    /// What offsets and lengths of its mappings are multiples of (`dax_dev.align`), usually 2 MiB.
    pub align: u64,
}

impl Device {
    /// The character device with number `rdev`, which `path` names.
    pub fn of(path: &Path, rdev: u64) -> Result<Self> {
        let folder = PathBuf::from(format!("/sys/dev/char/{}:{}", major(rdev), minor(rdev)));
        let subsystem = fs::read_link(folder.join("subsystem")).unwrap_or_default();
        if subsystem.file_name().is_none_or(|name| name != "dax") {
            return Err(Error::NotDevDax { path: path.into() });
        }
        let size = attribute(&folder.join("size"))?;
        let align = attribute(&folder.join("align"))?;
        Ok(Self { size, align })
    }
}

fn attribute(path: &Path) -> Result<u64> {
    let failed = |errno| Error::Sysfs { path: path.into(), errno };
    let text = fs::read_to_string(path).map_err(|error| failed(errno_of(&error)))?;
    crate::parse_size(&text).map_err(|_| failed(Errno::EINVAL))
}
