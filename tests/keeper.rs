//! The keeper as a process: what happens to pins when a driver is killed, stopped or late, when
//! the keeper is killed, and when both end in order.
//!
//! The driver that is killed is this very test program, started again for the one test
//! [`driver_process`]. Pins are pipes with a page in them (named ones, so that the test can look
//! into them) and files that are cut short as a layout operation would.

use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::time::{Duration, Instant};

use holdfast::coherence::keeper::{Keeper, KeeperError, KeeperEvent, KeeperOptions, PinParts};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// Tells [`driver_process`] that it is a driver, and where its pin is.
const FOLDER: &str = "HOLDFAST_TEST_KEEPER";
const DEADLINE: Duration = Duration::from_millis(600);
const PATIENCE: Duration = Duration::from_secs(20);

fn options(deadline: Duration) -> KeeperOptions {
    KeeperOptions { program: Some(env!("CARGO_BIN_EXE_holdfast").into()), deadline }
}

/// A pipe with a page in it, and a file.
struct Pin {
    pipe: File,
    file: File,
}

impl Pin {
    fn open(folder: &Path) -> Self {
        let pipe = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NONBLOCK)
            .open(folder.join("pipe"))
            .unwrap();
        let file = OpenOptions::new().read(true).write(true).open(folder.join("file")).unwrap();
        Self { pipe, file }
    }

    fn make(folder: &Path) -> Self {
        nix::unistd::mkfifo(&folder.join("pipe"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        std::fs::write(folder.join("file"), vec![1; 8192]).unwrap();
        let pin = Self::open(folder);
        (&pin.pipe).write_all(&[7; 4096]).unwrap();
        pin
    }

    fn parts(&self) -> PinParts<'_> {
        let pipe = self.pipe.as_fd();
        PinParts { read: pipe, write: pipe, file: self.file.as_fd(), offset: 0 }
    }

    fn is_full(&self) -> bool {
        readable(self.pipe.as_fd(), Duration::ZERO)
    }

    /// What a layout operation does first.
    fn disturb(&self) {
        self.file.set_len(0).unwrap();
    }
}

fn readable(fd: std::os::fd::BorrowedFd<'_>, time: Duration) -> bool {
    let time = PollTimeout::try_from(time).unwrap();
    poll(&mut [PollFd::new(fd, PollFlags::POLLIN)], time).unwrap() == 1
}

/// The state letter of a process; `None` when there is none.
fn state(pid: u32) -> Option<char> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit(')').next()?.trim().chars().next()
}

fn wait_for(what: &str, condition: impl Fn() -> bool) -> Duration {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < PATIENCE, "{what}: not within {PATIENCE:?}");
        std::thread::sleep(Duration::from_millis(2));
    }
    start.elapsed()
}

const CAP_IPC_LOCK: u32 = 14;
const CAP_SYS_RESOURCE: u32 = 24;

/// Whether this process has a capability.
fn may(capability: u32) -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:")).unwrap();
    u64::from_str_radix(line.trim(), 16).unwrap() & 1 << capability != 0
}

fn signal(pid: u32, signal: Signal) {
    kill(Pid::from_raw(pid as i32), signal).unwrap();
}

/// A driver in a process of its own.
struct Driver {
    child: Child,
    stdin: Option<ChildStdin>,
    lines: BufReader<std::process::ChildStdout>,
    keeper: u32,
}

