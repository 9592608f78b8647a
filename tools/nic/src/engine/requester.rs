//! The requester: runs a queue pair's sends, one burst at a time.
//!
//! A turn settles what is over, fetches the next work request when nothing waits to be sent, and
//! sends one burst of the request at the window's cursor. A peer in this process answers at once,
//! inside the same turn; a peer behind a link answers later, through [`super::reply`]. What cannot
//! be sent now leaves the cursor where it is and a time to come back.

use arrayvec::ArrayVec;
use holdfast_wire::attr::{ACCESS_LOCAL_WRITE, QpState};
use holdfast_wire::completion::Status;
use holdfast_wire::wqe::{FLAG_FENCE, FLAG_INLINE};

use super::completion::Half;
use super::fabric::Route;
use super::gather::{self, Memory, Obstacle, Payload, SpanList};
use super::host::{Fetch, Host, MAX_INLINE};
use super::link::{FULL_WAIT, Unsent};
use super::nic::Nic;
use super::packet::{Ends, Op, Reply, Request, packets, psn_add};
use super::responder::{Responder, Sink};
use super::sched::QpRef;
use super::vendor;
use super::window::LINK_SLOTS;
use super::{Budget, Engine};

/// Room for the two sides of a burst, reused for every one.
#[derive(Default)]
pub(crate) struct Scratch {
    /// The requester's memory.
    pub(crate) own: SpanList,
    /// The responder's memory.
    pub(crate) peer: SpanList,
    /// Inline payload, out of the window's way.
    pub(crate) inline: ArrayVec<u8, MAX_INLINE>,
}

/// Whether a queue pair's turn goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Step {
    Go,
    /// Nothing to do, or nothing that can be done now.
    Stop,
}

/// Most packets under way: half of what numbers can tell apart, less one message.
const MAX_OUTSTANDING: u32 = 1 << 22;

/// How a READ or atomic fails whose entries were good when it left and are not when it is answered.
pub(super) const STALE_ENTRY: (Status, u32) = (Status::LocalProtection, vendor::ENTRY);

impl<H: Host> Engine<H> {
    /// Runs one queue pair until it has nothing more to do now or the budget is spent.
    pub(super) fn run(&mut self, at: QpRef, now: u64, budget: &mut Budget) {
        self.expire(at, now);
        loop {
            let Some(qp) = self.nics[at.nic].qps.get_mut(at.handle) else { return };
            match qp.state {
                QpState::ReadyToSend | QpState::SendQueueDrained => {}
                QpState::Error | QpState::SendQueueError if qp.sender.wait_until > now => break,
                QpState::Error | QpState::SendQueueError => {
                    self.flush(at, now, budget);
                    break;
                }
                _ => return,
            }
            if qp.sender.wait_until > now {
                break;
            }
            if budget.is_spent() {
                self.sched.ready(qp);
                break;
            }
            let step = match qp.is_rc() {
                true => self.step(at, now, budget),
                false => self.datagram_step(at, now, budget),
            };
            if step == Step::Stop {
                // Its state may have changed under way; then the run queue has it.
                break;
            }
        }
        let nic = &mut self.nics[at.nic];
        nic.host.sends_fetched(at.handle);
        if let Some(qp) = nic.qps.get_mut(at.handle)
            && qp.deadline().is_some()
        {
            self.sched.arm(qp);
        }
    }

    /// One turn of a connection.
    #[inline]
    fn step(&mut self, at: QpRef, now: u64, budget: &mut Budget) -> Step {
        let Some(qp) = self.nics[at.nic].qps.get(at.handle) else { return Step::Stop };
        let mut has_unsent = false;
        if !qp.sender.window.is_empty() {
            if self.settle(at, now) == Step::Stop {
                return Step::Stop;
            }
            let Some(qp) = self.nics[at.nic].qps.get(at.handle) else { return Step::Stop };
            has_unsent = qp.sender.window.has_unsent();
        }
        if !has_unsent && self.fetch(at, now, budget) == Step::Stop {
            return Step::Stop;
        }
        self.transmit(at, now, budget)
    }

