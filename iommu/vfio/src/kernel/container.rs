//! A container: one type1 address space of the kernel's IOMMU.
#![allow(unsafe_code)]

use std::fs::{File, OpenOptions};
use std::mem::offset_of;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, Mutex, PoisonError};

use nix::errno::Errno;
use vfio_bindings::bindings::vfio::{
    VFIO_API_VERSION, VFIO_DMA_MAP_FLAG_READ, VFIO_DMA_MAP_FLAG_WRITE, VFIO_DMA_UNMAP_FLAG_ALL,
    VFIO_NOIOMMU_IOMMU, VFIO_TYPE1v2_IOMMU, VFIO_UNMAP_ALL, vfio_iommu_type1_dma_map,
    vfio_iommu_type1_dma_unmap, vfio_iommu_type1_info,
};

use super::caps::{self, IommuInfo};
use super::ioctl::{self, Plain, Sized};
use crate::pci::Tree;
use crate::{Error, Result};

/// Upper bound of an answer that is worth believing.
const ANSWER_MAX: usize = 64 << 10;

/// An open container. All calls may be made from any thread; the kernel serialises them.
///
/// It holds the descriptors of its groups: with the last of them the kernel would take the IOMMU
/// from the container, and unmapping would fail. Its mappings go with it.
#[derive(Debug)]
pub struct Container {
    // Closed before the container: who holds a copy of that, in another process, may close the last
    // one then, and the kernel does not keep this apart from the end of the last group.
    groups: Mutex<Vec<Arc<File>>>,
    file: File,
}

impl Container {
    /// Opens an empty container (`/dev/vfio/vfio`) and checks that the kernel speaks this version.
    pub fn open(tree: &Tree) -> Result<Self> {
        let path = tree.path("dev/vfio/vfio");
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .open(&path)
            .map_err(|source| Error::Open { path, source })?;
        let container = Self { file, groups: Mutex::default() };
        let found = ioctl::plain(container.as_fd(), Plain::GetApiVersion)?;
        if found != VFIO_API_VERSION as i32 {
            return Err(Error::ApiVersion { found });
        }
        if !container.has(VFIO_TYPE1v2_IOMMU)? {
            return Err(Error::NoType1);
        }
        Ok(container)
    }

    /// Holds a group's descriptor from now on.
    pub(super) fn hold(&self, group: Arc<File>) {
        self.groups.lock().unwrap_or_else(PoisonError::into_inner).push(group);
    }

    /// Whether the container, with the groups in it, knows that extension.
    fn has(&self, extension: u32) -> Result<bool> {
        Ok(ioctl::plain(self.as_fd(), Plain::CheckExtension(extension))? > 0)
    }

    /// Chooses type1 with version 2 rules. A group must be in the container; refused when the
    /// groups in it have no IOMMU.
    pub(super) fn set_type1(&self, group: u32) -> Result<()> {
        // With a group in the container the kernel asks only the driver that fits the group:
        // noiommu answers for a group without an IOMMU, type1 for all others.
        if self.has(VFIO_NOIOMMU_IOMMU)? {
            return Err(Error::NoIommu { group });
        }
        ioctl::plain(self.as_fd(), Plain::SetIommu(VFIO_TYPE1v2_IOMMU)).map(drop)
    }

    /// What the address space can do.
    pub fn info(&self) -> Result<IommuInfo> {
        let answer = answer(self.as_fd(), Sized::IommuGetInfo, {
            vec![0; size_of::<vfio_iommu_type1_info>()]
        })?;
        Ok(caps::iommu_info(&answer)?)
    }

    /// Maps `size` bytes of this process's memory from `vaddr` behind `iova`; all three are
    /// multiples of the page size. Pins the memory and charges it to RLIMIT_MEMLOCK (but for
    /// VM_PFNMAP memory, which is neither); blocks meanwhile.
    ///
    /// # Errors
    /// [`Error::Ioctl`] with EEXIST (overlap), ENOMEM (RLIMIT_MEMLOCK), ENOSPC (dma_entry_limit),
    /// EINVAL (not an address the IOMMU translates, not aligned), EOPNOTSUPP (fs-dax) or EFAULT
    /// (cannot be pinned).
    ///
    /// # Safety
    /// Until it is unmapped, the memory must be fit for what the device is allowed: no Rust
    /// reference may exist to what it may write. Pinned memory stays in place whatever happens to
    /// `vaddr`; memory that the kernel does not pin (a /dev/mem window) must be held by the caller.
    pub unsafe fn map_dma(
        &self,
        vaddr: usize,
        iova: u64,
        size: u64,
        readable: bool,
        writable: bool,
    ) -> Result<()> {
        let mut flags = 0;
        if readable {
            flags |= VFIO_DMA_MAP_FLAG_READ;
        }
        if writable {
            flags |= VFIO_DMA_MAP_FLAG_WRITE;
        }
        let mut arguments = [0; size_of::<vfio_iommu_type1_dma_map>()];
        put32(&mut arguments, offset_of!(vfio_iommu_type1_dma_map, flags), flags);
        put64(&mut arguments, offset_of!(vfio_iommu_type1_dma_map, vaddr), vaddr as u64);
        put64(&mut arguments, offset_of!(vfio_iommu_type1_dma_map, iova), iova);
        put64(&mut arguments, offset_of!(vfio_iommu_type1_dma_map, size), size);
        // SAFETY: the caller answers for the memory.
        unsafe { ioctl::map_dma(self.as_fd(), &mut arguments) }
    }

