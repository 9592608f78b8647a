//! A send queue for several threads at once.
//!
//! Every method takes `&self`, and none ever waits for another thread: a request's slot is reserved,
//! written and published by its poster ([`crate::combiner`]), and whoever rings rings for everybody
//! whose requests are written by then. So a post carries its doorbell with it, and under load most
//! posts need none of their own.
//!
//! What that costs beside a queue of one's own, and beside a lock, is measured by the bench
//! `shared_queue`; see `docs/fast-path.md`. Where each thread can have a queue pair, that is faster.
#![allow(unsafe_code)]

use std::sync::Arc;

use holdfast_wire::completion::Status;
use holdfast_wire::wqe::{FLAG_SIGNALED, Sge};

use crate::account::{Posted, Recorder};
use crate::combiner::Combiner;
use crate::error::PostError;
use crate::operation::{Bounds, Operation};
use crate::qp_inner::QpInner;
use crate::request::{Datagram, Remote, SendFlags};
use crate::ring::ProducerRing;
use crate::send::{Body, SendQueue};
use crate::send_slow::{Payload, Request};
use crate::uar::Doorbell;

/// The send half of a queue pair, for several threads. Share it by reference, or in an [`Arc`].
///
/// Requests of one thread stay in order; those of several mix. Nothing blocks and nothing is
/// allocated. A post that finds somebody else publishing leaves its request to that thread, so it is
/// with the device when that one gets to it.
pub struct SharedSendQueue {
    ring: ProducerRing,
    recorder: Recorder,
    combiner: Combiner,
    bounds: Bounds,
    always: u32,
    depth: u32,
    doorbell: Doorbell,
    doorbell_word: u32,
    qp: Arc<QpInner>,
}

impl std::fmt::Debug for SharedSendQueue {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "SharedSendQueue(qp {}, depth {})", self.qp.handle, self.depth)
    }
}

impl SendQueue {
    /// Makes it a queue for several threads; what was posted and not rung for is rung for. The
    /// queue pair must be ready to send, and cannot be reset afterwards.
    ///
    /// # Errors
    /// [`PostError::QpState`] with the queue, if the queue pair is not ready to send.
    pub fn share(mut self) -> Result<SharedSendQueue, (Box<Self>, PostError)> {
        match self.make_room() {
            Ok(()) | Err(PostError::QueueFull { .. }) => {}
            Err(error) => return Err((Box::new(self), error)),
        }
        self.ring();
        let (always, bounds) = (self.always(), self.bounds);
        let parts = self.work.into_shared();
        Ok(SharedSendQueue {
            combiner: Combiner::new(parts.ring.slots(), parts.posted),
            ring: parts.ring,
            recorder: parts.recorder,
            bounds,
            always,
            depth: parts.depth,
            doorbell: parts.doorbell,
            doorbell_word: parts.doorbell_word,
            qp: parts.qp,
        })
    }
}

impl SharedSendQueue {
    /// RDMA WRITE of `sges` to `remote`.
    #[inline]
    pub fn write(
        &self,
        wr_id: u64,
        sges: &[Sge],
        remote: Remote,
        flags: SendFlags,
    ) -> Result<(), PostError> {
        let payload = Payload::Entries(sges);
        self.post(wr_id, Operation::Write, Body::Remote(remote), 0, payload, flags)
    }

    /// RDMA WRITE with immediate data (host order), which uses up a receive at the peer.
    #[inline]
    pub fn write_imm(
        &self,
        wr_id: u64,
        sges: &[Sge],
        remote: Remote,
        imm: u32,
        flags: SendFlags,
    ) -> Result<(), PostError> {
        let payload = Payload::Entries(sges);
        self.post(wr_id, Operation::WriteImm, Body::Remote(remote), imm, payload, flags)
    }

    /// RDMA WRITE of `payload`, copied into the ring now.
    #[inline]
    pub fn write_inline(
        &self,
        wr_id: u64,
        payload: &[u8],
        remote: Remote,
        flags: SendFlags,
    ) -> Result<(), PostError> {
        let payload = Payload::Inline(payload);
        self.post(wr_id, Operation::Write, Body::Remote(remote), 0, payload, flags)
    }

    /// RDMA READ of `remote` into `sges`.
    #[inline]
    pub fn read(
        &self,
        wr_id: u64,
        sges: &[Sge],
        remote: Remote,
        flags: SendFlags,
    ) -> Result<(), PostError> {
        let payload = Payload::Entries(sges);
        self.post(wr_id, Operation::Read, Body::Remote(remote), 0, payload, flags)
    }

