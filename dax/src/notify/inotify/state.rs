//! What was known of a file, and what has become of it: size, number of names, and which ranges
//! hold data.
//!
//! Holes are searched with `lseek` on a duplicate of the watched descriptor, whose position moves
//! (a descriptor opened anew would stand in the way of a lease). On fs-dax files the search is left
//! out: it takes the inode's lock, for which it would wait behind the operation that waits for us.
//! Files in huge pages have a mapping for it (`untouched.rs`); where that cannot be had, the number
//! of their pages says that there are fewer, and not which.

use std::fs::File;
use std::ops::Range;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::readlink;
use nix::sys::stat::{FileStat, fstat};
use nix::sys::statfs::{FsType, HUGETLBFS_MAGIC, TMPFS_MAGIC, fstatfs};
use nix::unistd::{Whence, lseek};

use crate::FileId;
use crate::notify::{Cause, WatchedFile, sys};

use super::untouched::Untouched;

/// Most data ranges remembered. In a file that is more scattered, holes are not told from writes.
const RANGES: usize = 1024;

/// What is seen in the middle of an operation is told by the kernel before this is over.
const LATE: Duration = Duration::from_millis(200);

/// `RAMFS_MAGIC` of linux/magic.h.
const RAMFS_MAGIC: FsType = FsType(0x8584_58f6);

/// A file as it was last seen.
#[derive(Debug)]
pub struct State {
    /// Which file.
    pub id: FileId,
    file: File,
    /// Whether a file that got shorter can only have been truncated. On other file systems a range
    /// may have been taken out of its middle (`FALLOC_FL_COLLAPSE_RANGE`), and nothing tells.
    only_truncates: bool,
    /// Whether the kernel does not tell of what is done by its descriptor: since 6.14, files
    /// without a name (memfd) raise no event but for their size.
    pub quiet: bool,
    /// Whether it consists of huge pages.
    huge: bool,
    /// By which their going is found.
    pub untouched: Option<Untouched>,
    /// When something was seen before the kernel told of it, if it does.
    ahead: Option<Instant>,
    size: u64,
    links: u64,
    blocks: i64,
    /// When its inode changed.
    changed: (i64, i64),
    /// Whether it had, at the last look.
    pub rewritten: bool,
    /// Ranges that hold data, in order; `None` when they are too many, or not searched for.
    data: Option<Vec<Range<u64>>>,
    /// Memory for the next look.
    spare: Vec<Range<u64>>,
}

/// Whom to tell what was found.
pub type Tell<'a> = &'a mut dyn FnMut(Cause, Option<Range<u64>>);

impl State {
    /// Takes a first look.
    pub fn of(watched: &WatchedFile<'_>) -> Result<Self, Errno> {
        let file = File::from(watched.fd.try_clone_to_owned().map_err(errno)?);
        let fs = fstatfs(&file)?.filesystem_type();
        let stat = fstat(&file)?;
        let mut this = Self {
            id: watched.id,
            only_truncates: [TMPFS_MAGIC, HUGETLBFS_MAGIC, RAMFS_MAGIC].contains(&fs),
            quiet: readlink(sys::proc_path(watched.fd).as_c_str())
                .is_ok_and(|path| path.as_encoded_bytes().starts_with(b"/memfd:")),
            huge: fs == HUGETLBFS_MAGIC,
            untouched: None,
            ahead: None,
            size: stat.st_size as u64,
            links: stat.st_nlink,
            blocks: stat.st_blocks,
            changed: changed(&stat),
            rewritten: false,
            data: None,
            spare: Vec::with_capacity(RANGES),
            file,
        };
        if this.huge {
            match Untouched::of(&this.file, this.size, stat.st_blksize as u64) {
                Ok(untouched) => this.untouched = Some(untouched),
                Err(errno) => {
                    tracing::info!(file = %this.id, %errno, "holes are not told with their ranges");
                }
            }
        } else if !sys::is_dax(watched.fd)? {
            let mut data = Vec::with_capacity(RANGES);
            this.data = find_data(&this.file, this.size, &mut data)?.then_some(data);
        }
        Ok(this)
    }

