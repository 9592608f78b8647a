//! A guarded region: a file's memory, its place in the device's address space, and how it gets
//! from the file to scrap and back.
//!
//! How memory is put behind an address depends on who owns the address space and on what the
//! memory is. A server in another process maps the file itself. The kernel pins pages by their
//! virtual address; only of a DAX file it will not, and there a window of physical memory over the
//! file's blocks is mapped instead, which nothing holds in place but the layout pin.
#![allow(unsafe_code)]

use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use holdfast_dax::{Extent, GRANULE, Kind, Memory, Window, extents as extents_of};
use holdfast_iommu::{
    self as iommu, AddressSpace, Backing, Behind, IovaRange, Mapping, Permit, Piece, Retiled,
    Scrap, Target,
};

use nix::sys::stat::fstat;

use super::event::{Part, RegionId};
use super::frames::Frames;
use super::policy::{Policy, Reaction};
use crate::lock::lock;
use crate::{Error, Result};

/// How a region's memory is named to the owner of the address space.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Placement {
    /// By descriptor: the device's process maps the file.
    Descriptor,
    /// By virtual address: the kernel pins the pages.
    Address,
    /// By physical address: the blocks of a DAX file. Needs a layout pin.
    Physical,
}

impl Placement {
    /// How memory of this kind goes into this address space.
    pub fn of(kind: Kind, space: &AddressSpace) -> Self {
        match kind {
            _ if space.limits().needs_fd => Self::Descriptor,
            Kind::FsDax => Self::Physical,
            _ => Self::Address,
        }
    }
}

/// Takes the region's registration from the device.
pub type Revoke = Box<dyn FnOnce() + Send>;

/// A region as the guard knows it.
pub struct GuardedRegion {
    pub id: RegionId,
    pub policy: Policy,
    pub memory: Memory,
    space: Arc<AddressSpace>,
    placement: Placement,
    range: IovaRange,
    scrap: Arc<Scrap>,
    mapping: Mutex<Option<Mapping>>,
    /// What the kernel pinned, of files whose pages are not found otherwise to be others.
    frames: Frames,
    /// What was published as lost since it was last published as broken.
    lost: Mutex<Vec<Part>>,
    /// Whether the application said, in a break that gives it time, that it needs no more.
    pub ready: AtomicBool,
    given_up: AtomicBool,
    /// Whether the application knows it by now; before, nothing is told of it.
    pub known: AtomicBool,
    revoke: Mutex<Option<Revoke>>,
}

/// The memory from `offset` on, as the owner of the address space wants it named.
fn backing(memory: &Memory, placement: Placement, offset: u64) -> Backing<'_> {
    let va = memory.as_ptr().as_ptr().addr() + offset as usize;
    let file = memory.backing().map(|(fd, start)| (fd, start + offset));
    let file = file.filter(|_| placement == Placement::Descriptor);
    // SAFETY: the memory stays mapped until the region's mapping has gone (`MemoryRegion` sees to
    // it, or leaks both), and `Memory` never gives out a reference to its bytes.
    unsafe { Backing::memory(va, file) }
}

/// The extents, through a window of physical memory.
fn pieces<'a>(
    extents: &'a [Extent],
    window: &'a Window,
) -> impl Iterator<Item = Piece<'static>> + 'a {
    extents.iter().enumerate().map(|(index, extent)| {
        // SAFETY: these are the blocks of a file that a layout pin keeps where they are; the pin
        // goes only after they were taken away again. The window itself may go before: the kernel
        // keeps the physical address (`vfio_iommu_type1.c:follow_fault_pfn`).
        let backing = unsafe { Backing::memory(window.va(index), None) };
        Piece { backing, len: extent.len }
    })
}

impl GuardedRegion {
    /// A region at reserved addresses, with nothing behind them yet.
    pub fn new(
        id: RegionId,
        policy: Policy,
        memory: Memory,
        mapping: Mapping,
        placement: Placement,
        scrap: Arc<Scrap>,
    ) -> Self {
        let space = Arc::clone(mapping.space());
        let range = mapping.range();
        Self {
            id,
            policy,
            memory,
            space,
            placement,
            range,
            scrap,
            mapping: Mutex::new(Some(mapping)),
            frames: Frames::default(),
            lost: Mutex::new(Vec::new()),
            ready: AtomicBool::new(false),
            given_up: AtomicBool::new(false),
            known: AtomicBool::new(false),
            revoke: Mutex::new(None),
        }
    }

    /// All of it.
    pub fn whole(&self) -> Part {
        Part { start: 0, end: self.range.len() }
    }

    /// First byte of the file that it holds.
    pub fn file_offset(&self) -> u64 {
        self.memory.backing().map_or(0, |(_, offset)| offset)
    }

    /// Where the device finds it.
    pub fn iova(&self) -> u64 {
        self.range.start()
    }

    /// Whether only a layout pin keeps the device off other files' blocks.
    pub fn needs_pin(&self) -> bool {
        self.placement == Placement::Physical
    }

    /// Whether the device's process faults pages in itself when it reaches them.
    pub fn faults_on_its_own(&self) -> bool {
        self.placement == Placement::Descriptor
    }

