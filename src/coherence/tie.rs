//! A region's tie to its guard, and how it is undone.

use std::sync::{Arc, MutexGuard};

use holdfast_dax::Memory;

use super::file::{GuardedFile, Phase, State};
use super::guard::Guard;
use super::region::GuardedRegion;
use crate::{Error, Result};

/// A region's tie to its guard; the region leaves it with [`Tie::take_down`].
#[derive(Debug)]
pub struct Tie {
    pub(super) guard: Guard,
    pub(super) file: Arc<GuardedFile>,
    pub region: Arc<GuardedRegion>,
}

impl Tie {
    /// Takes the region out of the device's address space, and the pin away if nobody else needs
    /// it. When this returns `Ok`, no access reaches the memory. On an error the pin stays.
    pub fn take_down(&self) -> Result<()> {
        let _turn = self.file.turn();
        let mut state = self.file.lock();
        self.region.unmap()?;
        self.leave(&mut state);
        Ok(())
    }

    /// [`Tie::take_down`] of a region that the device's process has let go of.
    pub fn leave_unmapped(&self) {
        let _turn = self.file.turn();
        let mut state = self.file.lock();
        self.leave(&mut state);
    }

    fn leave(&self, state: &mut MutexGuard<'_, State>) {
        let shared = self.guard.shared();
        state.regions.retain(|region| region.id != self.region.id);
        shared.region_gone();
        if !state.needs_pin()
            && let Some(pin) = state.pin.take()
        {
            if let Err(error) = pin.release() {
                tracing::error!(%error, "a layout pin could not be let go");
            }
            state.phase = Phase::Open;
        }
        shared.forget_if_empty(&self.file, state);
    }

    /// The region's memory, once [`Tie::take_down`] has worked.
    pub fn into_memory(self) -> Result<Memory> {
        let region = Arc::try_unwrap(self.region);
        let region = region.map_err(|_| Error::Guard("the region is in use".to_owned()))?;
        Ok(region.memory)
    }
}