    /// A descriptor to watch it by.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Whether it must be looked at from time to time: the kernel does not tell all, or a hole may be
    /// filled, of which it tells nothing, and has to be known by when it is made again.
    pub fn needs_looks(&self) -> bool {
        let has_holes = |untouched: &Untouched| untouched.has_holes(self.size);
        self.quiet || self.untouched.as_ref().is_some_and(has_holes)
    }

    /// Whether such a file looks different: its size, the number of its pages, a page that is another
    /// one, or the time of its last change, which stores to a mapping leave as it is.
    pub fn differs(&mut self) -> bool {
        let differs = |stat: FileStat| {
            (stat.st_size as u64, stat.st_blocks, changed(&stat))
                != (self.size, self.blocks, self.changed)
        };
        if !self.needs_looks() {
            return false;
        }
        fstat(&self.file).is_ok_and(differs)
            || self.quiet && self.untouched.as_mut().is_some_and(Untouched::glance)
    }

    /// A range was faulted in, holes as well, and is about to be used: its going is told from here on.
    pub fn filled(&mut self, range: Range<u64>) -> Result<(), Errno> {
        if let Some(untouched) = &mut self.untouched {
            let size = fstat(&self.file)?.st_size as u64;
            untouched.filled(&self.file, size)?;
        }
        if let Some(data) = &mut self.data {
            // Not searched for: whoever punches it by now is told of, and would not be later.
            cover(data, range);
            // A quiet file has as many pages after the next hole as before: it is looked at once more.
            self.blocks = -1;
        }
        Ok(())
    }

    /// Looks again and tells what is different. `modified`: its content was, or its size, or may have
    /// been; `evented`: the kernel said so.
    pub fn compare(
        &mut self,
        modified: bool,
        evented: bool,
        tell: Tell<'_>,
    ) -> Result<bool, Errno> {
        let stat = fstat(&self.file)?;
        let (size, links) = (stat.st_size as u64, stat.st_nlink);
        let mut told = false;
        let mut tell = |cause, range| {
            told = true;
            tell(cause, range);
        };
        if links < self.links {
            tell(Cause::Unlink, None);
        }
        if size < self.size {
            let range = self.only_truncates.then_some(size..self.size);
            tell(Cause::Truncate { size }, range);
        } else if size > self.size {
            tell(Cause::Grow { size }, Some(self.size..size));
        }
        let common = size.min(self.size);
        let fewer = stat.st_blocks < self.blocks;
        let resized = size != self.size;
        (self.size, self.links, self.blocks) = (size, links, stat.st_blocks);
        self.rewritten = changed(&stat) != self.changed;
        self.changed = changed(&stat);
        if self.huge && modified {
            let mut tell = |range| tell(Cause::PunchHole, Some(range));
            match &mut self.untouched {
                Some(untouched) => {
                    let different = untouched.look(common, &mut tell);
                    let explained = self.ahead.is_some_and(|ahead| ahead.elapsed() < LATE);
                    // Something was done, and nothing is different: to a hole that was filled.
                    if evented && !different && !resized && !explained {
                        untouched.holes(common, &mut tell);
                    }
                    if different {
                        self.ahead = (!evented).then(Instant::now);
                    }
                }
                None if fewer && !resized => tell(0..common),
                None => {}
            }
        }
        if let Some(data) = &mut self.data
            && modified
        {
            if !find_data(&self.file, size, &mut self.spare)? {
                // From here on, a hole cannot be told from a write.
                self.data = None;
                tell(Cause::Unknown, None);
                return Ok(true);
            }
            gone(data, &self.spare, common, &mut |range| tell(Cause::PunchHole, Some(range)));
            std::mem::swap(data, &mut self.spare);
        }
        Ok(told)
    }
}

fn changed(stat: &FileStat) -> (i64, i64) {
    (stat.st_ctime, stat.st_ctime_nsec)
}

fn errno(error: std::io::Error) -> Errno {
    Errno::from_raw(error.raw_os_error().unwrap_or(0))
}

