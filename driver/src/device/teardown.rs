//! The end of a device, and of the memory that it may still use.

use std::sync::Arc;

use super::{Device, lock};
use crate::dma::DmaBuffer;
use crate::error::{Error, Result};
use crate::pages::PageDirectory;
use crate::registers::Control;

impl Device {
    /// Frees an object's rings, unless the device may still use them.
    pub(crate) fn release_memory(
        &self,
        what: &'static str,
        mut destroyed: Result<()>,
        memory: Option<(Arc<DmaBuffer>, PageDirectory)>,
    ) {
        if destroyed.is_ok() && !self.quirks.answers_everything {
            // Nobody said that the object is gone. Commands are carried out in order, so an answer
            // to a later one says it.
            destroyed = self.query_port(1).map(drop);
        }
        // A device that is gone has taken its objects with it.
        if let Err(error) = destroyed
            && !error.is_gone()
        {
            tracing::error!(%error, what, "an object was not destroyed; its memory is not reused");
            std::mem::forget(memory);
        }
    }

    /// Keeps memory out of use for good if the device may still carry out the command that was to
    /// create an object in it; gives the error back.
    pub(crate) fn not_created<T>(&self, what: &'static str, error: Error, memory: T) -> Error {
        if error.device_may_act() {
            tracing::error!(%error, what, "an object may have been created; its memory is not reused");
            std::mem::forget(memory);
        }
        error
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        let gids = std::mem::take(&mut *lock(&self.gids));
        for (index, gid) in gids {
            if let Err(error) = self.destroy_bind(index, gid)
                && !error.is_gone()
            {
                tracing::warn!(%error, index, "a GID was not unbound");
            }
        }
        if self.vectors.take().is_some()
            && let Err(error) = self.registers.mask_interrupts(true)
        {
            tracing::warn!(%error, "interrupts were not masked");
        }
        let reset = if self.quirks.reset_unusable {
            Ok(())
        } else {
            self.registers.control(Control::Reset)
        };
        let stopped = reset.and_then(|()| self.registers.set_bus_master(false));
        if let Err(error) = stopped {
            tracing::error!(%error, "the device was not stopped; its memory is not reused");
            std::mem::forget(self.region.take());
        }
    }
}
