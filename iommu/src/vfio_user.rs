//! The address space of a device in another process: DMA_MAP and DMA_UNMAP messages.
//!
//! The server maps the descriptors it is sent, so memory must be a file. Its answer to DMA_UNMAP
//! is the fence: no access through the old translation is in flight, and none can start.
//!
//! When the connection is lost, there is no fence left in the protocol: every later call fails,
//! and memory must be held until the server has let go of it, which
//! [`UserDevice::disconnect`](holdfast_vfio::user::UserDevice::disconnect) waits for.

use std::os::fd::BorrowedFd;
use std::sync::Arc;

use holdfast_vfio::user::UserDevice;

use crate::{Backing, Domain, Error, IovaRange, Limits, Prot, Result};

/// The end of the addresses a server is asked to translate: what four-level page tables hold.
const END: u64 = 1 << 47;

/// What a vfio-user connection must be able to say. Calls block for a round trip, with the
/// connection's deadline; on a deadline the connection must be given up, because what the server
/// still maps is then unknown.
pub trait DmaMessages: Send + Sync {
    /// Page sizes (bit n: 2^n bytes) and the number of mappings the server allows.
    fn dma_limits(&self) -> (u64, u64);

    /// VFIO_USER_DMA_MAP.
    fn dma_map(
        &self,
        range: IovaRange,
        prot: Prot,
        fd: BorrowedFd<'_>,
        offset: u64,
    ) -> holdfast_vfio::Result<()>;

    /// VFIO_USER_DMA_UNMAP; gives the bytes the server says it unmapped.
    fn dma_unmap(&self, range: IovaRange) -> holdfast_vfio::Result<u64>;
}

impl DmaMessages for UserDevice {
    fn dma_limits(&self) -> (u64, u64) {
        let capabilities = self.capabilities();
        (capabilities.pgsizes, u64::from(capabilities.max_dma_maps))
    }

    fn dma_map(
        &self,
        range: IovaRange,
        prot: Prot,
        fd: BorrowedFd<'_>,
        offset: u64,
    ) -> holdfast_vfio::Result<()> {
        let (readable, writable) = (prot.readable(), prot.writable());
        UserDevice::dma_map(self, range.start(), range.len(), readable, writable, fd, offset)
    }

    fn dma_unmap(&self, range: IovaRange) -> holdfast_vfio::Result<u64> {
        UserDevice::dma_unmap(self, range.start(), range.len())
    }
}

/// The address space of a vfio-user device.
pub struct VfioUserDomain {
    server: Arc<dyn DmaMessages>,
}

impl VfioUserDomain {
    /// The address space behind that connection.
    pub fn new(server: Arc<dyn DmaMessages>) -> Self {
        Self { server }
    }
}

impl Domain for VfioUserDomain {
    fn limits(&self) -> Result<Limits> {
        let (page_sizes, max_mappings) = self.server.dma_limits();
        Ok(Limits {
            ranges: IovaRange::between(0, END).into_iter().collect(),
            page_sizes,
            max_mappings: Some(max_mappings),
            needs_fd: true,
            // The protocol names the very region of an earlier DMA_MAP.
            unmap_spans: false,
        })
    }

    fn map(&self, range: IovaRange, backing: &Backing<'_>, prot: Prot) -> Result<()> {
        let (fd, offset) = backing.fd().ok_or(Error::NeedsFd { range })?;
        Ok(self.server.dma_map(range, prot, fd, offset)?)
    }

    fn unmap(&self, range: IovaRange) -> Result<u64> {
        Ok(self.server.dma_unmap(range)?)
    }
}
