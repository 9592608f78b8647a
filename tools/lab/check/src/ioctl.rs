//! The calls about a file's layout that have no wrapper: clone, dedupe, exchange, swap. Structures as
//! in linux/fs.h, fs/xfs/libxfs/xfs_fs.h and fs/ext4/ext4.h.
#![allow(unsafe_code)]

use std::ffi::CStr;
use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;

use nix::errno::Errno;

/// Calls an ioctl that takes a structure.
fn call<T>(file: &File, request: u32, argument: &mut T) -> Result<(), Errno> {
    // SAFETY: each caller below passes the structure that its request is defined with, whose
    // size is part of the request's number (checked in the tests).
    let ret = unsafe {
        libc::ioctl(file.as_raw_fd(), libc::Ioctl::from(request), std::ptr::from_mut(argument))
    };
    Errno::result(ret).map(drop)
}

const XFS_IOC_SET_RESBLKS: u32 = 0xc010_5872;
const FICLONE: u32 = 0x4004_9409;
const FICLONERANGE: u32 = 0x4020_940d;
const FIDEDUPERANGE: u32 = 0xc018_9436;
const XFS_IOC_SWAPEXT: u32 = 0xc0c0_586d;
const XFS_IOC_EXCHANGE_RANGE: u32 = 0x4028_5881;
const EXT4_IOC_MOVE_EXT: u32 = 0xc028_660f;
const EXT4_IOC_SWAP_BOOT: u32 = 0x6611;
/// XFS_IOC_GOINGDOWN as well.
const EXT4_IOC_SHUTDOWN: u32 = 0x8004_587d;
const FS_IOC_FSGETXATTR: u32 = 0x801c_581f;
const FS_IOC_FSSETXATTR: u32 = 0x401c_5820;
const FS_XFLAG_DAX: u32 = 0x8000;

/// Makes all of `to` share the blocks of `from`.
pub fn clone(from: &File, to: &File) -> Result<(), Errno> {
    // SAFETY: FICLONE takes a descriptor by value.
    let ret = unsafe { libc::ioctl(to.as_raw_fd(), libc::Ioctl::from(FICLONE), from.as_raw_fd()) };
    Errno::result(ret).map(drop)
}

#[repr(C)]
struct CloneRange {
    from: i64,
    from_offset: u64,
    len: u64,
    to_offset: u64,
}

/// Makes a range of `to` share the blocks of the same range of `from`.
pub fn clone_range(from: &File, to: &File, offset: u64, len: u64) -> Result<(), Errno> {
    let from = i64::from(from.as_raw_fd());
    call(to, FICLONERANGE, &mut CloneRange { from, from_offset: offset, len, to_offset: offset })
}

#[repr(C)]
struct Dedupe {
    offset: u64,
    len: u64,
    count: u16,
    reserved1: u16,
    reserved2: u32,
    to: i64,
    to_offset: u64,
    deduped: u64,
    status: i32,
    reserved: u32,
}

/// Makes a range of `to` share the blocks of the same range of `from`, which must hold the same
/// bytes (EILSEQ says that they differ).
pub fn dedupe(from: &File, to: &File, offset: u64, len: u64) -> Result<(), Errno> {
    let mut request = Dedupe {
        offset,
        len,
        count: 1,
        reserved1: 0,
        reserved2: 0,
        to: i64::from(to.as_raw_fd()),
        to_offset: offset,
        deduped: 0,
        status: 0,
        reserved: 0,
    };
    call(from, FIDEDUPERANGE, &mut request)?;
    match request.status {
        0 if request.deduped == len => Ok(()),
        0 | 1 => Err(Errno::EILSEQ),
        status => Err(Errno::from_raw(-status)),
    }
}

#[repr(C)]
struct ExchangeRange {
    file1: i32,
    pad: u32,
    file1_offset: u64,
    file2_offset: u64,
    len: u64,
    flags: u64,
}

/// Exchanges the blocks of a range of two files (Linux 6.10, xfs with the feature).
pub fn exchange_range(one: &File, two: &File, offset: u64, len: u64) -> Result<(), Errno> {
    let file1 = one.as_raw_fd();
    let mut request =
        ExchangeRange { file1, pad: 0, file1_offset: offset, file2_offset: offset, len, flags: 0 };
    call(two, XFS_IOC_EXCHANGE_RANGE, &mut request)
}

#[repr(C)]
#[derive(Default)]
struct Bulkstat {
    ino: u64,
    mode: u16,
    nlink: u16,
    ids: [u32; 3],
    block_size: i32,
    size: i64,
    atime: [i64; 2],
    mtime: [i64; 2],
    ctime: [i64; 2],
    rest: [u64; 6],
}

#[repr(C)]
struct SwapExtents {
    version: i64,
    target: i64,
    temporary: i64,
    offset: i64,
    len: i64,
    pad: [u64; 2],
    stat: Bulkstat,
}