impl Driver {
    /// Starts a driver that holds the pin of that folder.
    fn start(folder: &Path) -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "driver_process", "--nocapture", "--test-threads=1"])
            .env(FOLDER, folder)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let stdin = child.stdin.take();
        let lines = BufReader::new(child.stdout.take().unwrap());
        let mut driver = Self { child, stdin, lines, keeper: 0 };
        driver.keeper = driver.expect("keeper ").parse().unwrap();
        driver
    }

    /// The rest of the next line that contains `what`.
    fn expect(&mut self, what: &str) -> String {
        let mut line = String::new();
        while self.lines.read_line(&mut line).unwrap() > 0 {
            if let Some((_, rest)) = line.split_once(what) {
                return rest.trim().to_owned();
            }
            line.clear();
        }
        panic!("the driver ended without saying {what:?}");
    }

    fn tell(&mut self, what: &str) {
        writeln!(self.stdin.as_mut().unwrap(), "{what}").unwrap();
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        self.stdin = None;
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// No test by itself: the driver of the others, when it is started as one.
#[test]
fn driver_process() {
    let Some(folder) = std::env::var_os(FOLDER).map(PathBuf::from) else { return };
    let pin = Pin::open(&folder);
    let keeper = Keeper::spawn(&options(DEADLINE)).unwrap();
    let id = keeper.hold_pin(&pin.parts()).unwrap();
    println!("keeper {}", keeper.pid());
    let mut turn = None;
    let mut lines = std::io::stdin().lines();
    while let Some(Ok(line)) = lines.next() {
        match line.as_str() {
            "begin" => {
                turn = Some(keeper.begin_map(id).unwrap());
                println!("begun");
            }
            "event" => {
                assert!(readable(keeper.events_fd(), PATIENCE));
                keeper.collect(&mut |event| println!("event {event:?}"));
                let error = keeper.begin_map(id).unwrap_err();
                assert!(matches!(error, KeeperError::Revoked { .. }), "{error}");
                println!("refused");
            }
            "release" => {
                (&pin.pipe).read_exact(&mut [0; 4096]).unwrap();
                keeper.let_go(id);
                println!("released");
            }
            other => panic!("{other}"),
        }
    }
    drop(turn);
}

#[test]
fn when_a_driver_is_killed_its_pins_are_let_go_and_no_process_stays() {
    for _ in 0..5 {
        let folder = tempfile::tempdir().unwrap();
        let pin = Pin::make(folder.path());
        let mut driver = Driver::start(folder.path());
        let keeper = driver.keeper;
        assert!(pin.is_full());
        driver.child.kill().unwrap();
        let took = wait_for("the drain", || !pin.is_full());
        assert!(took < Duration::from_secs(1), "{took:?}");
        driver.child.wait().unwrap();
        wait_for("the keeper's end", || matches!(state(keeper), None | Some('Z')));
    }
}

#[test]
fn a_driver_that_was_stopped_finds_its_pin_revoked() {
    let folder = tempfile::tempdir().unwrap();
    let pin = Pin::make(folder.path());
    let mut driver = Driver::start(folder.path());
    signal(driver.child.id(), Signal::SIGSTOP);
    let start = Instant::now();
    pin.disturb();
    wait_for("the drain", || !pin.is_full());
    assert!(start.elapsed() >= DEADLINE, "{:?}", start.elapsed());
    signal(driver.child.id(), Signal::SIGCONT);
    driver.tell("event");
    assert!(driver.expect("event ").starts_with("Revoked"));
    driver.expect("refused");
}

#[test]
fn a_driver_that_was_stopped_in_a_turn_to_map_is_killed_before_its_pin_goes() {
    let folder = tempfile::tempdir().unwrap();
    let pin = Pin::make(folder.path());
    let mut driver = Driver::start(folder.path());
    driver.tell("begin");
    driver.expect("begun");
    let pid = driver.child.id();
    signal(pid, Signal::SIGSTOP);
    pin.disturb();
    wait_for("the drain", || !pin.is_full());
    assert_eq!(state(pid), Some('Z'), "it cannot map any more");
}

#[test]
fn a_driver_that_releases_in_time_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let pin = Pin::make(folder.path());
    let mut driver = Driver::start(folder.path());
    pin.disturb();
    driver.tell("release");
    driver.expect("released");
    std::thread::sleep(DEADLINE + DEADLINE / 2);
    assert_eq!(driver.child.try_wait().unwrap(), None);
    assert!(matches!(state(driver.keeper), Some('S' | 'R' | 'D')));
    driver.stdin = None;
    assert!(driver.child.wait().unwrap().success());
    assert_eq!(state(driver.keeper), None, "its driver waited for it");
}

#[test]
fn the_death_of_a_keeper_is_noticed_and_survived() {
    let folder = tempfile::tempdir().unwrap();
    let pin = Pin::make(folder.path());
    let keeper = Keeper::spawn(&options(DEADLINE)).unwrap();
    keeper.hold_pin(&pin.parts()).unwrap();
    assert!(!readable(keeper.events_fd(), Duration::ZERO));
    signal(keeper.pid(), Signal::SIGKILL);
    assert!(readable(keeper.events_fd(), PATIENCE));
    let mut events = Vec::new();
    keeper.collect(&mut |event| events.push(event));
    assert_eq!(events, [KeeperEvent::Died]);
    assert!(pin.is_full(), "the driver still holds it");
    assert!(matches!(keeper.hold_pin(&pin.parts()), Err(KeeperError::Gone)));

    let again = keeper.respawn().unwrap();
    let dead = keeper.pid();
    drop(keeper);
    assert_eq!(state(dead), None, "no zombie stays");
    again.hold_pin(&pin.parts()).unwrap();
    let pid = again.pid();
    drop(again);
    assert_eq!(state(pid), None);
    assert!(!pin.is_full(), "a keeper that is dropped with a pin lets it go");
}

#[test]
fn signals_to_the_group_do_not_reach_a_keeper_and_it_inherits_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let pin = Pin::make(folder.path());
    // Would be inherited by any child.
    let leak = File::open("/dev/null").unwrap();
    let flags = nix::fcntl::FcntlArg::F_SETFD(nix::fcntl::FdFlag::empty());
    nix::fcntl::fcntl(&leak, flags).unwrap();
    let keeper = Keeper::spawn(&options(DEADLINE)).unwrap();
    let pid = keeper.pid();
    for ending in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP, Signal::SIGQUIT] {
        signal(pid, ending);
    }
    let id = keeper.hold_pin(&pin.parts()).unwrap();
    let session = |pid: u32| nix::unistd::getsid(Some(Pid::from_raw(pid as i32))).unwrap();
    assert_eq!(session(pid), Pid::from_raw(pid as i32));
    // Three standard ones, two sockets, pagemap, this process; and the pin's three.
    let open = std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count();
    assert_eq!(open, 7 + 3);
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let threads = status.lines().find(|line| line.starts_with("Threads:")).unwrap();
    assert_eq!(threads.split_whitespace().last(), Some("1"));
    if may(CAP_SYS_RESOURCE) {
        let score = std::fs::read_to_string(format!("/proc/{pid}/oom_score_adj")).unwrap();
        assert_eq!(score.trim(), "-1000");
    }
    if may(CAP_IPC_LOCK) {
        assert!(!status.contains("VmLck:\t       0 kB"), "{status}");
    }
    keeper.let_go(id);
    (&pin.pipe).write_all(&[1]).ok();
    drop(keeper);
    assert_eq!(state(pid), None);
}

#[test]
fn a_keeper_started_by_hand_says_so() {
    let output = Command::new(env!("CARGO_BIN_EXE_holdfast"))
        .arg("keeper")
        .stdin(Stdio::null())
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(text.contains("started by the driver"), "{text}");
}
