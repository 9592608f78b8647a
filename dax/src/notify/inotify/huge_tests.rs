//! Holes of files in huge pages: of a memfd, of which the kernel says nothing since 6.14, and of a
//! file with a mount, of which it does. Left out where there are no free huge pages.

use std::fs::File;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::fcntl::{FallocateFlags, OFlag, fallocate, openat};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::stat::{Mode, fstat};

use super::{Inotify, State};
use crate::notify::{Cause, Notifier, Subject, WatchedFile, sys};

const PAGES: u64 = 4;

/// A file of huge pages, full, and watched.
struct Huge {
    file: File,
    _mount: Option<OwnedFd>,
    page: u64,
    inotify: Inotify,
    subject: Subject,
}

impl Huge {
    /// A memfd, and a file on a mount where that may be made; neither without free pages.
    fn all() -> Vec<Self> {
        let memfd = memfd_create(c"t", MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_HUGETLB);
        let mount = sys::detached_mount(c"hugetlbfs").ok();
        let named = mount.map(|mount| {
            let flags = OFlag::O_CREAT | OFlag::O_RDWR | OFlag::O_CLOEXEC;
            (openat(&mount, "f", flags, Mode::S_IRUSR).unwrap(), mount)
        });
        let memfd = memfd.into_iter().map(|fd| (fd, None));
        let named = named.into_iter().map(|(fd, mount)| (fd, Some(mount)));
        memfd.chain(named).filter_map(|(fd, mount)| Self::of(fd.into(), mount)).collect()
    }

    fn of(file: File, mount: Option<OwnedFd>) -> Option<Self> {
        let page = fstat(&file).unwrap().st_blksize as u64;
        if fallocate(&file, FallocateFlags::empty(), 0, (PAGES * page) as i64).is_err() {
            eprintln!("left out: no free huge pages");
            return None;
        }
        let mut inotify = Inotify::new().unwrap();
        let watched = WatchedFile::of(&file).unwrap();
        let subject = watched.id.into();
        inotify.watch(&watched.into()).unwrap();
        Some(Self { file, _mount: mount, page, inotify, subject })
    }

    fn punch(&self, page: u64) {
        let punch = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
        fallocate(&self.file, punch, (page * self.page) as i64, self.page as i64).unwrap();
    }

    /// Gives a page to a hole; as a touch does, and told of by no less.
    fn fill(&self, page: u64) {
        let mapping = crate::map::Mapping::new(
            Some((self.fd(), page * self.page)),
            (self.page as usize).try_into().unwrap(),
        );
        mapping.unwrap().populate().unwrap();
    }

    /// As the guard says it.
    fn said_filled(&mut self) {
        self.inotify.filled(self.subject, 0..PAGES * self.page);
    }

    fn fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    fn blocks(&self) -> i64 {
        fstat(&self.file).unwrap().st_blocks
    }

    fn range(&self, pages: Range<u64>) -> Option<Range<u64>> {
        Some(pages.start * self.page..pages.end * self.page)
    }

    /// What is told until something was, or for a while.
    fn told(&mut self, patience: Duration) -> Vec<(Cause, Option<Range<u64>>)> {
        let mut notices = Vec::new();
        let end = Instant::now() + patience;
        while notices.is_empty() && Instant::now() < end {
            let mut fds = [PollFd::new(self.inotify.fd(), PollFlags::POLLIN)];
            poll(&mut fds, PollTimeout::from(20u16)).unwrap();
            self.inotify.collect(&mut |n| notices.push((n.cause, n.range))).unwrap();
        }
        notices
    }

    #[track_caller]
    fn hole_told(&mut self, pages: Range<u64>) {
        let hole = (Cause::PunchHole, self.range(pages));
        assert_eq!(self.told(Duration::from_secs(5)), [hole]);
    }

    #[track_caller]
    fn nothing_told(&mut self) {
        assert_eq!(self.told(Duration::from_millis(60)), []);
    }
}

#[test]
fn a_hole_is_told_once_and_stays_a_hole() {
    for mut huge in Huge::all() {
        huge.nothing_told();
        let before = huge.blocks();
        huge.punch(1);
        huge.hole_told(1..2);
        huge.nothing_told();
        let page = (huge.page / 512) as i64;
        assert_eq!(huge.blocks(), before - page, "looking filled the hole");
        huge.punch(2);
        huge.hole_told(2..3);
    }
}

#[test]
fn a_hole_that_is_filled_before_the_look_is_told() {
    for mut huge in Huge::all() {
        huge.punch(2);
        huge.fill(2);
        huge.hole_told(2..3);
        huge.nothing_told();
    }
}

#[test]
fn the_same_hole_made_again_is_told_again() {
    for mut huge in Huge::all() {
        for _ in 0..3 {
            huge.punch(0);
            huge.hole_told(0..1);
            // As the guard does it: filled, said so, and used at once.
            huge.fill(0);
            huge.said_filled();
        }
        huge.nothing_told();
        huge.punch(0);
        huge.hole_told(0..1);
        // Somebody else fills it, and nobody says so; a look finds it.
        huge.fill(0);
        huge.nothing_told();
        huge.punch(0);
        huge.hole_told(0..1);
    }
}

#[test]
fn a_hole_filled_unseen_and_made_again_is_told_where_the_kernel_tells_of_it() {
    for mut huge in Huge::all().into_iter().filter(|huge| huge._mount.is_some()) {
        huge.punch(3);
        huge.hole_told(3..4);
        huge.fill(3);
        huge.punch(3);
        huge.hole_told(3..4);
    }
}

#[test]
fn what_is_cut_off_is_no_hole_and_what_grows_can_have_some() {
    for mut huge in Huge::all() {
        let page = huge.page;
        huge.file.set_len(2 * page).unwrap();
        let cut = (Cause::Truncate { size: 2 * page }, huge.range(2..4));
        assert_eq!(huge.told(Duration::from_secs(5)), [cut]);
        huge.file.set_len(6 * page).unwrap();
        let grown = (Cause::Grow { size: 6 * page }, huge.range(2..6));
        assert_eq!(huge.told(Duration::from_secs(5)), [grown]);
        huge.nothing_told();
        for hole in [3, 5] {
            huge.fill(hole);
            huge.said_filled();
            huge.punch(hole);
            huge.hole_told(hole..hole + 1);
        }
        huge.punch(1);
        huge.hole_told(1..2);
    }
}

#[test]
fn without_the_mapping_all_of_the_file_is_told() {
    for huge in Huge::all() {
        let mut state = State::of(&WatchedFile::of(&huge.file).unwrap()).unwrap();
        state.untouched = None;
        huge.punch(1);
        let mut told = Vec::new();
        state.compare(true, true, &mut |cause, range| told.push((cause, range))).unwrap();
        assert_eq!(told, [(Cause::PunchHole, huge.range(0..PAGES))]);
        told.clear();
        state.compare(true, true, &mut |cause, range| told.push((cause, range))).unwrap();
        assert_eq!(told, []);
    }
}