    /// Takes the next request off the ring.
    #[inline]
    pub(super) fn fetch(&mut self, at: QpRef, now: u64, budget: &mut Budget) -> Step {
        let nic = &mut self.nics[at.nic];
        let limits = nic.config.limits;
        let Some(qp) = nic.qps.get_mut(at.handle) else { return Step::Stop };
        let window = &mut qp.sender.window;
        if qp.state == QpState::SendQueueDrained {
            nic.tell_drained(at.handle);
            return Step::Stop;
        }
        if window.is_full()
            || (!window.is_empty() && window.outstanding_packets() > MAX_OUTSTANDING)
        {
            return Step::Stop;
        }
        let wqe = window.vacant();
        wqe.request.sges.clear();
        wqe.request.inline.clear();
        match nic.host.next_send(at.handle, &mut wqe.request) {
            Fetch::Got => {
                let reads = qp.attr.max_rd_atomic;
                wqe.prepare(qp.sender.next_psn, qp.mtu, limits.max_message, reads);
                nic.counters.requests.count(wqe.request.opcode);
            }
            Fetch::Malformed => {
                wqe.prepare(qp.sender.next_psn, qp.mtu, limits.max_message, 0);
                wqe.packets = 0;
                wqe.failed = Some((Status::LocalQpOperation, vendor::MALFORMED));
                nic.counters.requests.other += 1;
            }
            Fetch::Empty => return Step::Stop,
            Fetch::Miss(_) => {
                match nic.stall(at.handle, Half::Sender, now) {
                    Some(then) => self.wait(at, then),
                    None => nic.fatal(&mut self.sched, at.handle),
                }
                return Step::Stop;
            }
            Fetch::Corrupt => {
                nic.fatal(&mut self.sched, at.handle);
                return Step::Stop;
            }
        }
        qp.sender.next_psn = psn_add(wqe.psn, wqe.packets);
        window.push();
        budget.spend(0, 1);
        if qp.sender.stalled_since.is_some() {
            nic.unstall(at.handle, Half::Sender, now);
        }
        Step::Go
    }

