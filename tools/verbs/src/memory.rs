//! Registered memory of this process: its addresses stand for themselves.
#![allow(unsafe_code)]

use std::ops::Range;

use holdfast_nic::engine::host::Miss;
use holdfast_nic::memory::Span;
use nix::errno::Errno;

use crate::error::Error;
use crate::ranges::Ranges;

/// Bytes of a page of an engine's regions, and of the host's.
pub(crate) const PAGE: u64 = 4096;

/// What one device may reach.
#[derive(Debug, Default)]
pub(crate) struct Memory {
    ranges: Ranges,
}

impl Memory {
    /// Registers the pages of `[address, address + length)` and gives them, after making sure that
    /// they are there and, if it is asked for, writable. Pages are faulted in, as pinning does.
    pub(crate) fn register(
        &mut self,
        address: u64,
        length: u64,
        write: bool,
    ) -> Result<Range<u64>, Error> {
        let refused = |errno| Error::Memory { address, length, errno };
        let start = address & !(PAGE - 1);
        let end = address
            .checked_add(length)
            .and_then(|end| end.checked_next_multiple_of(PAGE))
            .filter(|_| length > 0)
            .ok_or(refused(Errno::EINVAL))?;
        populate(start, end - start, write).map_err(refused)?;
        self.ranges.insert(start..end);
        Ok(start..end)
    }

    /// Ends a registration.
    pub(crate) fn release(&mut self, pages: Range<u64>) {
        self.ranges.remove(pages);
    }

    /// The memory at an address that the engine resolved.
    #[inline]
    pub(crate) fn span(&self, address: u64, len: usize) -> Result<Span, Miss> {
        let reach = usize::try_from(self.ranges.reach(address)).unwrap_or(usize::MAX);
        if reach == 0 {
            return Err(Miss { iova: address });
        }
        let ptr = std::ptr::with_exposed_provenance_mut(address as usize);
        // SAFETY: registered, which its owner promises to keep mapped (and writable, where the
        // region grants writes, which the engine checked) until the registration ends; that takes
        // the same lock as this call of the engine.
        Ok(unsafe { Span::new(ptr, len.min(reach)) })
    }
}

/// Faults pages in. Kernels before 5.14 cannot; there it only finds out whether they are mapped.
fn populate(start: u64, length: u64, write: bool) -> Result<(), Errno> {
    let advice = if write { libc::MADV_POPULATE_WRITE } else { libc::MADV_POPULATE_READ };
    let ptr = std::ptr::with_exposed_provenance_mut(start as usize);
    let madvise = |advice| {
        // SAFETY: neither advice changes what the memory holds; bad addresses are an error.
        Errno::result(unsafe { libc::madvise(ptr, length as usize, advice) }).map(drop)
    };
    match madvise(advice) {
        Err(Errno::EINVAL) => madvise(libc::MADV_NORMAL).map_err(|_| Errno::EFAULT),
        Err(Errno::ENOMEM) => Err(Errno::EFAULT),
        other => other,
    }
}
