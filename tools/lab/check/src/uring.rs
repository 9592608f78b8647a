//! The layout operations that io_uring has, through io_uring.
#![allow(unsafe_code)]

use std::fs::File;
use std::io::ErrorKind;
use std::os::fd::AsRawFd;

use io_uring::squeue::Entry;
use io_uring::{IoUring, opcode, types::Fd};
use nix::errno::Errno;
use nix::fcntl::FallocateFlags;

/// `fallocate`.
pub fn fallocate(file: &File, mode: FallocateFlags, offset: u64, len: u64) -> Result<(), Errno> {
    let fd = Fd(file.as_raw_fd());
    submit(&opcode::Fallocate::new(fd, len).offset(offset).mode(mode.bits()).build())
}

/// `ftruncate` (Linux 6.9).
pub fn ftruncate(file: &File, len: u64) -> Result<(), Errno> {
    submit(&opcode::Ftruncate::new(Fd(file.as_raw_fd()), len).build())
}

/// Submits a request that names a borrowed file and no memory, and waits for its completion.
fn submit(entry: &Entry) -> Result<(), Errno> {
    let failed = |error: std::io::Error| Errno::from_raw(error.raw_os_error().unwrap_or(libc::EIO));
    let mut ring = IoUring::new(2).map_err(failed)?;
    // SAFETY: the request names no memory, and the descriptor stays open until it has completed.
    unsafe { ring.submission().push(entry) }.map_err(|_| Errno::EAGAIN)?;
    loop {
        match ring.submit_and_wait(1) {
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            Err(error) => return Err(failed(error)),
        }
        if let Some(done) = ring.completion().next() {
            let result = done.result();
            return if result < 0 { Err(Errno::from_raw(-result)) } else { Ok(()) };
        }
    }
}
