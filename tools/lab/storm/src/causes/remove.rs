//! MADV_REMOVE: a hole that is made through a mapping.
#![allow(unsafe_code)]

use anyhow::{Context as _, Result, ensure};
use holdfast::Memory;
use holdfast::coherence::Part;
use nix::errno::Errno;

/// Takes a part of the file behind `memory` from it.
pub fn remove(memory: &Memory, part: Part) -> Result<()> {
    ensure!(part.end <= memory.len() as u64, "{part} is not in it");
    let at = memory.as_ptr().as_ptr().wrapping_add(part.start as usize);
    // SAFETY: inside a shared mapping, to whose bytes `Memory` never gives a reference.
    let ret = unsafe { libc::madvise(at.cast(), part.len() as usize, libc::MADV_REMOVE) };
    Errno::result(ret).map(drop).context("MADV_REMOVE")
}