    /// Where its file ends, from the region's start, in whole pages of the file.
    pub fn file_end(&self) -> Result<u64> {
        let Some((fd, offset)) = self.memory.backing() else { return Ok(self.range.len()) };
        let failed =
            |errno| Error::Guard(format!("fstat of {} failed: {errno}", self.memory.source()));
        let size = u64::try_from(fstat(fd).map_err(failed)?.st_size).unwrap_or(0);
        let page = self.memory.page_size() as u64;
        Ok(size.saturating_sub(offset) / page * page)
    }

    /// Empties this process's page-table entry of the page of the file at `offset`, if the region
    /// has it.
    pub fn forget_page(&self, offset: u64) {
        let page = self.memory.page_size() as u64;
        let Some(at) = offset.checked_sub(self.file_offset()) else { return };
        if at + page <= self.range.len()
            && let Err(error) = self.memory.forget(at, page)
        {
            tracing::debug!(region = ?self, %error, "a page is not forgotten");
        }
    }

    /// What takes its registration from the device, when its policy says so.
    pub fn on_revoke(&self, revoke: Revoke) {
        *lock(&self.revoke) = Some(revoke);
    }

    /// Takes the registration from the device, once.
    pub fn revoke(&self) {
        if let Some(revoke) = lock(&self.revoke).take() {
            revoke();
        }
    }

    /// The chunks that hold `part`.
    pub fn chunks_around(&self, part: Part) -> Option<Part> {
        let start = self.range.start();
        let end = (start + part.end).min(self.range.end());
        let asked = IovaRange::between(start + part.start, end)?;
        let chunks = self.space.chunks_around(asked)?;
        Some(Part { start: chunks.start() - start, end: chunks.end() - start })
    }

    /// Whether anything of it from an offset on stands on its file.
    pub fn is_on_file_from(&self, offset: u64) -> bool {
        let Some(tail) = self.sub_range(Part { start: offset, ..self.whole() }) else {
            return false;
        };
        self.space.any_chunk(tail, |behind| behind == Behind::Memory)
    }

    /// The parts that stand on scrap or on nothing, whole chunks.
    pub fn off_file(&self) -> Vec<Part> {
        let Some(range) = self.sub_range(self.whole()) else { return Vec::new() };
        let mut parts: Vec<Part> = Vec::new();
        for chunk in self.space.chunks(range) {
            if chunk.behind == Behind::Memory {
                continue;
            }
            let start = chunk.range.start() - range.start();
            let end = chunk.range.end() - range.start();
            match parts.last_mut() {
                Some(last) if last.end == start => last.end = end,
                _ => parts.push(Part { start, end }),
            }
        }
        parts
    }

    /// Remembers that a part will not come back by itself; says whether that is news.
    pub fn lose(&self, part: Part) -> bool {
        let known = self.has_lost(part);
        if !known {
            lock(&self.lost).push(part);
        }
        !known
    }

    fn has_lost(&self, part: Part) -> bool {
        let lost = lock(&self.lost);
        lost.iter().any(|known| known.start <= part.start && part.end <= known.end)
    }

    /// Whether its policy asks for what stands on scrap to be put back on the file, and something
    /// does.
    pub fn wants_to_follow(&self) -> bool {
        let stays =
            self.policy.reaction == Reaction::Revoke || self.given_up.load(Ordering::Relaxed);
        let is_off = |range| self.space.any_chunk(range, |behind| behind != Behind::Memory);
        self.policy.follow && !stays && self.sub_range(self.whole()).is_some_and(is_off)
    }

    /// Its mapping in this process, or what its file stands on, is gone: nothing brings it back.
    pub fn give_up(&self) {
        self.given_up.store(true, Ordering::Relaxed);
    }

    /// Whether that was told of all of a part already.
    pub fn is_given_up(&self, part: Part) -> bool {
        self.given_up.load(Ordering::Relaxed) && self.has_lost(part)
    }

