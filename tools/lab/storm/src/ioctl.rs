//! The calls that change a layout and have no wrapper: clone, dedupe, exchange. Structures as in
//! linux/fs.h and fs/xfs/libxfs/xfs_fs.h.
#![allow(unsafe_code)]

use std::fs::File;
use std::os::fd::AsRawFd;

use nix::errno::Errno;

const FICLONE: u32 = 0x4004_9409;
const FICLONERANGE: u32 = 0x4020_940d;
const FIDEDUPERANGE: u32 = 0xc018_9436;
const XFS_IOC_EXCHANGE_RANGE: u32 = 0x4028_5881;
const XFS_IOC_SET_RESBLKS: u32 = 0xc010_5872;

/// Calls an ioctl that takes a structure.
fn call<T>(file: &File, request: u32, argument: &mut T) -> Result<(), Errno> {
    // SAFETY: each caller below passes the structure that its request is defined with, whose size
    // is part of the request's number (checked in the tests).
    let ret = unsafe {
        libc::ioctl(file.as_raw_fd(), libc::Ioctl::from(request), std::ptr::from_mut(argument))
    };
    Errno::result(ret).map(drop)
}

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
/// bytes; EILSEQ says that they differ.
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
        0 => Ok(()),
        status if status > 0 => Err(Errno::EILSEQ),
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
struct ReservedBlocks {
    wanted: u64,
    available: u64,
}

/// Sets how many blocks xfs keeps for itself when it is full; the file is any on it.
pub fn reserve_blocks(file: &File, count: u64) -> Result<(), Errno> {
    call(file, XFS_IOC_SET_RESBLKS, &mut ReservedBlocks { wanted: count, available: 0 })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_request_carries_the_size_of_its_structure() {
        for (request, size) in [
            (FICLONERANGE, size_of::<CloneRange>()),
            (XFS_IOC_EXCHANGE_RANGE, size_of::<ExchangeRange>()),
            (XFS_IOC_SET_RESBLKS, size_of::<ReservedBlocks>()),
        ] {
            assert_eq!(request >> 16 & 0x3fff, size as u32, "{request:#x}");
        }
        // The header alone is counted; one destination follows.
        assert_eq!(FIDEDUPERANGE >> 16 & 0x3fff, size_of::<Dedupe>() as u32 - 32);
    }
}
