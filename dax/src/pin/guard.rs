//! The guard page: one page of the file, mapped once more, populated once, and never touched.

use std::num::NonZeroUsize;
use std::os::fd::BorrowedFd;
use std::ptr::NonNull;

use nix::errno::Errno;

use crate::map::Mapping;
use crate::pagemap::{Entry, Pagemap};

/// A page of a file that is mapped and not touched.
#[derive(Debug)]
pub struct Guard {
    mapping: Mapping,
}

impl Guard {
    /// Maps the page at `offset` of `file`, without faulting it in. A mapping of a single page
    /// has a page-table entry of its own, never a share of a huge one. A forked child does not
    /// get it: nobody but the owner may touch it.
    pub fn map(file: BorrowedFd<'_>, offset: u64, page: usize) -> Result<Self, Errno> {
        let len = NonZeroUsize::new(page).ok_or(Errno::EINVAL)?;
        let mapping = Mapping::new(Some((file, offset)), len)?;
        mapping.not_in_children()?;
        Ok(Self { mapping })
    }

    /// Faults it in for writing: the block behind it is then allocated, written and its own.
    pub fn populate(&self) -> Result<(), Errno> {
        self.mapping.populate()
    }

    /// Where it is mapped.
    pub fn page(&self) -> NonNull<u8> {
        self.mapping.base()
    }

    /// Bytes in it.
    pub fn len(&self) -> usize {
        self.mapping.len()
    }

    /// What its page-table entry says.
    pub fn entry(&self, pagemap: &Pagemap) -> Result<Entry, Errno> {
        pagemap.entry(self.mapping.base().as_ptr() as usize)
    }

    /// Empties its page-table entry.
    pub fn forget(&self) -> Result<(), Errno> {
        self.mapping.drop_entries(0, self.mapping.len())
    }
}
