//! The loop in a thread of the test, with containers that record what is done to them.

use std::io::{IoSlice, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use holdfast_vfio::user::scm;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
use nix::unistd::{ftruncate, pipe};

use super::protocol::{MESSAGE, Reply, Request, VERSION};
use super::{Fence, PERIOD, Sockets, serve};

const LONG: Duration = Duration::from_secs(60);
const SHORT: Duration = Duration::from_millis(300);

/// A pin as a driver has it: a page in a pipe, and a file.
struct Pin {
    read: OwnedFd,
    write: OwnedFd,
    file: OwnedFd,
}

impl Pin {
    fn new() -> Arc<Self> {
        let (read, write) = pipe().unwrap();
        std::fs::File::from(write.try_clone().unwrap()).write_all(&[7; 4096]).unwrap();
        let file = memfd_create(c"pin", MFdFlags::MFD_CLOEXEC).unwrap();
        ftruncate(&file, 8192).unwrap();
        Arc::new(Self { read, write, file })
    }

    fn is_full(&self) -> bool {
        readable(self.read.as_fd(), Duration::ZERO)
    }

    fn fds(&self) -> [BorrowedFd<'_>; 3] {
        [self.read.as_fd(), self.write.as_fd(), self.file.as_fd()]
    }

    /// What a layout operation does first: it drops everybody's page table entries.
    fn disturb(&self) {
        ftruncate(&self.file, 0).unwrap();
    }
}

fn readable(fd: BorrowedFd<'_>, time: Duration) -> bool {
    let mut fds = [PollFd::new(fd, PollFlags::POLLIN)];
    poll(&mut fds, PollTimeout::try_from(time).unwrap()).unwrap() == 1
}

/// Containers that note, each time they are emptied, which pins are in force.
#[derive(Clone, Default)]
struct Recorder {
    pins: Vec<Arc<Pin>>,
    /// Of each call: how many of the pins were full.
    calls: Arc<Mutex<Vec<usize>>>,
    /// So many calls fail.
    failures: usize,
}

impl Recorder {
    fn calls(&self) -> Vec<usize> {
        self.calls.lock().unwrap().clone()
    }
}

impl Fence for Recorder {
    fn check(&mut self, _: BorrowedFd<'_>) -> Result<(), Errno> {
        Ok(())
    }

    fn fence(&mut self, _: BorrowedFd<'_>) -> Result<(), Errno> {
        let full = self.pins.iter().filter(|pin| pin.is_full()).count();
        let mut calls = self.calls.lock().unwrap();
        calls.push(full);
        if calls.len() <= self.failures { Err(Errno::EIO) } else { Ok(()) }
    }
}

/// The driver's ends.
struct Driver {
    calls: OwnedFd,
    events: OwnedFd,
    thread: JoinHandle<Result<(), Errno>>,
    sequence: u32,
}

impl Driver {
    fn start(recorder: &Recorder) -> Self {
        let pair = || {
            let kind = (AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC);
            socketpair(kind.0, kind.1, None, kind.2).unwrap()
        };
        let ((calls, calls_there), (events, events_there)) = (pair(), pair());
        let fence = recorder.clone();
        let thread = thread::spawn(move || {
            serve(Sockets { calls: calls_there, events: events_there }, fence)
        });
        let driver = Self { calls, events, thread, sequence: 0 };
        assert_eq!(driver.hear(driver.calls.as_fd()), Some(Reply::Ready { version: VERSION }));
        driver
    }

    fn hear(&self, socket: BorrowedFd<'_>) -> Option<Reply> {
        if !readable(socket, Duration::from_secs(5)) {
            return None;
        }
        let mut bytes = [0; MESSAGE];
        scm::recv(socket, &mut bytes, &mut Vec::new(), 0).unwrap();
        Reply::decode(&bytes)
    }

    fn ask(&mut self, request: Request, fds: &[BorrowedFd<'_>]) -> Result<(), Errno> {
        self.sequence += 1;
        let message = request.encode(self.sequence);
        scm::send(self.calls.as_fd(), &[IoSlice::new(&message)], fds).unwrap();
        match self.hear(self.calls.as_fd()) {
            Some(Reply::Answer { sequence, result }) if sequence == self.sequence => result,
            other => panic!("{other:?}"),
        }
    }

    fn hold(&mut self, id: u64, pin: &Pin, deadline: Duration) -> Result<(), Errno> {
        self.ask(Request::HoldPin { id, offset: 0, deadline }, &pin.fds())
    }

    /// With a container, and each of the recorder's pins under its index.
    fn with(recorder: &Recorder, deadline: Duration) -> Self {
        let mut driver = Self::start(recorder);
        let container = memfd_create(c"container", MFdFlags::MFD_CLOEXEC).unwrap();
        driver.ask(Request::HoldContainer(99), &[container.as_fd()]).unwrap();
        for (id, pin) in (0..).zip(&recorder.pins) {
            driver.hold(id, pin, deadline).unwrap();
        }
        driver
    }

    /// Closes its ends, as death does, and waits for the keeper's end.
    fn die(self) {
        drop((self.calls, self.events));
        self.thread.join().unwrap().unwrap();
    }
}

fn recorder(pins: usize) -> Recorder {
    Recorder { pins: (0..pins).map(|_| Pin::new()).collect(), ..Default::default() }
}

fn wait_for(what: &str, condition: impl Fn() -> bool) -> Duration {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < Duration::from_secs(10), "{what}: not within 10 s");
        thread::sleep(Duration::from_millis(2));
    }
    start.elapsed()
}

