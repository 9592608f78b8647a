//! The responder: takes request bursts of reliable connections, checks them, carries them out.
//!
//! One burst is one call and has one reply. Nothing of a burst happens unless all of it can: keys,
//! rights, ranges and translations are checked first, and a receive is taken first where one is
//! needed. What fails after the copy (a completion queue whose memory misses) is answered with
//! Busy, and the same burst comes again; copying it twice does no harm. Order, duplicates and
//! refusals follow IBTA 1.4, 9.7 and 9.9.3.

use holdfast_wire::attr::{
    ACCESS_LOCAL_WRITE, ACCESS_REMOTE_ATOMIC, ACCESS_REMOTE_READ, ACCESS_REMOTE_WRITE, QpState,
};
use holdfast_wire::completion::{CqeOpcode, Status, WC_WITH_IMM, WC_WITH_INVALIDATE};
use holdfast_wire::event::EventKind;

use super::atomic;
use super::completion::{Half, Posted};
use super::gather::{self, Gone, Memory, Obstacle, Payload, SpanList};
use super::host::{Completion, Fetch, Host};
use super::mr;
use super::nic::Nic;
use super::packet::{MAX_BURST, Nak, Op, Reply, Request, packets, psn_add, psn_diff};
use super::qp::Message;
use super::sched::Sched;
use crate::memory::Span;

/// Where the bytes of a READ go.
pub(crate) enum Sink<'a> {
    /// The requester's memory, in this process.
    Spans(&'a [Span]),
    /// A link's frame.
    Bytes(&'a mut Vec<u8>),
}

/// Why a burst was not carried out.
enum Refusal {
    /// Refused for good; the queue pair stops, with this event if no completion tells of it.
    Nak(Nak, Option<EventKind>),
    Rnr,
    Busy,
    RequesterGone,
}

const INVALID: Refusal = Refusal::Nak(Nak::InvalidRequest, Some(EventKind::QpRequestError));
const NO_ACCESS: Refusal = Refusal::Nak(Nak::Access, Some(EventKind::QpAccessError));
/// The receive that failed, or the queue pair's event, tells of it.
const TOLD: Refusal = Refusal::Nak(Nak::Operation, None);
const UNREACHABLE: Refusal = Refusal::Nak(Nak::Operation, Some(EventKind::QpFatal));

/// The queue pair that a burst came to, and what the burst is checked against.
#[derive(Clone, Copy)]
struct Target {
    handle: u32,
    pd: u32,
    /// What peers may do: `ACCESS_REMOTE_*`.
    rights: u32,
    reads: u8,
    message: Option<Message>,
}

/// One burst at the responder's NIC.
pub(crate) struct Responder<'a, H> {
    pub(crate) nic: &'a mut Nic<H>,
    pub(crate) sched: &'a mut Sched,
    /// Room for the responder's side of the transfer.
    pub(crate) spans: &'a mut SpanList,
    pub(crate) now: u64,
}

