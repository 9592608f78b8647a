//! A device, opened: its transport, its address space, its driver, and a GID to be reached by.

use std::collections::hash_map::RandomState;
use std::fmt;
use std::hash::{BuildHasher, Hasher};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use holdfast_driver as driver;
use holdfast_iommu::{AddressSpace, Type1Domain, VfioUserDomain, numa};
use holdfast_vfio::pci::Tree;
use holdfast_vfio::{kernel, user};
use holdfast_wire::attr::mtu_bytes;
use holdfast_wire::wqe::MAX_INLINE;

use crate::dma::{DmaPool, RingMemory};
use crate::emulated::{EmulatedNic, EmulatedOptions};
use crate::protection_domain::ProtectionDomain;
use crate::{CompletionQueue, DeviceAddress, Error, Result};

/// Port that everything uses; PVRDMA devices have one.
const PORT: u8 = 1;
/// Index of the GID that everything uses.
pub(crate) const GID_INDEX: u8 = 0;
/// MTU code of 1024 bytes, for a device that reports nonsense.
const DEFAULT_MTU: u32 = 3;
/// Reads and atomics under way at a time, where the device does not say or says more.
const MAX_RD_ATOMIC: u32 = 16;

/// How long a vfio-user server may take to let go of memory after its connection failed.
const LET_GO: Duration = Duration::from_secs(10);

/// An open device. A handle is cheap to clone; the device is stopped when the last handle and the
/// last object made from it are gone. May be used from any thread; every method blocks for one or
/// more commands unless it says otherwise.
#[derive(Debug, Clone)]
pub struct Device {
    pub(crate) inner: Arc<DeviceInner>,
}

/// A page of doorbells. Give each thread its own, with [`QueuePairOptions::page`] and
/// [`Device::completion_queue_on`]: then no two threads store to the same cache line. Queues that are
/// made without one share the device's. It lives as long as the last queue on it.
///
/// [`QueuePairOptions::page`]: crate::QueuePairOptions::page
#[derive(Debug, Clone)]
pub struct DoorbellPage(pub(crate) Arc<driver::Uar>);

impl DoorbellPage {
    /// Its number among the device's doorbell pages.
    pub fn number(&self) -> u32 {
        self.0.page()
    }
}

/// Dropped in the order of declaration: the driver stops the device, then its memory goes, then
/// the emulated NIC, if it was made for this device.
pub(crate) struct DeviceInner {
    pub(crate) uar: Arc<driver::Uar>,
    pub(crate) driver: Arc<driver::Device>,
    pub(crate) space: Arc<AddressSpace>,
    pool: Arc<DmaPool>,
    node: Option<u32>,
    address: DeviceAddress,
    gid: [u8; 16],
    mtu: u32,
    server: Option<Server>,
    _nic: Option<EmulatedNic>,
}

/// What a device is brought up from.
struct Parts {
    transport: Arc<dyn holdfast_vfio::Device>,
    space: Arc<AddressSpace>,
    pool: DmaPool,
    node: Option<u32>,
}

/// The connection to a device in another process.
struct Server {
    connection: Arc<user::UserDevice>,
    /// Whether it had let go of everything, once that was asked.
    let_go: OnceLock<bool>,
}

impl DeviceInner {
    /// Whether `error` says that the device is gone, or that the connection to its process is lost
    /// and that process has let go of all memory it was given. Then nothing can be unmapped any more and nothing
    /// needs to be. Blocks, the first time, until it has, for at most 10 s.
    pub(crate) fn let_go(&self, error: &Error) -> bool {
        // A function that is gone reaches nothing; its IOMMU can still be told, and is.
        if matches!(error, Error::Driver(error) if error.is_gone()) {
            return true;
        }
        let Some(server) = self.server.as_ref().filter(|_| error.is_lost_connection()) else {
            return false;
        };
        *server.let_go.get_or_init(|| match server.connection.disconnect(LET_GO) {
            Ok(()) => true,
            Err(error) => {
                tracing::error!(%error, "the memory of all regions stays as it is");
                false
            }
        })
    }

    pub(crate) fn gid(&self) -> [u8; 16] {
        self.gid
    }

    pub(crate) fn mtu(&self) -> u32 {
        self.mtu
    }