/// Exchanges all blocks of two files of one size, as xfs_fsr does.
pub fn swap_extents(target: &File, temporary: &File) -> Result<(), Errno> {
    let metadata = target.metadata().map_err(|_| Errno::EIO)?;
    // A `__kernel_long_t` and an `__s32`: on little-endian machines the upper half is padding.
    let stat = Bulkstat {
        ino: metadata.ino(),
        mtime: [metadata.mtime(), metadata.mtime_nsec()],
        ctime: [metadata.ctime(), metadata.ctime_nsec()],
        ..Default::default()
    };
    let mut request = SwapExtents {
        version: 0,
        target: i64::from(target.as_raw_fd()),
        temporary: i64::from(temporary.as_raw_fd()),
        offset: 0,
        len: metadata.len() as i64,
        pad: [0; 2],
        stat,
    };
    call(target, XFS_IOC_SWAPEXT, &mut request)
}

#[repr(C)]
struct MoveExtents {
    reserved: u32,
    donor: u32,
    start: u64,
    donor_start: u64,
    len: u64,
    moved: u64,
}

/// Gives blocks (numbers of 4 KiB) of a file those of another, as e4defrag does.
pub fn move_extents(file: &File, donor: &File, block: u64, count: u64) -> Result<(), Errno> {
    let donor = donor.as_raw_fd() as u32;
    let mut request =
        MoveExtents { reserved: 0, donor, start: block, donor_start: block, len: count, moved: 0 };
    call(file, EXT4_IOC_MOVE_EXT, &mut request)?;
    if request.moved == count { Ok(()) } else { Err(Errno::EIO) }
}

/// Exchanges all blocks of a file with those of ext4's boot-loader inode.
pub fn swap_boot(file: &File) -> Result<(), Errno> {
    call(file, EXT4_IOC_SWAP_BOOT, &mut ())
}

#[repr(C)]
struct ReservedBlocks {
    wanted: u64,
    available: u64,
}

/// Sets how many blocks xfs keeps for itself when it is full; the file is any on it.
pub fn reserve_blocks(file: &File, count: u64) -> Result<(), Errno> {
    call(file, XFS_IOC_SET_RESBLKS, &mut ReservedBlocks { wanted: count, available: 0 })
}

/// Shuts a file system down (ext4 or xfs), with its log written out first; the file is any on it.
pub fn shut_down(file: &File) -> Result<(), Errno> {
    // The same number for all three ways.
    call(file, EXT4_IOC_SHUTDOWN, &mut 0_u32)
}

/// `copy_file_range`, which shares blocks where the file system can.
pub fn copy_range(from: &File, to: &File, offset: u64, len: u64) -> Result<(), Errno> {
    let (mut from_offset, mut to_offset) = (offset as i64, offset as i64);
    // SAFETY: both offsets are ours and live through the call.
    let ret = unsafe {
        libc::copy_file_range(
            from.as_raw_fd(),
            &raw mut from_offset,
            to.as_raw_fd(),
            &raw mut to_offset,
            len as usize,
            0,
        )
    };
    match Errno::result(ret)? {
        count if count as u64 == len => Ok(()),
        _ => Err(Errno::EIO),
    }
}

/// `umount` of a mount point.
pub fn unmount(folder: &CStr) -> Result<(), Errno> {
    // SAFETY: a string that lives through the call.
    Errno::result(unsafe { libc::umount2(folder.as_ptr(), 0) }).map(drop)
}

/// Mounts again, in place, with options of the file system.
pub fn remount(folder: &CStr, options: &CStr) -> Result<(), Errno> {
    // SAFETY: strings that live through the call; source and type are not looked at.
    let ret = unsafe {
        libc::mount(
            std::ptr::null(),
            folder.as_ptr(),
            std::ptr::null(),
            libc::MS_REMOUNT,
            options.as_ptr().cast(),
        )
    };
    Errno::result(ret).map(drop)
}

/// Inverts the file's DAX flag, which takes hold when the inode is read from disk again.
pub fn flip_dax_flag(file: &File) -> Result<(), Errno> {
    let mut attributes = [0_u32; 7];
    call(file, FS_IOC_FSGETXATTR, &mut attributes)?;
    attributes[0] ^= FS_XFLAG_DAX;
    call(file, FS_IOC_FSSETXATTR, &mut attributes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_request_carries_the_size_of_its_structure() {
        for (request, size) in [
            (FICLONERANGE, size_of::<CloneRange>()),
            (XFS_IOC_SWAPEXT, size_of::<SwapExtents>()),
            (XFS_IOC_EXCHANGE_RANGE, size_of::<ExchangeRange>()),
            (XFS_IOC_SET_RESBLKS, size_of::<ReservedBlocks>()),
            (EXT4_IOC_MOVE_EXT, size_of::<MoveExtents>()),
            (FS_IOC_FSSETXATTR, size_of::<[u32; 7]>()),
        ] {
            assert_eq!(request >> 16 & 0x3fff, size as u32, "{request:#x}");
        }
        // The header alone is counted; one destination follows.
        assert_eq!(FIDEDUPERANGE >> 16 & 0x3fff, size_of::<Dedupe>() as u32 - 32);
    }
}
