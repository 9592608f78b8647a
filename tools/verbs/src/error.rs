//! Why a call is refused. The caller of a verb gets the errno; the words go to the log.

use std::io;

use nix::errno::Errno;

/// A refused call.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Error {
    /// The engine refused the command.
    #[error("{0}")]
    Engine(#[from] holdfast_nic::engine::Error),
    /// A pointer that is not, or no longer, an object of this kind.
    #[error("no {what} lives at {address:#x}")]
    NoSuch { what: &'static str, address: usize },
    /// An argument makes no sense.
    #[error("{what} cannot be {value:#x}")]
    Invalid { what: &'static str, value: u64 },
    /// The objects belong to different devices.
    #[error("the {what} belongs to another device")]
    Stranger { what: &'static str },
    /// The queue has no room.
    #[error("all {depth} slots of the {what} are taken")]
    Full { what: &'static str, depth: u32 },
    /// Something uses the object.
    #[error("the {what} is in use")]
    Busy { what: &'static str },
    /// Not part of this library.
    #[error("{what} is not supported")]
    Unsupported { what: &'static str },
    /// The memory to register is not all there.
    #[error("{length} bytes at {address:#x} cannot be registered: {errno}")]
    Memory { address: u64, length: u64, errno: Errno },
    /// A system call failed.
    #[error("{what}: {errno}")]
    Os { what: &'static str, errno: Errno },
    /// No event is there, and the channel does not block.
    #[error("no event is there")]
    Again,
    /// The environment's settings cannot be used.
    #[error("{0}")]
    Settings(String),
    /// A defect of the library.
    #[error("a panic")]
    Panic,
}

impl Error {
    /// What the caller gets.
    pub(crate) fn errno(&self) -> Errno {
        match self {
            Error::Engine(error) => Errno::from_raw(error.errno()),
            Error::NoSuch { .. }
            | Error::Invalid { .. }
            | Error::Stranger { .. }
            | Error::Settings(_) => Errno::EINVAL,
            Error::Full { .. } => Errno::ENOMEM,
            Error::Busy { .. } => Errno::EBUSY,
            Error::Unsupported { .. } => Errno::EOPNOTSUPP,
            Error::Memory { errno, .. } | Error::Os { errno, .. } => *errno,
            Error::Again => Errno::EAGAIN,
            Error::Panic => Errno::EIO,
        }
    }

    pub(crate) fn os(what: &'static str, errno: Errno) -> Self {
        Error::Os { what, errno }
    }

    pub(crate) fn io(what: &'static str, error: &io::Error) -> Self {
        Error::Os { what, errno: Errno::from_raw(error.raw_os_error().unwrap_or(libc::EIO)) }
    }
}
