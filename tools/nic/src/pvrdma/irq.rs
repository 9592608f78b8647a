//! Interrupt vectors: eventfds that the client binds and the processor signals.
//!
//! Only eventfds are taken: signalling anything else (a pipe, a socket, a file that the client
//! serves) could block the processor and with it every NIC. One way to hold it up is left to a
//! malicious client: it can fill its own blocking eventfd to the brim between the look and the
//! write, as often as it wins that race; each time it lasts until the client reads the eventfd.
//! NICs whose clients do not trust one another belong in processes of their own.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use holdfast_wire::regs::VECTOR_COUNT;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout};

/// The three vectors of one NIC. The server thread binds, the processor fires; firing takes an
/// uncontended lock and two system calls, and happens only when somebody asked to be woken.
#[derive(Debug, Default)]
pub struct Irqs {
    vectors: [Mutex<Option<OwnedFd>>; VECTOR_COUNT as usize],
    // The IMR register: any bit set masks everything, as in QEMU's model.
    mask: AtomicU32,
    fired: AtomicU64,
}

impl Irqs {
    /// Binds `vector` (below [`VECTOR_COUNT`]) to an eventfd or to none. EINVAL, and nothing
    /// changes, when it is no eventfd.
    pub fn bind(&self, vector: usize, fd: Option<OwnedFd>) -> Result<(), Errno> {
        if fd.as_ref().is_some_and(|fd| !is_eventfd(fd)) {
            return Err(Errno::EINVAL);
        }
        let Some(slot) = self.vectors.get(vector) else { return Ok(()) };
        let old = std::mem::replace(&mut *slot.lock().unwrap_or_else(PoisonError::into_inner), fd);
        // Closed without the lock, which the processor takes.
        drop(old);
        Ok(())
    }

    /// Unbinds all vectors.
    pub fn unbind_all(&self) {
        for vector in 0..self.vectors.len() {
            let _ = self.bind(vector, None);
        }
    }

    /// Sets the interrupt mask register.
    pub fn set_mask(&self, mask: u32) {
        self.mask.store(mask, Ordering::Relaxed);
    }

    /// The interrupt mask register.
    pub fn mask(&self) -> u32 {
        self.mask.load(Ordering::Relaxed)
    }

    /// Fires `vector`, unless masked or bound to nothing.
    pub fn fire(&self, vector: u32) {
        if self.mask() == 0 {
            self.force(vector as usize);
        }
    }

    /// Fires `vector` whatever the mask register says (the client's own test of its wiring).
    pub fn force(&self, vector: usize) {
        let Some(slot) = self.vectors.get(vector) else { return };
        if let Some(fd) = &*slot.lock().unwrap_or_else(PoisonError::into_inner) {
            // A client may have filled the counter to its brim so that a write would block: it
            // is awake then, and loses nothing.
            let mut poll = [PollFd::new(fd.as_fd(), PollFlags::POLLOUT)];
            if nix::poll::poll(&mut poll, PollTimeout::ZERO) != Ok(1)
                || nix::unistd::write(fd, &1u64.to_ne_bytes()).is_err()
            {
                return;
            }
            self.fired.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Interrupts delivered so far.
    pub fn fired(&self) -> u64 {
        self.fired.load(Ordering::Relaxed)
    }
}

fn is_eventfd(fd: &OwnedFd) -> bool {
    let link = format!("/proc/self/fd/{}", fd.as_raw_fd());
    std::fs::read_link(link).is_ok_and(|kind| kind.as_os_str() == "anon_inode:[eventfd]")
}
