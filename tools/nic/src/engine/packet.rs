//! What travels between queue pairs: requests, replies, and the arithmetic of their numbers.
//!
//! A request is a *burst*: up to [`MAX_BURST`] bytes of one message, standing for as many packets
//! of one path MTU as that takes. It says where in the message it lies, so that the responder
//! checks every burst by itself. Each packet has its number (PSN) as the InfiniBand specification
//! counts them, so that acknowledgements, duplicates and losses work packet by packet.
//! A READ asks for one burst of the message at a time.

/// Most payload bytes of a burst.
pub(crate) const MAX_BURST: u32 = 64 * 1024;

/// A GID, as 16 bytes in network order.
pub type Gid = [u8; 16];

const PSN_MASK: u32 = 0xff_ffff;

/// `psn + n` modulo 2^24.
#[inline]
pub(crate) fn psn_add(psn: u32, n: u32) -> u32 {
    psn.wrapping_add(n) & PSN_MASK
}

/// How far `a` is ahead of `b` on the circle of 2^24, negative when it is behind.
#[inline]
pub(crate) fn psn_diff(a: u32, b: u32) -> i32 {
    (a.wrapping_sub(b) << 8) as i32 >> 8
}

/// Packets that `len` bytes take: at least one.
#[inline]
pub(crate) fn packets(len: u32, mtu: u32) -> u32 {
    // An MTU is a power of two between 256 and 4096.
    (len.saturating_add(mtu - 1) >> mtu.trailing_zeros()).max(1)
}

/// What a request asks of the responder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Op {
    Send = 0,
    SendImm = 1,
    SendInv = 2,
    Write = 3,
    WriteImm = 4,
    Read = 5,
    CompareSwap = 6,
    FetchAdd = 7,
    MaskedCompareSwap = 8,
    MaskedFetchAdd = 9,
}

impl Op {
    pub(crate) const ALL: [Op; 10] = [
        Op::Send,
        Op::SendImm,
        Op::SendInv,
        Op::Write,
        Op::WriteImm,
        Op::Read,
        Op::CompareSwap,
        Op::FetchAdd,
        Op::MaskedCompareSwap,
        Op::MaskedFetchAdd,
    ];

    pub(crate) fn is_atomic(self) -> bool {
        matches!(self, Op::CompareSwap | Op::FetchAdd | Op::MaskedCompareSwap | Op::MaskedFetchAdd)
    }
}

/// Which queue pair, from where: both ends of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Ends {
    pub(crate) to: u128,
    pub(crate) to_qpn: u32,
    pub(crate) from: u128,
    pub(crate) from_qpn: u32,
}

/// A burst of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Request {
    pub(crate) ends: Ends,
    pub(crate) op: Op,
    /// The receiver's completion is a solicited one.
    pub(crate) solicited: bool,
    /// Number of the first packet.
    pub(crate) psn: u32,
    /// Packets.
    pub(crate) packets: u32,
    /// Where in the message the burst begins.
    pub(crate) offset: u32,
    /// Bytes of the burst.
    pub(crate) len: u32,
    /// Bytes of the message.
    pub(crate) total: u32,
    /// Remote address of the message (not of the burst).
    pub(crate) addr: u64,
    /// Remote key.
    pub(crate) rkey: u32,
    /// Immediate data or key to invalidate.
    pub(crate) imm: u32,
    /// Atomics: compare or add, swap, compare mask or boundary, swap mask.
    pub(crate) args: [u64; 4],
}

impl Request {
    pub(crate) fn is_last(&self) -> bool {
        self.offset.checked_add(self.len) == Some(self.total)
    }

    /// Number of the last packet.
    pub(crate) fn last_psn(&self) -> u32 {
        psn_add(self.psn, self.packets.wrapping_sub(1))
    }
}

/// A datagram.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Datagram {
    pub(crate) ends: Ends,
    pub(crate) qkey: u32,
    pub(crate) solicited: bool,
    /// Immediate data, if it carries some.
    pub(crate) imm: Option<u32>,
    /// Traffic class and flow label, as in a GRH's first word.
    pub(crate) class_flow: u32,
    pub(crate) hop_limit: u8,
    pub(crate) len: u32,
}

/// Why a responder refuses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Nak {
    /// Packets are missing: send again from the number given.
    Sequence = 0,
    InvalidRequest = 1,
    Access = 2,
    Operation = 3,
}

impl Nak {
    pub(crate) const ALL: [Nak; 4] =
        [Nak::Sequence, Nak::InvalidRequest, Nak::Access, Nak::Operation];
}

/// What a responder answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reply {
    /// Everything up to this number was carried out.
    Ack { psn: u32 },
    /// The bytes of a READ burst come with it.
    Read { psn: u32, packets: u32 },
    /// The old value of an atomic's target.
    Atomic { psn: u32, value: u64 },
    /// Refused at this number.
    Nak { psn: u32, why: Nak },
    /// No receive posted; try again after the timer of this code.
    Rnr { psn: u32, timer: u8 },
    /// A translation is missing for now; try again soon.
    Busy { psn: u32 },
    /// The requester's own memory was gone (only within a process).
    RequesterGone,
    /// Nobody answers.
    Silence,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn psn_distance_wraps_at_24_bits() {
        for (a, b, d) in [(0, 0, 0), (1, 0, 1), (0, 1, -1), (0, 0xff_ffff, 1), (5, 0xff_fffe, 7)] {
            assert_eq!(psn_diff(a, b), d, "{a:#x} - {b:#x}");
            if d >= 0 {
                assert_eq!(psn_add(b, d as u32), a);
            }
        }
    }

    #[test]
    fn a_message_takes_a_packet_per_mtu_and_at_least_one() {
        for (len, mtu, n) in [(0, 1024, 1), (1, 256, 1), (256, 256, 1), (257, 256, 2)] {
            assert_eq!(packets(len, mtu), n);
        }
        assert_eq!(packets(1 << 30, 4096), 1 << 18);
    }
}
