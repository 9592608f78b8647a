//! What a send request asks for: flags, the peer's memory, a datagram's destination.

use std::ops::BitOr;

use holdfast_wire::wqe::{FLAG_FENCE, FLAG_SIGNALED, FLAG_SOLICITED};

use crate::ah::AddressHandle;

/// What a send request asks for besides its operation. Combine with `|`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SendFlags(pub(crate) u32);

impl SendFlags {
    /// Nothing special: no completion unless it fails or the queue pair signals all.
    pub const NONE: Self = Self(0);
    /// Give a completion on success.
    pub const SIGNALED: Self = Self(FLAG_SIGNALED);
    /// Wait for earlier reads and atomics of this queue.
    pub const FENCE: Self = Self(FLAG_FENCE);
    /// Raise a solicited event at the receiver.
    pub const SOLICITED: Self = Self(FLAG_SOLICITED);

    /// Whether all of `other` is set.
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }
}

impl BitOr for SendFlags {
    type Output = Self;
    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

/// Memory of the peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Remote {
    /// Address in the peer's region.
    pub addr: u64,
    /// The region's remote key.
    pub rkey: u32,
}

/// Where a datagram goes.
#[derive(Debug, Clone, Copy)]
pub struct Datagram<'a> {
    /// The path.
    pub to: &'a AddressHandle,
    /// Queue pair number there.
    pub qpn: u32,
    /// Its queue key.
    pub qkey: u32,
}
