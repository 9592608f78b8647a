//! The device as its driver sees it, whatever carries it.

use std::os::fd::BorrowedFd;

use crate::{MappedRegion, Result};

/// What a device offers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeviceInfo {
    /// Number of regions (BARs, ROM, config space, ...).
    pub regions: u32,
    /// Number of interrupt indices.
    pub irqs: u32,
    /// Whether [`Device::reset`] can work.
    pub can_reset: bool,
}

/// What one region is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RegionInfo {
    /// Bytes; 0 when the device has no such region.
    pub size: u64,
    /// Reads are allowed.
    pub readable: bool,
    /// Writes are allowed.
    pub writable: bool,
    /// Which (offset, length) parts can be mapped with [`Device::map_region`]; page aligned.
    pub mappable: Vec<(u64, u64)>,
}

/// What one interrupt index is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IrqInfo {
    /// Number of vectors.
    pub count: u32,
    /// Vectors can be bound to eventfds.
    pub eventfd: bool,
}

/// VFIO's region index of PCI configuration space; BAR n is region n.
pub const REGION_CONFIG: u32 = 7;
/// VFIO's interrupt index of INTx.
pub const IRQ_INTX: u32 = 0;
/// VFIO's interrupt index of MSI.
pub const IRQ_MSI: u32 = 1;
/// VFIO's interrupt index of MSI-X.
pub const IRQ_MSIX: u32 = 2;
/// VFIO's interrupt index by which the kernel asks for the function back.
pub const IRQ_REQUEST: u32 = 4;

/// A PCI device behind VFIO. All calls may block for as long as the other side takes to answer
/// (a system call, or a round trip on the socket with its deadline) and may be made from any
/// thread; none belongs on a fast path, which uses a [`MappedRegion`] instead.
pub trait Device: Send + Sync {
    /// What the device offers.
    fn info(&self) -> DeviceInfo;

    /// What region `index` is.
    fn region(&self, index: u32) -> Result<RegionInfo>;

    /// Reads `buf.len()` bytes of region `index` at `offset`: all of them, or an error.
    fn read_region(&self, index: u32, offset: u64, buf: &mut [u8]) -> Result<()>;

    /// Writes all of `data` to region `index` at `offset`, or fails.
    fn write_region(&self, index: u32, offset: u64, data: &[u8]) -> Result<()>;

    /// Maps a part of region `index` that [`RegionInfo::mappable`] lists, readable and writable.
    /// The mapping may outlive this handle, but touches nothing once the device is gone.
    fn map_region(&self, index: u32, offset: u64, len: u64) -> Result<MappedRegion>;

    /// Address of BAR `index` as the device itself counts it (the physical address for a kernel
    /// device, the BAR's register for a vfio-user one).
    fn bus_address(&self, index: u32) -> Result<u64>;

    /// What interrupt index `index` is.
    fn irq(&self, index: u32) -> Result<IrqInfo>;

    /// Binds vectors `0..fds.len()` of interrupt index `index` to eventfds and enables them;
    /// `None` leaves that vector without one.
    fn enable_irqs(&self, index: u32, fds: &[Option<BorrowedFd<'_>>]) -> Result<()>;

    /// Disables every vector of interrupt index `index`.
    fn disable_irqs(&self, index: u32) -> Result<()>;

    /// Resets the function.
    fn reset(&self) -> Result<()>;

    /// Says that the kernel has asked for the function back ([`IRQ_REQUEST`] has fired): whoever
    /// drops the last handle then waits a moment for the kernel to have taken it.
    fn removal_asked(&self) {}

    /// Reads one 32-bit register.
    fn read_u32(&self, index: u32, offset: u64) -> Result<u32> {
        let mut buf = [0; 4];
        self.read_region(index, offset, &mut buf)?;
        Ok(u32::from_le_bytes(buf))
    }

    /// Writes one 32-bit register.
    fn write_u32(&self, index: u32, offset: u64, value: u32) -> Result<()> {
        self.write_region(index, offset, &value.to_le_bytes())
    }
}
