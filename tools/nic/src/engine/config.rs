//! What an engine and its NICs are given at the start, and what a call gives back.

use std::time::Duration;

use super::host::MAX_SGE;

/// A NIC of an engine; given by `Engine::add_nic` and good for the engine's life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NicId(pub(crate) usize);

impl NicId {
    /// The NICs of an engine count from 0 in the order they were added.
    pub fn index(self) -> usize {
        self.0
    }
}

/// A link to another process; given by `Engine::add_link`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LinkId(pub(crate) usize);

/// What a NIC does when an address has no translation, or its memory vanished.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MissPolicy {
    /// Park the queue pair and try again, like a NIC with page requests, for at most `bound`; then
    /// as [`MissPolicy::Fail`].
    Stall {
        /// How long at most.
        bound: Duration,
    },
    /// Fail at once: LocalProtection for the requester's own memory; a remote operational NAK and
    /// a responder in error for the responder's.
    Fail,
}

/// How a NIC is made.
#[derive(Debug, Clone, Copy)]
pub struct NicConfig {
    /// What to do on a translation miss.
    pub miss: MissPolicy,
    /// How much of everything there may be.
    pub limits: Limits,
}

impl Default for NicConfig {
    fn default() -> Self {
        Self {
            miss: MissPolicy::Stall { bound: Duration::from_millis(100) },
            limits: Limits::default(),
        }
    }
}

/// How much of everything a NIC may hold. Handles are 16 bits wide, so that no count of objects is
/// taken above 65536, and no list of entries above [`MAX_SGE`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Protection domains.
    pub max_pd: u32,
    /// Memory regions.
    pub max_mr: u32,
    /// Completion queues.
    pub max_cq: u32,
    /// Shared receive queues.
    pub max_srq: u32,
    /// Queue pairs, of which handle 0 is nobody's and handle 1 is the general services one's.
    pub max_qp: u32,
    /// Work requests per queue of a queue pair.
    pub max_qp_wr: u32,
    /// Scatter/gather entries per work request.
    pub max_sge: u32,
    /// Inline bytes per send.
    pub max_inline: u32,
    /// Entries per completion queue.
    pub max_cqe: u32,
    /// Receives per shared receive queue.
    pub max_srq_wr: u32,
    /// Reads and atomics outstanding per queue pair, either role.
    pub max_rd_atomic: u8,
    /// Pages per memory region.
    pub max_mr_pages: u32,
    /// Pages of all memory regions together; each takes 8 bytes of the NIC's own memory. A region
    /// for fast registrations counts with the most it may have.
    pub max_registered_pages: u32,
    /// Pages per fast registration.
    pub max_fast_reg_pages: u32,
    /// Entries of the GID table.
    pub max_gids: u32,
    /// Largest message in bytes.
    pub max_message: u32,
    /// Largest path MTU code (1..5).
    pub max_mtu: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_pd: 4096,
            max_mr: 65536,
            max_cq: 8192,
            max_srq: 4096,
            max_qp: 8192,
            max_qp_wr: 16384,
            max_sge: MAX_SGE as u32,
            max_inline: super::host::MAX_INLINE as u32,
            max_cqe: 65536,
            max_srq_wr: 16384,
            max_rd_atomic: 16,
            max_mr_pages: holdfast_wire::pdir::MAX_PAGES as u32,
            max_registered_pages: 1 << 24,
            max_fast_reg_pages: 512,
            max_gids: 256,
            max_message: 1 << 30,
            max_mtu: 5,
        }
    }
}

/// What one call of `Engine::poll` did and what it expects next.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Progress {
    /// Something was done.
    pub did_work: bool,
    /// There is more to do now: call again soon.
    pub more_to_do: bool,
    /// When to call again at the latest, on the clock of `now` (nanoseconds), if nothing else
    /// happens before.
    pub next_deadline: Option<u64>,
}
