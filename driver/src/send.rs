//! The send queue: one method per operation, each with what that operation needs and no more.
//!
//! A post checks its limits, notes what the completion will say, and writes the request into the
//! ring at a position only this side knows. [`SendQueue::ring`] shows a whole batch to the device
//! with one store of the tail and one doorbell. Nothing here allocates, locks or makes a system
//! call.
//!
//! The common case has a way of its own: one scatter/gather entry (or inline data), nothing to
//! refuse, room known. It writes the words the operation has, and leaves those that are the same for
//! every request of a slot. Everything else (no room as far as is known, several entries, a reason
//! to refuse) goes the long way, in [`crate::send_slow`]. What both ways cost is counted by the
//! bench `instructions`; see `docs/fast-path.md`.
//!
//! Posting is safe in Rust's sense: the addresses in a scatter/gather entry are the device's, which
//! checks them against the region its key names. What the device writes to a region is outside
//! Rust's view, so regions must be raw memory; the library above gives them lifetimes.

use std::sync::Arc;

use holdfast_wire::completion::{CqeOpcode, Status};
use holdfast_wire::wqe::{FLAG_INLINE, FLAG_SIGNALED, Sge};

use crate::account::Posted;
use crate::error::PostError;
use crate::operation::{Bounds, Operation};
use crate::qp_inner::QpInner;
use crate::request::{Datagram, Remote, SendFlags};
use crate::ring::Slot;
use crate::send_slow::{Payload, Request};
use crate::work_queue::{Book, WorkQueue};

/// The send half of a queue pair. It has one owner.
pub struct SendQueue {
    pub(crate) work: WorkQueue,
    pub(crate) bounds: Bounds,
    /// Flags that every request has: `SIGNALED`, or none.
    always: u32,
    /// The source GID index that every request names.
    pub(crate) gid_index: u8,
    /// Position after the last request that asked for no completion.
    unsignalled: u32,
}

impl std::fmt::Debug for SendQueue {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "SendQueue(qp {}, depth {})", self.work.qp().handle, self.depth())
    }
}

/// What an operation says in the body of its request.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Body {
    Nothing,
    Remote(Remote),
    Atomic { remote: Remote, compare_add: u64, swap: u64 },
    Datagram([u64; 6]),
}

impl SendQueue {
    pub(crate) fn new(work: WorkQueue, bounds: Bounds, signal_all: bool) -> Self {
        let always = if signal_all { FLAG_SIGNALED } else { 0 };
        Self { work, bounds, always, gid_index: 0, unsignalled: 0 }
    }

    /// RDMA WRITE of `sges` to `remote`.
    #[inline]
    pub fn write(
        &mut self,
        wr_id: u64,
        sges: &[Sge],
        remote: Remote,
        flags: SendFlags,
    ) -> Result<(), PostError> {
        self.post(wr_id, Operation::Write, Body::Remote(remote), 0, sges, flags)
    }

    /// RDMA WRITE with immediate data (host order), which uses up a receive at the peer.
    #[inline]
    pub fn write_imm(
        &mut self,
        wr_id: u64,
        sges: &[Sge],
        remote: Remote,
        imm: u32,
        flags: SendFlags,
    ) -> Result<(), PostError> {
        self.post(wr_id, Operation::WriteImm, Body::Remote(remote), imm, sges, flags)
    }

    /// RDMA WRITE of `payload`, copied into the ring now.
    #[inline]
    pub fn write_inline(
        &mut self,
        wr_id: u64,
        payload: &[u8],
        remote: Remote,
        flags: SendFlags,
    ) -> Result<(), PostError> {
        self.post_inline(wr_id, Operation::Write, Body::Remote(remote), payload, flags)
    }

    /// RDMA READ of `remote` into `sges`.
    #[inline]
    pub fn read(
        &mut self,
        wr_id: u64,
        sges: &[Sge],
        remote: Remote,
        flags: SendFlags,
    ) -> Result<(), PostError> {
        self.post(wr_id, Operation::Read, Body::Remote(remote), 0, sges, flags)
    }

