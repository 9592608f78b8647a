//! Who owns the DMA address space: which addresses a device may use, what stands behind each, and
//! how to put something else behind them while the device runs.
//!
//! A [`Domain`] is the owner itself, as thin as it can be: map, unmap, limits. There are two, a
//! VFIO type1 container ([`Type1Domain`], the kernel's IOMMU) and a vfio-user server
//! ([`VfioUserDomain`], a device in another process). An [`AddressSpace`] stands on a domain and
//! keeps the books: it picks I/O virtual addresses, cuts memory into chunks that can be revoked on
//! their own, and checks that every unmap removed exactly what was asked. [`AddressSpace::map`]
//! gives a [`Mapping`], which unmaps itself.
//!
//! [`AddressSpace::retarget`] is what the rest exists for: one call takes a range away from its
//! memory and puts [`Scrap`] behind it, so that a device that still writes there harms nobody.
//! When it returns, no DMA reaches the old memory any more. [`retarget_all`] does so for everything
//! that stands on one file, and says when the last of it is out of reach. [`AddressSpace::restore`]
//! puts memory back in the same chunks, [`AddressSpace::retile`] in others.
//!
//! This crate knows addresses; it knows no devices and no files.

pub mod domain;
pub mod error;
pub mod interval;
pub mod iova;
pub mod mapping;
pub mod memory;
pub mod numa;
pub mod range;
pub mod scrap;
pub mod space;
pub mod type1;
pub mod vfio_user;

mod books;
mod chunk;
mod order;
mod permit;
mod reserve;
mod restore;
mod retarget;
mod retile;
mod unmap;

pub use chunk::{Behind, ChunkInfo};
pub use domain::{Backing, Domain, Limits, Piece, Prot, ReplaceError, Replaced, Unmapped};
pub use error::{Error, Result};
pub use mapping::Mapping;
pub use memory::{PageKind, SharedMemory};
pub use order::{Order, Target, retarget_all};
pub use permit::Permit;
pub use range::IovaRange;
pub use restore::Restored;
pub use retarget::{Covered, Fenced, Retargeted};
pub use retile::{Part, Retiled};
pub use scrap::{Scrap, Tenant};
pub use space::AddressSpace;
pub use type1::Type1Domain;
pub use vfio_user::{DmaMessages, VfioUserDomain};
