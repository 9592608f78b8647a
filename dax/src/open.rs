//! From a [`Source`] to a descriptor, an offset and a length that were checked.

use std::fs::{File, Metadata, OpenOptions};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use nix::errno::Errno;
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::statfs::{FsType, HUGETLBFS_MAGIC, TMPFS_MAGIC, fstatfs};
use nix::unistd::{SysconfVar, sysconf};

use crate::{Error, Kind, Result, Source, devdax, fsdax, hugetlb, sys};

/// `RAMFS_MAGIC` of linux/magic.h: a file system in memory, like tmpfs without limits.
const RAMFS_MAGIC: FsType = FsType(0x8584_58f6);

/// A source that was opened and checked, ready to be mapped.
pub struct Opened {
    pub kind: Kind,
    pub page_size: u64,
    pub len: u64,
    /// Descriptor and offset; `None` is anonymous memory.
    pub backing: Option<(OwnedFd, u64)>,
}

/// The system's usual page size in bytes.
pub fn system_page_size() -> u64 {
    sysconf(SysconfVar::PAGE_SIZE)
        .ok()
        .flatten()
        .and_then(|size| u64::try_from(size).ok())
        .unwrap_or(4096)
}

/// Opens a source for at least `min_len` bytes; what has no length of its own is rounded up to
/// whole pages.
pub fn open(source: &Source, min_len: u64) -> Result<Opened> {
    match source {
        Source::Anon => {
            let page_size = system_page_size();
            let len = round_up(min_len, page_size)?;
            Ok(Opened { kind: Kind::Anon, page_size, len, backing: None })
        }
        Source::Memfd => memory_file(Kind::Memfd, min_len, system_page_size()),
        Source::Hugetlb => memory_file(Kind::Hugetlb, min_len, hugetlb::default_page_size()?),
        Source::File { path, range } | Source::FsDax { path, range } => {
            let opened = file(path, *range, matches!(source, Source::FsDax { .. }))?;
            if opened.len < min_len {
                let what = source.to_string();
                return Err(Error::TooSmall { what, have: opened.len, need: min_len });
            }
            Ok(opened)
        }
    }
}

fn round_up(len: u64, page_size: u64) -> Result<u64> {
    match len.checked_next_multiple_of(page_size) {
        Some(len) if len > 0 && len <= i64::MAX as u64 => Ok(len),
        _ => Err(Error::BadRange { offset: 0, len }),
    }
}

fn memory_file(kind: Kind, min_len: u64, page_size: u64) -> Result<Opened> {
    let len = round_up(min_len, page_size)?;
    let failed = |call, errno| match (kind, errno) {
        (Kind::Hugetlb, Errno::ENOMEM | Errno::ENOSPC | Errno::ENODEV | Errno::ENOENT) => {
            hugetlb::shortage(len, page_size, errno)
        }
        _ => Error::File { call, path: kind.name().into(), errno },
    };
    let mut flags = MFdFlags::MFD_CLOEXEC;
    if kind == Kind::Hugetlb {
        flags |= MFdFlags::MFD_HUGETLB;
    }
    let fd = memfd_create(c"holdfast", flags).map_err(|errno| failed("memfd_create", errno))?;
    let file = File::from(fd);
    file.set_len(len).map_err(|error| failed("ftruncate", errno_of(&error)))?;
    Ok(Opened { kind, page_size, len, backing: Some((file.into(), 0)) })
}

fn file(path: &Path, range: Option<(u64, u64)>, must_be_dax: bool) -> Result<Opened> {
    // Looked at first: opening a FIFO could block, and opening a device could do anything.
    let path_error = |error| Error::Open { path: path.into(), errno: errno_of(&error) };
    let device = check_type(path, &std::fs::metadata(path).map_err(path_error)?)?;
    let file = OpenOptions::new().read(true).write(true).open(path).map_err(path_error)?;
    let failed = |call| move |errno| Error::File { call, path: path.into(), errno };
    let metadata = file.metadata().map_err(|error| failed("fstat")(errno_of(&error)))?;
    if check_type(path, &metadata)? != device {
        return Err(Error::NotAFile { path: path.into(), what: "not what it was a moment ago" });
    }
    if let Some(device) = device {
        let (offset, len) = check_range(path, range, device.size, device.align)?;
        let backing = Some((file.into(), offset));
        return Ok(Opened { kind: Kind::DevDax, page_size: device.align, len, backing });
    }
    let fs = fstatfs(&file).map_err(failed("fstatfs"))?;
    let is_dax = sys::is_dax(file.as_fd()).map_err(failed("statx"))?;
    let (kind, page_size) = match fs.filesystem_type() {
        TMPFS_MAGIC | RAMFS_MAGIC => (Kind::Tmpfs, system_page_size()),
        HUGETLBFS_MAGIC => (Kind::Hugetlb, u64::try_from(fs.block_size()).unwrap_or(4096)),
        _ if is_dax => (Kind::FsDax, system_page_size()),
        _ => (Kind::PageCache, system_page_size()),
    };
    if must_be_dax && kind != Kind::FsDax {
        let why = fsdax::why_not_dax(file.as_fd())?;
        return Err(Error::NotDax { path: path.into(), why });
    }
    let (offset, len) = check_range(path, range, metadata.size(), page_size)?;
    Ok(Opened { kind, page_size, len, backing: Some((file.into(), offset)) })
}

