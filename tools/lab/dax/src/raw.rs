//! What the checks do by hand, to see what happens without the pin's precautions.
#![allow(unsafe_code)]

use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::ptr::NonNull;

use anyhow::{Result, ensure};
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::unistd::pipe2;

/// Takes over a descriptor that a call has just made.
pub fn own(fd: RawFd) -> OwnedFd {
    // SAFETY: the callers pass what F_DUPFD returned, which nobody else has.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

/// A reference to the page at `address`, in a pipe, and nothing else: no guard mapping.
pub fn page_in_pipe(address: NonNull<u8>) -> Result<(OwnedFd, OwnedFd)> {
    let (read, write) = pipe2(OFlag::O_CLOEXEC)?;
    let iovec = libc::iovec { iov_base: address.as_ptr().cast(), iov_len: 4096 };
    // SAFETY: the kernel reads one iovec and looks the page up by itself.
    let count =
        unsafe { libc::vmsplice(std::os::fd::AsRawFd::as_raw_fd(&write), &raw const iovec, 1, 0) };
    ensure!(Errno::result(count)? == 4096, "only {count} bytes were pinned");
    Ok((read, write))
}
