//! The socket under a client, and one round trip over it.

use std::os::fd::{BorrowedFd, OwnedFd};
use std::time::Instant;

use nix::errno::Errno;
use zerocopy::FromBytes;

use super::channel::{Channel, ChannelError, Wait};
use super::wire::{Command, Header};

/// Descriptors that are taken from one reply.
pub(super) const MAX_REPLY_FDS: usize = 8;

/// What a client's lock guards.
#[derive(Debug)]
pub(super) struct Link {
    pub channel: Channel,
    next_id: u16,
    /// Payload of the last reply.
    pub payload: Vec<u8>,
    /// Nothing is sent any more.
    pub dead: bool,
}

/// How a round trip failed.
pub(super) enum Failure {
    /// The server said no; the connection goes on.
    Refused(Errno),
    /// The connection is of no more use.
    Lost(ChannelError),
    /// Nor is it after a reply that cannot be.
    Protocol(String),
}

impl Link {
    pub fn new(channel: Channel) -> Self {
        Self { channel, next_id: 0, payload: Vec::new(), dead: false }
    }

    /// Sends nothing any more.
    pub fn close(&mut self) {
        self.dead = true;
        // Fails only when the other side is gone already.
        let _ = self.channel.stream().shutdown(std::net::Shutdown::Write);
    }

    /// Sends a command and waits for its reply, whose payload is left in `self.payload`.
    pub fn exchange(
        &mut self,
        command: Command,
        parts: &[&[u8]],
        fds: &[BorrowedFd<'_>],
        max_reply: usize,
        wait: Wait<'_>,
    ) -> Result<(Header, Vec<OwnedFd>), Failure> {
        let id = self.next_id;
        self.next_id = id.wrapping_add(1);
        let header = Header::command(id, command, parts.iter().map(|part| part.len()).sum());
        self.channel.send(&header, parts, fds, wait).map_err(Failure::Lost)?;
        loop {
            let message = self
                .channel
                .recv(&mut self.payload, max_reply, MAX_REPLY_FDS, wait)
                .map_err(Failure::Lost)?;
            let got = message.header;
            if got.is_command() {
                // The server may ask for client memory; there is none that it could not map.
                if !got.no_reply() {
                    let reply = got.failure(libc::ENOTSUP);
                    self.channel.send(&reply, &[], &[], wait).map_err(Failure::Lost)?;
                }
                if wait.deadline.is_some_and(|deadline| deadline <= Instant::now()) {
                    return Err(Failure::Lost(ChannelError::TimedOut));
                }
                continue;
            }
            if !got.is_reply() || got.id != id || got.kind() != command {
                return Err(Failure::Protocol(format!(
                    "message {} ({}, flags {:#x}) in place of the reply to message {id}",
                    got.id,
                    got.kind(),
                    got.flags
                )));
            }
            if message.lost_fds {
                return Err(Failure::Protocol(
                    "more descriptors than expected, or than this process may open".into(),
                ));
            }
            return Ok((got, message.fds));
        }
    }
}

/// The structure that a reply begins with.
pub(super) fn take<T: FromBytes>(payload: &[u8]) -> Result<T, String> {
    T::read_from_prefix(payload)
        .map(|(value, _)| value)
        .map_err(|_| format!("{} bytes of payload, not {}", payload.len(), size_of::<T>()))
}
