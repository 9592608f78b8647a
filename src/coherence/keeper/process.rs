//! The keeper as a process: what it does to itself before it says that it is ready.
//!
//! It must outlive the driver and whatever ended it. So it leaves the driver's session and blocks
//! every signal (Ctrl-C reaches the terminal's process group, a service manager's SIGTERM the whole
//! unit); it is the last that the OOM killer takes and its memory is locked, so that it never waits
//! for a page from a disk; it keeps no descriptor but its own and no working directory, so that it
//! holds nothing it was not given; and it dumps no core, which would take time with pins held.
#![allow(unsafe_code)]

use std::fs::OpenOptions;
use std::io::Write as _;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use nix::errno::Errno;
use nix::sys::mman::{MlockAllFlags, mlockall};
use nix::sys::prctl::set_dumpable;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::SigSet;
use nix::sys::socket::{SockType, getsockopt, sockopt};
use nix::unistd::{chdir, dup2_stdin, dup2_stdout, setsid};

use super::serve::{Server, Sockets, VfioFence};
use super::{KeeperError, sys};

/// Stack that is made sure of before memory is locked, in bytes.
const STACK: usize = 128 << 10;

/// Makes this process a keeper, whose sockets are its standard input and output, serves the driver
/// at their other ends, and returns when the driver is gone and everything is let go. This is what
/// `holdfast keeper` does, and nothing else.
///
/// # Errors
/// [`KeeperError::System`] before the driver was told that the keeper is ready.
///
/// # Safety
/// Every descriptor from 3 on is closed, whoever opened it: nothing in this process may own one.
pub unsafe fn run() -> Result<(), KeeperError> {
    SigSet::all().thread_block().map_err(KeeperError::system("block signals"))?;
    let sockets = Sockets {
        calls: take_socket(std::io::stdin().as_fd())?,
        events: take_socket(std::io::stdout().as_fd())?,
    };
    // Fails where this process leads its group already, and then it is in no terminal's either.
    let _ = setsid();
    // SAFETY: the caller answers for what is open.
    unsafe { detach(&sockets) }.map_err(KeeperError::system("let go of inherited descriptors"))?;
    // Once it cannot be dumped, an unprivileged process cannot open its own pagemap any more.
    let mut server =
        Server::new(sockets, VfioFence).map_err(KeeperError::system("open its own pagemap"))?;
    endure();
    server.ready().map_err(KeeperError::system("greet the driver"))?;
    server.run();
    Ok(())
}

/// A copy of a standard descriptor out of the way of all others, if it is a socket of the right
/// kind.
fn take_socket(fd: BorrowedFd<'_>) -> Result<OwnedFd, KeeperError> {
    let failed = |errno| KeeperError::System {
        step: "find its sockets (a keeper is started by the driver, not by hand)",
        errno,
    };
    match getsockopt(&fd, sockopt::SockType) {
        Ok(SockType::SeqPacket) => {}
        Ok(_) => return Err(failed(Errno::EPROTOTYPE)),
        Err(errno) => return Err(failed(errno)),
    }
    fd.try_clone_to_owned().map_err(|error| failed(errno_of(&error)))
}

/// Keeps the sockets and standard error, and nothing else that was inherited.
///
/// # Safety
/// As for [`run`].
unsafe fn detach(sockets: &Sockets) -> Result<(), Errno> {
    chdir("/")?;
    let null = OpenOptions::new().read(true).write(true).open("/dev/null");
    let null = null.map_err(|error| errno_of(&error))?;
    dup2_stdin(&null)?;
    dup2_stdout(&null)?;
    drop(null);
    let (a, b) = (sockets.calls.as_raw_fd(), sockets.events.as_raw_fd());
    let (low, high) = (a.min(b), a.max(b));
    for (first, last) in [(3, low - 1), (low + 1, high - 1), (high + 1, RawFd::MAX)] {
        if first <= last {
            // SAFETY: the sockets are left out, and the caller answers for all others.
            unsafe { sys::close_range(first, last) }?;
        }
    }
    Ok(())
}

/// Makes this process hard to kill by accident. Each step is worth having alone, and an
/// unprivileged driver's keeper has to do without some.
fn endure() {
    let _ = OpenOptions::new()
        .write(true)
        .open("/proc/self/oom_score_adj")
        .and_then(|mut file| file.write_all(b"-1000"));
    if let Ok((_, hard)) = getrlimit(Resource::RLIMIT_NOFILE) {
        let _ = setrlimit(Resource::RLIMIT_NOFILE, hard, hard);
    }
    let _ = setrlimit(Resource::RLIMIT_CORE, 0, 0);
    let _ = set_dumpable(false);
    reach_down();
    // What is mapped later, the guard pages, must not be locked.
    let _ = mlockall(MlockAllFlags::MCL_CURRENT);
}

/// Has the stack grow now by what it may need later.
#[inline(never)]
fn reach_down() {
    std::hint::black_box([0u8; STACK]);
}

fn errno_of(error: &std::io::Error) -> Errno {
    error.raw_os_error().map_or(Errno::EIO, Errno::from_raw)
}
