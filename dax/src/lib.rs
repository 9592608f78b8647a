//! Files as memory: where the bytes of a memory region come from, and what is known of them.
//!
//! A [`Source`] says what a region is made of (`anon`, `memfd`, `hugetlb`, or a file and a range
//! of it); [`Memory::open`] maps it, shared and writable, and gives back the range: its address,
//! its length, its page size, what [`Kind`] of memory it turned out to be, and the descriptor and
//! offset behind it, so that a device in another process can map the same bytes.
//!
//! A device, another process or a file's other users may write these bytes at any time, so they
//! are never a Rust reference: access is by copies ([`Memory::read_at`], [`Memory::write_at`]),
//! by atomics, or through a `vm_memory::VolatileSlice`.
//!
//! ```
//! use holdfast_dax::{Memory, Populate, Source};
//!
//! let source: Source = "memfd".parse()?;
//! let memory = Memory::open(&source, 64 * 1024, Populate::Yes)?;
//! memory.write_at(4096, b"held fast")?;
//! let mut back = [0; 9];
//! memory.read_at(4096, &mut back)?;
//! assert_eq!(&back, b"held fast");
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! Files on persistent memory ([`Kind::FsDax`]) are special: their pages are blocks, which the file
//! system may free or move under a device. [`extents`] and [`Window`] find them, a [`Pin`] keeps
//! them where they are for as long as it is held, and [`prove`] shows that it does. [`notify`] says
//! when the memory behind a file, of whatever kind, is about to change.
//!
//! This crate knows files and memory; it knows neither devices nor the IOMMU.

mod devdax;
mod error;
mod fsdax;
mod hugetlb;
mod identity;
mod kind;
mod map;
mod memory;
pub mod notify;
mod open;
mod pagemap;
mod pin;
mod size;
mod source;
mod sys;

pub use error::{Error, Result};
pub use fsdax::{
    Extent, GRANULE, Mount, MountDax, NotDax, Segment, Window, WindowRefusal, allocated, extents,
    layout,
};
pub use identity::FileId;
pub use kind::Kind;
pub use memory::{Memory, Populate};
pub use pagemap::{Entry as PageEntry, Pagemap};
pub use pin::{
    AdoptedPin, OwnedPinParts, Pin, PinParts, Proof, ProofFailure, Sign, others_to_pin, prove,
    touch_small_pages,
};
pub use size::{SizeError, parse_size};
pub use source::{Source, SourceError};
