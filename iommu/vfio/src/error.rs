//! What can go wrong below a device, with what a person needs to act on it.

use nix::errno::Errno;

/// Result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What can go wrong below a device.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A caller broke this crate's own rules.
    #[error("{0}")]
    Usage(String),
    /// A region could not be mapped.
    #[error("cannot map {len:#x} bytes at {offset:#x} of a device region: {errno}")]
    MapRegion {
        /// Offset in the device descriptor.
        offset: u64,
        /// Bytes.
        len: u64,
        /// Why.
        #[source]
        errno: Errno,
    },
    /// No connection to a vfio-user server.
    #[error("cannot connect to the vfio-user socket {socket}: {errno}; is the server running?")]
    UserConnect {
        /// Path of the socket.
        socket: String,
        /// Why.
        #[source]
        errno: Errno,
    },
    /// The connection to a vfio-user server failed during a request; it is of no more use.
    #[error("the vfio-user server at {socket} is lost: {command}: {source}")]
    UserLost {
        /// Path of the socket.
        socket: String,
        /// What was asked for.
        command: crate::user::Command,
        /// Why.
        #[source]
        source: crate::user::ChannelError,
    },
    /// The connection to a vfio-user server failed earlier (or was closed), and nothing is sent
    /// over it any more.
    #[error("the connection to the vfio-user server at {socket} ended earlier; connect again")]
    UserGone {
        /// Path of the socket.
        socket: String,
    },
    /// A vfio-user server refused a request.
    #[error("the vfio-user server at {socket} refused {command}: {errno}")]
    UserRefused {
        /// Path of the socket.
        socket: String,
        /// What was asked for.
        command: crate::user::Command,
        /// The server's reason; `UnknownErrno` when it gave none.
        #[source]
        errno: Errno,
    },
    /// A vfio-user server answered something that the protocol does not allow.
    #[error("the vfio-user server at {socket} broke the protocol in its reply to {command}: {detail}")]
    UserProtocol {
        /// Path of the socket.
        socket: String,
        /// What was asked for.
        command: crate::user::Command,
        /// What is wrong.
        detail: String,
    },
}

impl Error {
    /// A [`Error::Usage`] of that text.
    pub fn usage(text: impl Into<String>) -> Self {
        Self::Usage(text.into())
    }
}
