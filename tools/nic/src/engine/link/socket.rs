//! The socket under a link: a Unix socket of this machine, or TCP to another one.

use std::io::{self, Read};
use std::net::{Shutdown, TcpStream};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use nix::sys::socket::{setsockopt, sockopt};

/// Seconds without a word from the other host after which it is asked for a sign of life, between
/// two such questions, and how many of them may stay unanswered.
const PROBE_AFTER: u32 = 5;
const PROBE_EVERY: u32 = 5;
const PROBES: u32 = 3;
/// Milliseconds for which what was sent may stay unacknowledged.
const UNHEARD: u32 = 20_000;

/// A connected stream to another NIC process.
#[derive(Debug)]
pub enum Socket {
    /// On the same machine.
    Unix(UnixStream),
    /// Possibly on another one. Use [`Socket::tcp`], so that a host that vanishes is noticed.
    Tcp(TcpStream),
}

impl From<UnixStream> for Socket {
    fn from(stream: UnixStream) -> Self {
        Self::Unix(stream)
    }
}

impl Socket {
    /// A link to another host: nothing is held back to fill a segment, and a host that is silent for
    /// some 20 s, though it is asked, counts as gone.
    ///
    /// # Errors
    /// Those of setsockopt(2).
    pub fn tcp(stream: TcpStream) -> io::Result<Self> {
        stream.set_nodelay(true)?;
        setsockopt(&stream, sockopt::KeepAlive, &true)?;
        setsockopt(&stream, sockopt::TcpKeepIdle, &PROBE_AFTER)?;
        setsockopt(&stream, sockopt::TcpKeepInterval, &PROBE_EVERY)?;
        setsockopt(&stream, sockopt::TcpKeepCount, &PROBES)?;
        setsockopt(&stream, sockopt::TcpUserTimeout, &UNHEARD)?;
        Ok(Self::Tcp(stream))
    }

    pub(super) fn try_clone(&self) -> io::Result<Self> {
        Ok(match self {
            Self::Unix(stream) => Self::Unix(stream.try_clone()?),
            Self::Tcp(stream) => Self::Tcp(stream.try_clone()?),
        })
    }

    pub(super) fn set_read_timeout(&self, timeout: Option<Duration>) -> io::Result<()> {
        match self {
            Self::Unix(stream) => stream.set_read_timeout(timeout),
            Self::Tcp(stream) => stream.set_read_timeout(timeout),
        }
    }

    /// Ends the connection both ways.
    pub(super) fn shutdown(&self) -> io::Result<()> {
        match self {
            Self::Unix(stream) => stream.shutdown(Shutdown::Both),
            Self::Tcp(stream) => stream.shutdown(Shutdown::Both),
        }
    }
}

impl Read for Socket {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Unix(stream) => stream.read(bytes),
            Self::Tcp(stream) => stream.read(bytes),
        }
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Unix(stream) => stream.as_fd(),
            Self::Tcp(stream) => stream.as_fd(),
        }
    }
}

impl AsRawFd for Socket {
    fn as_raw_fd(&self) -> RawFd {
        self.as_fd().as_raw_fd()
    }
}
