//! The receive queue of a queue pair: the same shape as the send queue, with one operation.

use std::sync::Arc;

use holdfast_wire::PAGE_SIZE;
use holdfast_wire::completion::{CqeOpcode, Status};
use holdfast_wire::wqe::{RecvHeader, Sge, recv_stride};

use crate::account::Posted;
use crate::dma::DmaBuffer;
use crate::error::PostError;
use crate::qp_inner::QpInner;
use crate::ring::{Half, ProducerRing, RingShape, Slot};
use crate::send_slow::too_many;
use crate::work_queue::{Book, WorkQueue};

/// The receive half of a queue pair. It has one owner.
pub struct RecvQueue {
    work: WorkQueue,
}

impl std::fmt::Debug for RecvQueue {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "RecvQueue(qp {}, depth {})", self.work.qp().handle, self.depth())
    }
}

impl RecvQueue {
    pub(crate) fn new(work: WorkQueue) -> Self {
        Self { work }
    }

    /// Posts a receive into `sges`. On a UD queue pair the first 40 bytes receive the GRH. Allowed
    /// from INIT on.
    #[inline]
    pub fn post(&mut self, wr_id: u64, sges: &[Sge]) -> Result<(), PostError> {
        if let [sge] = sges
            && let Some(slot) = self.next(wr_id)
        {
            slot.receive(1);
            slot.receive_entry(*sge);
            return Ok(());
        }
        self.post_slow(wr_id, sges)
    }

    /// Shows everything posted to the device.
    #[inline]
    pub fn ring(&mut self) {
        self.work.ring();
    }

    /// How many receives may be outstanding.
    pub fn depth(&self) -> u32 {
        self.work.depth()
    }

    /// Receives posted, rung for or not, that have not completed.
    pub fn outstanding(&self) -> u32 {
        self.work.outstanding()
    }

    /// Receives that may still be posted before completions must be polled.
    pub fn available(&self) -> u32 {
        self.work.available()
    }

    /// Most scatter/gather entries of a receive.
    pub fn max_sge(&self) -> u32 {
        self.work.max_sge()
    }

    #[inline(always)]
    fn next(&mut self, wr_id: u64) -> Option<Slot<'_>> {
        let (opcode, status) = (CqeOpcode::Recv, Status::Success);
        self.work.next(Posted { wr_id, opcode, status })
    }

    /// No room as far as is known, or not one entry.
    #[cold]
    #[inline(never)]
    fn post_slow(&mut self, wr_id: u64, sges: &[Sge]) -> Result<(), PostError> {
        if sges.len() > self.max_sge() as usize {
            return Err(too_many(sges.len(), self.max_sge()));
        }
        let state = self.qp().state();
        if !QpInner::may_receive(state) {
            return Err(PostError::QpState { state });
        }
        self.work.make_room()?;
        let full = PostError::QueueFull { depth: self.depth() };
        write_receive(&self.next(wr_id).ok_or(full)?, sges);
        self.work.made();
        Ok(())
    }

    /// Starts over after the queue pair went to RESET.
    pub(crate) fn restart(&mut self, book: &Book) {
        self.work.start(book);
    }

    pub(crate) fn qp(&self) -> &Arc<QpInner> {
        self.work.qp()
    }
}

/// Writes a receive of any number of entries, which must be one that the ring was made for.
#[allow(unsafe_code)]
#[inline]
pub(crate) fn write_receive(slot: &Slot<'_>, sges: &[Sge]) {
    slot.receive(sges.len() as u32);
    // SAFETY: the slot has a receive's header; the number of entries was checked.
    unsafe { slot.entries(size_of::<RecvHeader>(), sges) };
}

/// Whole pages that `slots` receives need.
pub(crate) fn recv_pages(slots: u32, max_sge: u32) -> usize {
    (slots as usize * recv_stride(max_sge.max(1))).div_ceil(PAGE_SIZE)
}

/// A ring for receives from byte `offset` of `memory` on.
pub(crate) fn recv_ring(
    memory: Arc<DmaBuffer>,
    offset: usize,
    slots: u32,
    max_sge: u32,
) -> ProducerRing {
    let (stride, header) = (recv_stride(max_sge.max(1)), size_of::<RecvHeader>());
    let shape = RingShape { slots, stride, header, max_sge, max_inline: 0 };
    ProducerRing::new(memory, Half::Rx, offset, shape)
}