    /// What is to be taken away for `part`, whole chunks; nothing of a region that was unmapped.
    pub fn target(&self, part: Part) -> Option<Target<'_>> {
        lock(&self.lost).retain(|lost| lost.end <= part.start || part.end <= lost.start);
        let range = self.sub_range(part)?;
        Some(Target { space: &self.space, range, scrap: &self.scrap })
    }

    /// Faults parts in for writing once more, now that the pin is in force. What was taken out of
    /// the page tables before it and then only read may be a block that a clone has as well. The
    /// pinned page (`pinned`, in the file) is the file's own since it was pinned, and is left
    /// alone: Linux 7.3 lets no operation go on while it is in a page table.
    pub fn make_own(&self, parts: &[Part], pinned: u64) -> Result<()> {
        let page = self.memory.page_size() as u64;
        let pinned = pinned.checked_sub(self.file_offset());
        for part in parts {
            let cut = pinned.filter(|at| (part.start..part.end).contains(at));
            let (before, after) = match cut {
                Some(at) => {
                    (Part { start: part.start, end: at }, Part { start: at + page, end: part.end })
                }
                None => (*part, Part { start: part.end, end: part.end }),
            };
            for part in [before, after].into_iter().filter(|part| !part.is_empty()) {
                self.memory.populate(part.start, part.len())?;
            }
        }
        Ok(())
    }

    /// The right to put the file behind a part again, until it is taken away.
    pub fn permit(&self, part: Part) -> Result<Option<Permit>> {
        Ok(self.sub_range(part).map(|range| self.space.permit(range)).transpose()?)
    }

    /// Puts the file behind the parts of a permit's range, whole pages that the file has, and
    /// leaves scrap behind what lies between. Nothing is done once the permit has ended. For
    /// [`Placement::Physical`], the pin must have been in force when the permit was got, and the
    /// parts faulted in before that. `parts` are in order and apart from each other.
    pub fn to_file(&self, permit: &Permit, parts: &[Part]) -> Result<Retiled> {
        let offset = permit.range().start() - self.range.start();
        let within = Part { start: offset, end: offset + permit.range().len() };
        let mut extents = Vec::new();
        let mut window = None;
        if self.placement == Placement::Physical && !parts.is_empty() {
            for part in parts {
                extents.extend(extents_of(&self.memory, part.start, part.len(), GRANULE)?);
            }
            window = Some(Window::map(&extents)?);
        }
        let named: Vec<(Part, Piece<'_>)> = match &window {
            Some(window) => {
                let part = |e: &Extent| Part { start: e.offset, end: e.offset + e.len };
                extents.iter().map(part).zip(pieces(&extents, window)).collect()
            }
            None => {
                let piece = |part: Part| {
                    let backing = backing(&self.memory, self.placement, part.start);
                    (part, Piece { backing, len: part.len() })
                };
                cuts(parts).into_iter().map(piece).collect()
            }
        };
        let mut layout = Vec::with_capacity(2 * named.len() + 1);
        let mut at = within.start;
        let scrap = |from: u64, to: u64| (to > from).then(|| iommu::Part::Scrap { len: to - from });
        for (part, piece) in named {
            layout.extend(scrap(at, part.start));
            layout.push(iommu::Part::Memory(piece));
            at = part.end;
        }
        layout.extend(scrap(at, within.end));
        let pinned = self.may_be_replaced().then(|| Frames::before(&self.memory, parts));
        let done = self.space.retile(permit, &layout, Some(GRANULE), &self.scrap)?;
        if let Some(before) = pinned {
            self.frames.pinned(&self.memory, parts, before);
        }
        Ok(done)
    }

    /// Whether its file may have other pages than those that the kernel pinned, and nothing about
    /// the file that would say so.
    fn may_be_replaced(&self) -> bool {
        self.placement == Placement::Address
            && matches!(self.memory.kind(), Kind::Memfd | Kind::Tmpfs | Kind::PageCache)
    }

    /// Whether it is known which pages were pinned.
    pub fn knows_frames(&self) -> bool {
        self.frames.is_known()
    }

    /// The parts of its file, in bytes, that are on other pages by now than the device. Faults pages in.
    pub fn replaced(&self) -> Vec<Range<u64>> {
        let mut on_file = Vec::new();
        let mut at = 0;
        for off in self.off_file() {
            on_file.push(Part { start: at, end: off.start });
            at = off.end;
        }
        on_file.push(Part { start: at, end: self.whole().end });
        let offset = self.file_offset();
        let in_file = |part: Part| offset + part.start..offset + part.end;
        self.frames.replaced(&self.memory, &on_file).into_iter().map(in_file).collect()
    }

    /// Takes it out of the address space for good. When this returns `Ok`, no access reaches the
    /// memory.
    pub fn unmap(&self) -> Result<()> {
        match lock(&self.mapping).take() {
            Some(mapping) => Ok(mapping.unmap()?),
            None => Ok(()),
        }
    }

    /// The addresses of a part, unless they were given up: they may be somebody else's by now.
    /// They stay the region's while its file's lock is held, or a restore is under way.
    fn sub_range(&self, part: Part) -> Option<IovaRange> {
        lock(&self.mapping).as_ref()?;
        IovaRange::between(self.range.start() + part.start, self.range.start() + part.end)
    }
}

/// Parts cut where a chunk may not reach over.
fn cuts(parts: &[Part]) -> Vec<Part> {
    let mut cut = Vec::new();
    for part in parts {
        let mut at = part.start;
        while at < part.end {
            let end = ((at / GRANULE + 1) * GRANULE).min(part.end);
            cut.push(Part { start: at, end });
            at = end;
        }
    }
    cut
}

impl std::fmt::Debug for GuardedRegion {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "GuardedRegion({} at {}, {:?})", self.id, self.range, self.placement)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_piece_reaches_over_a_chunks_edge() {
        let part = |start, end| Part { start, end };
        let cut = cuts(&[part(4096, GRANULE), part(GRANULE + 8192, 3 * GRANULE + 4096)]);
        assert_eq!(
            cut,
            [
                part(4096, GRANULE),
                part(GRANULE + 8192, 2 * GRANULE),
                part(2 * GRANULE, 3 * GRANULE),
                part(3 * GRANULE, 3 * GRANULE + 4096)
            ]
        );
    }
}