impl<H: Host> Responder<'_, H> {
    /// Takes a burst. The bytes of a READ go to `sink`.
    #[inline]
    pub(crate) fn receive(&mut self, req: &Request, payload: Payload<'_>, sink: Sink<'_>) -> Reply {
        let Some(handle) = self.nic.handle_in(req.ends.to_qpn) else { return Reply::Silence };
        let Some(qp) = self.nic.qps.get_mut(handle) else { return Reply::Silence };
        let known = qp.qpn == req.ends.to_qpn
            && qp.attr.dest_qp_num == req.ends.from_qpn
            && qp.peer == req.ends.from;
        if !qp.is_rc() || !qp.can_receive() || !known {
            return Reply::Silence;
        }
        let (expected, mtu) = (qp.receiver.psn, qp.mtu);
        let target = Target {
            handle,
            pd: qp.init.pd,
            rights: qp.attr.qp_access_flags,
            reads: qp.attr.max_dest_rd_atomic,
            message: qp.receiver.message,
        };
        if qp.state == QpState::ReadyToReceive && !qp.receiver.established {
            qp.receiver.established = true;
            self.nic.event(EventKind::CommunicationEstablished, handle);
        }
        self.nic.counters.packets_received += 1;
        let done = match psn_diff(req.psn, expected) {
            0 if !is_sound(req, mtu) => Err(INVALID),
            0 => self.execute(target, req, payload, sink),
            1.. => return self.out_of_order(handle, expected),
            _ => return self.duplicate(target, expected, req, sink),
        };
        self.reply(handle, req, done)
    }

    /// Turns an outcome into a reply, and stops the queue pair where that is due.
    #[inline]
    fn reply(&mut self, handle: u32, req: &Request, done: Result<Reply, Refusal>) -> Reply {
        match done {
            Ok(reply) => reply,
            Err(refusal) => self.refuse(handle, req.psn, refusal),
        }
    }

    #[cold]
    fn refuse(&mut self, handle: u32, psn: u32, refusal: Refusal) -> Reply {
        if let Refusal::Rnr | Refusal::Busy = refusal
            && let Some(qp) = self.nic.qps.get_mut(handle)
        {
            // What was sent behind it is dropped without a word: all of it comes again.
            qp.receiver.nak_sent = true;
        }
        match refusal {
            Refusal::Rnr => {
                self.nic.counters.rnr_naks_sent += 1;
                let timer = self.nic.qps.get(handle).map_or(0, |qp| qp.attr.min_rnr_timer);
                Reply::Rnr { psn, timer }
            }
            Refusal::Busy => Reply::Busy { psn },
            Refusal::RequesterGone => Reply::RequesterGone,
            Refusal::Nak(why, event) => {
                self.nic.counters.naks_sent += 1;
                if let Some(kind) = event {
                    self.nic.event(kind, handle);
                }
                self.nic.enter_error(self.sched, handle);
                Reply::Nak { psn, why }
            }
        }
    }

    /// Packets are missing before this one: says so once.
    #[cold]
    fn out_of_order(&mut self, handle: u32, expected: u32) -> Reply {
        let Some(qp) = self.nic.qps.get_mut(handle) else { return Reply::Silence };
        if std::mem::replace(&mut qp.receiver.nak_sent, true) {
            return Reply::Silence;
        }
        self.nic.counters.naks_sent += 1;
        Reply::Nak { psn: expected, why: Nak::Sequence }
    }

    /// A burst that was seen before: acknowledged again, read again, or replayed.
    #[cold]
    fn duplicate(&mut self, to: Target, expected: u32, req: &Request, sink: Sink<'_>) -> Reply {
        let handle = to.handle;
        self.nic.counters.duplicates += 1;
        let Some(qp) = self.nic.qps.get(handle) else { return Reply::Silence };
        let ack = Reply::Ack { psn: psn_add(expected, u32::MAX) };
        if req.op == Op::Read {
            let seen = psn_diff(req.last_psn(), expected) < 0;
            if !seen || !is_sound(req, qp.mtu) {
                return Reply::Silence;
            }
            let done = self.read(to, req, sink);
            if done.is_ok() {
                self.nic.unstall(handle, Half::Receiver, self.now);
            }
            return self.reply(handle, req, done);
        }
        if req.op.is_atomic() {
            let kept = qp.receiver.replay.iter().find(|(psn, _)| *psn == req.psn);
            return kept.map_or(Reply::Silence, |&(psn, value)| Reply::Atomic { psn, value });
        }
        ack
    }

    /// Carries out the burst that is expected.
    #[inline]
    fn execute(
        &mut self,
        to: Target,
        req: &Request,
        payload: Payload<'_>,
        sink: Sink<'_>,
    ) -> Result<Reply, Refusal> {
        if !continues(to.message, req) {
            return Err(INVALID);
        }
        let handle = to.handle;
        let reply = match req.op {
            Op::Write | Op::WriteImm => self.write(to, req, payload)?,
            Op::Send | Op::SendImm | Op::SendInv => self.send(handle, req, payload)?,
            Op::Read => self.read(to, req, sink)?,
            _ => self.atomic(to, req)?,
        };
        let Some(qp) = self.nic.qps.get_mut(handle) else { return Err(TOLD) };
        let receiver = &mut qp.receiver;
        receiver.psn = psn_add(req.psn, req.packets);
        receiver.nak_sent = false;
        receiver.message = if req.is_last() {
            None
        } else {
            Some(Message { op: req.op, total: req.total, next: req.offset + req.len })
        };
        if receiver.stalled_since.is_some() {
            self.nic.unstall(handle, Half::Receiver, self.now);
        }
        Ok(reply)
    }

    fn send(&mut self, handle: u32, req: &Request, payload: Payload<'_>) -> Result<Reply, Refusal> {
        self.ensure_receive(handle)?;
        let Some(qp) = self.nic.qps.get(handle) else { return Err(TOLD) };
        let (pd, sges) = (qp.init.pd, &qp.receiver.recv.sges);
        if u64::from(req.total) > gather::total(sges) {
            self.finish_receive(handle, req, Status::LocalLength)?;
            return Err(Refusal::Nak(Nak::InvalidRequest, None));
        }
        let (skip, len) = (u64::from(req.offset), req.len as usize);
        let mut memory = Memory { host: &mut self.nic.host, mrs: &self.nic.mrs, pd };
        match memory.entries(sges, skip, len, ACCESS_LOCAL_WRITE, self.spans) {
            Ok(got) if got == len => {}
            Ok(_) | Err(Obstacle::Refused) => {
                self.finish_receive(handle, req, Status::LocalProtection)?;
                return Err(TOLD);
            }
            Err(Obstacle::Miss(_)) => return Err(self.missed_receive(handle, req)),
        }
        match payload.copy_to(self.spans) {
            Ok(()) => {}
            Err(Gone::Source) => return Err(Refusal::RequesterGone),
            Err(Gone::Destination) => return Err(self.missed_receive(handle, req)),
        }
        if req.is_last() {
            if req.op == Op::SendInv && !mr::can_invalidate(&self.nic.mrs, req.imm, pd) {
                return Err(NO_ACCESS);
            }
            self.finish_receive(handle, req, Status::Success)?;
            if req.op == Op::SendInv && mr::invalidate(&mut self.nic.mrs, req.imm, pd).is_err() {
                return Err(NO_ACCESS);
            }
        }
        self.nic.counters.bytes_received += u64::from(req.len);
        Ok(Reply::Ack { psn: req.last_psn() })
    }

    #[inline]
    fn write(&mut self, to: Target, req: &Request, payload: Payload<'_>) -> Result<Reply, Refusal> {
        let handle = to.handle;
        self.resolve(to, req, ACCESS_REMOTE_WRITE, true)?;
        let consumes = req.op == Op::WriteImm && req.is_last();
        if consumes {
            self.ensure_receive(handle)?;
        }
        match payload.copy_to(self.spans) {
            Ok(()) => {}
            Err(Gone::Source) => return Err(Refusal::RequesterGone),
            Err(Gone::Destination) => return Err(self.missed(handle)),
        }
        if consumes {
            self.finish_receive(handle, req, Status::Success)?;
        }
        self.nic.counters.bytes_received += u64::from(req.len);
        Ok(Reply::Ack { psn: req.last_psn() })
    }

    fn read(&mut self, to: Target, req: &Request, sink: Sink<'_>) -> Result<Reply, Refusal> {
        needs_read_resources(to)?;
        self.resolve(to, req, ACCESS_REMOTE_READ, false)?;
        let copied = match sink {
            Sink::Spans(out) => gather::copy(self.spans, out),
            Sink::Bytes(out) => gather::append(self.spans, out).map_err(|_| Gone::Source),
        };
        match copied {
            Ok(()) => {}
            // The responder is the source here.
            Err(Gone::Source) => return Err(self.missed(to.handle)),
            Err(Gone::Destination) => return Err(Refusal::RequesterGone),
        }
        self.nic.counters.bytes_served += u64::from(req.len);
        Ok(Reply::Read { psn: req.psn, packets: req.packets })
    }

    fn atomic(&mut self, to: Target, req: &Request) -> Result<Reply, Refusal> {
        let handle = to.handle;
        needs_read_resources(to)?;
        if !req.addr.is_multiple_of(8) {
            return Err(INVALID);
        }
        self.resolve(to, req, ACCESS_REMOTE_ATOMIC, true)?;
        let [word] = self.spans.as_slice() else { return Err(UNREACHABLE) };
        if !word.as_ptr().addr().is_multiple_of(8) {
            return Err(INVALID);
        }
        match atomic::update(word, req.op, req.args) {
            Ok(None) => Err(Refusal::Busy),
            Ok(Some(value)) => {
                let Some(qp) = self.nic.qps.get_mut(handle) else { return Err(TOLD) };
                let keep = usize::from(qp.attr.max_dest_rd_atomic);
                let replay = &mut qp.receiver.replay;
                while replay.is_full() || (replay.len() >= keep && !replay.is_empty()) {
                    replay.remove(0);
                }
                replay.push((req.psn, value));
                Ok(Reply::Atomic { psn: req.psn, value })
            }
            Err(_) => Err(self.missed(handle)),
        }
    }

    /// Checks the rights of the queue pair and of the region, and resolves the burst's range. The
    /// first burst of a message has the whole message checked. A message of no bytes needs no key.
    #[inline]
    fn resolve(
        &mut self,
        to: Target,
        req: &Request,
        access: u32,
        write: bool,
    ) -> Result<(), Refusal> {
        if to.rights & access == 0 {
            return Err(NO_ACCESS);
        }
        let pd = to.pd;
        if req.len != req.total {
            let all = u64::from(req.total);
            mr::lookup(&self.nic.mrs, req.rkey, pd, req.addr, all, access)
                .map_err(|_| NO_ACCESS)?;
        }
        let addr = req.addr.checked_add(u64::from(req.offset)).ok_or(NO_ACCESS)?;
        let len = req.len as usize;
        let mut memory = Memory { host: &mut self.nic.host, mrs: &self.nic.mrs, pd };
        match memory.range(req.rkey, addr, len, access, write, self.spans) {
            Ok(got) if got == len => Ok(()),
            Ok(_) => Err(UNREACHABLE),
            Err(Obstacle::Refused) => Err(NO_ACCESS),
            Err(Obstacle::Miss(_)) => Err(self.missed(to.handle)),
        }
    }

    /// Memory of the responder misses: later, or never.
    #[cold]
    fn missed(&mut self, handle: u32) -> Refusal {
        match self.nic.stall(handle, Half::Receiver, self.now) {
            Some(_) => Refusal::Busy,
            None => UNREACHABLE,
        }
    }

    /// Memory of the receive that was taken misses.
    #[cold]
    fn missed_receive(&mut self, handle: u32, req: &Request) -> Refusal {
        if self.nic.stall(handle, Half::Receiver, self.now).is_some() {
            return Refusal::Busy;
        }
        match self.finish_receive(handle, req, Status::LocalProtection) {
            Ok(()) => TOLD,
            Err(refusal) => refusal,
        }
    }

    /// Takes a receive unless the message has one.
    fn ensure_receive(&mut self, handle: u32) -> Result<(), Refusal> {
        if self.nic.qps.get(handle).is_some_and(|qp| qp.receiver.taken) {
            return Ok(());
        }
        match self.nic.take_receive(handle) {
            Fetch::Got => Ok(()),
            Fetch::Empty => Err(Refusal::Rnr),
            Fetch::Miss(_) => Err(self.missed(handle)),
            Fetch::Malformed => {
                self.complete_receive(handle, Status::LocalQpOperation, None, 0)?;
                Err(TOLD)
            }
            Fetch::Corrupt => Err(UNREACHABLE),
        }
    }

    /// Completes the receive of a message.
    fn finish_receive(
        &mut self,
        handle: u32,
        req: &Request,
        status: Status,
    ) -> Result<(), Refusal> {
        let bytes = if status == Status::Success { req.total } else { 0 };
        self.complete_receive(handle, status, Some(req), bytes)
    }

    fn complete_receive(
        &mut self,
        handle: u32,
        status: Status,
        req: Option<&Request>,
        byte_len: u32,
    ) -> Result<(), Refusal> {
        let Some(qp) = self.nic.qps.get(handle) else { return Err(TOLD) };
        let (wc_flags, imm_data) = match req {
            Some(r) if matches!(r.op, Op::SendImm | Op::WriteImm) => (WC_WITH_IMM, r.imm),
            Some(r) if r.op == Op::SendInv => (WC_WITH_INVALIDATE, r.imm),
            _ => (0, 0),
        };
        let opcode = match req {
            Some(r) if r.op == Op::WriteImm => CqeOpcode::RecvRdmaWithImm,
            _ => CqeOpcode::Recv,
        };
        let (cq, entry) = (
            qp.init.recv_cq,
            Completion {
                wr_id: qp.receiver.recv.wr_id,
                qp_handle: handle,
                opcode: opcode.wire(),
                status,
                byte_len,
                imm_data,
                src_qp: qp.attr.dest_qp_num,
                wc_flags,
                vendor_err: 0,
                solicited: status != Status::Success || req.is_some_and(|r| r.solicited),
            },
        );
        match self.nic.post(self.sched, cq, &entry) {
            Posted::Yes => {
                if let Some(qp) = self.nic.qps.get_mut(handle) {
                    qp.receiver.taken = false;
                }
                Ok(())
            }
            Posted::Later => match self.nic.stall(handle, Half::Receiver, self.now) {
                Some(_) => Err(Refusal::Busy),
                None => {
                    self.nic.fail_cq(self.sched, cq);
                    Err(TOLD)
                }
            },
            Posted::Lost => Err(TOLD),
        }
    }
}

/// Whether the burst continues the message under way, or starts one when there is none.
#[inline]
fn continues(under_way: Option<Message>, req: &Request) -> bool {
    match under_way {
        None => req.offset == 0,
        Some(m) => m.op == req.op && m.total == req.total && m.next == req.offset,
    }
}

/// Refuses READs and atomics at a queue pair that keeps no resources for them.
fn needs_read_resources(to: Target) -> Result<(), Refusal> {
    if to.reads > 0 { Ok(()) } else { Err(INVALID) }
}

/// Whether a burst's numbers fit together: nothing that a peer wrote is taken on trust.
#[inline]
fn is_sound(req: &Request, mtu: u32) -> bool {
    if req.op.is_atomic() {
        return (req.packets, req.offset, req.len, req.total) == (1, 0, 8, 8);
    }
    let Some(end) = req.offset.checked_add(req.len) else { return false };
    let whole = req.len.is_multiple_of(mtu) && req.len > 0;
    req.len <= MAX_BURST
        && end <= req.total
        && req.packets == packets(req.len, mtu)
        && (end == req.total || whole)
        && (req.len > 0 || req.total == 0)
}
