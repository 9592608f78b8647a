//! Pages that took the place of others, and pages that only seem to have.
#![allow(unsafe_code)]

use std::io::{PipeReader, PipeWriter};
use std::os::fd::AsRawFd;

use holdfast_dax::{Populate, Source};
use nix::fcntl::{FallocateFlags, fallocate};

use super::*;

const PAGE: u64 = 4096;

fn part(pages: std::ops::Range<u64>) -> Part {
    Part { start: pages.start * PAGE, end: pages.end * PAGE }
}

/// Frames of a memfd; nothing without the right to see them.
fn known(memory: &Memory) -> Option<Frames> {
    let (frames, whole) = (Frames::default(), [part(0..memory.len() as u64 / PAGE)]);
    let before = Frames::before(memory, &whole);
    frames.pinned(memory, &whole, before);
    if !frames.is_known() {
        eprintln!("left out: frames are not told without CAP_SYS_ADMIN");
    }
    frames.is_known().then_some(frames)
}

/// A pipe that refers to the old page, which is therefore no other's, as if it were pinned.
type Held = (PipeReader, PipeWriter);

fn punch_and_fill(memory: &Memory, page: u64) -> Held {
    let held = std::io::pipe().unwrap();
    let start = memory.as_ptr().as_ptr().wrapping_add((page * PAGE) as usize);
    let iovec = libc::iovec { iov_base: start.cast(), iov_len: 1 };
    // SAFETY: one byte inside the mapping, which is only referred to by the pipe.
    let ret = unsafe { libc::vmsplice(held.1.as_raw_fd(), &raw const iovec, 1, 0) };
    assert_eq!(ret, 1);
    let (fd, _) = memory.backing().unwrap();
    let punch = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
    fallocate(fd, punch, (page * PAGE) as i64, PAGE as i64).unwrap();
    memory.write_at((page * PAGE) as usize, &[1]).unwrap();
    held
}

#[test]
fn a_page_that_took_anothers_place_is_found_and_no_other() {
    let memory = Memory::open(&Source::Memfd, 1024 * PAGE as usize, Populate::Yes).unwrap();
    let Some(frames) = known(&memory) else { return };
    let whole = [part(0..1024)];
    assert_eq!(frames.replaced(&memory, &whole), []);
    let _held = [511, 512, 700].map(|page| punch_and_fill(&memory, page));
    let found = [part(511..513), part(700..701)];
    assert_eq!(frames.replaced(&memory, &whole), found);
    assert_eq!(frames.replaced(&memory, &[part(0..512)]), [part(511..512)]);
    let before = Frames::before(&memory, &found);
    frames.pinned(&memory, &found, before);
    assert_eq!(frames.replaced(&memory, &whole), [], "known anew");
}

#[test]
fn a_page_that_only_left_the_page_table_is_the_same() {
    let memory = Memory::open(&Source::Memfd, 64 * PAGE as usize, Populate::Yes).unwrap();
    let Some(frames) = known(&memory) else { return };
    memory.forget(0, 32 * PAGE).unwrap();
    memory.fill(0, 64 * 4096, 7).unwrap();
    memory.forget(PAGE, 8 * PAGE).unwrap();
    assert_eq!(frames.replaced(&memory, &[part(0..64)]), []);
}

#[test]
fn a_page_that_is_replaced_while_it_is_pinned_may_be_either() {
    let memory = Memory::open(&Source::Memfd, 8 * PAGE as usize, Populate::Yes).unwrap();
    if known(&memory).is_none() {
        return;
    }
    let (frames, whole) = (Frames::default(), [part(0..8)]);
    let before = Frames::before(&memory, &whole);
    let _held = punch_and_fill(&memory, 3);
    frames.pinned(&memory, &whole, before);
    assert_eq!(frames.replaced(&memory, &whole), [part(3..4)]);
}
