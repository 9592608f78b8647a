//! What one side tells the other: its queue pairs, its GID, the regions it lets the other reach.

use serde::{Deserialize, Serialize};

use super::{ConnectError, MAX_QUEUE_PAIRS, MAX_REGIONS};

/// A queue pair as its peer needs to know it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct QueuePairInfo {
    /// Its number, 24 bits.
    pub qpn: u32,
    /// First packet sequence number it sends, 24 bits.
    pub psn: u32,
    /// Its queue key (UD), 0 otherwise.
    pub qkey: u32,
}

/// A memory region as its peer needs to know it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct RemoteRegion {
    /// Address of the first byte in the region's own address space.
    pub addr: u64,
    /// Bytes.
    pub len: u64,
    /// Remote key.
    pub rkey: u32,
}

/// What one side tells the other.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Endpoint {
    /// What this side is about to do; both sides must say the same. Empty agrees with anything.
    pub purpose: String,
    /// GID of its port, index 0.
    pub gid: [u8; 16],
    /// Its largest path MTU code; the smaller of both is used.
    pub mtu: u32,
    /// Reads and atomics it can have under way on a connection; 0 leaves that to the other side.
    pub rd_atomic: u8,
    /// Its queue pairs, in the order in which they are to be connected.
    pub queue_pairs: Vec<QueuePairInfo>,
    /// The regions that the peer may reach.
    pub regions: Vec<RemoteRegion>,
}

impl Endpoint {
    pub(super) fn check(&self) -> Result<(), ConnectError> {
        let malformed = |text: String| Err(ConnectError::Malformed(text));
        if self.queue_pairs.len() > MAX_QUEUE_PAIRS || self.regions.len() > MAX_REGIONS {
            return malformed(format!(
                "{} queue pairs and {} regions (at most {MAX_QUEUE_PAIRS} and {MAX_REGIONS})",
                self.queue_pairs.len(),
                self.regions.len()
            ));
        }
        if let Some(qp) = self.queue_pairs.iter().find(|qp| qp.qpn >> 24 != 0 || qp.psn >> 24 != 0)
        {
            return malformed(format!(
                "queue pair number {:#x} or sequence number {:#x} has more than 24 bits",
                qp.qpn, qp.psn
            ));
        }
        if let Some(region) = self.regions.iter().find(|r| r.addr.checked_add(r.len).is_none()) {
            return malformed(format!("a region of {:#x} bytes at {:#x}", region.len, region.addr));
        }
        Ok(())
    }
}
