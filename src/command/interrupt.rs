//! Ctrl-C and SIGTERM: a flag that loops look at, so that everything is left tidy.
//!
//! The first signal asks; every loop of the command looks at [`check`] often enough to
//! stop within a fraction of a second. A second signal does not wait: folders that were announced
//! with [`remove_on_abort`] are removed and the process ends.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, PoisonError};

/// Signals seen so far.
static SIGNALS: AtomicU32 = AtomicU32::new(0);
/// Folders to remove when there is no time left to be tidy.
static FOLDERS: Mutex<Vec<PathBuf>> = Mutex::new(Vec::new());

/// Exit status after a signal, as shells count it (128 + SIGINT).
pub const EXIT_INTERRUPTED: u8 = 130;

/// The command was asked to stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("interrupted")]
pub struct Interrupted;

/// Starts watching for SIGINT, SIGTERM and SIGHUP.
pub fn watch() -> Result<(), ctrlc::Error> {
    ctrlc::set_handler(|| {
        if SIGNALS.fetch_add(1, Ordering::Relaxed) > 0 {
            let folders = FOLDERS.lock().unwrap_or_else(PoisonError::into_inner);
            for folder in folders.iter() {
                let _ = std::fs::remove_dir_all(folder);
            }
            std::process::exit(i32::from(EXIT_INTERRUPTED));
        }
    })
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

/// Announces a folder that must not outlive the process, even when a second signal ends it.
pub fn remove_on_abort(folder: &Path) {
    FOLDERS.lock().unwrap_or_else(PoisonError::into_inner).push(folder.to_owned());
}
