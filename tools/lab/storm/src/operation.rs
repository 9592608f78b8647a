//! The operations that change which blocks a file has, and some that do not: each with the range
//! it is about, what it is called in events, and whether a file system looks for pins before it.

use std::fmt;
use std::fs::{File, OpenOptions};
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use holdfast_lab_check::{ioctl, uring};
use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, fallocate};
use nix::unistd::{ftruncate, truncate};
use serde::Serialize;

/// Bytes in a page, and in a block.
pub const PAGE: u64 = 4096;

/// Which file system the files are on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum FileSystem {
    Ext4,
    Xfs,
}

/// What is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    Ftruncate,
    Truncate,
    OpenTruncate,
    Punch,
    Collapse,
    Insert,
    Zero,
    Unshare,
    Allocate,
    CloneFrom,
    CloneOnto,
    CloneRangeFrom,
    CloneRangeOnto,
    DedupeFrom,
    DedupeOnto,
    Exchange,
    Write,
    Sync,
}

impl Kind {
    pub const ALL: [Self; 18] = [
        Self::Ftruncate,
        Self::Truncate,
        Self::OpenTruncate,
        Self::Punch,
        Self::Collapse,
        Self::Insert,
        Self::Zero,
        Self::Unshare,
        Self::Allocate,
        Self::CloneFrom,
        Self::CloneOnto,
        Self::CloneRangeFrom,
        Self::CloneRangeOnto,
        Self::DedupeFrom,
        Self::DedupeOnto,
        Self::Exchange,
        Self::Write,
        Self::Sync,
    ];

    /// Its name in tables, JSON, and between processes.
    pub fn name(self) -> &'static str {
        match self {
            Self::Ftruncate => "ftruncate",
            Self::Truncate => "truncate",
            Self::OpenTruncate => "open-truncate",
            Self::Punch => "punch",
            Self::Collapse => "collapse",
            Self::Insert => "insert",
            Self::Zero => "zero",
            Self::Unshare => "unshare",
            Self::Allocate => "allocate",
            Self::CloneFrom => "clone-from",
            Self::CloneOnto => "clone-onto",
            Self::CloneRangeFrom => "clone-range-from",
            Self::CloneRangeOnto => "clone-range-onto",
            Self::DedupeFrom => "dedupe-from",
            Self::DedupeOnto => "dedupe-onto",
            Self::Exchange => "exchange",
            Self::Write => "write",
            Self::Sync => "sync",
        }
    }

    /// The causes that events may name for it.
    pub fn causes(self) -> &'static [&'static str] {
        match self {
            Self::Ftruncate | Self::Truncate => &["truncate", "grow"],
            Self::OpenTruncate => &["open-truncate"],
            Self::Punch => &["punch-hole"],
            Self::Collapse => &["collapse-range"],
            Self::Insert => &["insert-range"],
            Self::Zero => &["zero-range"],
            Self::Unshare => &["unshare-range"],
            Self::Allocate => &["allocate"],
            Self::CloneFrom | Self::CloneRangeFrom => &["clone-from"],
            Self::CloneOnto | Self::CloneRangeOnto => &["clone-onto"],
            Self::DedupeFrom | Self::DedupeOnto => &["dedupe"],
            Self::Exchange => &["exchange-range"],
            Self::Write | Self::Sync => &[],
        }
    }

    /// Whether the file system has it at all.
    pub fn is_on(self, fs: FileSystem) -> bool {
        use Kind::*;
        let xfs_only = [
            Unshare,
            CloneFrom,
            CloneOnto,
            CloneRangeFrom,
            CloneRangeOnto,
            DedupeFrom,
            DedupeOnto,
            Exchange,
        ];
        fs == FileSystem::Xfs || !xfs_only.contains(&self)
    }

    /// Whether the file system looks for pins before it, so that it must be told of.
    pub fn waits(self, fs: FileSystem) -> bool {
        match self {
            Self::Write | Self::Sync => false,
            Self::Allocate => fs == FileSystem::Xfs,
            _ => true,
        }
    }

    /// Whether io_uring has it; ftruncate since Linux 6.9.
    pub fn has_ring(self) -> bool {
        self == Self::Ftruncate || Operation::new(self, 0, 0).fallocate().is_some()
    }

    /// Whether blocks are shared by it, which takes room to undo.
    pub fn shares(self) -> bool {
        use Kind::*;
        matches!(
            self,
            CloneFrom | CloneOnto | CloneRangeFrom | CloneRangeOnto | DedupeFrom | DedupeOnto
        )
    }
}

/// One operation. For the truncations, `offset` is the new size.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Operation {
    pub kind: Kind,
    pub offset: u64,
    pub len: u64,
    /// Through io_uring, where that has it.
    pub ring: bool,
}

impl Operation {
    /// By a system call of its own.
    pub fn new(kind: Kind, offset: u64, len: u64) -> Self {
        Self { kind, offset, len, ring: false }
    }

