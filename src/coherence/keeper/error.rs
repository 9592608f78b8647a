//! What can go wrong with a keeper, with what a person needs to act on it.

use std::path::PathBuf;
use std::process::ExitStatus;
use std::time::Duration;

use nix::errno::Errno;

use super::protocol::PinId;

/// What can go wrong with a keeper.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KeeperError {
    /// No program to run as the keeper was found.
    #[error(
        "no program for the keeper process: neither this program nor a file beside it nor one in \
         PATH is `holdfast` (looked at {looked:?}); install the command, or name it in the options"
    )]
    NoProgram {
        /// Where it was looked for.
        looked: Vec<PathBuf>,
    },
    /// The process could not be started.
    #[error("cannot start the keeper process {program:?}: {source}")]
    Start {
        /// The program.
        program: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The process ended before it was ready.
    #[error(
        "the keeper process {program:?} ended before it was ready{}: is it the `holdfast` of this \
         version?",
        .status.map(|status| format!(" ({status})")).unwrap_or_default()
    )]
    NotReady {
        /// The program.
        program: PathBuf,
        /// How it ended, if it has.
        status: Option<ExitStatus>,
    },
    /// The process is of another version.
    #[error("the keeper process speaks version {found} of the protocol instead of {wanted}")]
    Version {
        /// What it speaks.
        found: u64,
        /// What this program speaks.
        wanted: u64,
    },
    /// The process is gone.
    #[error(
        "the keeper process is gone: until another has been started and everything was handed \
         over to it, the death of this process would not be survived by the pins"
    )]
    Gone,
    /// The process did not answer in time.
    #[error("the keeper process did not answer within {patience:?}")]
    NoAnswer {
        /// How long was waited.
        patience: Duration,
    },
    /// The process refused to hold something.
    #[error("the keeper cannot hold {what}: {errno}{}", advice(*.errno))]
    Refused {
        /// What it was to hold.
        what: &'static str,
        /// Why.
        #[source]
        errno: Errno,
    },
    /// The keeper has let the pin go, because a layout operation had waited for longer than its
    /// deadline. Every mapping of every container is gone.
    #[error(
        "the keeper let pin {pin} go, because its file's layout operation had waited for too \
         long: every DMA mapping of this process was taken away"
    )]
    Revoked {
        /// The pin.
        pin: PinId,
    },
    /// A system call failed.
    #[error("cannot {step}: {errno}")]
    System {
        /// What was to be done.
        step: &'static str,
        /// Why not.
        #[source]
        errno: Errno,
    },
}

impl KeeperError {
    /// For `map_err`: a system call failed.
    pub(super) fn system(step: &'static str) -> impl FnOnce(Errno) -> Self {
        move |errno| Self::System { step, errno }
    }
}

fn advice(errno: Errno) -> &'static str {
    match errno {
        Errno::EMFILE => ", it has no descriptors left; raise RLIMIT_NOFILE (each pin takes three)",
        Errno::ENOSPC => ", it holds as many as it has room for; use fewer files",
        Errno::ENOTTY => ", it is not a VFIO container",
        Errno::EOPNOTSUPP => ", the kernel cannot empty it in one call; Linux 5.12 or later can",
        _ => "",
    }
}
