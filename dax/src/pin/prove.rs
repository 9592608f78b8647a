//! The start-up proof: on this mount, with this kernel, a pinned page makes a truncation wait, the
//! guard page shows that it waits, and draining the pipe lets it go on.
//!
//! A layout pin is no promise of the kernel's, only what its file systems do. So it is shown before
//! it is relied on, with a scratch file that has no name (O_TMPFILE) and goes with its descriptor.

use std::fmt;
use std::fs::{File, OpenOptions};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;

use super::Pin;
use crate::fsdax::{NotDax, why_not_dax};
use crate::open::{errno_of, system_page_size};
use crate::{Error, FileId, Result, sys};

/// How long the truncation may take to be noticed.
const NOTICE: Duration = Duration::from_secs(5);
/// How long it must then wait without getting anywhere.
const HOLD: Duration = Duration::from_millis(50);
/// How long it may take to end after the release.
const LET_GO: Duration = Duration::from_secs(5);
/// How often the guard page is looked at.
const PERIOD: Duration = Duration::from_micros(200);

/// What was seen.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Proof {
    /// The file system (its device; the inode is the scratch file's).
    pub file_system: FileId,
    /// From the start of the truncation until the guard page showed it.
    pub noticed_after: Duration,
    /// How long the truncation waited.
    pub waited: Duration,
    /// From the release until the truncation had ended.
    pub let_go_after: Duration,
}

impl fmt::Display for Proof {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "on {}:{} a pinned page held a truncation for {:?}, was noticed after {:?}, and let it \
             go after {:?}",
            self.file_system.major(),
            self.file_system.minor(),
            self.waited,
            self.noticed_after,
            self.let_go_after
        )
    }
}

/// Why pins are not proven.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum ProofFailure {
    /// No scratch file could be had.
    Scratch {
        /// Which call.
        call: &'static str,
        /// What it said.
        errno: Errno,
    },
    /// The scratch file is not DAX.
    NotDax(NotDax),
    /// The page could not be pinned.
    NoPin(String),
    /// The truncation did not wait for the pin.
    DidNotWait,
    /// The guard page did not show that an operation waits.
    NotNoticed,
    /// The truncation was still waiting long after the release.
    NotLetGo,
    /// The truncation failed.
    Truncate(Errno),
}

impl fmt::Display for ProofFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Scratch { call, errno } => write!(
                f,
                "{call} of a scratch file failed: {errno}; the folder must be writable, its file \
                 system know O_TMPFILE and have two free blocks"
            ),
            Self::NotDax(why) => write!(f, "a new file there is not DAX: {why}"),
            Self::NoPin(error) => write!(f, "no pin could be taken: {error}"),
            Self::DidNotWait => f.write_str(
                "a truncation went past a pinned page: on this kernel or file system nothing \
                 keeps a file's blocks in place; use devdax",
            ),
            Self::NotNoticed => f.write_str(
                "a truncation waited for the pin, but the guard page did not show it: without \
                 another notifier nobody would let it go",
            ),
            Self::NotLetGo => f.write_str(
                "a truncation went on waiting after the pin was released: operations on files \
                 would hang; use devdax",
            ),
            Self::Truncate(errno) => write!(f, "the truncation failed: {errno}"),
        }
    }
}

/// Shows that pins hold on the file system of `directory`, with a nameless scratch file of two
/// pages. Takes some 60 ms where they do (a truncation must wait for 50), at most ten seconds where
/// they do not. Starts a thread, which in the one case of [`ProofFailure::NotLetGo`] stays.
pub fn prove(directory: &Path) -> Result<Proof> {
    let not_proven = |why| Error::NotProven { directory: directory.into(), why };
    let page = system_page_size();
    let file = scratch(directory, page).map_err(not_proven)?;
    if !sys::is_dax(file.as_fd()).is_ok_and(|dax| dax) {
        return Err(not_proven(ProofFailure::NotDax(why_not_dax(file.as_fd())?)));
    }
    // The second page: a truncation to the first page frees a block that is pinned.
    let pin = Pin::take(file.as_fd(), page)
        .map_err(|error| not_proven(ProofFailure::NoPin(error.to_string())))?;
    let file_system = pin.file_id();
    let truncated = file.try_clone().map_err(|error| {
        not_proven(ProofFailure::Scratch { call: "dup", errno: errno_of(&error) })
    })?;
    let (sender, receiver) = mpsc::channel();
    let start = Instant::now();
    let spawned = thread::Builder::new().name("holdfast-proof".into()).spawn(move || {
        let _ = sender.send(truncated.set_len(page).map_err(|error| errno_of(&error)));
    });
    spawned.map_err(|error| {
        not_proven(ProofFailure::Scratch { call: "clone", errno: errno_of(&error) })
    })?;
    watch(pin, start, &receiver)
        .map(|(noticed_after, waited, let_go_after)| Proof {
            file_system,
            noticed_after,
            waited,
            let_go_after,
        })
        .map_err(not_proven)
}

/// A file of two written pages, without a name.
fn scratch(directory: &Path, page: u64) -> Result<File, ProofFailure> {
    let failed = |call| move |error| ProofFailure::Scratch { call, errno: errno_of(&error) };
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_TMPFILE)
        .mode(0o600)
        .open(directory)
        .map_err(failed("open (O_TMPFILE)"))?;
    file.write_all_at(&vec![0x5a; 2 * page as usize], 0).map_err(failed("write"))?;
    Ok(file)
}

type Times = (Duration, Duration, Duration);

/// Watches the truncation that `ended` tells of wait for the pin, and lets it go.
fn watch(
    mut pin: Pin,
    start: Instant,
    ended: &Receiver<Result<(), Errno>>,
) -> Result<Times, ProofFailure> {
    let no_pin = |error: Error| ProofFailure::NoPin(error.to_string());
    let noticed = loop {
        match ended.recv_timeout(PERIOD) {
            Ok(Ok(())) => return Err(ProofFailure::DidNotWait),
            Ok(Err(errno)) => return Err(ProofFailure::Truncate(errno)),
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {}
        }
        if pin.disturbed().map_err(no_pin)? {
            break Instant::now();
        }
        if start.elapsed() > NOTICE {
            pin.release().map_err(no_pin)?;
            return Err(ProofFailure::NotNoticed);
        }
    };
    match ended.recv_timeout(HOLD) {
        Ok(Ok(())) => return Err(ProofFailure::DidNotWait),
        Ok(Err(errno)) => return Err(ProofFailure::Truncate(errno)),
        Err(_) => {}
    }
    let released = Instant::now();
    pin.release().map_err(no_pin)?;
    match ended.recv_timeout(LET_GO) {
        Ok(Ok(())) => {}
        Ok(Err(errno)) => return Err(ProofFailure::Truncate(errno)),
        Err(_) => return Err(ProofFailure::NotLetGo),
    }
    Ok((noticed - start, released - start, released.elapsed()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_proven_where_files_are_not_dax() {
        let dir = tempfile::tempdir().unwrap();
        match prove(dir.path()) {
            Err(Error::NotProven { why: ProofFailure::NotDax(_), .. })
            // A file system that knows no nameless files.
            | Err(Error::NotProven { why: ProofFailure::Scratch { .. }, .. }) => {}
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_folder_that_cannot_be_written_is_named() {
        let error = prove(Path::new("/proc")).unwrap_err().to_string();
        assert!(error.contains("/proc") && error.contains("O_TMPFILE"), "{error}");
    }
}
