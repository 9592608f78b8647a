//! The ioctls of VFIO, in three shapes. Numbers are those of `linux/vfio.h`; vfio-bindings has no
//! names for them.
#![allow(unsafe_code)]

use std::ffi::CStr;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use nix::errno::Errno;
use vfio_bindings::bindings::vfio::{VFIO_BASE, VFIO_TYPE};

use crate::{Error, Result};

/// A call whose argument is a number, or nothing.
#[derive(Debug, Clone, Copy)]
pub(super) enum Plain {
    GetApiVersion,
    CheckExtension(u32),
    SetIommu(u32),
    DeviceReset,
}

/// A call whose argument is a structure that begins with `argsz`: the kernel reads and writes no
/// more than so many bytes.
#[derive(Debug, Clone, Copy)]
pub(super) enum Sized {
    GroupGetStatus,
    DeviceGetInfo,
    DeviceGetRegionInfo,
    DeviceGetIrqInfo,
    DeviceSetIrqs,
    IommuGetInfo,
    IommuUnmapDma,
}

const fn request(number: u32) -> libc::Ioctl {
    ((VFIO_TYPE as u32) << 8 | (VFIO_BASE + number)) as libc::Ioctl
}

/// Makes a [`Plain`] call; gives what the kernel returned.
pub(super) fn plain(fd: BorrowedFd<'_>, call: Plain) -> Result<i32> {
    let (number, argument, name) = match call {
        Plain::GetApiVersion => (0, 0, "VFIO_GET_API_VERSION"),
        Plain::CheckExtension(extension) => (1, extension, "VFIO_CHECK_EXTENSION"),
        Plain::SetIommu(kind) => (2, kind, "VFIO_SET_IOMMU"),
        Plain::DeviceReset => (11, 0, "VFIO_DEVICE_RESET"),
    };
    // SAFETY: these calls take a number and touch no memory of ours.
    let result =
        unsafe { libc::ioctl(fd.as_raw_fd(), request(number), libc::c_ulong::from(argument)) };
    Errno::result(result).map_err(|errno| Error::Ioctl { call: name, errno })
}

/// Makes a [`Sized`] call on `arguments`, whose first word becomes its length.
pub(super) fn sized(fd: BorrowedFd<'_>, call: Sized, arguments: &mut [u8]) -> Result<()> {
    let (number, name) = match call {
        Sized::GroupGetStatus => (3, "VFIO_GROUP_GET_STATUS"),
        Sized::DeviceGetInfo => (7, "VFIO_DEVICE_GET_INFO"),
        Sized::DeviceGetRegionInfo => (8, "VFIO_DEVICE_GET_REGION_INFO"),
        Sized::DeviceGetIrqInfo => (9, "VFIO_DEVICE_GET_IRQ_INFO"),
        Sized::DeviceSetIrqs => (10, "VFIO_DEVICE_SET_IRQS"),
        Sized::IommuGetInfo => (12, "VFIO_IOMMU_GET_INFO"),
        Sized::IommuUnmapDma => (14, "VFIO_IOMMU_UNMAP_DMA"),
    };
    set_argsz(arguments)?;
    // SAFETY: the kernel touches at most `argsz` bytes, which is the length of the slice. None of
    // these calls makes memory reachable to a device.
    let result = unsafe { libc::ioctl(fd.as_raw_fd(), request(number), arguments.as_mut_ptr()) };
    Errno::result(result).map(drop).map_err(|errno| Error::Ioctl { call: name, errno })
}

/// VFIO_IOMMU_MAP_DMA.
///
/// # Safety
/// The memory the structure names must be fit for the device's accesses until it is unmapped: no
/// Rust reference may exist to what the device may write.
pub(super) unsafe fn map_dma(fd: BorrowedFd<'_>, arguments: &mut [u8]) -> Result<()> {
    set_argsz(arguments)?;
    // SAFETY: the kernel reads at most `argsz` bytes; the caller answers for the memory named.
    let result = unsafe { libc::ioctl(fd.as_raw_fd(), request(13), arguments.as_mut_ptr()) };
    let fail = |errno| Error::Ioctl { call: "VFIO_IOMMU_MAP_DMA", errno };
    Errno::result(result).map(drop).map_err(fail)
}

/// VFIO_GROUP_SET_CONTAINER.
pub(super) fn set_container(group: BorrowedFd<'_>, container: BorrowedFd<'_>) -> Result<()> {
    let fd = container.as_raw_fd();
    // SAFETY: the kernel reads one int, which lives across the call.
    let result = unsafe { libc::ioctl(group.as_raw_fd(), request(4), &raw const fd) };
    let fail = |errno| Error::Ioctl { call: "VFIO_GROUP_SET_CONTAINER", errno };
    Errno::result(result).map(drop).map_err(fail)
}

/// VFIO_GROUP_GET_DEVICE_FD.
pub(super) fn device_fd(group: BorrowedFd<'_>, name: &CStr) -> Result<OwnedFd> {
    // SAFETY: the kernel reads the string, which is terminated and lives across the call.
    let result = unsafe { libc::ioctl(group.as_raw_fd(), request(6), name.as_ptr()) };
    let fail = |errno| Error::Ioctl { call: "VFIO_GROUP_GET_DEVICE_FD", errno };
    let fd = Errno::result(result).map_err(fail)?;
    // SAFETY: the call succeeded, so this is a fresh descriptor that nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn set_argsz(arguments: &mut [u8]) -> Result<()> {
    let too_long = |_| Error::usage("an ioctl argument does not fit 32 bits");
    let argsz = u32::try_from(arguments.len()).map_err(too_long)?.to_ne_bytes();
    let word =
        arguments.first_chunk_mut().ok_or_else(|| Error::usage("an ioctl argument is empty"))?;
    *word = argsz;
    Ok(())
}
