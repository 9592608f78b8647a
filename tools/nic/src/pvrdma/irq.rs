//! Interrupt vectors: eventfds that the client binds and the processor signals.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use holdfast_wire::regs::VECTOR_COUNT;
use nix::poll::{PollFd, PollFlags, PollTimeout};

/// The three vectors of one NIC. The server thread binds, the processor fires; firing takes an
/// uncontended lock and one system call, and happens only when somebody asked to be woken.
#[derive(Debug, Default)]
pub struct Irqs {
    vectors: [Mutex<Option<OwnedFd>>; VECTOR_COUNT as usize],
    // The IMR register: any bit set masks everything, as in QEMU's model.
    mask: AtomicU32,
    fired: AtomicU64,
}

impl Irqs {
    /// Binds `vector` (below [`VECTOR_COUNT`]) to an eventfd or to none.
    pub fn bind(&self, vector: usize, fd: Option<OwnedFd>) {
        if let Some(slot) = self.vectors.get(vector) {
            *slot.lock().unwrap_or_else(PoisonError::into_inner) = fd;
        }
    }

    /// Unbinds all vectors.
    pub fn unbind_all(&self) {
        for vector in 0..self.vectors.len() {
            self.bind(vector, None);
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