    /// Mode, offset and length of an fallocate.
    pub fn fallocate(&self) -> Option<(FallocateFlags, u64, u64)> {
        let mode = match self.kind {
            Kind::Punch => {
                FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE
            }
            Kind::Collapse => FallocateFlags::FALLOC_FL_COLLAPSE_RANGE,
            Kind::Insert => FallocateFlags::FALLOC_FL_INSERT_RANGE,
            Kind::Zero => FallocateFlags::FALLOC_FL_ZERO_RANGE,
            Kind::Unshare => FallocateFlags::FALLOC_FL_UNSHARE_RANGE,
            Kind::Allocate => FallocateFlags::empty(),
            _ => return None,
        };
        Some((mode, self.offset, self.len))
    }

    /// Does it, through io_uring; ENOSYS where that has it not.
    pub fn perform_by_ring(&self, files: &Files) -> Result<(), Errno> {
        match self.fallocate() {
            Some((mode, offset, len)) => uring::fallocate(&files.region, mode, offset, len),
            None if self.kind == Kind::Ftruncate => uring::ftruncate(&files.region, self.offset),
            None => Err(Errno::ENOSYS),
        }
    }

    /// Does it, by a system call.
    pub fn perform(&self, files: &Files) -> Result<(), Errno> {
        let Files { region: file, .. } = files;
        let (offset, len) = (self.offset, self.len);
        if let Some((mode, offset, len)) = self.fallocate() {
            return fallocate(file.as_fd(), mode, offset as i64, len as i64);
        }
        let donor = || files.open("donor");
        let clone = || files.open("clone");
        match self.kind {
            Kind::Ftruncate => ftruncate(file, offset as i64),
            Kind::Truncate => truncate(&files.path("region"), offset as i64),
            Kind::OpenTruncate => {
                let open = OpenOptions::new().write(true).truncate(true).open(files.path("region"));
                open.map(drop).map_err(errno)
            }
            Kind::CloneFrom => ioctl::clone(file, &clone()?),
            Kind::CloneOnto => ioctl::clone(&donor()?, file),
            Kind::CloneRangeFrom => ioctl::clone_range(file, &clone()?, offset, len),
            Kind::CloneRangeOnto => ioctl::clone_range(&donor()?, file, offset, len),
            Kind::DedupeFrom => ioctl::dedupe(file, &clone()?, offset, len),
            Kind::DedupeOnto => ioctl::dedupe(&clone()?, file, offset, len),
            Kind::Exchange => ioctl::exchange_range(&donor()?, file, offset, len),
            Kind::Write => {
                let zeros = vec![0; len as usize];
                file.write_all_at(&zeros, offset).map_err(errno)
            }
            Kind::Sync => file.sync_all().map_err(errno),
            // Those of `fallocate`.
            _ => Err(Errno::ENOSYS),
        }
    }
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ring = if self.ring { " ring" } else { "" };
        write!(f, "{} {} {}{ring}", self.kind.name(), self.offset, self.len)
    }
}

impl FromStr for Operation {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self, anyhow::Error> {
        let malformed = || anyhow::anyhow!("no operation: {text:?}");
        let words: Vec<&str> = text.split_whitespace().collect();
        let (name, offset, len, ring) = match words[..] {
            [name, offset, len] => (name, offset, len, false),
            [name, offset, len, "ring"] => (name, offset, len, true),
            _ => return Err(malformed()),
        };
        let kind = Kind::ALL.into_iter().find(|kind| kind.name() == name).ok_or_else(malformed)?;
        Ok(Self { kind, offset: offset.parse()?, len: len.parse()?, ring })
    }
}

/// The files of the storm, as one process has them.
#[derive(Debug)]
pub struct Files {
    folder: PathBuf,
    /// The file under the region, opened once.
    pub region: File,
}

impl Files {
    /// Opens the region's file in a folder.
    pub fn open_in(folder: &Path) -> std::io::Result<Self> {
        let region = OpenOptions::new().read(true).write(true).open(folder.join("region"))?;
        Ok(Self { folder: folder.to_owned(), region })
    }

    /// A file of the folder.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// The same, opened, and made if need be.
    pub fn open(&self, name: &str) -> Result<File, Errno> {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false);
        options.open(self.path(name)).map_err(errno)
    }
}

/// The number behind an error of the system.
pub fn errno(error: std::io::Error) -> Errno {
    Errno::from_raw(error.raw_os_error().unwrap_or(libc::EIO))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_operation_is_read_as_it_is_written() {
        for kind in Kind::ALL {
            for ring in [false, true] {
                let operation = Operation { kind, offset: 4096, len: 8192, ring };
                assert_eq!(operation.to_string().parse::<Operation>().unwrap(), operation);
            }
        }
        for wrong in ["", "punch", "punch 1", "nothing 1 2", "punch 1 2 3", "punch a b"] {
            assert!(wrong.parse::<Operation>().is_err(), "{wrong}");
        }
    }
}