#[test]
fn when_the_driver_dies_containers_are_emptied_before_any_pin_goes() {
    let recorder = recorder(3);
    let driver = Driver::with(&recorder, LONG);
    assert!(recorder.calls().is_empty());
    let start = Instant::now();
    driver.die();
    assert!(start.elapsed() < LONG / 2, "{:?}", start.elapsed());
    assert_eq!(recorder.calls(), [3], "at the fence, all pins were in force");
    assert!(recorder.pins.iter().all(|pin| !pin.is_full()));
}

#[test]
fn a_driver_whose_socket_is_closed_is_seen_to_end_first() {
    let recorder = recorder(1);
    let mut driver = Driver::with(&recorder, LONG);
    let mut process = std::process::Command::new("sleep").arg("60").spawn().unwrap();
    let pidfd = super::sys::pidfd(process.id()).unwrap();
    driver.ask(Request::Driver, &[pidfd.as_fd()]).unwrap();
    drop((driver.calls, driver.events));
    thread::sleep(4 * PERIOD);
    assert_eq!((recorder.calls(), recorder.pins[0].is_full()), (vec![], true));
    process.kill().unwrap();
    driver.thread.join().unwrap().unwrap();
    assert_eq!(recorder.calls(), [1]);
    process.wait().unwrap();
}

/// Whether this process has a mapping of the file.
fn is_mapped(pin: &Pin) -> bool {
    let inode = nix::sys::stat::fstat(&pin.file).unwrap().st_ino.to_string();
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    maps.lines().any(|line| line.split_whitespace().nth(4) == Some(&inode))
}

#[test]
fn a_pin_on_its_way_when_the_driver_dies_counts_until_it_is_gone() {
    let recorder = Recorder { failures: 3, ..recorder(1) };
    let mut driver = Driver::with(&recorder, LONG);
    let pin = Pin::new();
    driver.ask(Request::HoldFile(7), &[pin.file.as_fd()]).unwrap();
    // Of the driver's death the keeper hears first.
    let mut process = std::process::Command::new("sleep").arg("60").spawn().unwrap();
    let pidfd = super::sys::pidfd(process.id()).unwrap();
    driver.ask(Request::Driver, &[pidfd.as_fd()]).unwrap();
    assert!(is_mapped(&pin));
    process.kill().unwrap();
    process.wait().unwrap();
    let message = Request::HoldPin { id: 8, offset: 0, deadline: LONG }.encode(100);
    // It may have ended by now.
    let _ = scm::send(driver.calls.as_fd(), &[IoSlice::new(&message)], &pin.fds());
    wait_for("the fence", || !recorder.calls().is_empty());
    assert!(is_mapped(&pin), "while the keeper has the pin's pipe, the file is mapped");
    driver.thread.join().unwrap().unwrap();
    assert!(!is_mapped(&pin));
}

#[test]
fn files_are_mapped_until_they_are_let_go() {
    let mut driver = Driver::start(&recorder(0));
    let pin = Pin::new();
    driver.ask(Request::HoldFile(7), &[pin.file.as_fd()]).unwrap();
    driver.ask(Request::LetGoFile(8), &[]).unwrap();
    assert!(is_mapped(&pin));
    driver.ask(Request::LetGoFile(7), &[]).unwrap();
    assert!(!is_mapped(&pin));
    assert_eq!(driver.ask(Request::HoldFile(9), &[]), Err(Errno::EBADMSG));
    driver.die();
}

#[test]
fn while_a_fence_fails_pins_stay() {
    let recorder = Recorder { failures: 3, ..recorder(2) };
    let driver = Driver::with(&recorder, LONG);
    driver.die();
    assert_eq!(recorder.calls(), [2, 2, 2, 2]);
    assert!(recorder.pins.iter().all(|pin| !pin.is_full()));
}