    /// Sends one burst of the request at the cursor.
    #[inline]
    fn transmit(&mut self, at: QpRef, now: u64, budget: &mut Budget) -> Step {
        let nic = &mut self.nics[at.nic];
        let Some(qp) = nic.qps.get_mut(at.handle) else { return Step::Stop };
        if qp.route_epoch != self.fabric.epoch() {
            self.refresh_route(at);
            return Step::Go;
        }
        let window = &mut qp.sender.window;
        let cursor = window.cursor;
        let Some(wqe) = window.get(cursor) else { return Step::Stop };
        if wqe.failed.is_some() {
            // It completes when it is the oldest; what is before it is awaited.
            return if cursor == 0 { Step::Go } else { Step::Stop };
        }
        if wqe.is_over() {
            window.cursor += 1;
            return Step::Go;
        }
        let starts = wqe.sent == 0;
        if starts && cursor > 0 {
            let unanswered = window.unanswered();
            let fenced = wqe.request.flags & FLAG_FENCE != 0 && unanswered > 0;
            if fenced || (wqe.answered && unanswered >= usize::from(qp.attr.max_rd_atomic)) {
                return Step::Stop;
            }
        }
        if wqe.packets == 0 {
            return self.local_operation(at, now);
        }
        let ends =
            Ends { to: qp.peer, to_qpn: qp.attr.dest_qp_num, from: qp.own_gid, from_qpn: qp.qpn };
        let mut req = wqe.burst(ends, qp.mtu);
        let (sges, flags) = (&wqe.request.sges, wqe.request.flags);
        let access = if wqe.answered { ACCESS_LOCAL_WRITE } else { 0 };
        let scratch = &mut *self.scratch;
        let is_inline = flags & FLAG_INLINE != 0;
        if is_inline {
            scratch.inline.clear();
            // Fits: both have the same room.
            let _ = scratch.inline.try_extend_from_slice(&wqe.request.inline);
        } else {
            let (skip, len) = (u64::from(req.offset), req.len as usize);
            let mut memory = Memory { host: &mut nic.host, mrs: &nic.mrs, pd: qp.init.pd };
            match memory.entries(sges, skip, len, access, &mut scratch.own) {
                Ok(got) if got == len => {}
                Ok(got) => {
                    // Too many pieces: as many whole packets as there are.
                    req.len = got as u32 - got as u32 % qp.mtu;
                    req.packets = packets(req.len, qp.mtu);
                    if req.len == 0 {
                        return self.fail_at(at, cursor, Status::LocalQpOperation, vendor::PIECES);
                    }
                }
                Err(Obstacle::Refused) => {
                    return self.fail_at(at, cursor, Status::LocalProtection, vendor::ENTRY);
                }
                Err(Obstacle::Miss(_)) => return self.missed(at, cursor, now),
            }
        }
        let reply = match qp.route {
            Route::Nic(nic) => {
                let Scratch { own, peer, inline } = scratch;
                let payload = if is_inline { Payload::Bytes(inline) } else { Payload::Spans(own) };
                let nic = &mut self.nics[nic];
                Responder { nic, sched: &mut self.sched, spans: peer, now }.receive(
                    &req,
                    payload,
                    Sink::Spans(own),
                )
            }
            Route::Nowhere => Reply::Silence,
            Route::Link(link) => {
                return self.transmit_to_link(at, link, &req, is_inline, now, budget);
            }
        };
        budget.spend(req.len, 0);
        if self.nics[at.nic].is_answered_at_once(at.handle, &req, reply) {
            return self.settle(at, now);
        }
        self.mark_sent(at, &req, now);
        let reply = match reply {
            Reply::Atomic { value, .. }
                if gather::scatter(&value.to_le_bytes(), &self.scratch.own).is_err() =>
            {
                Reply::RequesterGone
            }
            Reply::Atomic { .. } | Reply::Read { .. } => {
                self.nics[at.nic].counters.bytes_read += u64::from(req.len);
                reply
            }
            other => other,
        };
        self.answer(at, reply, now)
    }

    fn transmit_to_link(
        &mut self,
        at: QpRef,
        link: usize,
        req: &Request,
        is_inline: bool,
        now: u64,
        budget: &mut Budget,
    ) -> Step {
        let credit = if req.op == Op::Read { req.len } else { 0 };
        let payload = match (req.op.is_answered(), is_inline) {
            (true, _) => Payload::Bytes(&[]),
            (false, true) => Payload::Bytes(&self.scratch.inline),
            (false, false) => Payload::Spans(&self.scratch.own),
        };
        match self.links.send_request(link, req, payload, u64::from(credit)) {
            Ok(()) => {}
            Err(Unsent::Full) => {
                self.wait(at, now.saturating_add(FULL_WAIT));
                return Step::Stop;
            }
            Err(Unsent::Gone) => {
                let cursor = self.nics[at.nic].qps.get(at.handle).map(|qp| qp.sender.window.cursor);
                return self.missed(at, cursor.unwrap_or(0), now);
            }
        }
        self.mark_sent(at, req, now);
        budget.spend(req.len, 0);
        if let Some(qp) = self.nics[at.nic].qps.get_mut(at.handle) {
            qp.sender.read_credit += u64::from(credit);
            if qp.sender.ack_deadline == 0 {
                qp.await_ack(now);
            }
        }
        Step::Go
    }

