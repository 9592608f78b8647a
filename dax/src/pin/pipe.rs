//! A pipe that holds pages.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::unistd::{pipe2, read};

use crate::sys;

/// Largest page that is read out in one go without memory of its own.
const CHUNK: usize = 4096;

/// Both ends of a pipe, neither of which ever blocks.
#[derive(Debug)]
pub struct Pipe {
    read: OwnedFd,
    write: OwnedFd,
}

impl Pipe {
    /// An empty one for so many pages. Closed on exec; a forked child has it too, and then only
    /// draining lets the pages go, not closing.
    pub fn new(pages: usize) -> Result<Self, Errno> {
        let (read, write) = pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK)?;
        // One slot holds one page, whatever part of it. The default of 16 would be charged to the
        // user's allowance (fs.pipe-user-pages-soft). A refusal is no harm.
        let size = i32::try_from(pages * CHUNK).unwrap_or(i32::MAX);
        let _ = fcntl(&write, FcntlArg::F_SETPIPE_SZ(size));
        Ok(Self { read, write })
    }

    /// From both ends, which must not block.
    pub fn from_ends(read: OwnedFd, write: OwnedFd) -> Result<Self, Errno> {
        let flags = OFlag::from_bits_truncate(fcntl(&read, FcntlArg::F_GETFL)?);
        fcntl(&read, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
        Ok(Self { read, write })
    }

    /// The end that is drained.
    pub fn read_end(&self) -> BorrowedFd<'_> {
        self.read.as_fd()
    }

    /// The end that pages go into.
    pub fn write_end(&self) -> BorrowedFd<'_> {
        self.write.as_fd()
    }

    /// Takes a reference to the page. Anything but the whole page is an error (EIO).
    pub fn put(&self, page: NonNull<u8>, len: usize) -> Result<(), Errno> {
        match sys::vmsplice(self.write.as_fd(), page, len) {
            Ok(count) if count == len => Ok(()),
            Ok(_) => {
                self.drain()?;
                Err(Errno::EIO)
            }
            Err(errno) => Err(errno),
        }
    }

    /// Whether a page is in it: in all copies of the pipe, in whichever process.
    pub fn is_full(&self) -> Result<bool, Errno> {
        Ok(sys::bytes_in_pipe(self.read.as_fd())? > 0)
    }

    /// Reads everything out, so that the page is let go, whoever else has the pipe open. Does not
    /// block and allocates nothing.
    pub fn drain(&self) -> Result<(), Errno> {
        let mut waste = [0; CHUNK];
        loop {
            match read(&self.read, &mut waste) {
                Ok(0) | Err(Errno::EAGAIN) => return Ok(()),
                Ok(_) | Err(Errno::EINTR) => {}
                Err(errno) => return Err(errno),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Memory, Populate};

    #[test]
    fn a_pipe_holds_one_page_until_it_is_drained() {
        let memory = Memory::open(&"memfd".parse().unwrap(), 4096, Populate::Yes).unwrap();
        let pipe = Pipe::new(1).unwrap();
        assert!(!pipe.is_full().unwrap());
        pipe.put(memory.as_ptr(), 4096).unwrap();
        assert!(pipe.is_full().unwrap());
        // The one slot is taken.
        assert_eq!(pipe.put(memory.as_ptr(), 4096), Err(Errno::EAGAIN));
        pipe.drain().unwrap();
        pipe.drain().unwrap();
        assert!(!pipe.is_full().unwrap());
        pipe.put(memory.as_ptr(), 4096).unwrap();
    }

    #[test]
    fn what_is_not_mapped_is_not_put() {
        let pipe = Pipe::new(1).unwrap();
        assert_eq!(
            pipe.put(NonNull::without_provenance(4096.try_into().unwrap()), 4096),
            Err(Errno::EFAULT)
        );
        assert!(!pipe.is_full().unwrap());
    }
}
