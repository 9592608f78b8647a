//! VFIO in its two dialects: the kernel's ioctls (`kernel`) and vfio-user's messages over a Unix
//! socket (`user`). Both give a [`Device`]: regions to read, write and map, interrupts as
//! eventfds, a reset. A driver is written against that trait and never learns which it got.
//!
//! DMA mappings belong to whoever owns the address space and are the business of the
//! `holdfast-iommu` crate; the raw calls it needs (container ioctls, DMA_MAP messages) stand here.

pub mod device;
pub mod error;
pub mod kernel;
pub mod mapped;
pub mod pci;
pub mod user;

pub use device::{Device, DeviceInfo, IrqInfo, RegionInfo};
pub use error::{Error, Result};
pub use mapped::MappedRegion;
