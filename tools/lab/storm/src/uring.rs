//! The operations that io_uring has, through io_uring.
#![allow(unsafe_code)]

use std::os::fd::AsRawFd;

use io_uring::{IoUring, opcode, types};
use nix::errno::Errno;

use crate::operation::{Files, Kind, Operation};

/// Whether io_uring has it; ftruncate since Linux 6.9.
pub fn has(kind: Kind) -> bool {
    let operation = Operation::new(kind, 0, 0);
    operation.fallocate().is_some() || kind == Kind::Ftruncate
}

/// Does it; ENOSYS where io_uring has it not.
pub fn perform(operation: &Operation, files: &Files) -> Result<(), Errno> {
    let file = types::Fd(files.region.as_raw_fd());
    let entry = match operation.fallocate() {
        Some((mode, offset, len)) => {
            opcode::Fallocate::new(file, len).offset(offset).mode(mode.bits()).build()
        }
        None if operation.kind == Kind::Ftruncate => {
            opcode::Ftruncate::new(file, operation.offset).build()
        }
        None => return Err(Errno::ENOSYS),
    };
    let failed = |error: std::io::Error| crate::operation::errno(error);
    let mut ring = IoUring::new(2).map_err(failed)?;
    // SAFETY: the request names no memory, and the descriptor stays open until it has completed.
    unsafe { ring.submission().push(&entry) }.map_err(|_| Errno::EBUSY)?;
    loop {
        match ring.submit_and_wait(1) {
            Ok(_) => {}
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(failed(error)),
        }
        if let Some(done) = ring.completion().next() {
            let result = done.result();
            return if result < 0 { Err(Errno::from_raw(-result)) } else { Ok(()) };
        }
    }
}
