//! What the device allows: its capabilities, less what is known to be untrue, and how much of each
//! is in use. Some models corrupt themselves when asked for one object too many, so the driver
//! counts.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use holdfast_wire::completion::CQE_SIZE;
use holdfast_wire::dsr::{ATOMIC_OP_COMP_SWAP, ATOMIC_OP_FETCH_ADD, Caps};
use holdfast_wire::uar::{HANDLE_MASK, UAR_PAGE_SIZE};
use holdfast_wire::{PAGE_SIZE, attr, pdir};

use crate::account::MAX_DEPTH;
use crate::error::{Error, Result};
use crate::quirks::Quirks;

/// Longest message of the InfiniBand specification, in bytes.
const MAX_MESSAGE: u32 = 1 << 31;

/// The limits that the driver holds its callers to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Queue pairs.
    pub max_qp: u32,
    /// Depth of a send or receive queue.
    pub max_qp_wr: u32,
    /// Scatter/gather entries of a request.
    pub max_sge: u32,
    /// Completion queues.
    pub max_cq: u32,
    /// Depth of a completion queue.
    pub max_cqe: u32,
    /// Memory regions.
    pub max_mr: u32,
    /// Bytes of a memory region.
    pub max_mr_size: u64,
    /// 4 KiB pages of all memory regions together.
    pub max_mr_pages: u32,
    /// Protection domains.
    pub max_pd: u32,
    /// Shared receive queues; 0 where there are none.
    pub max_srq: u32,
    /// Depth of a shared receive queue.
    pub max_srq_wr: u32,
    /// Entries of a receive in a shared receive queue.
    pub max_srq_sge: u32,
    /// Doorbell pages, the driver's own included.
    pub max_uar: u32,
    /// Entries of the GID table.
    pub gid_table: u32,
    /// Bytes of a message.
    pub max_message: u32,
    /// Bytes of a datagram (the port's MTU).
    pub max_datagram: u32,
    /// Whether compare and swap is there.
    pub compare_swap: bool,
    /// Whether fetch and add is there.
    pub fetch_add: bool,
}

impl Limits {
    /// From capabilities and quirks; what the port limits comes later ([`Limits::with_port`]).
    pub(crate) fn new(caps: &Caps, quirks: &Quirks, uar_bar_size: u64) -> Self {
        let bar_pages = u32::try_from(uar_bar_size / UAR_PAGE_SIZE as u64).unwrap_or(u32::MAX);
        let uar_pages = if quirks.uar_limit_in_bytes {
            caps.max_uar / UAR_PAGE_SIZE as u32
        } else {
            caps.max_uar
        };
        let registrable = (pdir::MAX_PAGES * PAGE_SIZE) as u64;
        Self {
            // Handles must fit a doorbell.
            max_qp: caps.max_qp.min(HANDLE_MASK),
            max_qp_wr: caps.max_qp_wr.min(MAX_DEPTH),
            max_sge: caps.max_sge.min(4096),
            max_cq: caps.max_cq.min(HANDLE_MASK),
            max_cqe: caps.max_cqe.min(largest_cq(quirks.max_ring_pages)),
            max_mr: caps.max_mr,
            max_mr_size: match caps.max_mr_size {
                0 => registrable,
                size => size.min(registrable),
            },
            max_mr_pages: quirks.max_registered_pages,
            max_pd: caps.max_pd,
            max_srq: caps.max_srq.min(HANDLE_MASK),
            max_srq_wr: caps.max_srq_wr.min(MAX_DEPTH),
            max_srq_sge: caps.max_srq_sge.min(4096),
            max_uar: bar_pages.min(uar_pages),
            gid_table: caps.gid_tbl_len,
            max_message: MAX_MESSAGE,
            max_datagram: 4096,
            compare_swap: caps.atomic_ops & ATOMIC_OP_COMP_SWAP != 0 && !quirks.sends_only,
            fetch_add: caps.atomic_ops & ATOMIC_OP_FETCH_ADD != 0 && !quirks.sends_only,
        }
    }

    /// With what the port says about messages.
    pub(crate) fn with_port(mut self, port: &attr::PortAttr, quirks: &Quirks) -> Self {
        if !quirks.message_limit_unreliable && port.max_msg_sz != 0 {
            self.max_message = port.max_msg_sz.min(MAX_MESSAGE);
        }
        if let Some(mtu) = attr::mtu_bytes(port.active_mtu) {
            self.max_datagram = mtu;
        }
        self
    }
}

/// Entries of the largest completion queue that fits so many pages, one of them for its state.
fn largest_cq(pages: u32) -> u32 {
    let entries = (pages.max(2) - 1) * (PAGE_SIZE / CQE_SIZE) as u32;
    1 << entries.ilog2()
}

/// How many objects of a kind exist, against how many may.
#[derive(Debug)]
pub(crate) struct Counter {
    what: &'static str,
    limit: u32,
    used: Arc<AtomicU32>,
}

/// Objects that were counted; dropping it makes room for others.
#[derive(Debug)]
pub(crate) struct Permit {
    count: u32,
    used: Arc<AtomicU32>,
}

impl Counter {
    fn new(what: &'static str, limit: u32) -> Self {
        Self { what, limit, used: Arc::default() }
    }

    pub(crate) fn take(&self) -> Result<Permit> {
        self.take_many(1)
    }

    pub(crate) fn take_many(&self, count: u32) -> Result<Permit> {
        let taken = self.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |used| {
            used.checked_add(count).filter(|used| *used <= self.limit)
        });
        match taken {
            Ok(_) => Ok(Permit { count, used: self.used.clone() }),
            Err(used) => Err(Error::Limit {
                what: self.what,
                asked: u64::from(used) + u64::from(count),
                limit: u64::from(self.limit),
            }),
        }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.used.fetch_sub(self.count, Ordering::Relaxed);
    }
}

/// Counters of all kinds of objects.
#[derive(Debug)]
pub(crate) struct Counts {
    pub(crate) queue_pairs: Counter,
    pub(crate) completion_queues: Counter,
    pub(crate) memory_regions: Counter,
    pub(crate) registered_pages: Counter,
    pub(crate) protection_domains: Counter,
    pub(crate) shared_receive_queues: Counter,
}

impl Counts {
    pub(crate) fn new(limits: &Limits) -> Self {
        Self {
            queue_pairs: Counter::new("queue pairs", limits.max_qp),
            completion_queues: Counter::new("completion queues", limits.max_cq),
            memory_regions: Counter::new("memory regions", limits.max_mr),
            registered_pages: Counter::new("pages of all memory regions", limits.max_mr_pages),
            protection_domains: Counter::new("protection domains", limits.max_pd),
            shared_receive_queues: Counter::new("shared receive queues", limits.max_srq),
        }
    }
}
