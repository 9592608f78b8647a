//! Interrupts as eventfds. A poller needs none; an event-driven caller waits on the descriptors.

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use holdfast_vfio::device::IRQ_MSIX;
use holdfast_wire::regs::{VECTOR_COMPLETION, VECTOR_COUNT, VECTOR_EVENT};
use nix::sys::eventfd::{EfdFlags, EventFd};

use crate::error::{Error, Result};

/// How the caller learns that something happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Interrupts {
    /// Not at all: it polls. No vector is enabled.
    #[default]
    Polling,
    /// By eventfds ([`crate::Device::event_fd`], [`crate::Device::notification_fd`]).
    Eventfd,
}

/// Eventfds bound to the device's MSI-X vectors, until dropped.
pub(crate) struct Vectors {
    transport: Arc<dyn holdfast_vfio::Device>,
    fds: Vec<EventFd>,
}

impl Vectors {
    pub(crate) fn new(transport: &Arc<dyn holdfast_vfio::Device>) -> Result<Self> {
        let irq = transport.irq(IRQ_MSIX).map_err(Error::transport("looking at MSI-X"))?;
        if !irq.eventfd || irq.count < VECTOR_COUNT {
            return Err(Error::Unsupported {
                what: "interrupt through eventfds",
                why: "it has fewer than three MSI-X vectors; use Interrupts::Polling",
            });
        }
        let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
        let fds = (0..VECTOR_COUNT)
            .map(|_| EventFd::from_value_and_flags(0, flags))
            .collect::<nix::Result<Vec<_>>>()
            .map_err(|errno| Error::Eventfd { errno })?;
        let bound: Vec<_> = fds.iter().map(|fd| Some(fd.as_fd())).collect();
        transport.enable_irqs(IRQ_MSIX, &bound).map_err(Error::transport("enabling MSI-X"))?;
        Ok(Self { transport: transport.clone(), fds })
    }

    pub(crate) fn event(&self) -> BorrowedFd<'_> {
        self.fds[VECTOR_EVENT as usize].as_fd()
    }

    pub(crate) fn notification(&self) -> BorrowedFd<'_> {
        self.fds[VECTOR_COMPLETION as usize].as_fd()
    }
}

impl Drop for Vectors {
    fn drop(&mut self) {
        if let Err(error) = self.transport.disable_irqs(IRQ_MSIX) {
            tracing::warn!(%error, "MSI-X was not disabled");
        }
    }
}