    /// Unmaps every mapping that lies in `[iova, iova + size)` and gives the bytes unmapped. Fails
    /// with EINVAL when that would cut a mapping in two. When it returns, the IOTLB is flushed.
    ///
    /// Gives `size` when the kernel has taken the last group out of the container (it has removed
    /// the device): its mappings went with it.
    pub fn unmap_dma(&self, iova: u64, size: u64) -> Result<u64> {
        let mut arguments = [0; UNMAP_SIZE];
        put64(&mut arguments, offset_of!(vfio_iommu_type1_dma_unmap, iova), iova);
        put64(&mut arguments, offset_of!(vfio_iommu_type1_dma_unmap, size), size);
        match ioctl::sized(self.as_fd(), Sized::IommuUnmapDma, &mut arguments) {
            Ok(()) => Ok(unmapped(&arguments)),
            Err(Error::Ioctl { errno: Errno::EINVAL, .. }) if self.has_no_group() => Ok(size),
            Err(error) => Err(error),
        }
    }

    /// Whether the kernel has taken the last group, and the IOMMU with it: such a container knows
    /// no calls on its address space. Does not allocate.
    fn has_no_group(&self) -> bool {
        let mut info = [0; size_of::<vfio_iommu_type1_info>()];
        let asked = ioctl::sized(self.as_fd(), Sized::IommuGetInfo, &mut info);
        matches!(asked, Err(Error::Ioctl { errno: Errno::EINVAL, .. }))
    }
}

/// Whether a container can be emptied in one call ([`unmap_all`]; Linux 5.12 and later). Does not
/// allocate.
pub fn can_unmap_all(container: BorrowedFd<'_>) -> Result<bool> {
    Ok(ioctl::plain(container, Plain::CheckExtension(VFIO_UNMAP_ALL))? > 0)
}

/// Takes every mapping of a container away, whoever made it, and gives the bytes unmapped. When it
/// returns, the IOTLB is flushed and no DMA reaches what was mapped. Does not allocate.
///
/// A container in which no group is any more has no mappings either: they went with the last
/// group, and this gives 0.
///
/// # Errors
/// [`Error::Ioctl`]: something may still be mapped.
pub fn unmap_all(container: BorrowedFd<'_>) -> Result<u64> {
    let mut arguments = [0; UNMAP_SIZE];
    put32(&mut arguments, offset_of!(vfio_iommu_type1_dma_unmap, flags), VFIO_DMA_UNMAP_FLAG_ALL);
    match ioctl::sized(container, Sized::IommuUnmapDma, &mut arguments) {
        Ok(()) => Ok(unmapped(&arguments)),
        // A container without a group knows no calls on mappings; one that knows this call and
        // has a group does not refuse it.
        Err(Error::Ioctl { errno: Errno::EINVAL | Errno::ENODEV, .. })
            if can_unmap_all(container)? =>
        {
            Ok(0)
        }
        Err(error) => Err(error),
    }
}

/// Up to `data`, which only dirty tracking uses; the structure's own size counts padding.
const UNMAP_SIZE: usize = offset_of!(vfio_iommu_type1_dma_unmap, data);

/// What VFIO_IOMMU_UNMAP_DMA says that it unmapped.
fn unmapped(arguments: &[u8; UNMAP_SIZE]) -> u64 {
    let offset = offset_of!(vfio_iommu_type1_dma_unmap, size);
    let mut unmapped = [0; 8];
    unmapped.copy_from_slice(&arguments[offset..offset + 8]);
    u64::from_ne_bytes(unmapped)
}

impl AsFd for Container {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// Makes a call, and makes it again with more room when the kernel wants more.
pub(super) fn answer(fd: BorrowedFd<'_>, call: Sized, question: Vec<u8>) -> Result<Vec<u8>> {
    let mut buffer = question.clone();
    ioctl::sized(fd, call, &mut buffer)?;
    let wanted = caps::wanted(&buffer)?;
    if wanted <= buffer.len() {
        return Ok(buffer);
    }
    if wanted > ANSWER_MAX {
        return Err(Error::usage(format!("the kernel wants {wanted} bytes for an answer")));
    }
    buffer = question;
    buffer.resize(wanted, 0);
    ioctl::sized(fd, call, &mut buffer)?;
    Ok(buffer)
}

/// Stores a word of an ioctl's structure.
pub(super) fn put32(bytes: &mut [u8], offset: usize, value: u32) {
    bytes[offset..offset + 4].copy_from_slice(&value.to_ne_bytes());
}

fn put64(bytes: &mut [u8], offset: usize, value: u64) {
    bytes[offset..offset + 8].copy_from_slice(&value.to_ne_bytes());
}
