//! Taking a large region away: what the two orders cost, and whether one mapping of many aliases
//! of the scrap would be cheaper than many mappings of it.
#![allow(unsafe_code)]

use std::num::NonZeroUsize;
use std::os::fd::AsFd;
use std::ptr::NonNull;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use holdfast_iommu::{
    Backing, Behind, Order, Piece, Prot, Retargeted, SharedMemory, Target, retarget_all,
};
use holdfast_lab_check::Report;
use nix::sys::mman::{MapFlags, ProtFlags, mmap, mmap_anonymous, munmap};

use crate::Bench;

/// Bytes of the region and of its chunks.
const REGION: u64 = 256 << 20;
const CHUNK: u64 = 2 << 20;
const ROUNDS: usize = 5;

/// Times of one way, in the order of the rounds.
#[derive(Default)]
struct Times {
    fenced: Vec<Duration>,
    window: Vec<Duration>,
    total: Vec<Duration>,
}

pub fn run(bench: &Bench, report: &mut Report) -> Result<()> {
    for (name, order) in
        [("chunk_by_chunk", Order::ChunkByChunk), ("fence_first", Order::FenceFirst)]
    {
        let mut times = Times::default();
        report.check(&format!("a large region is taken away whole ({name})"), || {
            times = take_away(bench, order)?;
            Ok(())
        });
        for (what, mut times) in
            [("fenced", times.fenced), ("window", times.window), ("total", times.total)]
        {
            times.sort_unstable();
            if let Some(middle) = times.get(times.len() / 2) {
                report.number(&format!("{name}_{what}_p50_us"), middle.as_nanos() as f64 / 1e3);
            }
        }
    }
    let (mut each, mut aliased) = (Duration::ZERO, Duration::ZERO);
    report.check("aliases of the scrap can be mapped in one call", || {
        (each, aliased) = scrap_both_ways(bench)?;
        Ok(())
    });
    report.number("scrap_in_a_call_for_each_chunk_us", each.as_nanos() as f64 / 1e3);
    report.number("scrap_in_one_call_on_aliases_us", aliased.as_nanos() as f64 / 1e3);
    Ok(())
}

fn take_away(bench: &Bench, order: Order) -> Result<Times> {
    let memory = SharedMemory::new(REGION)?;
    let space = &bench.space;
    let scrap = space.scrap(CHUNK)?;
    let mapping = space.map(memory.piece(), Prot::ReadWrite, Some(CHUNK))?;
    let chunks = (REGION / CHUNK) as usize;
    let mut times = Times::default();
    for _ in 0..ROUNDS {
        let mut behind = Vec::new();
        let target = Target { space, range: mapping.range(), scrap: &scrap };
        let done = retarget_all([target], order, |_| {
            behind.extend(space.chunks(mapping.range()).iter().map(|chunk| chunk.behind));
        })?;
        let Retargeted { chunks: taken, vanished: 0, holes: 0, fenced, window, total } = done
        else {
            anyhow::bail!("{done:?}");
        };
        ensure!(taken == chunks, "{taken} of {chunks} chunks were taken");
        ensure!(!behind.contains(&Behind::Memory), "the fence was announced too early");
        times.fenced.push(fenced);
        times.window.push(window);
        times.total.push(total);
        space.restore(mapping.range(), &[memory.piece()])?;
    }
    mapping.unmap()?;
    ensure!(space.mappings() == 0, "mappings are left");
    Ok(times)
}

/// The time to map scrap over a region: in a call for each chunk, and in one call on addresses
/// that all show the same pages.
fn scrap_both_ways(bench: &Bench) -> Result<(Duration, Duration)> {
    let space = &bench.space;
    let scrap = SharedMemory::new(CHUNK)?;
    let pieces = vec![scrap.piece(); (REGION / CHUNK) as usize];
    let aliases = Aliases::new(&scrap)?;
    // SAFETY: the aliases stay until after the unmap, and nothing refers to their bytes.
    let backing = unsafe { Backing::memory(aliases.base.as_ptr().addr(), None) };
    let (mut each, mut aliased) = (Duration::MAX, Duration::MAX);
    for _ in 0..ROUNDS {
        let start = Instant::now();
        let mapping = space.map_pieces(&pieces, Prot::ReadWrite, None)?;
        each = each.min(start.elapsed());
        mapping.unmap()?;
        let start = Instant::now();
        let mapping = space.map(Piece { backing, len: REGION }, Prot::ReadWrite, None)?;
        aliased = aliased.min(start.elapsed());
        mapping.unmap()?;
    }
    Ok((each, aliased))
}

/// One piece of memory at many addresses, end to end.
struct Aliases {
    base: NonNull<libc::c_void>,
}

impl Aliases {
    fn new(memory: &SharedMemory) -> Result<Self> {
        let whole = NonZeroUsize::new(REGION as usize).ok_or(nix::errno::Errno::EINVAL)?;
        let part = NonZeroUsize::new(CHUNK as usize).ok_or(nix::errno::Errno::EINVAL)?;
        let prot = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: fresh memory at an address of the kernel's choice.
        let base = unsafe { mmap_anonymous(None, whole, prot, MapFlags::MAP_PRIVATE) }?;
        let aliases = Self { base };
        for start in (0..REGION as usize).step_by(CHUNK as usize) {
            let at = NonZeroUsize::new(base.as_ptr().addr() + start);
            let flags = MapFlags::MAP_SHARED | MapFlags::MAP_FIXED | MapFlags::MAP_POPULATE;
            // SAFETY: it replaces a part of the fresh memory, to which nothing refers.
            unsafe { mmap(at, part, prot, flags, memory.as_fd(), 0) }?;
        }
        Ok(aliases)
    }
}

impl Drop for Aliases {
    fn drop(&mut self) {
        // SAFETY: all of it was mapped by `new`, and nothing refers to it.
        let _ = unsafe { munmap(self.base, REGION as usize) };
    }
}
