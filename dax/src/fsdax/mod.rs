//! Files whose pages are persistent memory: whether a file is one, and where its blocks are.
//!
//! On a DAX mount a mapped page *is* a block of the file. No kernel lets a device pin such a page
//! for long, since the file system may free or move the block; but a device may be given the
//! block's physical address, as long as somebody sees to it that the block stays the file's. That
//! is the layout pin's office ([`crate::Pin`]); this module finds the blocks: [`layout`] asks the
//! file system (which blocks there are, shared or unwritten), [`extents`] asks the page tables
//! (the physical addresses of what was faulted in), and [`Window`] maps those through `/dev/mem`,
//! because that is the one mapping of persistent memory that VFIO takes.
//!
//! The order that holds (each step is void if one before it is missing): populate, pin, populate
//! again, [`extents`], [`Window`], map; then ask the pin whether it was disturbed. A writable DAX
//! page-table entry means a block that is allocated, written and not shared; the pin keeps it so.

mod extents;
mod iomem;
mod layout;
mod mount;
mod refuse;
mod window;

pub use extents::{Extent, GRANULE, extents};
pub use layout::{Segment, allocated, layout};
pub use mount::{Mount, MountDax};
pub use refuse::NotDax;
pub use window::{Window, WindowRefusal};

pub(crate) use iomem::SystemRam;
pub(crate) use layout::{await_operations, check_no_holes, explain_populate, is_locked};
pub(crate) use refuse::why_not_dax;
