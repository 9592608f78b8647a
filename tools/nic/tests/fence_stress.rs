//! The unmap fence under load: one thread copies through a space as fast as it can, another moves
//! the target between pages; once `unmap` has returned, the page it took away must not change.
#![allow(unsafe_code)]

use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use holdfast_nic::memory::fence::Fence;
use holdfast_nic::memory::{FileRange, MapError, Prot, Reader, Space};
use nix::sys::memfd::{MFdFlags, memfd_create};

const PAGE: usize = 4096;
const IOVA: u64 = 0x10_0000;

fn memfd(len: usize) -> OwnedFd {
    let fd = memfd_create(c"test", MFdFlags::empty()).unwrap();
    nix::unistd::ftruncate(&fd, len as i64).unwrap();
    fd
}

/// The owner's own view of the pages.
struct View(*mut u8);
// SAFETY: only used through atomics.
unsafe impl Send for View {}
// SAFETY: as above.
unsafe impl Sync for View {}

impl View {
    fn of(fd: &OwnedFd, len: usize) -> Self {
        use nix::sys::mman::{MapFlags, ProtFlags, mmap};
        let prot = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: a fresh mapping, never unmapped.
        let at = unsafe {
            mmap(None, len.try_into().unwrap(), prot, MapFlags::MAP_SHARED, fd.as_fd(), 0)
        };
        Self(at.unwrap().as_ptr().cast())
    }

    fn word(&self, page: usize, index: usize) -> &AtomicU64 {
        // SAFETY: inside the view, aligned.
        unsafe { AtomicU64::from_ptr(self.0.add(page * PAGE + index * 8).cast()) }
    }
}

fn copy_until(reader: &mut Reader, stop: &AtomicBool) -> u64 {
    let mut data = [0u8; PAGE];
    let mut copies = 0;
    reader.online();
    while !stop.load(Ordering::Relaxed) {
        if let Ok(span) = reader.translate(IOVA, PAGE, true) {
            copies += 1;
            data.fill(copies as u8);
            span.write(&data).unwrap();
        }
        reader.quiesce();
        if copies % 64 == 0 {
            reader.offline();
            reader.online();
        }
    }
    reader.offline();
    copies
}

#[test]
fn after_unmap_returned_the_page_never_changes() {
    let fd = memfd(2 * PAGE);
    let view = View::of(&fd, 2 * PAGE);
    let (space, mut reader) = Space::new();
    let stop = AtomicBool::new(false);
    let mut rounds = 0u64;
    let mut written = 0u64;
    let copies = thread::scope(|scope| {
        let copier = scope.spawn(|| copy_until(&mut reader, &stop));
        // Enough of both, however few processors the machine has to spare; the time only bounds it.
        let (least, most) = (Duration::from_millis(700), Duration::from_secs(60));
        let start = Instant::now();
        while start.elapsed() < least || (start.elapsed() < most && !(rounds > 100 && written > 10))
        {
            let page = (rounds % 2) as usize;
            let file = FileRange { fd: fd.as_fd(), offset: (page * PAGE) as u64 };
            space.map(IOVA, PAGE as u64, Prot::READ_WRITE, Some(file)).unwrap();
            // Let the copier get hold of it, mostly.
            view.word(page, 511).store(u64::MAX, Ordering::Release);
            for _ in 0..10_000 {
                if view.word(page, 511).load(Ordering::Acquire) != u64::MAX {
                    written += 1;
                    break;
                }
                std::hint::spin_loop();
            }
            assert_eq!(space.unmap(IOVA, PAGE as u64).unwrap(), PAGE as u64);
            // The page is its owner's again: whatever is stored now must stay.
            for index in 0..512 {
                view.word(page, index).store(!rounds, Ordering::Relaxed);
            }
            for _ in 0..20 {
                for index in 0..512 {
                    assert_eq!(view.word(page, index).load(Ordering::Relaxed), !rounds);
                }
            }
            rounds += 1;
        }
        stop.store(true, Ordering::Relaxed);
        copier.join().unwrap()
    });
    println!("{rounds} unmaps against {copies} copies; {written} were hit in flight");
    assert!(rounds > 100 && written > 10, "the test did not exercise the fence");
}

