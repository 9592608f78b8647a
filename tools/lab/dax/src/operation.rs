//! The operations on a file that may change which blocks it has, each under one name.

use std::ffi::CString;
use std::fs::{self, File, OpenOptions};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use holdfast_lab_check::{ioctl, uring};
use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, fallocate};
use nix::unistd::{ftruncate, truncate};

/// Bytes in a page and in a block.
pub const PAGE: u64 = 4096;
/// Size of the file under test.
pub const SIZE: u64 = 16 * PAGE;
/// The part that operations on a range are about. The pinned page is not in it.
pub const AT: u64 = 8 * PAGE;
/// Its length.
pub const LEN: u64 = 4 * PAGE;

/// An operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
#[allow(missing_docs)]
pub enum Operation {
    FtruncateShrink,
    FtruncateGrow,
    TruncateShrink,
    OpenTrunc,
    FallocateInside,
    FallocateGrow,
    FallocateKeepSize,
    PunchHole,
    CollapseRange,
    InsertRange,
    ZeroRange,
    UnshareRange,
    CloneFrom,
    CloneOnto,
    CloneRangeFrom,
    CloneRangeOnto,
    DedupeFrom,
    DedupeOnto,
    ExchangeRange,
    SwapExtents,
    MoveExtents,
    SwapBoot,
    Write,
    WriteGrow,
    CopyFrom,
    CopyOnto,
    Fsync,
    RenameOver,
    Unlink,
    FlipDaxFlag,
    LoopDiscard,
    Unmount,
    RemountNever,
}

/// How an operation is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Way {
    /// By a system call of its own.
    Call,
    /// Through io_uring.
    Uring,
}

/// The file under test, another one, and the folder of both.
#[derive(Debug)]
pub struct Files {
    pub path: PathBuf,
    pub file: File,
    pub other_path: PathBuf,
    pub other: File,
}

impl Files {
    /// Opens `file` and `other` in a folder.
    pub fn open(folder: &Path) -> std::io::Result<Self> {
        let open = |path: &Path| OpenOptions::new().read(true).write(true).open(path);
        let (path, other_path) = (folder.join("file"), folder.join("other"));
        Ok(Self { file: open(&path)?, other: open(&other_path)?, path, other_path })
    }

    /// Writes both anew: the same bytes in each page of both, different ones in different pages.
    pub fn create(folder: &Path) -> std::io::Result<Self> {
        for name in ["file", "other"] {
            let path = folder.join(name);
            let _ = fs::remove_file(&path);
            let file = File::create(&path)?;
            // In one extent: xfs_fsr's call refuses to give a file more extents than it has.
            fallocate(&file, FallocateFlags::empty(), 0, SIZE as i64)?;
            for page in 0..SIZE / PAGE {
                file.write_all_at(&[pattern(page); PAGE as usize], page * PAGE)?;
            }
            file.sync_all()?;
        }
        Self::open(folder)
    }
}

/// The byte that page `page` is filled with.
pub fn pattern(page: u64) -> u8 {
    0x40 + page as u8
}

/// An operation that io_uring knows, for it.
pub enum Ring {
    /// `IORING_OP_FALLOCATE`.
    Fallocate { mode: FallocateFlags, offset: u64, len: u64 },
    /// `IORING_OP_FTRUNCATE` (Linux 6.9).
    Ftruncate { len: u64 },
}

impl Ring {
    /// Does it, and waits for its completion.
    pub fn perform(self, file: &File) -> Result<(), Errno> {
        match self {
            Self::Fallocate { mode, offset, len } => uring::fallocate(file, mode, offset, len),
            Self::Ftruncate { len } => uring::ftruncate(file, len),
        }
    }
}

