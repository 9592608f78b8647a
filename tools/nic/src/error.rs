//! Why a NIC process cannot start.

use nix::errno::Errno;

use crate::links::LinkAddress;
use crate::server::ServerError;

/// Why a NIC process cannot start, or a client cannot be served.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// There is nothing to serve.
    #[error("a NIC process needs at least one NIC: give it a socket")]
    NoNics,
    /// The interface version is not one that drivers speak.
    #[error("interface version {0} does not exist; 17 to 20 do")]
    Version(u32),
    /// No NIC of that number, or one that its socket's clients are served on.
    #[error("there is no NIC {0} without a socket of its own")]
    NoSuchNic(usize),
    /// A socket cannot be served.
    #[error(transparent)]
    Server(#[from] ServerError),
    /// The processor's wake-up descriptor cannot be made.
    #[error("cannot make an eventfd: {0}")]
    Bell(#[source] Errno),
    /// The link's other end cannot be reached.
    #[error("cannot connect the link to {address}: {source}; is a NIC process listening there?")]
    Link {
        /// Where that was to be.
        address: LinkAddress,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The processor cannot be pinned.
    #[error("cannot pin the processor to CPU {cpu}: {errno}")]
    Pin {
        /// The CPU asked for.
        cpu: usize,
        /// Why.
        #[source]
        errno: Errno,
    },
    /// A thread cannot be started.
    #[error("cannot start the {name} thread: {source}")]
    Thread {
        /// Its name.
        name: &'static str,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The processor ended, which it does only on shutdown.
    #[error("the NIC's processor thread has ended")]
    Ended,
}
