//! Protection domains: what may be used together, and what is made in them.

use std::sync::{Arc, Mutex};

use holdfast_dax::{GRANULE, Memory};
use holdfast_driver as driver;
use holdfast_iommu::{Prot, Scrap, Tenant};
use holdfast_wire::attr;

use crate::coherence::{Guard, Policy};
use crate::device::DeviceInner;
use crate::lock::lock;
use crate::{
    CompletionQueue, MemoryRegion, QueuePair, QueuePairOptions, Result, SharedReceiveQueue,
};

/// What may be done to a region. Combine with `|`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Access(u32);

impl Access {
    /// This side may send from it.
    pub const LOCAL_READ: Self = Self(0);
    /// This side may receive and read into it.
    pub const LOCAL_WRITE: Self = Self(attr::ACCESS_LOCAL_WRITE);
    /// Peers may write it.
    pub const REMOTE_WRITE: Self = Self(attr::ACCESS_REMOTE_WRITE | attr::ACCESS_LOCAL_WRITE);
    /// Peers may read it.
    pub const REMOTE_READ: Self = Self(attr::ACCESS_REMOTE_READ);
    /// Peers may do atomics on it.
    pub const REMOTE_ATOMIC: Self = Self(attr::ACCESS_REMOTE_ATOMIC | attr::ACCESS_LOCAL_WRITE);
    /// All of these.
    pub const ALL: Self = Self(
        Self::LOCAL_WRITE.0 | Self::REMOTE_WRITE.0 | Self::REMOTE_READ.0 | Self::REMOTE_ATOMIC.0,
    );

    /// `holdfast_wire::attr::ACCESS_*` bits.
    pub const fn bits(self) -> u32 {
        self.0
    }

    /// What the device may do with its memory.
    pub(crate) const fn prot(self) -> Prot {
        if self.writable() { Prot::ReadWrite } else { Prot::Read }
    }

    /// Whether the device ever writes the region.
    pub const fn writable(self) -> bool {
        self.0 & attr::ACCESS_LOCAL_WRITE != 0
    }
}

impl std::ops::BitOr for Access {
    type Output = Self;
    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

/// A protection domain: queue pairs reach only regions of their own. A handle is cheap to clone;
/// what is made in it keeps it alive. Every method blocks for one or more commands.
#[derive(Debug, Clone)]
pub struct ProtectionDomain {
    pd: Arc<driver::ProtectionDomain>,
    tenant: Tenant,
    scrap: Arc<Mutex<Option<Arc<Scrap>>>>,
    device: Arc<DeviceInner>,
}

impl ProtectionDomain {
    pub(crate) fn new(device: &Arc<DeviceInner>) -> Result<Self> {
        let pd = device.driver.alloc_pd(&device.uar)?;
        Ok(Self { pd, tenant: Tenant::new(), scrap: Arc::default(), device: Arc::clone(device) })
    }

    /// The driver's object below.
    pub fn driver(&self) -> &Arc<driver::ProtectionDomain> {
        &self.pd
    }

    /// Puts memory within the device's reach. On a device of the kernel this pins its pages.
    pub fn register(&self, memory: Memory, access: Access) -> Result<MemoryRegion> {
        MemoryRegion::new(self, &self.device, memory, access)
    }

    /// Puts memory within the device's reach, and under a guard: before the layout of the file
    /// behind it changes, scrap takes its place, as `policy` says. A DAX file on a device of the
    /// kernel can be registered in no other way. Blocks for its mapping, and while an operation on
    /// the file's layout is under way.
    pub fn register_guarded(
        &self,
        memory: Memory,
        access: Access,
        guard: &Guard,
        policy: Policy,
    ) -> Result<MemoryRegion> {
        MemoryRegion::guarded(self, &self.device, memory, access, guard, policy)
    }

    /// Whose scrap may stand behind its regions.
    pub(crate) fn tenant(&self) -> Tenant {
        self.tenant
    }

    /// The scrap behind regions of this protection domain that lost their file; nobody else's.
    pub(crate) fn scrap(&self) -> Result<Arc<Scrap>> {
        let mut scrap = lock(&self.scrap);
        if let Some(scrap) = &*scrap {
            return Ok(Arc::clone(scrap));
        }
        let made = Arc::new(self.device.space.scrap_for(self.tenant, GRANULE)?);
        *scrap = Some(Arc::clone(&made));
        Ok(made)
    }

    /// A queue pair, ready to take receives and to be connected. Its sends complete in `send_cq`,
    /// its receives in `recv_cq`, which may be the same.
    pub fn queue_pair(
        &self,
        options: &QueuePairOptions<'_>,
        send_cq: &CompletionQueue,
        recv_cq: &CompletionQueue,
    ) -> Result<QueuePair> {
        QueuePair::new(self, &self.device, options, send_cq, recv_cq)
    }

    /// A queue of receives for several queue pairs ([`QueuePairOptions::shared_receives`]).
    pub fn shared_receive_queue(&self, depth: u32, max_sge: u32) -> Result<SharedReceiveQueue> {
        let queue = self.device.driver.create_srq(&self.pd, &self.device.uar, depth, max_sge)?;
        Ok(SharedReceiveQueue::new(queue))
    }
}
