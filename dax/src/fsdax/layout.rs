//! Where a file has blocks, as its file system says (FIEMAP).
//!
//! The question takes the file's lock: asked while a layout operation waits for our pin, it waits
//! for the operation, and the operation for us. It is for the time before a pin is taken and after
//! one was released, never for a break handler.

use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;

use nix::errno::Errno;
use nix::sys::stat::fstat;
use nix::sys::uio::pread;

use crate::memory::Behind;
use crate::open::system_page_size;
use crate::sys::{FiemapExtent, fiemap};
use crate::{Error, Kind, Memory, Result, sys};

const LAST: u32 = 0x1;
const UNKNOWN: u32 = 0x2;
const DELALLOC: u32 = 0x4;
const ENCODED: u32 = 0x8;
const NOT_ALIGNED: u32 = 0x100;
const DATA_INLINE: u32 = 0x200;
const UNWRITTEN: u32 = 0x800;
const SHARED: u32 = 0x2000;

/// A piece of a file that has blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Segment {
    /// First byte, in the file.
    pub offset: u64,
    /// Bytes.
    pub len: u64,
    /// First byte on the block device of the file system (for persistent memory: add the start of
    /// the namespace's data, and nothing, where a device mapper lies between); `None` where the
    /// file system does not say or the data is no plain block.
    pub device_offset: Option<u64>,
    /// Allocated, but reads as zeros until it is written.
    pub unwritten: bool,
    /// Another file has the same blocks (reflink).
    pub shared: bool,
}

impl Segment {
    /// First byte after it, in the file.
    pub fn end(&self) -> u64 {
        self.offset.saturating_add(self.len)
    }
}

/// The pieces of `[offset, offset + len)` of a file that have blocks, in order. Also beyond the
/// file's end, where blocks were preallocated.
///
/// Blocks while an operation that changes the layout runs, for ever if that operation waits for a
/// pin that the caller holds; on ext4 of Linux 6.1 it does not.
pub fn layout(fd: BorrowedFd<'_>, offset: u64, len: u64) -> Result<Vec<Segment>, Errno> {
    let end = offset.saturating_add(len);
    let mut segments: Vec<Segment> = Vec::new();
    let mut at = offset;
    while at < end {
        let batch = fiemap(fd, at, end - at)?;
        let Some(last) = batch.last().copied() else { break };
        let parts = batch.iter().filter_map(|extent| clip(extent, offset, end));
        // A batch may begin with the extent that the one before ended with.
        segments.extend(parts.filter(|part| part.offset >= at || at == offset));
        let next = last.logical.saturating_add(last.length);
        if last.flags & LAST != 0 || next <= at {
            break;
        }
        at = next;
    }
    Ok(segments)
}

fn clip(extent: &FiemapExtent, from: u64, to: u64) -> Option<Segment> {
    let start = extent.logical.max(from);
    let end = extent.logical.saturating_add(extent.length).min(to);
    let plain = extent.flags & (UNKNOWN | DELALLOC | ENCODED | NOT_ALIGNED | DATA_INLINE) == 0;
    (start < end).then(|| Segment {
        offset: start,
        len: end - start,
        device_offset: plain.then(|| extent.physical + (start - extent.logical)),
        unwritten: extent.flags & UNWRITTEN != 0,
        shared: extent.flags & SHARED != 0,
    })
}

/// Waits until an operation on the file's layout that is under way is over: reads a byte, for which
/// the file system takes the file's lock. (FIEMAP takes it as well, but for ext4's of Linux 6.1.) The
/// file must be open for reading. For ever, if the operation waits for a pin of the caller's.
pub(crate) fn await_operations(fd: BorrowedFd<'_>, offset: u64) -> Result<(), Errno> {
    let offset = i64::try_from(offset).map_err(|_| Errno::EINVAL)?;
    pread(fd, &mut [0; 1], offset).map(drop)
}

/// Whether somebody has the file's lock at this moment, as an operation on its layout has while it
/// waits for a pin, and a `write` while it copies. `false` where the file system cannot say.
pub(crate) fn is_locked(fd: BorrowedFd<'_>, offset: u64) -> Result<bool, Errno> {
    let offset = i64::try_from(offset).map_err(|_| Errno::EINVAL)?;
    match sys::read_without_waiting(fd, offset) {
        Ok(()) | Err(Errno::EOPNOTSUPP) => Ok(false),
        Err(Errno::EAGAIN) => Ok(true),
        Err(errno) => Err(errno),
    }
}

