//! The kernel's VFIO: a container (one address space, type1 with version 2 rules), a group (what
//! the IOMMU can tell apart), a device in it. [`open`] does the whole sequence for a PCI address.
//!
//! What decides and what parses takes bytes and plain data, so it is tested without VFIO; the
//! ioctls stand alone in one small module. A group without an IOMMU (noiommu) is refused: a device
//! that no IOMMU confines can write anywhere.

pub mod caps;
pub mod config;
mod container;
mod departure;
mod device;
mod group;
mod ioctl;

pub use config::enable_bus_master;
pub use container::{Container, can_unmap_all, unmap_all};
pub use device::{KernelDevice, bar_address};
pub use group::{Group, blockers, refuse_noiommu};

use std::sync::Arc;

use crate::Result;
use crate::pci::{Address, Tree};

/// Opens the function at `address`: a fresh container with its group in it, and the device. The
/// container is what DMA mappings are made in; it and the device may be dropped in any order.
///
/// Blocks while the kernel powers up and resets the function.
///
/// # Errors
/// [`Error::NoGroup`](crate::Error::NoGroup), [`Error::NoIommu`](crate::Error::NoIommu),
/// [`Error::NotViable`](crate::Error::NotViable), [`Error::GroupBusy`](crate::Error::GroupBusy),
/// [`Error::NotBound`](crate::Error::NotBound), and any call that fails.
pub fn open(tree: &Tree, address: Address) -> Result<(Arc<Container>, KernelDevice)> {
    let function = tree.function(address)?;
    let number = function.iommu_group.ok_or(crate::Error::NoGroup { address })?;
    let container = Arc::new(Container::open(tree)?);
    let group = Group::open(tree, number, address, Arc::clone(&container))?;
    let device = KernelDevice::open(tree, address, Arc::new(group))?;
    Ok((container, device))
}
