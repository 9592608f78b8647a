//! A link's outgoing bytes: a queue that is written without blocking.
//!
//! Requests and datagrams are refused while more than [`REQUEST_ROOM`] bytes wait, so that queue
//! pairs wait rather than the queue grows. Replies are always taken: a peer is owed no more of them
//! than it asked for, and its READs are bounded by its own credit. One that asks without end and
//! never reads is cut off at [`HARD_LIMIT`].

use std::io;
use std::os::fd::AsRawFd;

use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, send};

use super::socket::Socket;

/// Bytes that may wait before requests must.
const REQUEST_ROOM: usize = 1 << 20;
/// Bytes that may wait at all.
const HARD_LIMIT: usize = 64 << 20;

pub(super) struct Outbox {
    stream: Socket,
    pub(super) bytes: Vec<u8>,
    written: usize,
    pub(super) total_written: u64,
}

impl Outbox {
    pub(super) fn new(stream: Socket) -> Self {
        Self { stream, bytes: Vec::new(), written: 0, total_written: 0 }
    }

    /// Bytes that wait.
    pub(super) fn queued(&self) -> usize {
        self.bytes.len() - self.written
    }

    pub(super) fn has_room(&self) -> bool {
        self.queued() < REQUEST_ROOM
    }

    /// Writes what the socket takes. Says whether everything is written.
    pub(super) fn flush(&mut self) -> io::Result<bool> {
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
        while self.queued() > 0 {
            match send(self.stream.as_raw_fd(), &self.bytes[self.written..], flags) {
                Ok(n) => {
                    self.written += n;
                    self.total_written += n as u64;
                }
                Err(Errno::EAGAIN) => {
                    if self.queued() > HARD_LIMIT {
                        return Err(io::Error::other("the peer does not read its replies"));
                    }
                    if self.written > self.bytes.len() / 2 {
                        self.bytes.drain(..self.written);
                        self.written = 0;
                    }
                    return Ok(false);
                }
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
        self.bytes.clear();
        self.written = 0;
        Ok(true)
    }

    /// Drops what waits.
    pub(super) fn discard(&mut self) {
        self.bytes = Vec::new();
        self.written = 0;
    }

    /// Ends the connection both ways, which also ends the reader.
    pub(super) fn shut(&self) {
        // The socket may be gone already.
        let _ = self.stream.shutdown();
    }
}
