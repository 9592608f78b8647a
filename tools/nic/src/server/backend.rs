//! What the server needs from the device it puts on the socket.
//!
//! A [`Backend`] is called by one thread, one call at a time, in the order in which the client's
//! messages arrived. What reaches it was checked against what it declared: a region access lies
//! inside a region that allows it, an interrupt range inside its index, and a DMA range neither is
//! empty nor wraps. A call may block; the client waits for its reply meanwhile, and nobody else
//! does.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use nix::errno::Errno;

/// Regions of a VFIO PCI device: six BARs, the ROM, configuration space, VGA.
pub const PCI_REGIONS: usize = 9;
/// Interrupt indices of a VFIO PCI device: INTx, MSI, MSI-X, error, request.
pub const PCI_IRQS: usize = 5;

/// One region. The default is one that the device does not have.
#[derive(Debug, Clone, Default)]
pub struct Region {
    /// Bytes; 0 when there is no such region.
    pub size: u64,
    /// The client may read it.
    pub read: bool,
    /// The client may write it.
    pub write: bool,
    /// What of it the client may map.
    pub map: Option<RegionMap>,
}

impl Region {
    /// A region of `size` bytes that is reached by messages only.
    pub fn trapped(size: u64) -> Self {
        Self { size, read: true, write: true, map: None }
    }

    /// A region of `size` bytes of which `map` may be mapped as well.
    pub fn mapped(size: u64, map: RegionMap) -> Self {
        Self { size, read: true, write: true, map: Some(map) }
    }
}

/// The mappable part of a region.
#[derive(Debug, Clone)]
pub struct RegionMap {
    /// The file behind it.
    pub fd: Arc<OwnedFd>,
    /// Where in that file the region's byte 0 lies; page aligned.
    pub offset: u64,
    /// (offset in the region, length) of each mappable part, page aligned, in order, apart from
    /// each other. Empty: the whole region.
    pub areas: Vec<(u64, u64)>,
}

/// One interrupt index. The default is one that the device does not have.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Irq {
    /// Vectors; 0 when there is no such index.
    pub count: u32,
    /// Vectors can be masked and unmasked.
    pub maskable: bool,
    /// Adding vectors later needs the index disabled first (true of MSI and MSI-X in VFIO).
    pub no_resize: bool,
}

/// What the client wants of the vectors from `start` on, one element per vector.
#[derive(Debug)]
pub enum IrqAction {
    /// Bind each vector to that eventfd, or to none, and enable the index. What the client sent
    /// may be no eventfd, or one whose counter is full: a write to it must not be allowed to block
    /// the device (poll it for `POLLOUT` first, or set it to non-blocking).
    Bind(Vec<Option<OwnedFd>>),
    /// Fire these vectors now, as if the device had.
    Fire(Vec<bool>),
    /// Mask these vectors.
    Mask(Vec<bool>),
    /// Unmask these vectors.
    Unmask(Vec<bool>),
    /// Disable the whole index and let go of its eventfds (`start` is 0).
    Disable,
}

/// A piece of client memory to make reachable for DMA.
#[derive(Debug)]
pub struct DmaMap {
    /// First I/O virtual address.
    pub iova: u64,
    /// Bytes; not 0, and `iova + len` does not wrap.
    pub len: u64,
    /// The device may read it.
    pub read: bool,
    /// The device may write it.
    pub write: bool,
    /// The file to map; without one the memory can be reached only by messages to the client
    /// (QEMU sends such maps for its ROMs and for RAM that has no file).
    pub fd: Option<OwnedFd>,
    /// Where in the file the piece begins. `offset + len` does not wrap; that it is page aligned
    /// and inside the file was not checked.
    pub offset: u64,
}

/// What to make unreachable again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DmaUnmap {
    /// Every mapping that lies in this range. VFIO unmaps whole mappings only; a range that would
    /// cut one is the backend's to refuse (`EINVAL`).
    Range {
        /// First I/O virtual address.
        iova: u64,
        /// Bytes; not 0. The range may end at 2^64 and not beyond, so `iova + len` may be one too
        /// much for 64 bits.
        len: u64,
    },
    /// All mappings.
    All,
}

/// A device behind the socket. Errors are sent to the client as they are; they do not end the
/// connection.
pub trait Backend: Send {
    /// The regions, in index order; those missing up to [`PCI_REGIONS`] are taken as absent.
    /// Asked once per connection, after [`Backend::client_connected`].
    fn regions(&self) -> Vec<Region>;

    /// The interrupt indices, in order; those missing up to [`PCI_IRQS`] are taken as absent.
    /// Asked once per connection, after [`Backend::client_connected`].
    fn irqs(&self) -> Vec<Irq>;

    /// Fills `data` from region `region` at `offset`; it lies inside the region and is not empty.
    fn read(&mut self, region: u32, offset: u64, data: &mut [u8]) -> Result<(), Errno>;

    /// Writes `data` to region `region` at `offset`; it lies inside the region and is not empty.
    fn write(&mut self, region: u32, offset: u64, data: &[u8]) -> Result<(), Errno>;

    /// Makes client memory reachable.
    fn dma_map(&mut self, map: DmaMap) -> Result<(), Errno>;

    /// Makes client memory unreachable and says how many bytes were mapped there. It is a fence:
    /// it returns only when no access through these mappings is in flight or can still start.
    fn dma_unmap(&mut self, what: DmaUnmap) -> Result<u64, Errno>;

    /// Applies `action` to the vectors of interrupt index `index` from `start` on.
    fn set_irqs(&mut self, index: u32, start: u32, action: IrqAction) -> Result<(), Errno>;

    /// Resets the function, as a function level reset does: DMA mappings and interrupt bindings
    /// stay.
    fn reset(&mut self) -> Result<(), Errno>;

    /// A client connected; it has not said anything yet.
    fn client_connected(&mut self);

    /// The client is gone, in order or not: every DMA mapping and eventfd it gave must be let go
    /// (with the same fence as [`Backend::dma_unmap`]) before this returns.
    fn client_gone(&mut self);
}