impl Operation {
    /// What it is called in the table.
    pub fn title(self) -> &'static str {
        match self {
            Self::FtruncateShrink => "ftruncate, shrinking",
            Self::FtruncateGrow => "ftruncate, growing",
            Self::TruncateShrink => "truncate, shrinking",
            Self::OpenTrunc => "open with O_TRUNC",
            Self::FallocateInside => "fallocate of allocated blocks",
            Self::FallocateGrow => "fallocate, growing",
            Self::FallocateKeepSize => "fallocate KEEP_SIZE beyond the end",
            Self::PunchHole => "fallocate PUNCH_HOLE",
            Self::CollapseRange => "fallocate COLLAPSE_RANGE",
            Self::InsertRange => "fallocate INSERT_RANGE",
            Self::ZeroRange => "fallocate ZERO_RANGE",
            Self::UnshareRange => "fallocate UNSHARE_RANGE",
            Self::CloneFrom => "FICLONE from the file",
            Self::CloneOnto => "FICLONE onto the file",
            Self::CloneRangeFrom => "FICLONERANGE from the file",
            Self::CloneRangeOnto => "FICLONERANGE onto the file",
            Self::DedupeFrom => "FIDEDUPERANGE from the file",
            Self::DedupeOnto => "FIDEDUPERANGE onto the file",
            Self::ExchangeRange => "XFS_IOC_EXCHANGE_RANGE",
            Self::SwapExtents => "XFS_IOC_SWAPEXT (xfs_fsr)",
            Self::MoveExtents => "EXT4_IOC_MOVE_EXT (e4defrag)",
            Self::SwapBoot => "EXT4_IOC_SWAP_BOOT",
            Self::Write => "write",
            Self::WriteGrow => "write beyond the end",
            Self::CopyFrom => "copy_file_range from the file",
            Self::CopyOnto => "copy_file_range onto the file",
            Self::Fsync => "fsync",
            Self::RenameOver => "rename over the file",
            Self::Unlink => "unlink of the last name",
            Self::FlipDaxFlag => "change of the DAX flag",
            Self::LoopDiscard => "discard on a loop device over the file",
            Self::Unmount => "umount",
            Self::RemountNever => "remount with dax=never",
        }
    }

    /// Whether it works on a name, so that it does not matter when a descriptor was opened.
    pub fn is_by_name(self) -> bool {
        matches!(
            self,
            Self::TruncateShrink
                | Self::OpenTrunc
                | Self::RenameOver
                | Self::Unlink
                | Self::LoopDiscard
                | Self::Unmount
                | Self::RemountNever
        )
    }

    /// The same for io_uring, if it has it.
    pub fn ring(self) -> Option<Ring> {
        let range = |mode| Ring::Fallocate { mode, offset: AT, len: LEN };
        Some(match self {
            Self::FtruncateShrink => Ring::Ftruncate { len: AT },
            Self::FtruncateGrow => Ring::Ftruncate { len: SIZE + LEN },
            Self::FallocateInside => range(FallocateFlags::empty()),
            Self::FallocateGrow => {
                Ring::Fallocate { mode: FallocateFlags::empty(), offset: SIZE, len: LEN }
            }
            Self::FallocateKeepSize => Ring::Fallocate {
                mode: FallocateFlags::FALLOC_FL_KEEP_SIZE,
                offset: SIZE,
                len: LEN,
            },
            Self::PunchHole => {
                range(FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE)
            }
            Self::CollapseRange => range(FallocateFlags::FALLOC_FL_COLLAPSE_RANGE),
            Self::InsertRange => range(FallocateFlags::FALLOC_FL_INSERT_RANGE),
            Self::ZeroRange => range(FallocateFlags::FALLOC_FL_ZERO_RANGE),
            Self::UnshareRange => range(FallocateFlags::FALLOC_FL_UNSHARE_RANGE),
            _ => return None,
        })
    }

    /// Does it.
    pub fn perform(self, files: &Files) -> Result<(), Errno> {
        let Files { path, file, other_path, other } = files;
        if let Some(ring) = self.ring() {
            return match ring {
                Ring::Fallocate { mode, offset, len } => {
                    fallocate(file, mode, offset as i64, len as i64)
                }
                Ring::Ftruncate { len } => ftruncate(file, len as i64),
            };
        }
        let folder = || {
            let folder = path.parent().unwrap_or(path).as_os_str().as_bytes();
            CString::new(folder).map_err(|_| Errno::EINVAL)
        };
        let io = |result: std::io::Result<()>| {
            result.map_err(|error| Errno::from_raw(error.raw_os_error().unwrap_or(libc::EIO)))
        };
        match self {
            Self::TruncateShrink => truncate(path, AT as i64),
            Self::OpenTrunc => io(File::create(path).map(drop)),
            Self::CloneFrom => ioctl::clone(file, other),
            Self::CloneOnto => ioctl::clone(other, file),
            Self::CloneRangeFrom => ioctl::clone_range(file, other, AT, LEN),
            Self::CloneRangeOnto => ioctl::clone_range(other, file, AT, LEN),
            Self::DedupeFrom => ioctl::dedupe(file, other, AT, LEN),
            Self::DedupeOnto => ioctl::dedupe(other, file, AT, LEN),
            Self::ExchangeRange => ioctl::exchange_range(other, file, AT, LEN),
            Self::SwapExtents => ioctl::swap_extents(file, other),
            Self::MoveExtents => ioctl::move_extents(file, other, AT / PAGE, LEN / PAGE),
            Self::SwapBoot => ioctl::swap_boot(file),
            Self::Write => io(file.write_all_at(&[1; LEN as usize], AT)),
            Self::WriteGrow => io(file.write_all_at(&[1; LEN as usize], SIZE)),
            Self::CopyFrom => ioctl::copy_range(file, other, AT, LEN),
            Self::CopyOnto => ioctl::copy_range(other, file, AT, LEN),
            Self::Fsync => io(file.sync_all()),
            Self::RenameOver => io(fs::rename(other_path, path)),
            Self::Unlink => io(fs::remove_file(path)),
            Self::FlipDaxFlag => ioctl::flip_dax_flag(file),
            Self::LoopDiscard => loop_discard(path),
            Self::Unmount => ioctl::unmount(&folder()?),
            Self::RemountNever => ioctl::remount(&folder()?, c"dax=never"),
            // Those of `ring`.
            _ => Err(Errno::ENOSYS),
        }
    }
}

/// Discards a range of a loop device over the file, which its driver does from a kernel thread.
fn loop_discard(path: &Path) -> Result<(), Errno> {
    let script = format!(
        "device=$(losetup --find --show \"$0\") && blkdiscard -o {AT} -l {LEN} \"$device\"; \
         status=$?; losetup -d \"$device\"; exit $status"
    );
    let status = Command::new("sh").arg("-c").arg(script).arg(path).status();
    match status {
        Ok(status) if status.success() => Ok(()),
        _ => Err(Errno::EIO),
    }
}
