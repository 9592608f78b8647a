//! What the driver and its keeper say to each other: fixed messages of 32 bytes on a pair of
//! SOCK_SEQPACKET sockets, descriptors beside them (SCM_RIGHTS).
//!
//! On the *calls* socket the driver asks and the keeper answers, in order, each message: an answer
//! carries the number of its question. On the *events* socket only the keeper speaks, so that the
//! socket is readable exactly when there is something to hear. Both ends are of the same program,
//! but the keeper outlives bugs of the driver: whatever it is sent, it must not fall over.

use std::fmt;
use std::time::Duration;

use nix::errno::Errno;

/// Version of the protocol, told by the keeper when it is ready.
pub const VERSION: u64 = 2;
/// Bytes of a message.
pub const MESSAGE: usize = 32;
/// Most descriptors with a message.
pub const MAX_FDS: usize = 3;

/// A pin that a keeper holds. Never used twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct PinId(pub(super) u64);

impl fmt::Display for PinId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A container that a keeper holds. Never used twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ContainerId(pub(super) u64);

/// A file that a keeper has mapped. Never used twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct HeldFileId(pub(super) u64);

/// What the driver asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Request {
    /// This descriptor is the driver's process (a pidfd).
    Driver,
    /// Hold this container.
    HoldContainer(u64),
    /// The container is empty and about to be closed: forget it.
    LetGoContainer(u64),
    /// Have a mapping of this file, so that its pins count.
    HoldFile(u64),
    /// No pin of that file is left: forget it.
    LetGoFile(u64),
    /// Hold this pin: pipe read end, pipe write end, file.
    HoldPin {
        /// Number of the pin.
        id: u64,
        /// Offset of the guard page.
        offset: u64,
        /// How long a layout operation may wait for the driver.
        deadline: Duration,
    },
    /// The driver has released the pin, or never made use of it: forget it.
    LetGoPin(u64),
    /// The driver is about to map memory of the pin's file: do not let the pin go until it says
    /// that it is done.
    BeginMap(u64),
    /// It is done, and has looked after that whether the pin is still in force.
    EndMap(u64),
}

/// What the keeper says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reply {
    /// It is ready and speaks that version.
    Ready {
        /// The version.
        version: u64,
    },
    /// Answer to a request: done, or an errno.
    Answer {
        /// Number of the request.
        sequence: u32,
        /// Why not.
        result: Result<(), Errno>,
    },
    /// A pin is let go, because its operation had waited for too long: all containers are emptied.
    Revoked {
        /// The pin.
        id: u64,
        /// How long the operation had waited.
        waited: Duration,
    },
}

const DRIVER: u32 = 1;
const HOLD_CONTAINER: u32 = 2;
const LET_GO_CONTAINER: u32 = 3;
const HOLD_PIN: u32 = 4;
const LET_GO_PIN: u32 = 5;
const BEGIN_MAP: u32 = 6;
const END_MAP: u32 = 7;
const HOLD_FILE: u32 = 8;
const LET_GO_FILE: u32 = 9;
const READY: u32 = 0x101;
const ANSWER: u32 = 0x102;
const REVOKED: u32 = 0x103;

impl Request {
    /// The message, as the driver's `sequence`-th.
    pub fn encode(&self, sequence: u32) -> [u8; MESSAGE] {
        match *self {
            Self::Driver => pack(DRIVER, sequence, [0; 3]),
            Self::HoldContainer(id) => pack(HOLD_CONTAINER, sequence, [id, 0, 0]),
            Self::LetGoContainer(id) => pack(LET_GO_CONTAINER, sequence, [id, 0, 0]),
            Self::HoldFile(id) => pack(HOLD_FILE, sequence, [id, 0, 0]),
            Self::LetGoFile(id) => pack(LET_GO_FILE, sequence, [id, 0, 0]),
            Self::HoldPin { id, offset, deadline } => {
                pack(HOLD_PIN, sequence, [id, offset, micros(deadline)])
            }
            Self::LetGoPin(id) => pack(LET_GO_PIN, sequence, [id, 0, 0]),
            Self::BeginMap(id) => pack(BEGIN_MAP, sequence, [id, 0, 0]),
            Self::EndMap(id) => pack(END_MAP, sequence, [id, 0, 0]),
        }
    }

