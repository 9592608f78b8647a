//! `holdfast keeper`: the process that outlives a driver. Drivers start it; people do not.
#![allow(unsafe_code)]

use std::process::ExitCode;

use holdfast::coherence::keeper;

use super::EXIT_FAILED;

/// Serves the driver at the other end of standard input and output until it is gone.
pub fn run() -> ExitCode {
    // SAFETY: this is the first thing the process does after it has read its command line, so
    // nothing in it has opened a descriptor, and no other thread runs.
    match unsafe { keeper::run() } {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("holdfast keeper: {error}");
            ExitCode::from(EXIT_FAILED)
        }
    }
}