#[test]
fn a_late_driver_loses_its_mappings_and_then_the_pin_that_was_waited_for() {
    let recorder = Recorder { failures: 1, ..recorder(2) };
    let mut driver = Driver::with(&recorder, SHORT);
    let start = Instant::now();
    recorder.pins[1].disturb();
    let told = driver.hear(driver.events.as_fd());
    let Some(Reply::Revoked { id: 1, waited }) = told else { panic!("{told:?}") };
    assert!(waited >= SHORT && start.elapsed() >= SHORT, "{waited:?}");
    assert!(start.elapsed() < 20 * SHORT, "{:?}", start.elapsed());
    wait_for("the drain", || !recorder.pins[1].is_full());
    assert_eq!(recorder.calls(), [2, 2], "a fence that failed is tried again before the drain");
    assert!(recorder.pins[0].is_full(), "nobody waits for the other file");
    assert_eq!(driver.ask(Request::BeginMap(1), &[]), Err(Errno::ESTALE));
    assert_eq!(driver.ask(Request::BeginMap(0), &[]), Ok(()));
    assert_eq!(driver.ask(Request::LetGoPin(1), &[]), Ok(()));
    assert_eq!(driver.ask(Request::BeginMap(1), &[]), Err(Errno::ENOENT));
    assert!(!readable(driver.events.as_fd(), Duration::ZERO), "it is told once");
    driver.die();
}

#[test]
fn a_driver_that_answers_in_time_is_left_alone() {
    let recorder = recorder(2);
    let mut driver = Driver::with(&recorder, SHORT);
    recorder.pins[0].disturb();
    thread::sleep(SHORT / 2);
    driver.ask(Request::LetGoPin(0), &[]).unwrap();
    thread::sleep(SHORT);
    assert!(recorder.calls().is_empty());
    assert!(!readable(driver.events.as_fd(), Duration::ZERO));
    assert!(recorder.pins[1].is_full());
    driver.ask(Request::LetGoPin(1), &[]).unwrap();
    driver.ask(Request::LetGoContainer(99), &[]).unwrap();
    driver.die();
    assert!(recorder.calls().is_empty(), "what was let go is not fenced");
}

#[test]
fn in_the_middle_of_a_turn_to_map_no_pin_is_let_go() {
    let recorder = recorder(1);
    let mut driver = Driver::with(&recorder, SHORT);
    driver.ask(Request::BeginMap(0), &[]).unwrap();
    recorder.pins[0].disturb();
    thread::sleep(SHORT + 4 * PERIOD);
    assert!(recorder.calls().is_empty());
    assert!(recorder.pins[0].is_full());
    driver.ask(Request::EndMap(0), &[]).unwrap();
    wait_for("the drain", || !recorder.pins[0].is_full());
    assert_eq!(recorder.calls(), [1]);
    driver.die();
}

#[test]
fn messages_that_make_no_sense_are_refused_or_left_aside() {
    let recorder = recorder(1);
    let mut driver = Driver::with(&recorder, LONG);
    let pin = Pin::new();
    let hold = Request::HoldPin { id: 5, offset: 0, deadline: LONG };
    assert_eq!(driver.ask(hold, &[]), Err(Errno::EBADMSG));
    assert_eq!(driver.ask(hold, &pin.fds()[..2]), Err(Errno::EBADMSG));
    assert_eq!(driver.ask(Request::HoldContainer(1), &[]), Err(Errno::EBADMSG));
    assert_eq!(driver.ask(Request::Driver, &[]), Err(Errno::EBADMSG));
    assert_eq!(driver.ask(Request::LetGoPin(5), &[]), Err(Errno::ENOENT));
    let four = [pin.read.as_fd(); 4];
    assert_eq!(driver.ask(hold, &four), Err(Errno::EMFILE));
    let past_the_end = Request::HoldPin { id: 5, offset: 1 << 20, deadline: LONG };
    assert!(driver.ask(past_the_end, &pin.fds()).is_err());
    for bytes in [&[0u8; 5][..], &[0xff; 32], &[1; 100]] {
        scm::send(driver.calls.as_fd(), &[IoSlice::new(bytes)], &[pin.file.as_fd()]).unwrap();
    }
    // Whatever came before, it goes on serving, and holds what it held.
    driver.hold(6, &pin, LONG).unwrap();
    driver.die();
    assert_eq!(recorder.calls(), [1]);
    assert!(!pin.is_full() && !recorder.pins[0].is_full());
}