    /// SEND of `sges` to a receive of the peer.
    #[inline]
    pub fn send(&self, wr_id: u64, sges: &[Sge], flags: SendFlags) -> Result<(), PostError> {
        self.post(wr_id, Operation::Send, Body::Nothing, 0, Payload::Entries(sges), flags)
    }

    /// SEND of `payload`, copied into the ring now.
    #[inline]
    pub fn send_inline(
        &self,
        wr_id: u64,
        payload: &[u8],
        flags: SendFlags,
    ) -> Result<(), PostError> {
        self.post(wr_id, Operation::Send, Body::Nothing, 0, Payload::Inline(payload), flags)
    }

    /// Atomic fetch and add on 8 bytes at `remote`; the old value lands in `result`.
    #[inline]
    pub fn fetch_add(
        &self,
        wr_id: u64,
        result: Sge,
        remote: Remote,
        add: u64,
        flags: SendFlags,
    ) -> Result<(), PostError> {
        crate::send::check_atomic(&result, remote)?;
        let body = Body::Atomic { remote, compare_add: add, swap: 0 };
        self.post(wr_id, Operation::FetchAdd, body, 0, Payload::Entry(result), flags)
    }

    /// Atomic compare and swap on 8 bytes at `remote`; the old value lands in `result`.
    #[inline]
    pub fn compare_swap(
        &self,
        wr_id: u64,
        result: Sge,
        remote: Remote,
        compare: u64,
        swap: u64,
        flags: SendFlags,
    ) -> Result<(), PostError> {
        crate::send::check_atomic(&result, remote)?;
        let body = Body::Atomic { remote, compare_add: compare, swap };
        self.post(wr_id, Operation::CompareSwap, body, 0, Payload::Entry(result), flags)
    }

    /// SEND of a datagram, of at most the path MTU (UD queue pairs only).
    #[inline]
    pub fn ud_send(
        &self,
        wr_id: u64,
        sges: &[Sge],
        to: Datagram<'_>,
        flags: SendFlags,
    ) -> Result<(), PostError> {
        let body = Body::Datagram(to.to.body(&to));
        self.post(wr_id, Operation::Datagram, body, 0, Payload::Entries(sges), flags)
    }

    /// How many requests may be outstanding.
    pub fn depth(&self) -> u32 {
        self.depth
    }

    /// Requests posted that have not been retired.
    pub fn outstanding(&self) -> u32 {
        let completed = self.recorder.account().completed();
        self.combiner.reserved().wrapping_sub(completed)
    }

    #[inline]
    fn post(
        &self,
        wr_id: u64,
        op: Operation,
        body: Body,
        imm: u32,
        payload: Payload<'_>,
        flags: SendFlags,
    ) -> Result<(), PostError> {
        let request = Request { wr_id, op, body, imm, payload, flags: flags.0 | self.always };
        request.check(&self.bounds, self.ring.max_sge(), self.ring.max_inline())?;
        let account = self.recorder.account();
        let Some(position) = self.combiner.reserve(self.depth, || account.completed()) else {
            return Err(self.full());
        };
        let quiet = request.flags & FLAG_SIGNALED == 0;
        let status = if quiet { Posted::UNSIGNALLED } else { Status::Success };
        // SAFETY: the position is this thread's alone, from its reservation until it says that the
        // slot is written. At most `depth` positions, which is at most the ring's and the account's
        // slots, are taken and not completed, so nobody else has that slot either, and its last
        // request has been retired. The request was checked against the ring.
        unsafe {
            let place = self.ring.place(position);
            let posted = Posted { wr_id, opcode: op.completes_as(), status };
            self.recorder.record(place.offset(), posted);
            request.write(&self.ring.claim(place));
        }
        if quiet {
            account.keep_quiet_among(position);
        }
        self.combiner.written(position);
        self.combiner.combine(|position| {
            account.publish(position);
            self.ring.publish(position);
            self.doorbell.ring(self.doorbell_word);
        });
        Ok(())
    }

    /// Why there is no room.
    #[cold]
    #[inline(never)]
    fn full(&self) -> PostError {
        self.qp.device().forget_notifications();
        self.recorder.account().age(self.combiner.reserved());
        match self.ring.check_head() {
            Err(value) => PostError::DeviceNonsense { value },
            Ok(()) => PostError::QueueFull { depth: self.depth },
        }
    }
}
