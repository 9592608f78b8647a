//! The few kernel calls that neither std nor nix has: statx's attributes, FIEMAP, a read that does
//! not wait, vmsplice of a page, and how many bytes a pipe holds.
#![allow(unsafe_code)]

use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr::NonNull;

use nix::errno::Errno;

/// Whether the file's pages are persistent memory at this moment: `STATX_ATTR_DAX`, which is the
/// inode's `S_DAX` (`ext4_getattr`, `xfs_vn_getattr`).
pub fn is_dax(fd: BorrowedFd<'_>) -> Result<bool, Errno> {
    let mut stat = MaybeUninit::<libc::statx>::zeroed();
    // SAFETY: an empty path with AT_EMPTY_PATH names the descriptor; the kernel fills `stat`,
    // which is valid when zero as well.
    let stat = unsafe {
        let ret = libc::statx(
            fd.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            libc::STATX_BASIC_STATS,
            stat.as_mut_ptr(),
        );
        Errno::result(ret)?;
        stat.assume_init()
    };
    Ok(stat.stx_attributes & libc::STATX_ATTR_DAX as u64 != 0)
}

/// `struct fiemap_extent` of linux/fiemap.h. Bytes throughout.
#[derive(Debug, Clone, Copy, Default)]
#[repr(C)]
pub struct FiemapExtent {
    pub logical: u64,
    /// From the start of the block device.
    pub physical: u64,
    pub length: u64,
    pub reserved64: [u64; 2],
    /// `FIEMAP_EXTENT_*`.
    pub flags: u32,
    pub reserved: [u32; 3],
}

const _: () = assert!(size_of::<FiemapExtent>() == 56);

/// Extents asked for at a time.
const BATCH: usize = 128;

/// `struct fiemap` with room for a batch of extents.
#[repr(C)]
struct Fiemap {
    start: u64,
    length: u64,
    flags: u32,
    mapped: u32,
    count: u32,
    reserved: u32,
    extents: [FiemapExtent; BATCH],
}

const _: () = assert!(size_of::<Fiemap>() == 32 + 56 * BATCH);

/// `_IOWR('f', 11, struct fiemap)`.
const FS_IOC_FIEMAP: libc::Ioctl = 0xc020_660b;

/// Up to a batch of the file's extents that touch `[start, start + len)`.
pub fn fiemap(fd: BorrowedFd<'_>, start: u64, len: u64) -> Result<Vec<FiemapExtent>, Errno> {
    let mut request = Fiemap {
        start,
        length: len,
        flags: 0,
        mapped: 0,
        count: BATCH as u32,
        reserved: 0,
        extents: [FiemapExtent::default(); BATCH],
    };
    // SAFETY: the kernel writes at most `count` extents behind the header, which is what there is.
    Errno::result(unsafe { libc::ioctl(fd.as_raw_fd(), FS_IOC_FIEMAP, &raw mut request) })?;
    let mapped = (request.mapped as usize).min(BATCH);
    Ok(request.extents[..mapped].to_vec())
}

/// Reads a byte, if that can be done without waiting for a lock or for I/O (`RWF_NOWAIT`); else
/// EAGAIN. EOPNOTSUPP where the file's kind cannot say.
pub fn read_without_waiting(fd: BorrowedFd<'_>, offset: i64) -> Result<(), Errno> {
    let mut byte = 0_u8;
    let iovec = libc::iovec { iov_base: (&raw mut byte).cast(), iov_len: 1 };
    // SAFETY: the kernel writes at most one byte to `byte`, which outlives the call.
    let read =
        unsafe { libc::preadv2(fd.as_raw_fd(), &raw const iovec, 1, offset, libc::RWF_NOWAIT) };
    Errno::result(read).map(drop)
}

/// Puts a reference to the page at `page` into a pipe, without waiting; the bytes that went in.
/// The page's memory may be written by anybody: no reference is made to it.
pub fn vmsplice(pipe: BorrowedFd<'_>, page: NonNull<u8>, len: usize) -> Result<usize, Errno> {
    let iovec = libc::iovec { iov_base: page.as_ptr().cast(), iov_len: len };
    // SAFETY: the kernel reads one iovec; what it points to is looked up in the page tables and
    // fails with EFAULT if it is not mapped.
    let ret =
        unsafe { libc::vmsplice(pipe.as_raw_fd(), &raw const iovec, 1, libc::SPLICE_F_NONBLOCK) };
    Errno::result(ret).map(|count| count as usize)
}

/// Bytes that wait in a pipe.
pub fn bytes_in_pipe(pipe: BorrowedFd<'_>) -> Result<usize, Errno> {
    let mut bytes: libc::c_int = 0;
    // SAFETY: FIONREAD writes one int.
    Errno::result(unsafe { libc::ioctl(pipe.as_raw_fd(), libc::FIONREAD, &raw mut bytes) })?;
    Ok(usize::try_from(bytes).unwrap_or(0))
}
