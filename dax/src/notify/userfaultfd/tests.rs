//! Against the running kernel.
#![allow(unsafe_code)]

use std::num::NonZeroUsize;
use std::process::Command;
use std::ptr::NonNull;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::mman::{self, MRemapFlags, MapFlags, MmapAdvise, ProtFlags};
use nix::unistd::ftruncate;

use super::*;
use crate::notify::{Cause, MappingId, Stage};

const PAGE: usize = 4096;
const LEN: usize = 16 * PAGE;

type Told = (Cause, Stage, Option<std::ops::Range<u64>>);

/// A fork is told of every watched mapping of the process, those of other tests among them.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

struct Rig {
    uffd: Userfaultfd,
    base: NonNull<libc::c_void>,
    _alone: MutexGuard<'static, ()>,
}

impl Rig {
    fn new(shared: bool) -> Self {
        let alone = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
        let len = NonZeroUsize::new(LEN).unwrap();
        let prot = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: fresh mappings at addresses of the kernel's choice.
        let base = unsafe {
            if shared {
                let memfd = memfd_create(c"t", MFdFlags::MFD_CLOEXEC).unwrap();
                ftruncate(&memfd, LEN as i64).unwrap();
                mman::mmap(None, len, prot, MapFlags::MAP_SHARED, memfd, 0).unwrap()
            } else {
                mman::mmap_anonymous(None, len, prot, MapFlags::MAP_PRIVATE).unwrap()
            }
        };
        // SAFETY: the mapping is ours and has this length.
        unsafe { base.cast::<u8>().write_bytes(7, LEN) };
        let mut uffd = Userfaultfd::new().unwrap();
        let address = base.as_ptr() as usize;
        uffd.watch(&WatchedMapping { id: MappingId(1), address, len: LEN }.into()).unwrap();
        Self { uffd, base, _alone: alone }
    }

    fn at(&self, page: usize) -> NonNull<libc::c_void> {
        // SAFETY: inside the mapping, by the tests' constants.
        unsafe { self.base.byte_add(page * PAGE) }
    }

    fn told(&mut self) -> Vec<Told> {
        let end = Instant::now() + Duration::from_secs(10);
        let mut notices = Vec::new();
        while notices.is_empty() && Instant::now() < end {
            let mut fds = [PollFd::new(self.uffd.fd(), PollFlags::POLLIN)];
            poll(&mut fds, PollTimeout::from(50u8)).unwrap();
            self.uffd.collect(&mut |n| notices.push((n.cause, n.stage, n.range))).unwrap();
        }
        notices
    }
}

fn pages(range: std::ops::Range<usize>) -> Option<std::ops::Range<u64>> {
    Some((range.start * PAGE) as u64..(range.end * PAGE) as u64)
}

#[test]
fn what_is_done_to_anonymous_memory_is_told_with_its_range() {
    let mut rig = Rig::new(false);
    // SAFETY: pages of a mapping that nothing else refers to.
    unsafe {
        mman::madvise(rig.at(2), 3 * PAGE, MmapAdvise::MADV_DONTNEED).unwrap();
        assert_eq!(rig.told(), [(Cause::DontNeed, Stage::Announced, pages(2..5))]);
        mman::munmap(rig.at(15), PAGE).unwrap();
        assert_eq!(rig.told(), [(Cause::Munmap, Stage::Done, pages(15..16))]);
        let len = NonZeroUsize::new(PAGE).unwrap();
        let flags = MapFlags::MAP_PRIVATE | MapFlags::MAP_FIXED;
        let at = NonZeroUsize::new(rig.at(0).as_ptr() as usize);
        mman::mmap_anonymous(at, len, ProtFlags::PROT_READ, flags).unwrap();
        assert_eq!(rig.told(), [(Cause::MapOver, Stage::Done, pages(0..1))]);
    }
}

#[test]
fn a_mapping_that_moved_is_still_watched_where_it_is_now() {
    let mut rig = Rig::new(false);
    // SAFETY: a mapping that nothing else refers to.
    unsafe {
        let flags = MRemapFlags::MREMAP_MAYMOVE;
        let moved = mman::mremap(rig.base, LEN, 4096 * LEN, flags, None).unwrap();
        let told = rig.told();
        if moved == rig.base {
            panic!("it did not move: {told:?}");
        }
        assert!(told.contains(&(Cause::Mremap, Stage::Done, pages(0..16))), "{told:?}");
        rig.base = moved;
        mman::madvise(rig.at(1), PAGE, MmapAdvise::MADV_DONTNEED).unwrap();
        assert_eq!(rig.told(), [(Cause::DontNeed, Stage::Announced, pages(1..2))]);
    }
}

#[test]
fn holes_in_shared_memory_are_told_before_they_come() {
    let mut rig = Rig::new(true);
    // SAFETY: pages of a mapping that nothing else refers to.
    unsafe { mman::madvise(rig.at(4), PAGE, MmapAdvise::MADV_REMOVE).unwrap() };
    assert_eq!(rig.told(), [(Cause::Remove, Stage::Announced, pages(4..5))]);
}

/// `fork` holds the allocator's locks while it waits for the message to be read.
#[test]
fn a_fork_is_told_and_does_not_stand_still() {
    let mut rig = Rig::new(false);
    // SAFETY: the child ends at once, without touching anything.
    let child = match unsafe { libc::fork() } {
        // SAFETY: as above.
        0 => unsafe { libc::_exit(0) },
        child => child,
    };
    assert_eq!(rig.told(), [(Cause::Fork, Stage::Done, None)]);
    // SAFETY: our own child; its status is not asked for.
    unsafe { libc::waitpid(child, std::ptr::null_mut(), 0) };
    // A child of posix_spawn shares the memory: nothing is copied, and nothing is told.
    assert!(Command::new("true").status().unwrap().success());
}

#[test]
fn what_is_not_watched_any_more_is_not_told() {
    let mut rig = Rig::new(false);
    rig.uffd.unwatch(MappingId(1).into());
    // SAFETY: a mapping that nothing else refers to.
    unsafe { mman::munmap(rig.base, LEN).unwrap() };
    let mut notices = Vec::new();
    rig.uffd.collect(&mut |notice| notices.push(notice)).unwrap();
    assert_eq!(notices, []);
}

#[test]
fn a_mapped_file_is_refused_with_the_reason() {
    let file = tempfile::NamedTempFile::new_in(env!("CARGO_MANIFEST_DIR")).unwrap();
    file.as_file().set_len(LEN as u64).unwrap();
    let len = NonZeroUsize::new(LEN).unwrap();
    let prot = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
    // SAFETY: a fresh mapping at an address of the kernel's choice.
    let base =
        unsafe { mman::mmap(None, len, prot, MapFlags::MAP_SHARED, file.as_file(), 0).unwrap() };
    let mut uffd = Userfaultfd::new().unwrap();
    let address = base.as_ptr() as usize;
    let watched = WatchedMapping { id: MappingId(3), address, len: LEN };
    let refusal = uffd.watch(&watched.into()).unwrap_err();
    assert!(refusal.to_string().contains("other notifiers"), "{refusal}");
}
