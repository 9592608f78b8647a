//! userfaultfd's messages (`struct uffd_msg` of linux/userfaultfd.h).

use std::ops::Range;

/// Bytes of a message.
pub const LEN: usize = 32;

/// What a message says. Addresses are of this process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Message {
    /// The process forked; the descriptor is for the child's memory, and the reader's to close.
    Fork { fd: i32 },
    /// A range went elsewhere.
    Remap { from: u64, to: u64, len: u64 },
    /// A range's pages are about to be dropped.
    Remove(Range<u64>),
    /// A range was unmapped.
    Unmap(Range<u64>),
    /// Not for us.
    Other,
}

/// Reads one.
pub fn parse(bytes: &[u8; LEN]) -> Message {
    let word = |at: usize| bytes[at..].first_chunk().map_or(0, |bytes| u64::from_ne_bytes(*bytes));
    let (a, b, c) = (word(8), word(16), word(24));
    match bytes[0] {
        0x13 => Message::Fork { fd: a as u32 as i32 },
        0x14 => Message::Remap { from: a, to: b, len: c },
        0x15 => Message::Remove(a..b),
        0x16 => Message::Unmap(a..b),
        _ => Message::Other,
    }
}