    /// SEND of `sges` to a receive of the peer.
    #[inline]
    pub fn send(&mut self, wr_id: u64, sges: &[Sge], flags: SendFlags) -> Result<(), PostError> {
        self.post(wr_id, Operation::Send, Body::Nothing, 0, sges, flags)
    }

    /// SEND with immediate data (host order).
    #[inline]
    pub fn send_imm(
        &mut self,
        wr_id: u64,
        sges: &[Sge],
        imm: u32,
        flags: SendFlags,
    ) -> Result<(), PostError> {
        self.post(wr_id, Operation::SendImm, Body::Nothing, imm, sges, flags)
    }

    /// SEND of `payload`, copied into the ring now.
    #[inline]
    pub fn send_inline(
        &mut self,
        wr_id: u64,
        payload: &[u8],
        flags: SendFlags,
    ) -> Result<(), PostError> {
        self.post_inline(wr_id, Operation::Send, Body::Nothing, payload, flags)
    }

    /// Atomic compare and swap on 8 bytes at `remote`; the old value lands in `result`.
    #[inline]
    pub fn compare_swap(
        &mut self,
        wr_id: u64,
        result: Sge,
        remote: Remote,
        compare: u64,
        swap: u64,
        flags: SendFlags,
    ) -> Result<(), PostError> {
        check_atomic(&result, remote)?;
        let body = Body::Atomic { remote, compare_add: compare, swap };
        self.post(wr_id, Operation::CompareSwap, body, 0, &[result], flags)
    }

    /// Atomic fetch and add on 8 bytes at `remote`; the old value lands in `result`.
    #[inline]
    pub fn fetch_add(
        &mut self,
        wr_id: u64,
        result: Sge,
        remote: Remote,
        add: u64,
        flags: SendFlags,
    ) -> Result<(), PostError> {
        check_atomic(&result, remote)?;
        let body = Body::Atomic { remote, compare_add: add, swap: 0 };
        self.post(wr_id, Operation::FetchAdd, body, 0, &[result], flags)
    }

    /// SEND of a datagram, of at most the path MTU (UD queue pairs only).
    #[inline]
    pub fn ud_send(
        &mut self,
        wr_id: u64,
        sges: &[Sge],
        to: Datagram<'_>,
        flags: SendFlags,
    ) -> Result<(), PostError> {
        let body = Body::Datagram(to.to.body(&to));
        self.post(wr_id, Operation::Datagram, body, 0, sges, flags)
    }

    /// SEND of a datagram with immediate data (host order).
    #[inline]
    pub fn ud_send_imm(
        &mut self,
        wr_id: u64,
        sges: &[Sge],
        to: Datagram<'_>,
        imm: u32,
        flags: SendFlags,
    ) -> Result<(), PostError> {
        let body = Body::Datagram(to.to.body(&to));
        self.post(wr_id, Operation::DatagramImm, body, imm, sges, flags)
    }

    /// Shows everything posted to the device: one store of the tail and one doorbell, however
    /// many requests there are. Never blocks on a device whose doorbell pages are mapped and that
    /// is awake; else it makes one register write.
    #[inline]
    pub fn ring(&mut self) {
        self.work.ring();
    }

    /// How many requests may be outstanding.
    pub fn depth(&self) -> u32 {
        self.work.depth()
    }

    /// Requests posted, rung for or not, that have not been retired. An unsignalled request is
    /// retired by the completion of a later one.
    pub fn outstanding(&self) -> u32 {
        self.work.outstanding()
    }

    /// Requests that may still be posted before completions must be polled.
    pub fn available(&self) -> u32 {
        self.work.available()
    }

    /// Most scatter/gather entries of a request.
    pub fn max_sge(&self) -> u32 {
        self.work.max_sge()
    }

    /// Most inline bytes of a request.
    pub fn max_inline(&self) -> u32 {
        self.work.max_inline()
    }

