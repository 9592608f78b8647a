//! Regions on the file: as the library makes them, under a guard, and as it never would, without.
//!
//! The library has no way to put an fs-dax file within a kernel device's reach unguarded, and so
//! the experiment without a guard is put together here from the crates below: the file's extents,
//! a window on them, a mapping and a registration, and nothing that knows when the file moves.
#![allow(unsafe_code)]

use std::path::Path;

use anyhow::{Context as _, Result};
use holdfast::coherence::{Guard, Policy, RegionId};
use holdfast::{Access, Memory, MemoryRegion, Populate, Source};
use holdfast_dax::{GRANULE, Window, extents};
use holdfast_driver as driver;
use holdfast_iommu::{Backing, Mapping, Piece, Prot};

use crate::operation::PAGE;
use crate::peer::{Side, Target};

/// A part of the file, on one of the devices.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// First byte, in the file.
    pub offset: u64,
    /// Bytes.
    pub len: u64,
}

/// A registered part of the file.
pub struct Region {
    pub extent: Extent,
    held: Held,
}

enum Held {
    Guarded(MemoryRegion),
    Bare(Box<Bare>),
}

/// A registration that nothing guards. Taken down in the order of declaration.
struct Bare {
    registration: driver::MemoryRegion,
    mapping: Mapping,
    memory: Memory,
}

impl Region {
    /// Under a guard, and followed.
    pub fn guarded(side: &Side, path: &Path, extent: Extent, guard: &Guard) -> Result<Self> {
        let memory = open(path, extent)?;
        let region = side.pd.register_guarded(memory, Access::ALL, guard, Policy::FOLLOW);
        let region = region.with_context(|| format!("guarding {}", path.display()))?;
        Ok(Self { extent, held: Held::Guarded(region) })
    }

    /// Under none.
    pub fn bare(side: &Side, path: &Path, extent: Extent) -> Result<Self> {
        let memory = open(path, extent)?;
        let len = memory.len() as u64;
        let found = extents(&memory, 0, len, GRANULE)?;
        let window = Window::map(&found)?;
        let pieces: Vec<Piece<'_>> = found
            .iter()
            .enumerate()
            .map(|(index, extent)| {
                // SAFETY: the kernel takes the physical address out of the window while it is
                // mapped. That these blocks may become somebody else's is what is to be shown.
                let backing = unsafe { Backing::memory(window.va(index), None) };
                Piece { backing, len: extent.len }
            })
            .collect();
        let mapping = side.device.address_space().map_pieces(&pieces, Prot::ReadWrite, None)?;
        let pages: Vec<u64> = (0..len / PAGE).map(|page| mapping.iova() + page * PAGE).collect();
        let start = memory.as_ptr().as_ptr().addr() as u64;
        let registration = side.device.driver().register_mr(
            side.pd.driver(),
            start,
            len,
            &pages,
            Access::ALL.bits(),
        )?;
        Ok(Self { extent, held: Held::Bare(Box::new(Bare { registration, mapping, memory })) })
    }

    /// Its name in events.
    pub fn id(&self) -> Option<RegionId> {
        match &self.held {
            Held::Guarded(region) => region.id(),
            Held::Bare(_) => None,
        }
    }

    /// A handle to it, if it is guarded.
    pub fn handle(&self) -> Option<MemoryRegion> {
        match &self.held {
            Held::Guarded(region) => Some(region.clone()),
            Held::Bare(_) => None,
        }
    }

    /// Where a peer writes it.
    pub fn target(&self) -> Target {
        match &self.held {
            Held::Guarded(region) => {
                let remote = region.remote();
                Target { addr: remote.addr, len: remote.len, rkey: remote.rkey }
            }
            Held::Bare(bare) => Target {
                addr: bare.memory.as_ptr().as_ptr().addr() as u64,
                len: bare.memory.len() as u64,
                rkey: bare.registration.rkey(),
            },
        }
    }

    /// Takes it from the device.
    pub fn deregister(self) -> Result<()> {
        match self.held {
            Held::Guarded(region) => {
                region.deregister()?;
            }
            Held::Bare(bare) => {
                bare.registration.destroy()?;
                bare.mapping.unmap()?;
            }
        }
        Ok(())
    }
}

fn open(path: &Path, extent: Extent) -> Result<Memory> {
    let range = Some((extent.offset, extent.len));
    let source = Source::FsDax { path: path.to_owned(), range };
    Ok(Memory::open(&source, 1, Populate::Yes)?)
}
