//! One operation through io_uring.
#![allow(unsafe_code)]

use std::fs::File;
use std::os::fd::AsRawFd;

use io_uring::{IoUring, opcode, types::Fd};
use nix::errno::Errno;

use crate::operation::Ring;

/// Submits the operation and waits for its completion.
pub fn perform(operation: Ring, file: &File) -> Result<(), Errno> {
    let errno = |error: std::io::Error| Errno::from_raw(error.raw_os_error().unwrap_or(0));
    let mut ring = IoUring::new(2).map_err(errno)?;
    let fd = Fd(file.as_raw_fd());
    let entry = match operation {
        Ring::Fallocate { mode, offset, len } => {
            opcode::Fallocate::new(fd, len).offset(offset).mode(mode.bits()).build()
        }
        Ring::Ftruncate { len } => opcode::Ftruncate::new(fd, len).build(),
    };
    // SAFETY: the entry points to no memory, and the descriptor lives until the completion.
    unsafe { ring.submission().push(&entry) }.map_err(|_| Errno::EBUSY)?;
    ring.submit_and_wait(1).map_err(errno)?;
    let completion = ring.completion().next().ok_or(Errno::EIO)?;
    match completion.result() {
        result if result < 0 => Err(Errno::from_raw(-result)),
        _ => Ok(()),
    }
}
