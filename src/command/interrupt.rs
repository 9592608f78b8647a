//! Ctrl-C and SIGTERM: a flag that loops look at, so that everything is left tidy.
//!
//! The first signal asks; every loop of the command looks at [`check`] often enough to
//! stop within a fraction of a second. A second signal does not wait: folders that were announced
//! with [`remove_on_abort`] are removed and the process ends. Only what must not be left half done
//! ([`finish_first`]) is finished all the same.
//!
//! The kernel asking for a device back ([`stop_at_removal`]) counts as a first signal.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};

use holdfast::Device;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

/// Signals seen so far.
static SIGNALS: AtomicU32 = AtomicU32::new(0);
/// Whether something is under way that is finished whatever comes.
static FINISHING: AtomicBool = AtomicBool::new(false);
/// Folders to remove when there is no time left to be tidy.
static FOLDERS: Mutex<Vec<PathBuf>> = Mutex::new(Vec::new());

/// The first device that the kernel wanted back.
static REMOVED: OnceLock<String> = OnceLock::new();

/// Exit status after a signal, as shells count it (128 + SIGINT).
pub const EXIT_INTERRUPTED: u8 = 130;

/// The command was asked to stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("interrupted")]
pub struct Interrupted;

/// Starts watching for SIGINT, SIGTERM and SIGHUP.
pub fn watch() -> Result<(), ctrlc::Error> {
    ctrlc::set_handler(|| {
        if ends_now(SIGNALS.fetch_add(1, Ordering::Relaxed)) {
            let folders = FOLDERS.lock().unwrap_or_else(PoisonError::into_inner);
            for folder in folders.iter() {
                let _ = std::fs::remove_dir_all(folder);
            }
            std::process::exit(i32::from(EXIT_INTERRUPTED));
        }
    })
}

/// Whether a signal that comes after so many others ends the process at once.
fn ends_now(earlier: u32) -> bool {
    earlier > 0 && !FINISHING.load(Ordering::Relaxed)
}

/// Until the guard is dropped, signals are only counted. One thread at a time.
pub fn finish_first() -> FinishFirst {
    FINISHING.store(true, Ordering::Relaxed);
    FinishFirst(())
}

/// See [`finish_first`].
#[derive(Debug)]
pub struct FinishFirst(());

impl Drop for FinishFirst {
    fn drop(&mut self) {
        FINISHING.store(false, Ordering::Relaxed);
    }
}

/// Whether a signal came.
#[inline]
pub fn requested() -> bool {
    SIGNALS.load(Ordering::Relaxed) > 0
}

/// Fails once a signal came.
#[inline]
pub fn check() -> Result<(), Interrupted> {
    if requested() { Err(Interrupted) } else { Ok(()) }
}

/// From now on the command stops, as after a signal, once the kernel asks for `device` back: the
/// kernel waits until it was closed. A thread waits for that; it holds no part of the device.
pub fn stop_at_removal(device: &Device) {
    let fd = device.driver().removal_fd().map(|fd| fd.try_clone_to_owned());
    let Some(Ok(fd)) = fd else { return };
    let address = device.address().to_string();
    std::thread::spawn(move || {
        let mut fds = [PollFd::new(std::os::fd::AsFd::as_fd(&fd), PollFlags::POLLIN)];
        while poll(&mut fds, PollTimeout::NONE) == Err(Errno::EINTR) {}
        let _ = REMOVED.set(address);
        SIGNALS.fetch_add(1, Ordering::Relaxed);
    });
}

/// The device that the kernel wanted back, if that is why [`requested`] is true.
pub fn removed() -> Option<&'static str> {
    REMOVED.get().map(String::as_str)
}

/// Announces a folder that must not outlive the process, even when a second signal ends it.
pub fn remove_on_abort(folder: &Path) {
    FOLDERS.lock().unwrap_or_else(PoisonError::into_inner).push(folder.to_owned());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_signal_ends_the_process_unless_something_must_be_finished() {
        assert_eq!((ends_now(0), ends_now(1)), (false, true));
        let whole = finish_first();
        assert_eq!((ends_now(0), ends_now(1), ends_now(9)), (false, false, false));
        drop(whole);
        assert!(ends_now(1));
    }
}
