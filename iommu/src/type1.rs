//! The address space of a kernel device: a VFIO type1 container.
//!
//! The kernel says only an errno when it refuses a mapping; this module knows what each means
//! (`vfio_iommu_type1.c:vfio_dma_do_map` and below) and turns it into an error to act on.
#![allow(unsafe_code)]

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use holdfast_vfio::kernel::Container;
use holdfast_vfio::kernel::caps::IommuInfo;
use nix::errno::Errno;
use nix::sys::resource::{RLIM_INFINITY, Resource, getrlimit};

use crate::{Backing, Domain, Error, IovaRange, Limits, Prot, Result};

/// `dma_entry_limit` of a kernel that does not tell what is left of it.
const DEFAULT_ENTRIES: u64 = 65535;

/// The addresses to use when the kernel does not tell them (before 5.4): what the smallest VT-d
/// translates, and the MSI window is taken out anyway.
const DEFAULT_LAST: u64 = (1 << 39) - 1;

/// The address space of a VFIO container.
#[derive(Debug)]
pub struct Type1Domain {
    container: Arc<Container>,
    // As it was when nothing was mapped.
    entries: u64,
}

impl Type1Domain {
    /// The address space of a container in which a group is and nothing is mapped yet.
    pub fn new(container: Arc<Container>) -> Result<Self> {
        let entries = container.info()?.available.map_or(DEFAULT_ENTRIES, u64::from);
        Ok(Self { container, entries })
    }

    /// The container.
    pub fn container(&self) -> &Arc<Container> {
        &self.container
    }
}

impl Domain for Type1Domain {
    fn limits(&self) -> Result<Limits> {
        Ok(limits_of(&self.container.info()?, self.entries))
    }

    fn map(&self, range: IovaRange, backing: &Backing<'_>, prot: Prot) -> Result<()> {
        let va = backing.va().ok_or(Error::NeedsAddress { range })?;
        let (readable, writable) = (prot.readable(), prot.writable());
        // SAFETY: whoever made the backing promised that the memory is fit for the device.
        unsafe { self.container.map_dma(va, range.start(), range.len(), readable, writable) }
            .map_err(|error| match error {
                holdfast_vfio::Error::Ioctl { errno, .. } => {
                    explain_map(errno, range, va, prot, self.entries, memlock())
                }
                error => Error::Vfio(error),
            })
    }

    fn unmap(&self, range: IovaRange) -> Result<u64> {
        self.container.unmap_dma(range.start(), range.len()).map_err(|error| match error {
            // Version 2 rules: no unmap may cut a mapping in two. Which one, it does not say.
            holdfast_vfio::Error::Ioctl { errno, .. } => Error::Unmap { range, errno },
            error => Error::Vfio(error),
        })
    }

    fn container(&self) -> Option<BorrowedFd<'_>> {
        Some(self.container.as_fd())
    }
}

/// What a container can do, from what the kernel tells of it.
fn limits_of(info: &IommuInfo, entries: u64) -> Limits {
    let default = vec![(0, DEFAULT_LAST)];
    let ranges = info.ranges.as_ref().unwrap_or(&default).iter();
    // A last address of all ones would put the range's end past 64 bits: its last byte is left out.
    let range = |(start, last): &(u64, u64)| {
        IovaRange::between(*start, last.checked_add(1).unwrap_or(u64::MAX))
    };
    Limits {
        ranges: ranges.filter_map(range).collect(),
        page_sizes: info.page_sizes,
        max_mappings: Some(entries),
        needs_fd: false,
        unmap_spans: true,
    }
}

/// What VFIO_IOMMU_MAP_DMA means by an errno. `memlock` is the soft limit, if there is one.
fn explain_map(
    errno: Errno,
    range: IovaRange,
    va: usize,
    prot: Prot,
    entries: u64,
    memlock: Option<u64>,
) -> Error {
    match errno {
        Errno::EEXIST => Error::Overlap { range, existing: range },
        Errno::ENOMEM => Error::Memlock { needed: range.len(), limit: memlock },
        Errno::ENOSPC => Error::MappingLimit { limit: entries },
        Errno::EOPNOTSUPP => Error::FsDax { range },
        Errno::EFAULT => Error::NotPinnable { range, va, writable: prot.writable() },
        errno => Error::Map { range, errno },
    }
}

fn memlock() -> Option<u64> {
    let (soft, _) = getrlimit(Resource::RLIMIT_MEMLOCK).ok()?;
    (soft != RLIM_INFINITY).then_some(soft)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_errno_of_a_refused_map_says_what_to_do() {
        let range = IovaRange::new(0x10_0000, 0x20_0000).unwrap();
        let cases = [
            (Errno::EEXIST, Prot::Read, "overlap"),
            (Errno::ENOMEM, Prot::Read, "RLIMIT_MEMLOCK (0x800000 bytes): raise it"),
            (Errno::ENOSPC, Prot::Read, "all 65535 mappings"),
            (Errno::EOPNOTSUPP, Prot::ReadWrite, "fs-dax"),
            (Errno::EFAULT, Prot::ReadWrite, "page-cache"),
            (Errno::EFAULT, Prot::Read, "not mapped"),
            (Errno::EINVAL, Prot::Read, "EINVAL"),
        ];
        for (errno, prot, wanted) in cases {
            let error = explain_map(errno, range, 0x7f00_0000_0000, prot, 65535, Some(8 << 20));
            let text = error.to_string();
            assert!(text.contains(wanted), "{errno}: {text}");
        }
        let unlimited = explain_map(Errno::ENOMEM, range, 0, Prot::Read, 1, None).to_string();
        assert!(unlimited.contains("unlimited"), "{unlimited}");
    }

    #[test]
    fn the_ranges_of_the_kernel_become_limits() {
        let info = IommuInfo {
            page_sizes: 0x4020_1000,
            ranges: Some(vec![(0, 0xfedf_ffff), (0xfef0_0000, u64::MAX)]),
            available: Some(100),
        };
        let limits = limits_of(&info, 100);
        let ranges: Vec<(u64, u64)> = limits.ranges.iter().map(|r| (r.start(), r.end())).collect();
        assert_eq!(ranges, [(0, 0xfee0_0000), (0xfef0_0000, u64::MAX)]);
        assert_eq!(limits.page(), Some(4096));
        assert_eq!(limits.max_mappings, Some(100));

        let silent = IommuInfo { page_sizes: 4096, ranges: None, available: None };
        assert_eq!(limits_of(&silent, 1).ranges, [IovaRange::new(0, 1 << 39).unwrap()]);
    }
}