/// The twin that shows the test above can fail: the same race with the translation taken away but
/// nobody waited for. The reader is stopped between lookup and copy, so it fails every time.
#[test]
fn without_the_wait_the_page_does_change() {
    let fd = memfd(PAGE);
    let view = View::of(&fd, PAGE);
    let mapped = AtomicBool::new(true);
    let (looked_up, unmapped) = (AtomicBool::new(false), AtomicBool::new(false));
    let (_fence, mut quiescer) = Fence::new();
    thread::scope(|scope| {
        scope.spawn(|| {
            quiescer.online();
            assert!(mapped.load(Ordering::Acquire));
            looked_up.store(true, Ordering::Release);
            while !unmapped.load(Ordering::Acquire) {
                thread::yield_now();
            }
            view.word(0, 0).store(7, Ordering::Release);
            quiescer.quiesce();
        });
        while !looked_up.load(Ordering::Acquire) {
            thread::yield_now();
        }
        mapped.store(false, Ordering::Release);
        // Here `Fence::synchronize` is missing.
        view.word(0, 0).store(1, Ordering::Release);
        unmapped.store(true, Ordering::Release);
    });
    assert_eq!(view.word(0, 0).load(Ordering::Relaxed), 7, "an access after the unmap");
}

/// And with the wait, the same reader holds the unmap up until it is done.
#[test]
fn unmap_waits_for_a_reader_that_holds_a_translation() {
    let fd = memfd(PAGE);
    let (space, mut reader) = Space::new();
    let file = FileRange { fd: fd.as_fd(), offset: 0 };
    space.map(IOVA, PAGE as u64, Prot::READ_WRITE, Some(file)).unwrap();
    let (looked_up, returned) = (AtomicBool::new(false), AtomicBool::new(false));
    thread::scope(|scope| {
        let (looked_up, returned) = (&looked_up, &returned);
        scope.spawn(move || {
            reader.online();
            let span = reader.translate(IOVA, 8, true).unwrap();
            looked_up.store(true, Ordering::Release);
            let end = Instant::now() + Duration::from_millis(30);
            while Instant::now() < end {
                span.write(&[1; 8]).unwrap();
                assert!(!returned.load(Ordering::Acquire), "unmap returned under an access");
            }
            reader.quiesce();
            while !returned.load(Ordering::Acquire) {
                reader.quiesce();
            }
            assert!(reader.translate(IOVA, 8, true).is_err());
        });
        while !looked_up.load(Ordering::Acquire) {
            thread::yield_now();
        }
        space.unmap(IOVA, PAGE as u64).unwrap();
        returned.store(true, Ordering::Release);
    });
}

#[test]
fn mapping_rules_are_vfios() {
    let fd = memfd(16 * PAGE);
    let (space, mut reader) = Space::new();
    let map = |iova: u64, pages: u64| {
        let file = FileRange { fd: fd.as_fd(), offset: 0 };
        space.map(iova, pages * 4096, Prot::READ_WRITE, Some(file))
    };
    map(0x10000, 4).unwrap();
    map(0x14000, 4).unwrap();
    assert!(matches!(map(0x13000, 1), Err(MapError::Overlap { existing: 0x10000, .. })));
    assert!(matches!(map(0xf000, 2), Err(MapError::Overlap { .. })));
    assert!(matches!(map(0x20800, 1), Err(MapError::Unaligned { .. })));
    assert!(matches!(map(0x20000, 0), Err(MapError::Unaligned { .. })));
    assert!(matches!(map(!0xfff, 1), Err(MapError::OutOfRange { .. })));
    assert!(matches!(map(1 << 48, 1), Err(MapError::OutOfRange { .. })));
    assert!(matches!(space.unmap(0x10000, 0x2000), Err(MapError::Bisect { .. })));
    assert!(matches!(space.unmap(0x12000, 0x6000), Err(MapError::Bisect { .. })));
    assert_eq!(space.stats().files, 1, "one file is mapped once");
    reader.online();
    assert_eq!(reader.translate(0x13ffc, 64, true).unwrap().len(), 4, "no span crosses mappings");
    assert!(reader.translate(0x18000, 1, false).is_err());
    reader.offline();
    assert_eq!(space.unmap(0, 0x100_0000).unwrap(), 0x8000);
    assert_eq!(space.unmap(0, 0x100_0000).unwrap(), 0);
    assert_eq!(space.stats(), Default::default());
}

