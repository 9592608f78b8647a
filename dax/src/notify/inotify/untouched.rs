//! A mapping of a file in huge pages that nobody touches, by which its holes are found.
//!
//! hugetlbfs has no holes to search for, and `mincore` tells of a mapping's own page table only. But
//! whatever takes a page from the file takes it out of every mapping, and nobody puts it back into
//! one that is not touched: not even who fills the hole at once. So an entry that is gone tells that
//! its page was given up, for as long as it takes until somebody looks.
//!
//! Entries are put in with `UFFDIO_CONTINUE`, which maps a page that the file has and never gives it
//! one, as touching or populating a hole would; without userfaultfd there is no such mapping. A
//! mapping that is registered so does not share its page tables with others either, whose doings
//! could empty them. Pages that migrate are away for a moment and leave a mark, which
//! `UFFDIO_CONTINUE` finds.

use std::fs::File;
use std::num::NonZeroUsize;
use std::ops::Range;
use std::os::fd::{AsFd, OwnedFd};

use nix::errno::Errno;

use crate::map::Mapping;
use crate::notify::sys;
use crate::pagemap::{Entry, Pagemap};

/// `UFFD_USER_MODE_ONLY` of linux/userfaultfd.h, for which no privilege is needed: the kernel has no
/// business in this mapping either.
const USER_MODE_ONLY: i32 = 1;
/// `UFFD_FEATURE_MINOR_HUGETLBFS`.
const MINOR_HUGETLBFS: u64 = 1 << 9;
/// `UFFDIO_REGISTER_MODE_MINOR`.
const MODE_MINOR: u64 = 1 << 2;

/// Pages looked at in one [`Untouched::glance`].
const GLANCE: usize = 64;

/// The mapping, and which pages of the file are in it.
#[derive(Debug)]
pub struct Untouched {
    uffd: OwnedFd,
    pagemap: Pagemap,
    /// Bytes in a page of the file.
    page: u64,
    /// One behind the other; there are more than one when the file has grown.
    segments: Vec<Segment>,
    /// For each page: whether it was put in.
    there: Vec<bool>,
    /// Where the next glance begins.
    next: usize,
}

#[derive(Debug)]
struct Segment {
    /// Its first page.
    first: usize,
    mapping: Mapping,
}

/// What there is at a page after an attempt to put it in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Found {
    /// The file has it, and it was not in the mapping.
    PutIn,
    /// It was in the mapping.
    WasIn,
    /// A hole, or beyond the end.
    Nothing,
}

impl Untouched {
    /// Maps the first `size` bytes of a file in pages of `page` bytes.
    pub fn of(file: &File, size: u64, page: u64) -> Result<Self, Errno> {
        let uffd = sys::userfaultfd(libc::O_CLOEXEC | libc::O_NONBLOCK | USER_MODE_ONLY)?;
        sys::uffd_api(uffd.as_fd(), MINOR_HUGETLBFS)?;
        let pagemap = Pagemap::own().map_err(|_| Errno::ENOENT)?;
        let (segments, there) = (Vec::new(), Vec::new());
        let mut this = Self { uffd, pagemap, page, segments, there, next: 0 };
        this.filled(file, size)?;
        Ok(this)
    }

    /// The file may have grown, or have got pages where it had none: they are put in, and missed from
    /// here on when they go.
    pub fn filled(&mut self, file: &File, size: u64) -> Result<(), Errno> {
        let (first, end) = (self.there.len(), (size / self.page) as usize);
        let len = end.saturating_sub(first) * self.page as usize;
        if let Some(len) = NonZeroUsize::new(len) {
            let mapping = Mapping::untouched(file.as_fd(), first as u64 * self.page, len)?;
            mapping.not_in_children()?;
            let start = mapping.base().addr().get() as u64;
            sys::uffd_register(self.uffd.as_fd(), start, len.get() as u64, MODE_MINOR)?;
            self.segments.push(Segment { first, mapping });
            self.there.resize(end, false);
        }
        for page in 0..end {
            if !self.there[page] {
                self.there[page] = self.put_in(page) != Found::Nothing;
            }
        }
        Ok(())
    }

    /// Whether the file was last seen to have a hole before `end`.
    pub fn has_holes(&self, end: u64) -> bool {
        self.below(end).any(|page| !self.there[page])
    }

    /// Whether a page is missed, of those that it is the turn of: all have had theirs after some
    /// glances.
    pub fn glance(&mut self) -> bool {
        let count = self.there.len();
        for _ in 0..count.min(GLANCE) {
            let page = self.next % count;
            if self.there[page] && self.is_absent(page) {
                return true;
            }
            self.next = page + 1;
        }
        false
    }

    /// Tells which pages before `end` were given up since they were put in, whether there are others
    /// in their place or not. Puts in what there is by now, before it tells. Says whether anything
    /// was different.
    pub fn look(&mut self, end: u64, tell: &mut dyn FnMut(Range<u64>)) -> bool {
        let mut different = false;
        let mut gone: Option<Range<u64>> = None;
        for page in self.below(end) {
            if self.there[page] && !self.is_absent(page) {
                continue;
            }
            let found = self.put_in(page);
            let was = std::mem::replace(&mut self.there[page], found != Found::Nothing);
            different |= was != self.there[page];
            if was && found != Found::WasIn {
                different = true;
                self.join(page, &mut gone, tell);
            }
        }
        gone.into_iter().for_each(tell);
        // What lies behind it went with the end.
        for page in self.below(end).end..self.there.len() {
            self.there[page] = false;
        }
        different
    }

    /// Tells all holes before `end`: one of them may have been filled, and made again.
    pub fn holes(&self, end: u64, tell: &mut dyn FnMut(Range<u64>)) {
        let mut hole = None;
        for page in self.below(end).filter(|&page| !self.there[page]) {
            self.join(page, &mut hole, tell);
        }
        hole.into_iter().for_each(tell);
    }

    /// Adds a page to a range, if it is next to it; else tells the range and begins another.
    fn join(&self, page: usize, range: &mut Option<Range<u64>>, tell: &mut dyn FnMut(Range<u64>)) {
        let start = page as u64 * self.page;
        match range {
            Some(range) if range.end == start => range.end += self.page,
            _ => range.replace(start..start + self.page).into_iter().for_each(tell),
        }
    }

    fn below(&self, end: u64) -> Range<usize> {
        0..self.there.len().min((end / self.page) as usize)
    }

    fn address(&self, page: usize) -> usize {
        let behind = self.segments.partition_point(|segment| segment.first <= page);
        let segment = &self.segments[behind - 1];
        segment.mapping.base().addr().get() + (page - segment.first) * self.page as usize
    }

    /// An entry that cannot be read is taken for one that is gone, and then looked for.
    fn is_absent(&self, page: usize) -> bool {
        !matches!(self.pagemap.entry(self.address(page)), Ok(Entry::Hidden | Entry::At(_)))
    }

    fn put_in(&self, page: usize) -> Found {
        let address = self.address(page) as u64;
        match sys::uffd_continue(self.uffd.as_fd(), address, self.page) {
            Ok(()) => Found::PutIn,
            Err(Errno::EEXIST) => Found::WasIn,
            Err(_) => Found::Nothing,
        }
    }
}
