//! What arrives over links: GIDs for the fabric, requests and datagrams for responders, replies
//! for requesters. Every frame names both ends, and counts only when the link it came over is the
//! way to the end it claims to come from.

use holdfast_wire::attr::{ACCESS_LOCAL_WRITE, QpState};

use super::frame::{self, Frame, REPLY_HEAD};
use super::reader::Event;
use crate::engine::fabric::Route;
use crate::engine::gather::{self, Memory, Obstacle, Payload};
use crate::engine::host::Host;
use crate::engine::packet::{Ends, Reply, Request};
use crate::engine::responder::{Responder, Sink};
use crate::engine::sched::QpRef;
use crate::engine::{Budget, Engine};

/// Most frames that one link's turn takes.
const SLICE: u32 = 8;

impl<H: Host> Engine<H> {
    /// Takes what the readers have, within the budget, link by link in turn. Says whether there
    /// was something.
    pub(in crate::engine) fn run_links(&mut self, now: u64, budget: &mut Budget) -> bool {
        let (mut worked, mut idle) = (false, 0);
        while idle < self.links.links.len() && !budget.is_spent() {
            let slot = self.links.next_slot();
            if self.run_link(slot, now, budget) {
                (worked, idle) = (true, 0);
            } else {
                idle += 1;
            }
        }
        worked
    }

    /// One link's turn.
    fn run_link(&mut self, slot: usize, now: u64, budget: &mut Budget) -> bool {
        let mut worked = false;
        for _ in 0..SLICE {
            let link = &self.links.links[slot];
            let (id, events) = (link.id, link.events.as_ref());
            if budget.is_spent() {
                break;
            }
            let Some(event) = events.and_then(|e| e.try_recv().ok()) else { break };
            worked = true;
            budget.spend(0, 1);
            match event {
                Event::Frame(frame) => self.take_frame(id, frame, now, budget),
                Event::Down(why) => self.cut(id, &why),
            }
        }
        worked
    }

    #[cold]
    fn cut(&mut self, link: usize, why: &str) {
        self.links.close(link, why);
        self.fabric.forget_link(link);
    }

    fn take_frame(&mut self, link: usize, frame: Frame, now: u64, budget: &mut Budget) {
        match frame {
            Frame::Hello => self.links.greeted(link),
            Frame::GidAdd(gid) => {
                if !self.fabric.learn(gid, link) {
                    self.links.warn_of_surplus(link);
                }
            }
            Frame::GidRemove(gid) => self.fabric.forget(gid, link),
            Frame::Request(req, body) => {
                budget.spend(req.len.min(super::frame::MAX_BODY as u32), 0);
                self.take_request(link, &req, body.payload(), now);
            }
            Frame::Reply(ends, reply, body) => {
                budget.spend(body.payload().len() as u32, 0);
                self.take_reply(link, &ends, reply, body.payload(), now);
            }
            Frame::Datagram(datagram, body) => {
                if self.is_from(link, &datagram.ends)
                    && let Route::Nic(nic) = self.fabric.route(datagram.ends.to)
                {
                    let (nic, spans) = (&mut self.nics[nic], &mut self.scratch.peer);
                    Responder { nic, sched: &mut self.sched, spans, now }
                        .receive_datagram(&datagram, Payload::Bytes(body.payload()));
                }
            }
        }
    }

    /// Whether the link is the way to where a frame says it comes from.
    fn is_from(&self, link: usize, ends: &Ends) -> bool {
        self.fabric.route(ends.from) == Route::Link(link)
    }