/// Lets regular files and devdax devices pass; for the latter, what sysfs says of it.
fn check_type(path: &Path, metadata: &Metadata) -> Result<Option<devdax::Device>> {
    let file_type = metadata.file_type();
    let what = if file_type.is_file() {
        return Ok(None);
    } else if file_type.is_char_device() {
        return devdax::Device::of(path, metadata.rdev()).map(Some);
    } else if file_type.is_dir() {
        "a directory"
    } else if file_type.is_block_device() {
        "a block device"
    } else if file_type.is_fifo() {
        "a pipe"
    } else {
        "a socket"
    };
    Err(Error::NotAFile { path: path.into(), what })
}

/// The range of a file of `size` bytes, whole or in part: whole pages inside the file.
fn check_range(
    path: &Path,
    range: Option<(u64, u64)>,
    size: u64,
    page_size: u64,
) -> Result<(u64, u64)> {
    let aligned = |what, value: u64| {
        if value.is_multiple_of(page_size) {
            Ok(())
        } else {
            Err(Error::Unaligned { path: path.into(), what, value, page_size })
        }
    };
    let Some((offset, len)) = range else {
        aligned("size", size)?;
        return if size > 0 { Ok((0, size)) } else { Err(beyond(path, 0, page_size, 0)) };
    };
    let end = offset.checked_add(len).filter(|_| len > 0).ok_or(Error::BadRange { offset, len })?;
    aligned("offset", offset)?;
    aligned("length", len)?;
    if end > size {
        return Err(beyond(path, offset, end, size));
    }
    Ok((offset, len))
}

fn beyond(path: &Path, offset: u64, end: u64, size: u64) -> Error {
    Error::BeyondEnd { path: path.into(), offset, end, size }
}

/// The errno of a failed call of std's.
pub fn errno_of(error: &std::io::Error) -> Errno {
    Errno::from_raw(error.raw_os_error().unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_must_be_whole_pages_inside_the_file() {
        let check = |range, size| check_range(Path::new("f"), range, size, 4096);
        assert_eq!(check(None, 8192).unwrap(), (0, 8192));
        assert_eq!(check(Some((4096, 4096)), 8192).unwrap(), (4096, 4096));
        // (range, file size, expected words)
        for (range, size, words) in [
            (None, 0, "beyond its end"),
            (None, 5000, "truncate -s %4K"),
            (Some((0, 8192)), 5000, "beyond its end at 0x1388"),
            (Some((100, 4096)), 8192, "the offset of f, 0x64"),
            (Some((0, 100)), 8192, "the length of f, 0x64"),
            (Some((0, 0)), 8192, "is not one"),
            (Some((u64::MAX - 4095, 8192)), 8192, "is not one"),
            (Some((8192, 4096)), 8192, "beyond its end"),
        ] {
            let text = check(range, size).unwrap_err().to_string();
            assert!(text.contains(words), "{range:?} of {size}: {text}");
        }
    }

    proptest::proptest! {
        #[test]
        fn a_range_that_passes_is_inside_the_file(
            offset in 0u64..1 << 20, len in 0u64..1 << 20, size in 0u64..1 << 20, huge: bool,
        ) {
            let page = if huge { 1 << 16 } else { 4096 };
            if let Ok((at, n)) = check_range(Path::new("f"), Some((offset, len)), size, page) {
                proptest::prop_assert!(n > 0 && at + n <= size);
                proptest::prop_assert!(at % page == 0 && n % page == 0);
            }
        }
    }
}