/// Finds the ranges that hold data below `size`; false if there are more than [`RANGES`].
fn find_data(file: &File, size: u64, found: &mut Vec<Range<u64>>) -> Result<bool, Errno> {
    found.clear();
    let mut at = 0;
    while at < size {
        let start = match lseek(file, at as i64, Whence::SeekData) {
            Ok(start) => start as u64,
            // No data from here on.
            Err(Errno::ENXIO) => break,
            Err(errno) => return Err(errno),
        };
        let end = match lseek(file, start as i64, Whence::SeekHole) {
            Ok(end) => end as u64,
            // It was cut meanwhile; another event tells.
            Err(Errno::ENXIO) => break,
            Err(errno) => return Err(errno),
        };
        if found.len() == RANGES {
            return Ok(false);
        }
        found.push(start..end);
        at = end.max(start + 1);
    }
    Ok(true)
}

/// Adds a range to those that hold data.
fn cover(data: &mut Vec<Range<u64>>, mut range: Range<u64>) {
    let apart = |is: &Range<u64>, range: &Range<u64>| is.end < range.start || range.end < is.start;
    let first = data.partition_point(|is| is.end < range.start);
    data.retain(|is| {
        let apart = apart(is, &range);
        if !apart {
            range = is.start.min(range.start)..is.end.max(range.end);
        }
        apart
    });
    data.insert(first, range);
}

/// Tells which parts below `end` were in `before` and are not in `now`; both are in order.
fn gone(before: &[Range<u64>], now: &[Range<u64>], end: u64, tell: &mut dyn FnMut(Range<u64>)) {
    let mut now = now.iter().peekable();
    for was in before {
        let mut at = was.start;
        let stop = was.end.min(end);
        while at < stop {
            while now.next_if(|is| is.end <= at).is_some() {}
            let (hole_end, next) = match now.peek() {
                Some(is) if is.start < stop => (is.start, is.end),
                _ => (stop, stop),
            };
            if at < hole_end {
                tell(at..hole_end);
            }
            at = next;
        }
    }
}

#[cfg(test)]
// Arrays of one range are meant.
#[allow(clippy::single_range_in_vec_init)]
mod tests {
    use super::*;

    fn gone_of(before: &[Range<u64>], now: &[Range<u64>], end: u64) -> Vec<Range<u64>> {
        let mut found = Vec::new();
        gone(before, now, end, &mut |range| found.push(range));
        found
    }

    #[test]
    fn what_is_gone_is_what_was_data_and_is_none() {
        assert_eq!(gone_of(&[0..10], &[0..10], 10), []);
        assert_eq!(gone_of(&[0..10], &[], 10), [0..10]);
        assert_eq!(gone_of(&[0..10], &[0..3, 5..10], 10), [3..5]);
        assert_eq!(gone_of(&[2..4, 6..10], &[0..3, 7..8], 9), [3..4, 6..7, 8..9]);
        assert_eq!(gone_of(&[0..10], &[0..4], 4), []);
    }

    #[test]
    fn what_is_filled_is_data() {
        let covered = |data: &[Range<u64>], range| {
            let mut data = data.to_vec();
            cover(&mut data, range);
            data
        };
        assert_eq!(covered(&[], 1..2), [1..2]);
        assert_eq!(covered(&[0..1, 8..9], 3..5), [0..1, 3..5, 8..9]);
        assert_eq!(covered(&[0..1, 2..4, 6..7, 9..10], 3..9), [0..1, 2..10]);
        assert_eq!(covered(&[0..10], 3..5), [0..10]);
    }

    proptest::proptest! {
        #[test]
        fn gone_agrees_with_a_bitmap(before: u16, now: u16, end in 0u64..17) {
            let ranges = |bits: u16| {
                let mut out: Vec<Range<u64>> = Vec::new();
                for at in (0..16).filter(|at| bits >> at & 1 == 1) {
                    match out.last_mut() {
                        Some(last) if last.end == at => last.end += 1,
                        _ => out.push(at..at + 1),
                    }
                }
                out
            };
            let mut bits = 0u32;
            for range in gone_of(&ranges(before), &ranges(now), end) {
                for at in range {
                    bits |= 1 << at;
                }
            }
            let expected = u32::from(before & !now) & ((1u32 << end) - 1);
            proptest::prop_assert_eq!(bits, expected);
        }
    }
}