    pub(crate) fn max_rd_atomic(&self) -> u8 {
        self.driver.caps().max_qp_rd_atom.clamp(1, MAX_RD_ATOMIC) as u8
    }
}

impl fmt::Debug for DeviceInner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Device({}, gid {:02x?})", self.address, self.gid)
    }
}

impl Device {
    /// Opens a device and brings it up: transport, address space, driver, GID.
    ///
    /// `emulated` starts a NIC on threads of this process that reaches nobody but itself; two
    /// that reach each other come from [`EmulatedNic::start`].
    pub fn open(address: &DeviceAddress) -> Result<Self> {
        Self::open_with(address, driver::Options::default())
    }

    /// [`Device::open`], with options for the driver: interrupts through eventfds for those who
    /// do not poll, the deadline of commands.
    pub fn open_with(address: &DeviceAddress, options: driver::Options) -> Result<Self> {
        match address {
            DeviceAddress::Emulated => {
                EmulatedNic::start(EmulatedOptions::default())?.open_with(0, options)
            }
            DeviceAddress::VfioUser(path) => {
                Self::over_vfio_user(address, user::UserDevice::connect(path)?, None, options)
            }
            DeviceAddress::Pci(pci) => {
                let tree = Tree::system();
                let (container, transport) = kernel::open(&tree, *pci)?;
                let space = AddressSpace::new(Arc::new(Type1Domain::new(container)?))?;
                let pool = DmaPool::new(Arc::clone(&space));
                let node = tree.numa_node(*pci);
                pool.prefer_node(node.filter(|node| numa::nodes().contains(node)));
                let parts = Parts { transport: Arc::new(transport), space, pool, node };
                Self::bring_up(address, parts, None, None, options)
            }
        }
    }

    /// An emulated NIC of this process.
    pub(crate) fn over_socket(
        transport: user::UserDevice,
        nic: EmulatedNic,
        options: driver::Options,
    ) -> Result<Self> {
        Self::over_vfio_user(&DeviceAddress::Emulated, transport, Some(nic), options)
    }

    fn over_vfio_user(
        address: &DeviceAddress,
        transport: user::UserDevice,
        nic: Option<EmulatedNic>,
        options: driver::Options,
    ) -> Result<Self> {
        let transport = Arc::new(transport);
        let space = AddressSpace::new(Arc::new(VfioUserDomain::new(transport.clone())))?;
        let server = Server { connection: transport.clone(), let_go: OnceLock::new() };
        let pool = DmaPool::new(Arc::clone(&space));
        let parts = Parts { transport, space, pool, node: None };
        Self::bring_up(address, parts, Some(server), nic, options)
    }