    fn take_request(&mut self, link: usize, req: &Request, payload: &[u8], now: u64) {
        if !self.is_from(link, &req.ends) {
            return;
        }
        let Route::Nic(nic) = self.fabric.route(req.ends.to) else { return };
        let Some(link) = self.links.get(link) else { return };
        let out = &mut link.outbox.bytes;
        // The bytes of a READ go straight behind the room for the reply's head.
        let start = out.len();
        out.resize(start + REPLY_HEAD, 0);
        let (nic, spans) = (&mut self.nics[nic], &mut self.scratch.peer);
        let reply = Responder { nic, sched: &mut self.sched, spans, now }.receive(
            req,
            Payload::Bytes(payload),
            Sink::Bytes(out),
        );
        let ends = Ends {
            to: req.ends.from,
            to_qpn: req.ends.from_qpn,
            from: req.ends.to,
            from_qpn: req.ends.to_qpn,
        };
        let body = start + REPLY_HEAD;
        match frame::reply_head(&ends, reply, out.len() - body) {
            Some(head) => out[start..body].copy_from_slice(&head),
            None => out.truncate(start),
        }
    }

    fn take_reply(&mut self, link: usize, ends: &Ends, reply: Reply, bytes: &[u8], now: u64) {
        if !self.is_from(link, ends) {
            return;
        }
        let Route::Nic(nic) = self.fabric.route(ends.to) else { return };
        let Some(handle) = self.nics[nic].handle_of(ends.to_qpn) else { return };
        let Some(qp) = self.nics[nic].qps.get(handle) else { return };
        let runs = matches!(qp.state, QpState::ReadyToSend | QpState::SendQueueDrained);
        let known = qp.attr.dest_qp_num == ends.from_qpn && qp.peer == ends.from;
        if !qp.is_rc() || !runs || !known || qp.sender.window.is_empty() {
            return;
        }
        let at = qp.me;
        let reply = match reply {
            Reply::Read { psn, packets } => self.take_data(at, psn, packets, bytes),
            Reply::Atomic { psn, value } => {
                match self.take_data(at, psn, 1, &value.to_le_bytes()) {
                    Some(Reply::Read { .. }) => Some(Reply::Atomic { psn, value }),
                    other => other,
                }
            }
            other => Some(other),
        };
        if let Some(reply) = reply {
            self.answer(at, reply, now);
        }
        if let Some(qp) = self.nics[nic].qps.get_mut(handle) {
            self.sched.ready(qp);
        }
    }

    /// Writes what a READ or atomic brought where its request says. `None` when nothing like it
    /// was asked for.
    fn take_data(&mut self, at: QpRef, psn: u32, packets: u32, bytes: &[u8]) -> Option<Reply> {
        let nic = &mut self.nics[at.nic];
        let qp = nic.qps.get_mut(at.handle)?;
        let n = qp.sender.window.due(psn, packets)?;
        let wqe = qp.sender.window.get(n)?;
        // Not more than the message, whose length fits 32 bits.
        let offset = u64::from(wqe.acked) * u64::from(qp.mtu);
        let left = u64::from(wqe.total).saturating_sub(offset);
        if bytes.len() as u64 != left.min(u64::from(packets) * u64::from(qp.mtu)) {
            return None;
        }
        let own = &mut self.scratch.own;
        let mut memory = Memory { host: &mut nic.host, mrs: &nic.mrs, pd: qp.init.pd };
        let found = memory.entries(&wqe.request.sges, offset, bytes.len(), ACCESS_LOCAL_WRITE, own);
        let written = match found {
            Ok(got) if got == bytes.len() => gather::scatter(bytes, own).is_ok(),
            // A key that was good when the request left is not any more.
            Ok(_) | Err(Obstacle::Refused) => {
                let (status, why) = crate::engine::requester::STALE_ENTRY;
                self.fail_at(at, n, status, why);
                return None;
            }
            Err(Obstacle::Miss(_)) => false,
        };
        if !written {
            return Some(Reply::RequesterGone);
        }
        nic.counters.bytes_read += bytes.len() as u64;
        let read = qp.sender.read_credit.min(bytes.len() as u64);
        qp.sender.read_credit -= read;
        self.links.return_credit(qp.route, read);
        Some(Reply::Read { psn, packets })
    }
}
