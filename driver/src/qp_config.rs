//! What a queue pair is to be, checked against what the device can, and laid out in pages.

use holdfast_wire::PAGE_SIZE;
use holdfast_wire::attr::QpType;
use holdfast_wire::wqe::MAX_INLINE;

use crate::device::Device;
use crate::doorbell_policy::DoorbellPolicy;
use crate::error::{Error, Result};
use crate::limits::Limits;
use crate::operation::{Bounds, Operation};
use crate::quirks::Quirks;
use crate::recv::recv_pages;
use crate::send_slow::send_pages;
use crate::srq::SrqHandle;

/// What a queue pair is to be.
#[derive(Debug, Clone)]
pub struct QpConfig {
    /// [`QpType::Rc`] or [`QpType::Ud`].
    pub qp_type: QpType,
    /// Sends that may be outstanding.
    pub send_depth: u32,
    /// Receives that may be outstanding; ignored with a shared receive queue.
    pub recv_depth: u32,
    /// Scatter/gather entries of a send.
    pub send_sges: u32,
    /// Scatter/gather entries of a receive; ignored with a shared receive queue.
    pub recv_sges: u32,
    /// Inline bytes of a send.
    pub max_inline: u32,
    /// Every send gives a completion, whatever its flags.
    pub signal_all: bool,
    /// When its queues ring their doorbells.
    pub doorbells: DoorbellPolicy,
    /// Take receives from here.
    pub srq: Option<SrqHandle>,
    /// Do not insist that the completion queues have room for everything that may be outstanding
    /// (they may then overrun, which some devices do not report).
    pub overcommit: bool,
}

impl QpConfig {
    /// A queue pair of that type and depth, one entry per request, no inline data.
    pub fn new(qp_type: QpType, depth: u32) -> Self {
        Self {
            qp_type,
            send_depth: depth,
            recv_depth: depth,
            send_sges: 1,
            recv_sges: 1,
            max_inline: 0,
            signal_all: false,
            doorbells: DoorbellPolicy::default(),
            srq: None,
            overcommit: false,
        }
    }

    /// Refuses what the device cannot do.
    pub(crate) fn check(&self, device: &Device) -> Result<()> {
        let limits = device.limits();
        if !matches!(self.qp_type, QpType::Rc | QpType::Ud) {
            return Err(Error::Unsupported {
                what: "make a queue pair of that type",
                why: "the interface serves RC and UD",
            });
        }
        if self.max_inline > 0 && !device.quirks().inline_sends {
            return Err(Error::Unsupported {
                what: "send inline data",
                why: "it would read the payload as scatter/gather entries; use max_inline 0",
            });
        }
        let depth = u64::from(limits.max_qp_wr);
        let sges = u64::from(limits.max_sge);
        Error::check_limit("send queue depth", u64::from(self.send_depth), depth)?;
        Error::check_limit("send entries", u64::from(self.send_sges), sges)?;
        Error::check_limit("inline bytes", u64::from(self.max_inline), MAX_INLINE as u64)?;
        if self.srq.is_none() {
            Error::check_limit("receive queue depth", u64::from(self.recv_depth), depth)?;
            Error::check_limit("receive entries", u64::from(self.recv_sges), sges)?;
        }
        Ok(())
    }

    /// What may be posted, and up to what length.
    pub(crate) fn bounds(&self, limits: &Limits, quirks: &Quirks) -> Bounds {
        let rc = self.qp_type == QpType::Rc;
        let one_sided = rc && !quirks.sends_only;
        let immediate = !quirks.drops_immediate;
        Bounds::new(if rc { limits.max_message } else { limits.max_datagram })
            .with(Operation::Write, one_sided)
            .with(Operation::WriteImm, one_sided)
            .with(Operation::Read, one_sided)
            .with(Operation::CompareSwap, one_sided && limits.compare_swap)
            .with(Operation::FetchAdd, one_sided && limits.fetch_add)
            .with(Operation::Send, rc)
            .with(Operation::SendImm, rc && immediate)
            .with(Operation::Datagram, !rc)
            .with(Operation::DatagramImm, !rc && immediate)
    }

    /// The same with at least one of everything that there must be one of.
    pub(crate) fn at_least_one(&self) -> Self {
        Self {
            send_depth: self.send_depth.max(1),
            recv_depth: self.recv_depth.max(1),
            send_sges: self.send_sges.max(1),
            recv_sges: self.recv_sges.max(1),
            ..self.clone()
        }
    }
}

/// Depths as rings and pages.
pub(crate) struct Shape {
    pub(crate) send_slots: u32,
    pub(crate) recv_slots: u32,
    pub(crate) send_pages: usize,
    recv_pages: usize,
}

impl Shape {
    pub(crate) fn new(config: &QpConfig, max_ring_pages: u32) -> Result<Self> {
        let send_slots = config.send_depth.next_power_of_two();
        let own = config.srq.is_none();
        let recv_slots = if own { config.recv_depth.next_power_of_two() } else { 0 };
        let shape = Self {
            send_slots,
            recv_slots,
            send_pages: send_pages(send_slots, config.send_sges, config.max_inline),
            recv_pages: if own { recv_pages(recv_slots, config.recv_sges) } else { 0 },
        };
        let most = u64::from(max_ring_pages);
        Error::check_limit("pages of a send queue", shape.send_pages as u64, most)?;
        Error::check_limit("pages of a receive queue", shape.recv_pages as u64, most)?;
        Error::check_limit("pages of a queue pair", shape.pages() as u64, u64::from(u16::MAX))?;
        Ok(shape)
    }

    pub(crate) fn pages(&self) -> usize {
        1 + self.send_pages + self.recv_pages
    }

    pub(crate) fn recv_offset(&self) -> usize {
        (1 + self.send_pages) * PAGE_SIZE
    }
}
