//! The device shared region: what the driver tells the device at start-up, and the memory behind
//! it: the command and response slots and the device's own two rings.

use std::sync::Arc;

use holdfast_wire::PAGE_SIZE;
use holdfast_wire::dsr::{Caps, RingPages, SharedRegion, gos_linux};
use holdfast_wire::regs;

use crate::barrier;
use crate::dma::{DmaAllocator, DmaBuffer};
use crate::error::{Error, Result};
use crate::pages::PageDirectory;
use crate::registers::Registers;

/// Pages of each of the device's own rings: the state page and a power of two of data pages, so
/// that the ring arithmetic uses every slot.
const DEVICE_RING_PAGES: usize = 1 + 4;
/// Version the driver says it speaks.
const DRIVER_VERSION: u32 = 20;

/// Memory of one device ring with the directory that names it.
pub(crate) struct RingMemory {
    pub(crate) memory: Arc<DmaBuffer>,
    directory: PageDirectory,
}

impl RingMemory {
    fn new(dma: &dyn DmaAllocator) -> Result<Self> {
        let memory = dma.allocate(DEVICE_RING_PAGES * PAGE_SIZE)?;
        let directory = PageDirectory::new(dma, &memory.pages()[..DEVICE_RING_PAGES])?;
        Ok(Self { memory: Arc::new(memory), directory })
    }

    /// Pages, the state page included.
    pub(crate) fn pages(&self) -> u32 {
        self.directory.count()
    }

    fn describe(&self) -> RingPages {
        RingPages { num_pages: self.pages(), reserved: 0, pdir_dma: self.directory.address() }
    }
}

/// Everything the shared region points to. Must stay allocated until the device is reset.
pub(crate) struct Region {
    dsr: DmaBuffer,
    pub(crate) request: Arc<DmaBuffer>,
    pub(crate) response: Arc<DmaBuffer>,
    pub(crate) events: RingMemory,
    pub(crate) notifications: RingMemory,
}

impl Region {
    /// Fills in a shared region. `uar_pfn` is the page frame of the driver's own doorbell page.
    pub(crate) fn new(dma: &dyn DmaAllocator, version: u32, uar_pfn: u64) -> Result<Self> {
        let region = Self {
            dsr: dma.allocate(PAGE_SIZE)?,
            request: Arc::new(dma.allocate(PAGE_SIZE)?),
            response: Arc::new(dma.allocate(PAGE_SIZE)?),
            events: RingMemory::new(dma)?,
            notifications: RingMemory::new(dma)?,
        };
        let uar_pfn =
            if version >= regs::VERSION_PFN64 { uar_pfn } else { uar_pfn & u64::from(u32::MAX) };
        region.dsr.zero();
        region.dsr.write(
            0,
            &SharedRegion {
                driver_version: DRIVER_VERSION,
                reserved: 0,
                gos: gos_linux(),
                gos_reserved: 0,
                cmd_slot_dma: region.request.pages()[0],
                resp_slot_dma: region.response.pages()[0],
                async_ring: region.events.describe(),
                cq_ring: region.notifications.describe(),
                uar_pfn,
                caps: Caps::default(),
            },
        );
        Ok(region)
    }

    /// Hands the region to the device and reads back the capabilities that it writes at once.
    ///
    /// A device reports a region it could not load only by leaving the capabilities zero.
    pub(crate) fn load(&self, registers: &Registers) -> Result<Caps> {
        let address = self.dsr.pages()[0];
        barrier::before_command();
        registers.set_shared_region(address)?;
        barrier::before_command();
        let caps: Caps = self.dsr.read(std::mem::offset_of!(SharedRegion, caps));
        if caps == Caps::default() { Err(Error::SharedRegion { address }) } else { Ok(caps) }
    }
}