#[test]
fn a_read_only_mapping_is_not_writable() {
    let fd = memfd(PAGE);
    let (space, mut reader) = Space::new();
    let file = FileRange { fd: fd.as_fd(), offset: 0 };
    space.map(IOVA, PAGE as u64, Prot::READ, Some(file)).unwrap();
    reader.online();
    assert!(reader.translate(IOVA, 8, true).is_err());
    assert!(reader.translate(IOVA, 8, false).is_ok());
    assert!(reader.translate(IOVA, 8, true).is_err(), "a TLB hit checks access too");
}

#[test]
fn tens_of_thousands_of_single_pages_map_quickly() {
    const PAGES: u64 = 65_536;
    let fd = memfd(PAGES as usize * PAGE);
    let (space, mut reader) = Space::new();
    let start = Instant::now();
    for page in 0..PAGES {
        // Neighbours in IOVA are not neighbours in the file.
        let file = FileRange { fd: fd.as_fd(), offset: (PAGES - 1 - page) * 4096 };
        space.map(page * 4096, 4096, Prot::READ_WRITE, Some(file)).unwrap();
    }
    let mapping = start.elapsed();
    assert_eq!(space.stats().files, 1);
    reader.online();
    assert_eq!(reader.translate(0x5000, 8192, true).unwrap().len(), 4096);
    reader.offline();
    for page in 0..PAGES {
        assert_eq!(space.unmap(page * 4096, 4096).unwrap(), 4096);
    }
    println!("{PAGES} maps in {mapping:?}, with the unmaps {:?}", start.elapsed());
    assert!(start.elapsed() < Duration::from_secs(5));
}

#[test]
fn a_truncated_file_is_a_fault_and_a_new_map_works_again() {
    let fd = memfd(4 * PAGE);
    let (space, mut reader) = Space::new();
    let map = || {
        let file = FileRange { fd: fd.as_fd(), offset: 0 };
        space.map(IOVA, 4 * PAGE as u64, Prot::READ_WRITE, Some(file)).unwrap();
    };
    map();
    thread::scope(|scope| {
        let copier = scope.spawn(|| {
            reader.online();
            let data = [0x5a; 4 * PAGE];
            let mut copies = 0u64;
            // Copies until the file is cut under the copy.
            let fault = loop {
                match reader.translate(IOVA, 4 * PAGE, true) {
                    Ok(span) => match span.write(&data[..span.len()]) {
                        Ok(()) => copies += 1,
                        Err(fault) => break Some(fault),
                    },
                    Err(_) => break None,
                }
                reader.quiesce();
            };
            assert!(fault.is_some(), "the truncation was noticed as a miss before any fault");
            let last = IOVA + 3 * PAGE as u64;
            assert!(reader.translate(last, 8, true).is_err(), "the poisoned page is not used");
            // The copy may have been past the third page when the file was cut.
            let clean = reader.translate(IOVA, 4 * PAGE, true).unwrap().len();
            assert!(clean == 2 * PAGE || clean == 3 * PAGE, "{clean} bytes are still used");
            reader.offline();
            copies
        });
        thread::sleep(Duration::from_millis(20));
        nix::unistd::ftruncate(&fd, 2 * PAGE as i64).unwrap();
        assert!(copier.join().unwrap() > 0);
    });
    nix::unistd::ftruncate(&fd, 4 * PAGE as i64).unwrap();
    space.unmap(IOVA, 4 * PAGE as u64).unwrap();
    map();
    reader.online();
    let span = reader.translate(IOVA + 3 * PAGE as u64, 8, true).unwrap();
    span.write(&[7; 8]).unwrap();
    let mut back = [0u8; 8];
    assert_eq!(nix::sys::uio::pread(&fd, &mut back, 3 * PAGE as i64).unwrap(), 8);
    assert_eq!(back, [7; 8], "the new mapping reaches the client's file");
}
