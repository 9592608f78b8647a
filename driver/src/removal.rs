//! When the kernel wants a function back: hot unplug, `remove` in sysfs, another driver.
//!
//! The kernel takes no function from under its owner. It asks, by an eventfd bound to VFIO's
//! request interrupt, and waits until the owner has closed the device (`vfio_pci_core_request`);
//! an owner without that eventfd is never asked, and only waited for. A device that was pulled
//! without asking answers every register read with ones: see `Registers::check_present`.

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use holdfast_vfio::device::IRQ_REQUEST;
use nix::sys::eventfd::{EfdFlags, EventFd};

/// An eventfd bound to the request interrupt, until dropped.
pub(crate) struct Removal {
    transport: Arc<dyn holdfast_vfio::Device>,
    fd: EventFd,
    requested: AtomicBool,
}

impl Removal {
    /// Binds one, where the transport can ask (the kernel's VFIO can, vfio-user cannot).
    pub(crate) fn new(transport: &Arc<dyn holdfast_vfio::Device>) -> Option<Self> {
        let irq = transport.irq(IRQ_REQUEST).ok()?;
        if !irq.eventfd || irq.count == 0 {
            return None;
        }
        let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
        let fd = EventFd::from_value_and_flags(0, flags)
            .inspect_err(|errno| tracing::warn!(%errno, "no eventfd for removal requests"))
            .ok()?;
        transport
            .enable_irqs(IRQ_REQUEST, &[Some(fd.as_fd())])
            .inspect_err(|error| tracing::warn!(%error, "removal requests will not be heard"))
            .ok()?;
        Some(Self { transport: transport.clone(), fd, requested: AtomicBool::new(false) })
    }

    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// Whether the kernel has asked. Costs a system call until it has.
    pub(crate) fn requested(&self) -> bool {
        if !self.requested.load(Ordering::Relaxed) && self.fd.read().is_ok() {
            self.requested.store(true, Ordering::Relaxed);
            self.transport.removal_asked();
        }
        self.requested.load(Ordering::Relaxed)
    }
}

impl Drop for Removal {
    fn drop(&mut self) {
        // So that the transport knows, even where the user only looked at the descriptor.
        self.requested();
        if let Err(error) = self.transport.disable_irqs(IRQ_REQUEST) {
            tracing::debug!(%error, "the request interrupt was not disabled");
        }
    }
}
