//! What a client may hand over as memory, how much of it, and what a vanished page leaves behind.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use holdfast_nic::memory::{FileRange, MAX_FILE_BYTES, MAX_FILES, MapError, Prot, Reader, Space};
use nix::errno::Errno;
use nix::sys::memfd::{MFdFlags, memfd_create};

const PAGE: u64 = 4096;
const IOVA: u64 = 0x10_0000;

fn memfd(len: u64) -> OwnedFd {
    let fd = memfd_create(c"test", MFdFlags::empty()).unwrap();
    nix::unistd::ftruncate(&fd, len as i64).unwrap();
    fd
}

fn map(space: &Space, iova: u64, fd: BorrowedFd<'_>) -> Result<(), MapError> {
    space.map(iova, PAGE, Prot::READ_WRITE, Some(FileRange { fd, offset: 0 }))
}

fn can_translate(reader: &mut Reader, iova: u64) -> bool {
    reader.translate(iova, 8, true).is_ok()
}

#[test]
fn only_files_and_devdax_are_memory() {
    let (space, _reader) = Space::new();
    let folder = tempfile::tempdir().unwrap();
    let file = std::fs::File::options()
        .read(true)
        .write(true)
        .create_new(true)
        .open(folder.path().join("memory"))
        .unwrap();
    file.set_len(PAGE).unwrap();
    map(&space, IOVA, file.as_fd()).unwrap();
    let event = nix::sys::eventfd::EventFd::new().unwrap();
    let (pipe, _writer) = std::io::pipe().unwrap();
    let zero = std::fs::File::options().read(true).write(true).open("/dev/zero").unwrap();
    for (what, fd) in
        [("an eventfd", event.as_fd()), ("a pipe", pipe.as_fd()), ("/dev/zero", zero.as_fd())]
    {
        let refused = map(&space, 2 * IOVA, fd).unwrap_err();
        assert!(matches!(refused, MapError::Kind), "{what}: {refused}");
        assert_eq!(refused.errno(), Errno::EOPNOTSUPP);
    }
}

#[test]
fn one_client_cannot_take_all_addresses_or_all_entries() {
    let (greedy, _reader) = Space::new();
    let sparse = memfd(MAX_FILE_BYTES + PAGE);
    let refused = map(&greedy, IOVA, sparse.as_fd()).unwrap_err();
    assert!(matches!(refused, MapError::Limit { .. }), "{refused}");
    for n in 0..MAX_FILES as u64 {
        map(&greedy, IOVA + n * PAGE, memfd(PAGE).as_fd()).unwrap();
    }
    let one_more = memfd(PAGE);
    let refused = map(&greedy, 0, one_more.as_fd()).unwrap_err();
    assert!(matches!(refused, MapError::Limit { limit: MAX_FILES, .. }), "{refused}");
    let (modest, _reader) = Space::new();
    map(&modest, 0, one_more.as_fd()).unwrap();
    greedy.unmap(IOVA, PAGE).unwrap();
    map(&greedy, 0, one_more.as_fd()).unwrap();
}

/// The processor reports how much is mapped while it holds translations: if that waited for an
/// unmap, which waits for the processor, neither would ever go on.
#[test]
fn telling_how_much_is_mapped_waits_for_no_unmap() {
    let fd = memfd(PAGE);
    let (space, mut reader) = Space::new();
    map(&space, IOVA, fd.as_fd()).unwrap();
    assert_eq!(space.mapped(), (1, PAGE));
    reader.online();
    assert!(can_translate(&mut reader, IOVA));
    let unmapping = thread::spawn({
        let space = space.clone();
        move || space.unmap(IOVA, PAGE).unwrap()
    });
    let (tell, told) = mpsc::channel();
    thread::spawn({
        let space = space.clone();
        move || {
            while space.mapped() != (0, 0) {
                thread::yield_now();
            }
            tell.send(())
        }
    });
    told.recv_timeout(Duration::from_secs(5)).expect("it waits for the unmap");
    assert!(!unmapping.is_finished(), "the unmap waits for the reader");
    reader.quiesce();
    assert_eq!(unmapping.join().unwrap(), PAGE);
}

/// What stands in for a vanished page is not the client's memory, even if the reader slept since.
#[test]
fn a_fault_just_before_a_nap_is_not_forgotten() {
    let fd = memfd(2 * PAGE);
    let (space, mut reader) = Space::new();
    let range = FileRange { fd: fd.as_fd(), offset: 0 };
    space.map(IOVA, 2 * PAGE, Prot::READ_WRITE, Some(range)).unwrap();
    let (other, mut other_reader) = Space::new();
    map(&other, IOVA, memfd(PAGE).as_fd()).unwrap();
    reader.online();
    let span = reader.translate(IOVA + PAGE, 8, true).unwrap();
    nix::unistd::ftruncate(&fd, PAGE as i64).unwrap();
    assert!(span.write(&[1; 8]).is_err());
    reader.offline();
    reader.online();
    assert!(!can_translate(&mut reader, IOVA + PAGE), "the stand-in passed for the client's page");
    assert!(can_translate(&mut reader, IOVA), "the rest of the file is still there");
    reader.offline();
    other_reader.online();
    assert!(can_translate(&mut other_reader, IOVA), "another client's memory");
    other_reader.offline();
    // Mapped anew, the space is clean again.
    nix::unistd::ftruncate(&fd, 2 * PAGE as i64).unwrap();
    space.unmap(IOVA, 2 * PAGE).unwrap();
    let range = FileRange { fd: fd.as_fd(), offset: 0 };
    space.map(IOVA, 2 * PAGE, Prot::READ_WRITE, Some(range)).unwrap();
    reader.online();
    assert!(can_translate(&mut reader, IOVA + PAGE));
}
