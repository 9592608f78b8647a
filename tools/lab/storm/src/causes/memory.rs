//! What a process does to its own anonymous memory under a region.
//!
//! The device holds the old pages by reference, so that nothing here can reach another's memory;
//! what is to be shown is that the application is told of each, and that the device's writes go
//! where the events say.
#![allow(unsafe_code)]

use std::ffi::c_void;
use std::ptr;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context as _, Result, ensure};
use holdfast::Source;
use holdfast::coherence::{EventKind, Part};
use holdfast_lab_check::Report;
use nix::errno::Errno;

use super::scene::{CHUNK, Scene, Stage};

/// The part that something happens to.
const PART: Part = Part { start: CHUNK, end: 2 * CHUNK };
const BROKEN_AND_BACK: &[EventKind] = &[EventKind::Broken, EventKind::Restored];
const BROKEN_FOR_GOOD: &[EventKind] = &[EventKind::Broken, EventKind::Lost];

type Check = fn(&Scene) -> Result<()>;

/// One check for each thing.
pub fn run(scene: &Scene, report: &mut Report) {
    let checks: [(&str, Check); 6] = [
        ("anonymous memory, MADV_DONTNEED: told, and back with its new pages", dropped),
        ("anonymous memory, munmap: told, and lost", unmapped),
        ("anonymous memory, mremap: told, and lost", moved),
        ("anonymous memory, MAP_FIXED over it: told, and lost", mapped_over),
        ("anonymous memory, fork and copy-on-write: stays the parent's", forked),
        ("anonymous memory, nothing: nothing is told", |scene| {
            let mut stage = scene.region(&Source::Anon)?;
            arrives(&mut stage)?;
            stage.nothing_told()
        }),
    ];
    for (name, check) in checks {
        report.check(name, || check(scene));
    }
}

/// Where the part is in this process.
fn at(stage: &Stage) -> *mut c_void {
    stage.address.wrapping_add(PART.start as usize).cast()
}

/// A word of memory that the device may write.
fn word(address: *mut c_void) -> u64 {
    // SAFETY: each caller passes the start of a readable mapping that stays while this runs, aligned
    // to a page; the device writes whole aligned words.
    unsafe { AtomicU64::from_ptr(address.cast()) }.load(Ordering::Acquire)
}

/// What the device writes to the part is what this process reads there.
fn arrives(stage: &mut Stage) -> Result<()> {
    let written = stage.write(PART.start)?;
    let read = word(at(stage));
    ensure!(read == written, "the device wrote {written:#x}, and there is {read:#x}");
    Ok(())
}

/// What the device writes to the part goes to scrap: `elsewhere` does not change.
fn goes_to_scrap(stage: &mut Stage, elsewhere: *mut c_void) -> Result<()> {
    let before = word(elsewhere);
    stage.write(PART.start)?;
    ensure!(word(elsewhere) == before, "the device wrote memory that is not the region's any more");
    stage.nothing_told()
}

fn called(name: &'static str, result: isize) -> Result<()> {
    Errno::result(result).map(drop).context(name)
}

fn dropped(scene: &Scene) -> Result<()> {
    let mut stage = scene.region(&Source::Anon)?;
    arrives(&mut stage)?;
    // SAFETY: a part of the region's mapping, which nothing in this process refers to.
    let result = unsafe { libc::madvise(at(&stage), CHUNK as usize, libc::MADV_DONTNEED) };
    called("madvise", result as isize)?;
    stage.told(BROKEN_AND_BACK, "dont-need", PART)?;
    arrives(&mut stage)
}

fn unmapped(scene: &Scene) -> Result<()> {
    let mut stage = scene.region(&Source::Anon)?;
    arrives(&mut stage)?;
    // SAFETY: as in `dropped`.
    let result = unsafe { libc::munmap(at(&stage), CHUNK as usize) };
    called("munmap", result as isize)?;
    stage.told(BROKEN_FOR_GOOD, "munmap", PART)?;
    // What is mapped there next is somebody else's.
    let other = map_at(at(&stage))?;
    goes_to_scrap(&mut stage, other)
}

fn moved(scene: &Scene) -> Result<()> {
    let mut stage = scene.region(&Source::Anon)?;
    arrives(&mut stage)?;
    let (len, flags) = (CHUNK as usize, libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED);
    let elsewhere = map_at(ptr::null_mut())?;
    // SAFETY: as in `dropped`; the target is a mapping of our own that nothing refers to.
    let result = unsafe { libc::mremap(at(&stage), len, len, flags, elsewhere) };
    called("mremap", result as isize)?;
    stage.told(BROKEN_FOR_GOOD, "mremap", PART)?;
    goes_to_scrap(&mut stage, elsewhere)
}

fn mapped_over(scene: &Scene) -> Result<()> {
    let mut stage = scene.region(&Source::Anon)?;
    arrives(&mut stage)?;
    let over = map_at(at(&stage))?;
    stage.told(BROKEN_FOR_GOOD, "map-over", PART)?;
    goes_to_scrap(&mut stage, over)
}

fn forked(scene: &Scene) -> Result<()> {
    let mut stage = scene.region(&Source::Anon)?;
    arrives(&mut stage)?;
    let page: *mut u64 = at(&stage).cast();
    // SAFETY: the child only writes a word of its copy and ends, which needs no lock that another
    // thread may have held.
    let child = unsafe { libc::fork() };
    if child == 0 {
        // SAFETY: the region's memory is mapped in the child as well.
        unsafe {
            ptr::write_volatile(page, 0);
            libc::_exit(0);
        }
    }
    called("fork", child as isize)?;
    let mut status = 0;
    // SAFETY: `status` is ours.
    called("waitpid", unsafe { libc::waitpid(child, &raw mut status, 0) } as isize)?;
    ensure!(status == 0, "the child ended with {status:#x}");
    // The parent writes too, which copies a page that is still shared.
    // SAFETY: as in `word`; the device does not write now.
    unsafe { ptr::write_volatile(page.add(1), 1) };
    arrives(&mut stage)?;
    stage.nothing_told()
}

/// A chunk of fresh memory, over what is at `address` if that is not null. It is left behind.
fn map_at(address: *mut c_void) -> Result<*mut c_void> {
    let fixed = if address.is_null() { 0 } else { libc::MAP_FIXED };
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_POPULATE | fixed;
    let prot = libc::PROT_READ | libc::PROT_WRITE;
    // SAFETY: at no address of the caller's, or over a part of a region that nothing refers to.
    let at = unsafe { libc::mmap(address, CHUNK as usize, prot, flags, -1, 0) };
    called("mmap", at as isize)?;
    Ok(at)
}