    #[inline(always)]
    fn post(
        &mut self,
        wr_id: u64,
        op: Operation,
        body: Body,
        imm: u32,
        sges: &[Sge],
        flags: SendFlags,
    ) -> Result<(), PostError> {
        let flags = self.effective(flags);
        let payload = if let [sge] = sges {
            if self.bounds.allow(op, sge.length)
                && let Some(slot) = self.next(wr_id, op.completes_as(), flags)
            {
                slot.send(1, 0, op.opcode().wire(), flags);
                fill(&slot, op, body, imm);
                slot.send_entry(*sge);
                return Ok(());
            }
            // A copy, so that the usual way need not put the entry where it can be pointed at.
            Payload::Entry(*sge)
        } else {
            Payload::Entries(sges)
        };
        self.post_slow(Request { wr_id, op, body, imm, payload, flags })
    }

    #[inline(always)]
    #[allow(unsafe_code)]
    fn post_inline(
        &mut self,
        wr_id: u64,
        op: Operation,
        body: Body,
        payload: &[u8],
        flags: SendFlags,
    ) -> Result<(), PostError> {
        let flags = self.effective(flags);
        let length = payload.len();
        // No bytes are no inline data either; that is left to the other way.
        if length.wrapping_sub(1) < self.work.max_inline() as usize
            && self.bounds.allow(op, length as u32)
            && let Some(slot) = self.next(wr_id, op.completes_as(), flags)
        {
            slot.send(0, length as u32, op.opcode().wire(), flags | FLAG_INLINE);
            fill(&slot, op, body, 0);
            // SAFETY: the ring's slots have room for `max_inline` bytes.
            unsafe { slot.payload(payload) };
            return Ok(());
        }
        let payload = Payload::Inline(payload);
        self.post_slow(Request { wr_id, op, body, imm: 0, payload, flags })
    }

    /// Flags that every request has.
    pub(crate) fn always(&self) -> u32 {
        self.always
    }

    /// With the flags that every request of this queue has; asked only where it matters.
    #[inline(always)]
    fn effective(&self, flags: SendFlags) -> u32 {
        if flags.contains(SendFlags::SIGNALED) { flags.0 } else { flags.0 | self.always }
    }

    /// The slot of the next request, if there is room as far as is known.
    #[inline(always)]
    pub(crate) fn next(&mut self, wr_id: u64, opcode: CqeOpcode, flags: u32) -> Option<Slot<'_>> {
        let quiet = flags & FLAG_SIGNALED == 0;
        let status = if quiet { Posted::UNSIGNALLED } else { Status::Success };
        let position = self.work.posted();
        let slot = self.work.next(Posted { wr_id, opcode, status })?;
        if quiet {
            self.unsignalled = position.wrapping_add(1);
        }
        Some(slot)
    }

    /// Whether the queue ends in unsignalled requests, which nothing will retire.
    pub(crate) fn needs_marker(&self) -> bool {
        self.unsignalled == self.work.posted() && self.outstanding() > 0
    }

    /// Starts over after the queue pair went to RESET.
    pub(crate) fn restart(&mut self, book: &Book) {
        self.work.start(book);
        (self.unsignalled, self.gid_index) = (0, 0);
    }

    pub(crate) fn qp(&self) -> &Arc<QpInner> {
        self.work.qp()
    }
}

/// Writes what an operation has besides entries.
#[inline(always)]
pub(crate) fn fill(slot: &Slot<'_>, op: Operation, body: Body, imm: u32) {
    if op.has_immediate() {
        slot.immediate(imm.to_be());
    }
    match body {
        Body::Nothing => {}
        Body::Remote(remote) => slot.remote(remote.addr, remote.rkey),
        Body::Atomic { remote, compare_add, swap } => {
            slot.atomic(remote.addr, compare_add, swap, remote.rkey);
        }
        Body::Datagram(body) => slot.datagram(body),
    }
}

#[inline(always)]
pub(crate) fn check_atomic(result: &Sge, remote: Remote) -> Result<(), PostError> {
    if remote.addr.is_multiple_of(8) && result.length == 8 {
        return Ok(());
    }
    Err(PostError::AtomicOperand { address: remote.addr })
}
