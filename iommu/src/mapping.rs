//! A mapping that unmaps itself.

use std::sync::Arc;

use crate::space::AddressSpace;
use crate::{IovaRange, Result, Tenant};

/// Memory behind a range of addresses, until this guard is dropped or [`Mapping::unmap`] is
/// called. Its chunks may be on scrap meanwhile; the addresses stay the same.
#[derive(Debug)]
#[must_use = "dropping a mapping unmaps it"]
pub struct Mapping {
    space: Arc<AddressSpace>,
    range: IovaRange,
    owner: u64,
    live: bool,
}

impl Mapping {
    pub(crate) fn new(space: Arc<AddressSpace>, range: IovaRange, owner: u64) -> Self {
        Self { space, range, owner, live: true }
    }

    /// First address, as the device is told.
    pub fn iova(&self) -> u64 {
        self.range.start()
    }

    /// All addresses.
    pub fn range(&self) -> IovaRange {
        self.range
    }

    /// The address space it is in.
    pub fn space(&self) -> &Arc<AddressSpace> {
        &self.space
    }

    /// The address of each `page` bytes, in order: what a page directory holds.
    ///
    /// # Panics
    /// When `page` is 0.
    pub fn pages(&self, page: u64) -> impl ExactSizeIterator<Item = u64> + use<> {
        self.range.steps(page).map(|step| step.start())
    }

    /// Says whose it is: from now on, only scrap of that tenant may stand behind it.
    ///
    /// # Errors
    /// [`Error::ForeignScrap`](crate::Error::ForeignScrap), and nothing done, while part of it
    /// stands on scrap.
    pub fn assign(&self, tenant: Tenant) -> Result<()> {
        self.space.assign(self.range, self.owner, tenant)
    }

    /// Unmaps what is left of it ([`AddressSpace::unmap`] may have taken parts), and says whether
    /// that worked. Whoever holds memory in place by other means than a
    /// reference (a layout pin) must use this rather than drop, and keep holding on an error.
    pub fn unmap(mut self) -> Result<()> {
        self.live = false;
        self.space.unmap_owned(self.range, self.owner)
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        if !self.live {
            return;
        }
        if let Err(error) = self.space.unmap_owned(self.range, self.owner) {
            // The addresses stay taken: giving them out again could meet what is still mapped.
            tracing::error!(range = %self.range, %error, "a DMA mapping could not be unmapped");
        }
    }
}
