//! The vfio-user server: a device on a Unix socket.
//!
//! A [`Listener`] takes one client after another; each connection is a session that receives one
//! message, checks it against the protocol and against what the device declared, calls the
//! [`Backend`], and sends the reply, until the client is gone or [`Shutdown`] is triggered. All of
//! it runs on the caller's thread and sleeps in `poll` when there is nothing to do.
//!
//! Nothing that a client sends is trusted. A message that makes no sense gets an error reply
//! (unless it wanted none) and the connection goes on; where the stream itself can no longer be
//! followed, or the client does not begin with VERSION, the connection ends. A client can make
//! the server hold one message, as far as it has sent it, and one reply; no more.
//!
//! A second client that connects meanwhile is not refused: it waits in the socket's backlog, and
//! is served when the first is gone.
//!
//! The messages are those of `holdfast_vfio::user::wire`. Clients known to get along: Holdfast's
//! own, the `vfio_user` crate's, and by its source QEMU's `vfio-user-pci`.

mod backend;
mod commands;
mod fuzz;
mod listener;
mod session;
#[doc(hidden)]
pub mod toy;

pub use backend::{
    Backend, DmaMap, DmaUnmap, Irq, IrqAction, PCI_IRQS, PCI_REGIONS, Region, RegionMap,
};
pub use fuzz::fuzz_server_bytes;
pub use listener::{Listener, Shutdown};
pub(crate) use listener::{accept, errno_of};
pub use session::{End, Limits, serve_connection};

use nix::errno::Errno;

/// What can go wrong with a server; what goes wrong with one client is an [`End`].
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ServerError {
    /// The socket could not be made.
    #[error("cannot listen on {path}: {errno}")]
    Bind {
        /// Path of the socket.
        path: String,
        /// Why.
        #[source]
        errno: Errno,
    },
    /// Another server answers on that path.
    #[error("another server is listening on {path}; stop it, or choose another path")]
    InUse {
        /// Path of the socket.
        path: String,
    },
    /// Something that is no socket stands at that path.
    #[error("{path} exists and is not a socket; remove it, or choose another path")]
    NotASocket {
        /// The path.
        path: String,
    },
    /// Clients cannot be accepted any more.
    #[error("cannot accept clients on {path}: {errno}")]
    Accept {
        /// Path of the socket.
        path: String,
        /// Why.
        #[source]
        errno: Errno,
    },
    /// The shutdown handle could not be made or used.
    #[error("cannot use an eventfd for the shutdown of a server: {0}")]
    Shutdown(#[source] Errno),
}