/// What is left of a file under a region: the ranges, from the region's start and in whole pages,
/// that lie before the file's end and have blocks. Populating those allocates nothing new (a
/// shared or unwritten extent among them is given blocks of its own, or converted).
///
/// For memory without blocks (memfd, tmpfs, hugetlb, devdax, anonymous) it is what lies before the
/// end. Blocks as [`layout`] does: never while a pin is held.
pub fn allocated(memory: &Memory) -> Result<Vec<Range<u64>>> {
    let size = memory.len() as u64;
    let whole = |len: u64| Vec::from_iter((len > 0).then_some(0..len));
    let Some((fd, offset)) = memory.backing() else { return Ok(whole(size)) };
    if memory.kind() == Kind::DevDax {
        return Ok(whole(size));
    }
    let path = || memory.source().to_string().into();
    let stat = fstat(fd).map_err(|errno| Error::File { call: "fstat", path: path(), errno })?;
    let page = system_page_size();
    let file_end = u64::try_from(stat.st_size).unwrap_or(0).next_multiple_of(page);
    let visible = file_end.saturating_sub(offset).min(size);
    if visible == 0 || memory.kind() != Kind::FsDax {
        return Ok(whole(visible));
    }
    let failed = |call| move |errno| Error::File { call, path: path(), errno };
    await_operations(fd, offset).map_err(failed("pread"))?;
    let segments = layout(fd, offset, visible).map_err(failed("FIEMAP"))?;
    Ok(join(segments.iter().map(|part| part.offset - offset..part.end() - offset), page, visible))
}

/// Widens ranges to whole pages, not beyond `limit`, and joins those that touch.
fn join(ranges: impl Iterator<Item = Range<u64>>, page: u64, limit: u64) -> Vec<Range<u64>> {
    let mut joined: Vec<Range<u64>> = Vec::new();
    for range in ranges {
        let start = range.start / page * page;
        let end = range.end.next_multiple_of(page).min(limit);
        match joined.last_mut() {
            Some(last) if last.end >= start => last.end = last.end.max(end),
            _ if start < end => joined.push(start..end),
            _ => {}
        }
    }
    joined
}

/// Refuses a range of a file that has holes.
pub(crate) fn check_no_holes(file: &Behind<'_>, path: &Path) -> Result<()> {
    let segments = layout(file.fd, file.offset, file.len).map_err(|errno| Error::File {
        call: "FIEMAP",
        path: path.into(),
        errno,
    })?;
    let mut at = file.offset;
    let end = file.offset + file.len;
    for segment in segments {
        if segment.offset > at {
            return Err(Error::Sparse { path: path.into(), offset: at, end: segment.offset });
        }
        at = at.max(segment.end());
    }
    if at < end {
        return Err(Error::Sparse { path: path.into(), offset: at, end });
    }
    Ok(())
}

/// Why populating a range of a file failed with `errno`, if its layout tells: what is left shared,
/// unwritten or unallocated could not be changed.
pub(crate) fn explain_populate(file: &Behind<'_>, path: &Path, errno: Errno) -> Option<Error> {
    let segments = layout(file.fd.as_fd(), file.offset, file.len).ok()?;
    let path = || path.to_path_buf();
    let found = |part: &Segment| (part.offset, part.end());
    if let Some((offset, end)) = segments.iter().find(|part| part.shared).map(found) {
        return Some(Error::Shared { path: path(), offset, end, errno });
    }
    let (offset, end) = segments.iter().find(|part| part.unwritten).map(found)?;
    Some(Error::Unwritten { path: path(), offset, end, errno })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn extent(logical: u64, length: u64, flags: u32) -> FiemapExtent {
        FiemapExtent { logical, physical: logical + (1 << 20), length, flags, ..Default::default() }
    }

    #[test]
    fn an_extent_is_clipped_to_the_range_that_was_asked_for() {
        let part = clip(&extent(4096, 16384, UNWRITTEN | SHARED), 8192, 12288).unwrap();
        assert_eq!((part.offset, part.len), (8192, 4096));
        assert_eq!(part.device_offset, Some(8192 + (1 << 20)));
        assert!(part.unwritten && part.shared);
        assert_eq!(clip(&extent(0, 4096, 0), 4096, 8192), None);
        assert_eq!(clip(&extent(0, 4096, DELALLOC), 0, 8192).unwrap().device_offset, None);
    }

    #[test]
    fn ranges_are_widened_to_pages_and_joined() {
        let ranges = [0..100, 4096..8192, 12288..13000, 20480..30000];
        let joined = join(ranges.into_iter(), 4096, 24576);
        assert_eq!(joined, [0..8192, 12288..16384, 20480..24576]);
    }

    #[test]
    fn a_hole_is_found_where_it_is() {
        use std::os::unix::fs::FileExt;
        let Ok(file) = tempfile::NamedTempFile::new() else { return };
        file.as_file().set_len(12288).unwrap();
        file.as_file().write_all_at(&[1; 4096], 0).unwrap();
        file.as_file().write_all_at(&[1; 4096], 8192).unwrap();
        file.as_file().sync_all().unwrap();
        let behind = Behind { fd: file.as_file().as_fd(), offset: 0, len: 12288 };
        match check_no_holes(&behind, file.path()) {
            Err(Error::Sparse { offset, end, .. }) => assert_eq!((offset, end), (4096, 8192)),
            // tmpfs has no FIEMAP.
            Err(Error::File { call: "FIEMAP", .. }) => {}
            other => panic!("{other:?}"),
        }
    }
}
