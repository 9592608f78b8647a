//! The receive queue of a queue pair: the same shape as the send queue, with one operation.

use std::sync::Arc;

use holdfast_wire::PAGE_SIZE;
use holdfast_wire::wqe::{RecvHeader, Sge, recv_stride};

use crate::account::{Account, Key, Tag};
use crate::dma::DmaBuffer;
use crate::error::PostError;
use crate::qp::QpInner;
use crate::ring::{Half, ProducerRing};
use crate::send::too_many;
use crate::uar::Doorbell;

/// What a receive queue is made of.
pub(crate) struct RecvParts {
    pub(crate) ring: ProducerRing,
    pub(crate) account: Arc<Account>,
    pub(crate) key: Key,
    pub(crate) depth: u32,
    pub(crate) doorbell: Doorbell,
    pub(crate) doorbell_word: u32,
    pub(crate) qp: Arc<QpInner>,
}

/// The receive half of a queue pair. It has one owner.
pub struct RecvQueue {
    ring: ProducerRing,
    posted: u32,
    limit: u32,
    tag_base: u64,
    account: Arc<Account>,
    doorbell: Doorbell,
    doorbell_word: u32,
    depth: u32,
    qp: Arc<QpInner>,
}

impl std::fmt::Debug for RecvQueue {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "RecvQueue(qp {}, depth {})", self.qp.handle, self.depth)
    }
}

impl RecvQueue {
    pub(crate) fn new(parts: RecvParts) -> Self {
        Self {
            ring: parts.ring,
            posted: 0,
            limit: 0,
            tag_base: parts.key.base(),
            account: parts.account,
            doorbell: parts.doorbell,
            doorbell_word: parts.doorbell_word,
            depth: parts.depth,
            qp: parts.qp,
        }
    }

    /// Posts a receive into `sges`. On a UD queue pair the first 40 bytes receive the GRH. Allowed
    /// from INIT on.
    #[inline]
    pub fn post(&mut self, wr_id: u64, sges: &[Sge]) -> Result<(), PostError> {
        if sges.len() > self.ring.max_sge() as usize {
            return Err(too_many(sges.len(), self.ring.max_sge()));
        }
        if self.posted == self.limit {
            self.refresh()?;
        }
        self.account.record(self.posted, wr_id);
        let tag = Tag::new(self.tag_base, self.posted, 0, 0);
        self.ring.write_recv(self.posted, tag.0, sges);
        self.posted = self.posted.wrapping_add(1);
        Ok(())
    }

    /// Shows everything posted to the device.
    #[inline]
    pub fn ring(&mut self) {
        self.account.publish(self.posted);
        self.ring.publish(self.posted);
        self.doorbell.ring(self.doorbell_word);
    }

    /// How many receives may be outstanding.
    pub fn depth(&self) -> u32 {
        self.depth
    }

    /// Receives posted, rung for or not, that have not completed.
    pub fn outstanding(&self) -> u32 {
        self.posted.wrapping_sub(self.account.completed())
    }

    /// Receives that may still be posted before completions must be polled.
    pub fn available(&self) -> u32 {
        self.depth - self.outstanding().min(self.depth)
    }

    /// Most scatter/gather entries of a receive.
    pub fn max_sge(&self) -> u32 {
        self.ring.max_sge()
    }

    #[cold]
    #[inline(never)]
    fn refresh(&mut self) -> Result<(), PostError> {
        let state = self.qp.state();
        if !QpInner::may_receive(state) {
            return Err(PostError::QpState { state });
        }
        self.qp.device().forget_notifications();
        // What has completed has been fetched, so credit (at most the depth, which is at most the
        // ring) never runs past ring space. The device's index may lag behind and is only checked.
        self.ring.check_head().map_err(|value| PostError::DeviceNonsense { value })?;
        let credit = self.available();
        if credit == 0 {
            return Err(PostError::QueueFull { depth: self.depth });
        }
        self.limit = self.posted.wrapping_add(credit);
        Ok(())
    }

    /// Starts over after the queue pair went to RESET.
    pub(crate) fn restart(&mut self, key: Key, account: Arc<Account>) {
        self.tag_base = key.base();
        self.account = account;
        (self.posted, self.limit) = (0, 0);
    }

    pub(crate) fn qp(&self) -> &Arc<QpInner> {
        &self.qp
    }

    pub(crate) fn slots(&self) -> u32 {
        self.ring.slots()
    }
}

/// Whole pages that `slots` receives need.
pub(crate) fn recv_pages(slots: u32, max_sge: u32) -> usize {
    (slots as usize * recv_stride(max_sge)).div_ceil(PAGE_SIZE)
}

/// A ring for receives from byte `offset` of `memory` on.
pub(crate) fn recv_ring(
    memory: Arc<DmaBuffer>,
    offset: usize,
    slots: u32,
    max_sge: u32,
) -> ProducerRing {
    let header = size_of::<RecvHeader>();
    ProducerRing::new(memory, Half::Rx, offset, slots, recv_stride(max_sge), header, max_sge, 0)
}