    fn bring_up(
        address: &DeviceAddress,
        parts: Parts,
        server: Option<Server>,
        nic: Option<EmulatedNic>,
        options: driver::Options,
    ) -> Result<Self> {
        let Parts { transport, space, pool, node } = parts;
        let pool = Arc::new(pool);
        let driver = driver::Device::open(transport, pool.clone(), options)?;
        let gid = link_local_gid(driver.caps().node_guid.to_ne_bytes());
        driver.bind_gid(u32::from(GID_INDEX), gid)?;
        let port = driver.query_port(PORT)?;
        let mtu = mtu_bytes(port.active_mtu).map_or(DEFAULT_MTU, |_| port.active_mtu);
        let uar = driver.alloc_uar()?;
        let address = address.clone();
        let inner =
            DeviceInner { uar, driver, space, pool, node, address, gid, mtu, server, _nic: nic };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// What was opened.
    pub fn address(&self) -> &DeviceAddress {
        &self.inner.address
    }

    /// The GID it is reached by, bound at index 0: link-local, from the device's own GUID.
    pub fn gid(&self) -> [u8; 16] {
        self.inner.gid
    }

    /// MTU code of its port, 1 to 5 for 256 to 4096 bytes.
    pub fn mtu(&self) -> u32 {
        self.inner.mtu
    }

    /// Most inline bytes of a request; 0 where the device has no inline data.
    pub fn max_inline(&self) -> u32 {
        if self.inner.driver.quirks().inline_sends { MAX_INLINE as u32 } else { 0 }
    }

    /// Whether it carries out SEND and RECV and nothing else (QEMU 7.2's own device). Its regions
    /// give peers no access: register them with [`crate::Access::LOCAL_WRITE`].
    pub fn sends_only(&self) -> bool {
        self.inner.driver.quirks().sends_only
    }

    /// Reads and atomics that may be under way at a time on one connection.
    pub fn max_rd_atomic(&self) -> u8 {
        self.inner.max_rd_atomic()
    }

    /// The driver below, for what this library does not wrap.
    pub fn driver(&self) -> &Arc<driver::Device> {
        &self.inner.driver
    }

    /// The address space that its memory is mapped in.
    pub fn address_space(&self) -> &Arc<AddressSpace> {
        &self.inner.space
    }

    /// The NUMA node it is attached to; `None` where the firmware does not say, and of a device in a
    /// process.
    pub fn numa_node(&self) -> Option<u32> {
        self.inner.node
    }

    /// From now on the memory of its queues comes from this NUMA node while that has some; `None`:
    /// from wherever the kernel takes it. At first it is the device's own. Queues that there are stay
    /// where they are. On a machine with one node nothing changes.
    ///
    /// # Errors
    /// [`Error::NoNode`] when there is no such node, or this process may not use its memory.
    pub fn prefer_ring_node(&self, node: Option<u32>) -> Result<()> {
        let nodes = numa::nodes();
        if let Some(node) = node.filter(|node| !nodes.is_empty() && !nodes.contains(node)) {
            return Err(Error::NoNode { node, nodes });
        }
        self.inner.pool.prefer_node(node);
        Ok(())
    }

    /// What its queues lie in: how much, whether in huge pages, on which NUMA nodes. All of it has
    /// been brought in when it was made.
    pub fn ring_memory(&self) -> Option<RingMemory> {
        self.inner.pool.memory()
    }

    /// A protection domain.
    pub fn protection_domain(&self) -> Result<ProtectionDomain> {
        ProtectionDomain::new(&self.inner)
    }

    /// A completion queue of at least `depth` entries. Its room is reserved by the queue pairs
    /// made for it: give it the sum of their depths.
    pub fn completion_queue(&self, depth: u32) -> Result<CompletionQueue> {
        Ok(self.inner.driver.create_cq(&self.inner.uar, depth)?)
    }

    /// A page of doorbells of its own, for a thread.
    ///
    /// # Errors
    /// [`driver::Error::Limit`] when the device has no more; queues without one share the device's.
    pub fn doorbell_page(&self) -> Result<DoorbellPage> {
        Ok(DoorbellPage(self.inner.driver.alloc_uar()?))
    }

    /// [`Device::completion_queue`] with its doorbells on `page`.
    pub fn completion_queue_on(&self, page: &DoorbellPage, depth: u32) -> Result<CompletionQueue> {
        Ok(self.inner.driver.create_cq(&page.0, depth)?)
    }

    /// The next asynchronous event of the device, if there is one. Never blocks on the device.
    pub fn next_event(&self) -> Result<Option<driver::Event>> {
        Ok(self.inner.driver.next_event()?)
    }
}

/// The link-local GID of a port (fe80::/64 and its EUI-64), as Linux makes it for RoCE. A device
/// without a GUID gets a random one.
fn link_local_gid(guid: [u8; 8]) -> [u8; 16] {
    let guid = if guid == [0; 8] {
        // The "local" bit says that nobody assigned it.
        let random = RandomState::new().build_hasher().finish().to_ne_bytes();
        [random[0] | 2, random[1], random[2], 0xff, 0xfe, random[3], random[4], random[5]]
    } else {
        guid
    };
    let mut gid = [0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    gid[8..].copy_from_slice(&guid);
    gid
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_gid_is_link_local_and_ends_in_the_guid() {
        let gid = link_local_gid([2, 1, 2, 0xff, 0xfe, 3, 4, 5]);
        assert_eq!(gid, [0xfe, 0x80, 0, 0, 0, 0, 0, 0, 2, 1, 2, 0xff, 0xfe, 3, 4, 5]);
    }

    #[test]
    fn two_devices_without_a_guid_get_different_gids() {
        let (a, b) = (link_local_gid([0; 8]), link_local_gid([0; 8]));
        assert_ne!(a, b);
        assert_eq!((a[..2].to_vec(), a[8] & 2), (vec![0xfe, 0x80], 2));
    }
}