    /// Reads a message and its number; `None` for what is no request.
    pub fn decode(bytes: &[u8]) -> Option<(u32, Self)> {
        let (kind, sequence, [id, offset, time]) = unpack(bytes)?;
        let request = match kind {
            DRIVER => Self::Driver,
            HOLD_CONTAINER => Self::HoldContainer(id),
            LET_GO_CONTAINER => Self::LetGoContainer(id),
            HOLD_FILE => Self::HoldFile(id),
            LET_GO_FILE => Self::LetGoFile(id),
            HOLD_PIN => Self::HoldPin { id, offset, deadline: Duration::from_micros(time) },
            LET_GO_PIN => Self::LetGoPin(id),
            BEGIN_MAP => Self::BeginMap(id),
            END_MAP => Self::EndMap(id),
            _ => return None,
        };
        Some((sequence, request))
    }
}

impl Reply {
    /// The message.
    pub fn encode(&self) -> [u8; MESSAGE] {
        match *self {
            Self::Ready { version } => pack(READY, 0, [version, 0, 0]),
            Self::Answer { sequence, result } => {
                let errno = result.err().map_or(0, |errno| errno as i32 as u64);
                pack(ANSWER, sequence, [errno, 0, 0])
            }
            Self::Revoked { id, waited } => pack(REVOKED, 0, [id, micros(waited), 0]),
        }
    }

    /// Reads a message; `None` for what is no reply.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let (kind, sequence, [first, second, _]) = unpack(bytes)?;
        match kind {
            READY => Some(Self::Ready { version: first }),
            ANSWER => {
                let errno = i32::try_from(first).ok()?;
                let result = if errno == 0 { Ok(()) } else { Err(Errno::from_raw(errno)) };
                Some(Self::Answer { sequence, result })
            }
            REVOKED => Some(Self::Revoked { id: first, waited: Duration::from_micros(second) }),
            _ => None,
        }
    }
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

fn pack(kind: u32, sequence: u32, words: [u64; 3]) -> [u8; MESSAGE] {
    let mut message = [0; MESSAGE];
    let head = u64::from(kind) | u64::from(sequence) << 32;
    let [first, second, third] = words;
    for (place, word) in message.chunks_exact_mut(8).zip([head, first, second, third]) {
        place.copy_from_slice(&word.to_le_bytes());
    }
    message
}

fn unpack(bytes: &[u8]) -> Option<(u32, u32, [u64; 3])> {
    let bytes: &[u8; MESSAGE] = bytes.try_into().ok()?;
    let mut words = [0; 4];
    for (word, place) in words.iter_mut().zip(bytes.chunks_exact(8)) {
        *word = u64::from_le_bytes(place.try_into().ok()?);
    }
    let [head, first, second, third] = words;
    Some((head as u32, (head >> 32) as u32, [first, second, third]))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn every_message_is_read_as_it_was_written() {
        let deadline = Duration::from_millis(1500);
        let requests = [
            Request::Driver,
            Request::HoldContainer(7),
            Request::LetGoContainer(u64::MAX),
            Request::HoldFile(1 << 33),
            Request::LetGoFile(0),
            Request::HoldPin { id: 8, offset: 1 << 40, deadline },
            Request::LetGoPin(9),
            Request::BeginMap(10),
            Request::EndMap(11),
        ];
        for request in requests {
            for sequence in [0, 7, u32::MAX] {
                assert_eq!(Request::decode(&request.encode(sequence)), Some((sequence, request)));
                assert_eq!(Reply::decode(&request.encode(sequence)), None);
            }
        }
        let replies = [
            Reply::Ready { version: VERSION },
            Reply::Answer { sequence: 3, result: Ok(()) },
            Reply::Answer { sequence: u32::MAX, result: Err(Errno::EMFILE) },
            Reply::Revoked { id: 4, waited: deadline },
        ];
        for reply in replies {
            assert_eq!(Reply::decode(&reply.encode()), Some(reply));
            assert_eq!(Request::decode(&reply.encode()), None);
        }
    }

    proptest! {
        #[test]
        fn no_bytes_are_too_strange_to_read(bytes in prop::collection::vec(any::<u8>(), 0..40)) {
            let whole = bytes.len() == MESSAGE;
            prop_assert!(whole || Request::decode(&bytes).is_none());
            prop_assert!(whole || Reply::decode(&bytes).is_none());
        }
    }
}
