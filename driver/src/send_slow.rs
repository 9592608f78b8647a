//! The long way of a send: everything but one entry that fits, with room known.
//!
//! Here reasons to refuse are told apart, room is looked for again, and requests of several entries
//! or none are written. One function serves all operations and stays out of the callers' way; the
//! shared queue uses the same checks and writes.
#![allow(unsafe_code)]

use std::sync::Arc;

use holdfast_wire::completion::CqeOpcode;
use holdfast_wire::wqe::{
    FLAG_INLINE, FLAG_SIGNALED, GID_INDEX_BYTE, Opcode, SendHeader, Sge, send_stride,
};
use holdfast_wire::{PAGE_SIZE, uar};

use crate::account::Posted;
use crate::error::PostError;
use crate::operation::{Bounds, Operation};
use crate::qp_inner::QpInner;
use crate::ring::{Half, ProducerRing, RingShape, Slot};
use crate::send::{Body, SendQueue, fill};

/// What a request carries.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Payload<'a> {
    Entry(Sge),
    Entries(&'a [Sge]),
    Inline(&'a [u8]),
}

impl Payload<'_> {
    fn length(&self) -> u64 {
        match self {
            Self::Entry(sge) => u64::from(sge.length),
            Self::Entries(sges) => sges.iter().map(|sge| u64::from(sge.length)).sum(),
            Self::Inline(bytes) => bytes.len() as u64,
        }
    }
}

/// A send request before it is written.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Request<'a> {
    pub(crate) wr_id: u64,
    pub(crate) op: Operation,
    pub(crate) body: Body,
    /// Host order.
    pub(crate) imm: u32,
    pub(crate) payload: Payload<'a>,
    /// With those that every request of the queue has.
    pub(crate) flags: u32,
}

impl Request<'_> {
    /// Finds the reason to refuse a request, if there is one besides room.
    #[inline]
    pub(crate) fn check(
        &self,
        bounds: &Bounds,
        entries: u32,
        inline: u32,
    ) -> Result<(), PostError> {
        match self.payload {
            Payload::Entries(sges) if sges.len() > entries as usize => {
                return Err(too_many(sges.len(), entries));
            }
            Payload::Inline(bytes) if bytes.len() > inline as usize => {
                let given = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
                return Err(PostError::InlineTooLong { given, limit: inline });
            }
            _ => {}
        }
        if !bounds.has(self.op) {
            return Err(PostError::OpcodeUnsupported { opcode: self.op.opcode() });
        }
        let (given, limit) = (self.payload.length(), bounds.longest());
        if given > u64::from(limit) {
            return Err(PostError::MessageTooLong { given, limit });
        }
        Ok(())
    }

    /// Writes it, but for what is the same for all requests of the slot.
    ///
    /// # Safety
    /// The slot is of a ring of sends that takes so many entries, or inline bytes.
    #[inline]
    pub(crate) unsafe fn write(&self, slot: &Slot<'_>) {
        let (opcode, flags) = (self.op.opcode().wire(), self.flags);
        fill(slot, self.op, self.body, self.imm);
        match self.payload {
            Payload::Entry(sge) => {
                slot.send(1, 0, opcode, flags);
                slot.send_entry(sge);
            }
            Payload::Entries(sges) => {
                slot.send(sges.len() as u32, 0, opcode, flags);
                // SAFETY: behind a send's header, with room by contract.
                unsafe { slot.entries(size_of::<SendHeader>(), sges) };
            }
            Payload::Inline(bytes) => {
                let inline = if bytes.is_empty() { 0 } else { FLAG_INLINE };
                slot.send(0, bytes.len() as u32, opcode, flags | inline);
                // SAFETY: as above.
                unsafe { slot.payload(bytes) };
            }
        }
    }
}

impl SendQueue {
    #[cold]
    #[inline(never)]
    pub(crate) fn post_slow(&mut self, request: Request<'_>) -> Result<(), PostError> {
        request.check(&self.bounds, self.max_sge(), self.max_inline())?;
        self.make_room()?;
        let full = PostError::QueueFull { depth: self.depth() };
        let Request { wr_id, op, flags, .. } = request;
        let slot = self.next(wr_id, op.completes_as(), flags).ok_or(full)?;
        // SAFETY: the slot is of the ring that the request was checked against.
        unsafe { request.write(&slot) };
        self.work.made();
        Ok(())
    }

    /// Looks for room, if none is known, and at what else may have changed meanwhile.
    pub(crate) fn make_room(&mut self) -> Result<(), PostError> {
        let state = self.qp().state();
        if !QpInner::may_send(state) {
            return Err(PostError::QpState { state });
        }
        let index = self.qp().gid_index();
        if index != self.gid_index && self.work.posted() == 0 {
            // Every request names the source GID, whatever its operation (a datagram's address
            // does so itself), at a place where no other operation has anything.
            self.gid_index = index;
            self.work.fix(GID_WORD, u64::from(index) << (8 * (GID_INDEX_BYTE - GID_WORD)));
        }
        self.work.make_room()
    }

    /// Posts a signalled request of no bytes whose completion the completion queue keeps to
    /// itself; on a queue pair in error it is flushed and so retires everything before it.
    pub(crate) fn post_marker(&mut self) -> Result<(), PostError> {
        self.make_room()?;
        let posted = Posted { wr_id: 0, opcode: CqeOpcode::Send, status: Posted::MARKER };
        let full = PostError::QueueFull { depth: self.depth() };
        let slot = self.work.next(posted).ok_or(full)?;
        slot.send(0, 0, Opcode::Send.wire(), FLAG_SIGNALED);
        self.ring();
        Ok(())
    }
}

/// The word of a request that holds its source GID index.
const GID_WORD: usize = GID_INDEX_BYTE / 8 * 8;

pub(crate) fn too_many(given: usize, limit: u32) -> PostError {
    PostError::TooManySges { given: u32::try_from(given).unwrap_or(u32::MAX), limit }
}

/// Bytes of ring slots that `slots` send requests need, in whole pages.
pub(crate) fn send_pages(slots: u32, max_sge: u32, max_inline: u32) -> usize {
    (slots as usize * send_stride(max_sge.max(1), max_inline)).div_ceil(PAGE_SIZE)
}

/// A ring for send requests from byte `offset` of `memory` on.
pub(crate) fn send_ring(
    memory: Arc<crate::dma::DmaBuffer>,
    offset: usize,
    slots: u32,
    max_sge: u32,
    max_inline: u32,
) -> ProducerRing {
    let stride = send_stride(max_sge.max(1), max_inline);
    let header = size_of::<SendHeader>();
    let shape = RingShape { slots, stride, header, max_sge, max_inline };
    ProducerRing::new(memory, Half::Tx, offset, shape)
}

/// The doorbell bits of a send queue.
pub(crate) const SEND_BITS: u32 = uar::QP_SEND;

// No operation but a datagram has anything in the word of the source GID index.
const _: () = {
    let body = GID_WORD - std::mem::offset_of!(SendHeader, wr);
    assert!(size_of::<holdfast_wire::wqe::Atomic>() <= body);
    assert!(size_of::<holdfast_wire::wqe::Rdma>() <= body);
};
