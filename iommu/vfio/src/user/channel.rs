//! Whole messages over a Unix stream socket: what both ends share.
//!
//! A [`Channel`] sends and receives one message at a time and waits no longer than it is told
//! ([`Wait`]). It believes nothing: a size is checked before a byte of payload is read, memory is
//! taken only as data arrives, and descriptors beyond what the caller takes are closed at once.

use std::io::IoSlice;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::Instant;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use zerocopy::{FromBytes, IntoBytes};

use super::scm;
use super::wire::{HEADER, Header};

/// Bytes by which a receive buffer grows, and what it may keep between messages.
const STEP: usize = 64 << 10;

/// Why a message could not be sent or received. After any of them except
/// [`ChannelError::Stopped`] at a message's start, the stream is of no more use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ChannelError {
    /// The other side closed the connection, between messages.
    #[error("the other side closed the connection")]
    Closed,
    /// The other side closed the connection inside a message.
    #[error("the connection ended after {got} of {want} bytes of a message")]
    Truncated {
        /// Bytes that came.
        got: usize,
        /// Bytes that the message should have had, as far as known.
        want: usize,
    },
    /// A message claims a size that none can have.
    #[error("a message claims to have {} bytes; the least is {HEADER}, the most {most}", .header.size)]
    BadSize {
        /// Its header.
        header: Header,
        /// Most bytes that were acceptable.
        most: usize,
    },
    /// The deadline passed.
    #[error("the other side did not answer in time")]
    TimedOut,
    /// The caller's stop descriptor became readable.
    #[error("stopped")]
    Stopped,
    /// The socket failed.
    #[error("the socket failed: {0}")]
    Io(Errno),
}

/// How long to wait.
#[derive(Debug, Clone, Copy, Default)]
pub struct Wait<'a> {
    /// Not beyond this.
    pub deadline: Option<Instant>,
    /// Not once this can be read.
    pub stop: Option<BorrowedFd<'a>>,
}

/// A message that was received; its payload went to the caller's buffer.
#[derive(Debug)]
pub struct Message {
    /// Its header; `size` was checked.
    pub header: Header,
    /// The descriptors that came with it.
    pub fds: Vec<OwnedFd>,
    /// Some that came were too many for the caller, or for this process, and are gone.
    pub lost_fds: bool,
}

/// A connected socket that carries messages.
#[derive(Debug)]
pub struct Channel {
    stream: UnixStream,
}

impl Channel {
    /// Messages over `stream`.
    pub fn new(stream: UnixStream) -> Self {
        Self { stream }
    }

    /// The socket.
    pub fn stream(&self) -> &UnixStream {
        &self.stream
    }

    /// Receives a message of at most `max_payload` bytes after its header, and at most `max_fds`
    /// descriptors. `payload` is overwritten; its memory is reused.
    pub fn recv(
        &self,
        payload: &mut Vec<u8>,
        max_payload: usize,
        max_fds: usize,
        wait: Wait<'_>,
    ) -> Result<Message, ChannelError> {
        payload.clear();
        payload.shrink_to(STEP);
        let mut fds = Vec::new();
        let mut lost_fds = false;
        let mut pull = |buf: &mut [u8]| {
            let part = self.recv_some(buf, &mut fds, max_fds, wait)?;
            lost_fds |= part.lost_fds;
            Ok(part.bytes)
        };

        let mut raw = [0; HEADER];
        let mut got = 0;
        while got < HEADER {
            match pull(&mut raw[got..])? {
                0 if got == 0 => return Err(ChannelError::Closed),
                0 => return Err(ChannelError::Truncated { got, want: HEADER }),
                more => got += more,
            }
        }
        let header = Header::read_from_bytes(&raw).expect("a header has that size");
        let most = HEADER.saturating_add(max_payload);
        let size = header.size as usize;
        if !(HEADER..=most).contains(&size) {
            return Err(ChannelError::BadSize { header, most });
        }

        let want = size - HEADER;
        let mut got = 0;
        while got < want {
            if got == payload.len() {
                payload.resize(want.min(got + STEP), 0);
            }
            match pull(&mut payload[got..])? {
                0 => return Err(ChannelError::Truncated { got: HEADER + got, want: size }),
                more => got += more,
            }
        }
        Ok(Message { header, fds, lost_fds })
    }