    /// Counts a burst as sent and moves the cursor past its request when that was the last.
    #[inline]
    fn mark_sent(&mut self, at: QpRef, req: &Request, now: u64) {
        let nic = &mut self.nics[at.nic];
        nic.counters.packets_sent += 1;
        if !req.op.is_answered() {
            nic.counters.bytes_sent += u64::from(req.len);
        }
        let Some(qp) = nic.qps.get_mut(at.handle) else { return };
        if qp.sender.stalled_since.is_some() {
            nic.unstall(at.handle, Half::Sender, now);
        }
        let Some(qp) = nic.qps.get_mut(at.handle) else { return };
        let window = &mut qp.sender.window;
        let cursor = window.cursor;
        if let Some(wqe) = window.get_mut(cursor) {
            wqe.sent += req.packets;
            if wqe.sent >= wqe.packets {
                window.cursor += 1;
            }
        }
    }

    /// Looks the peer up again after a change of the fabric.
    #[cold]
    fn refresh_route(&mut self, at: QpRef) {
        let nic = &mut self.nics[at.nic];
        let Some(qp) = nic.qps.get_mut(at.handle) else { return };
        let index = usize::from(qp.path().sgid_index);
        let own = nic.gids.get(index).copied().flatten();
        let route = match own {
            Some(gid) => {
                qp.own_gid = gid;
                self.fabric.route(qp.peer)
            }
            None => Route::Nowhere,
        };
        if route != qp.route {
            self.links.return_credit(qp.route, std::mem::take(&mut qp.sender.read_credit));
        }
        if let Route::Link(_) = route {
            qp.sender.window.reserve(LINK_SLOTS);
        }
        qp.route = route;
        qp.route_epoch = self.fabric.epoch();
    }

    /// Not before `then`.
    pub(super) fn wait(&mut self, at: QpRef, then: u64) {
        if let Some(qp) = self.nics[at.nic].qps.get_mut(at.handle) {
            qp.sender.wait_until = then.max(1);
            self.sched.arm(qp);
        }
    }

    /// The requester's own memory misses: later, or the request fails.
    #[cold]
    pub(super) fn missed(&mut self, at: QpRef, n: usize, now: u64) -> Step {
        match self.nics[at.nic].stall(at.handle, Half::Sender, now) {
            Some(then) => {
                self.wait(at, then);
                Step::Stop
            }
            None => self.fail_at(at, n, Status::LocalProtection, vendor::MISS),
        }
    }

    /// Fails the `n`th request; it completes so when it is the oldest.
    #[cold]
    pub(super) fn fail_at(&mut self, at: QpRef, n: usize, status: Status, why: u32) -> Step {
        if let Some(qp) = self.nics[at.nic].qps.get_mut(at.handle)
            && let Some(wqe) = qp.sender.window.get_mut(n)
        {
            wqe.failed = Some((status, why));
        }
        Step::Go
    }
}

impl<H> Nic<H> {
    /// Takes the commonest answer, which is all of the work of [`Engine::mark_sent`] and
    /// [`Engine::answer`] at once: a burst that is a whole message, the only one under way, of a
    /// queue pair that waits for nothing, was acknowledged. False when it is another.
    #[inline]
    fn is_answered_at_once(&mut self, handle: u32, req: &Request, reply: Reply) -> bool {
        let acknowledged = matches!(reply, Reply::Ack { psn } if psn == req.last_psn());
        if !acknowledged || req.len != req.total {
            return false;
        }
        let Some(qp) = self.qps.get_mut(handle) else { return false };
        let sender = &mut qp.sender;
        if sender.stalled_since.is_some() || sender.ack_deadline != 0 {
            return false;
        }
        let Some(wqe) = sender.window.only() else { return false };
        if wqe.answered || wqe.psn != req.psn || wqe.packets != req.packets {
            return false;
        }
        (wqe.sent, wqe.acked) = (wqe.packets, wqe.packets);
        sender.window.cursor = 1;
        qp.refill_retries();
        self.counters.packets_sent += 1;
        self.counters.bytes_sent += u64::from(req.len);
        true
    }
}