    /// Sends a message: its header, then its payload in `parts`, with `fds`. Allocates nothing: what
    /// takes memory away from a device goes this way.
    ///
    /// # Panics
    /// With more than two parts.
    pub fn send(
        &self,
        header: &Header,
        parts: &[&[u8]],
        fds: &[BorrowedFd<'_>],
        wait: Wait<'_>,
    ) -> Result<(), ChannelError> {
        let mut slices = [IoSlice::new(header.as_bytes()); 3];
        for (slice, part) in slices[1..=parts.len()].iter_mut().zip(parts) {
            *slice = IoSlice::new(part);
        }
        let mut rest = &mut slices[..=parts.len()];
        let mut fds = fds;
        IoSlice::advance_slices(&mut rest, 0);
        while !rest.is_empty() {
            match scm::send(self.stream.as_fd(), rest, fds) {
                Ok(sent) => {
                    fds = &[];
                    IoSlice::advance_slices(&mut rest, sent);
                }
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => self.wait(PollFlags::POLLOUT, wait)?,
                Err(errno) => return Err(ChannelError::Io(errno)),
            }
        }
        Ok(())
    }

    /// Reads and drops everything until the other side closes the connection.
    pub fn drain(&self, scratch: &mut Vec<u8>, wait: Wait<'_>) -> Result<(), ChannelError> {
        scratch.resize(STEP, 0);
        loop {
            let got = self.recv_some(scratch, &mut Vec::new(), 0, wait)?;
            if got.bytes == 0 {
                return Ok(());
            }
            if wait.deadline.is_some_and(|deadline| deadline <= Instant::now()) {
                return Err(ChannelError::TimedOut);
            }
        }
    }

    /// One receive of at least a byte, or 0 bytes at the end of the stream.
    fn recv_some(
        &self,
        buf: &mut [u8],
        fds: &mut Vec<OwnedFd>,
        max_fds: usize,
        wait: Wait<'_>,
    ) -> Result<scm::Received, ChannelError> {
        // With a stop descriptor, a sender that never pauses must not keep it from being seen.
        let mut block = wait.stop.is_some();
        loop {
            if block {
                self.wait(PollFlags::POLLIN, wait)?;
            }
            match scm::recv(self.stream.as_fd(), buf, fds, max_fds) {
                Ok(received) => return Ok(received),
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => block = true,
                // The other side closed with our data unread: the end of the stream all the same.
                Err(Errno::ECONNRESET) => {
                    return Ok(scm::Received { bytes: 0, lost_fds: false });
                }
                Err(errno) => return Err(ChannelError::Io(errno)),
            }
        }
    }

    /// Waits until the socket is ready for `events` (or broken, which the next call will tell).
    fn wait(&self, events: PollFlags, wait: Wait<'_>) -> Result<(), ChannelError> {
        loop {
            let timeout = match wait.deadline {
                None => PollTimeout::NONE,
                Some(deadline) => {
                    let left = deadline.saturating_duration_since(Instant::now());
                    if left.is_zero() {
                        return Err(ChannelError::TimedOut);
                    }
                    // Rounded up, so that the last round is not a busy one.
                    let millis = left.as_millis().saturating_add(1);
                    PollTimeout::try_from(millis).unwrap_or(PollTimeout::MAX)
                }
            };
            let socket = PollFd::new(self.stream.as_fd(), events);
            let stop = PollFd::new(wait.stop.unwrap_or(self.stream.as_fd()), PollFlags::POLLIN);
            let mut both = [socket, stop];
            let used = if wait.stop.is_some() { 2 } else { 1 };
            match poll(&mut both[..used], timeout) {
                Err(Errno::EINTR) => continue,
                Err(errno) => return Err(ChannelError::Io(errno)),
                Ok(_) => {}
            }
            if used == 2 && both[1].any() != Some(false) {
                return Err(ChannelError::Stopped);
            }
            if both[0].any() != Some(false) {
                return Ok(());
            }
        }
    }
}
