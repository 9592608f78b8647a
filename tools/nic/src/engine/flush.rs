//! Flushing: what a queue pair in error still holds completes with WorkRequestFlushed.
//!
//! First the requests under way, then those on the send ring, in order; then, unless only the send
//! queue is in error, the receive of a message under way and those on the receive ring. Receives
//! on a shared queue stay; an event says that the queue pair takes no more of them. A flush goes on
//! over several calls, and begins again when more is posted.

use holdfast_wire::attr::QpState;
use holdfast_wire::completion::{CqeOpcode, Status};
use holdfast_wire::event::EventKind;
use holdfast_wire::wqe::FLAG_SIGNALED;

use super::completion::{Half, Posted, cqe_opcode};
use super::host::{Completion, Fetch, Host, RecvQueue};
use super::sched::QpRef;
use super::{Budget, Engine};

/// Whether flushing one queue goes on.
#[derive(PartialEq, Eq)]
enum Flow {
    Go,
    /// It is empty, or of no use any more.
    Done,
    /// It waits, for memory or for the next call.
    Wait,
}

fn flushed(handle: u32, wr_id: u64, opcode: CqeOpcode) -> Completion {
    Completion {
        wr_id,
        qp_handle: handle,
        opcode: opcode.wire(),
        status: Status::WorkRequestFlushed,
        byte_len: 0,
        imm_data: 0,
        src_qp: 0,
        wc_flags: 0,
        vendor_err: 0,
        solicited: true,
    }
}

impl<H: Host> Engine<H> {
    /// Flushes a queue pair in state Error or SQE, within the budget.
    #[cold]
    pub(super) fn flush(&mut self, at: QpRef, now: u64, budget: &mut Budget) {
        let nic = &mut self.nics[at.nic];
        let Some(qp) = nic.qps.get_mut(at.handle) else { return };
        self.links.return_credit(qp.route, std::mem::take(&mut qp.sender.read_credit));
        let receives = qp.state == QpState::Error;
        loop {
            match self.flush_send(at, now, budget) {
                Flow::Go => {}
                Flow::Done => break,
                Flow::Wait => return,
            }
        }
        if !receives {
            return;
        }
        loop {
            match self.flush_receive(at, now, budget) {
                Flow::Go => {}
                Flow::Done => break,
                Flow::Wait => return,
            }
        }
        let nic = &mut self.nics[at.nic];
        let Some(qp) = nic.qps.get_mut(at.handle) else { return };
        if qp.init.srq.is_some() && !std::mem::replace(&mut qp.last_wqe_told, true) {
            nic.event(EventKind::QpLastWqeReached, at.handle);
        }
    }

    /// Flushes one send.
    fn flush_send(&mut self, at: QpRef, now: u64, budget: &mut Budget) -> Flow {
        if budget.is_spent() {
            return self.next_call(at);
        }
        let nic = &mut self.nics[at.nic];
        let Some(qp) = nic.qps.get_mut(at.handle) else { return Flow::Done };
        let (cq, all) = (qp.init.send_cq, qp.init.signal_all);
        if qp.sender.window.is_empty() {
            // Through the window, so that a request whose completion must wait is kept.
            let wqe = qp.sender.window.vacant();
            wqe.request.sges.clear();
            wqe.request.inline.clear();
            match nic.host.next_send(at.handle, &mut wqe.request) {
                Fetch::Got | Fetch::Malformed => {
                    (wqe.packets, wqe.done, wqe.failed) = (0, false, None);
                    qp.sender.window.push();
                }
                Fetch::Empty | Fetch::Corrupt => return Flow::Done,
                Fetch::Miss(_) => return self.flush_later(at, now),
            }
        }
        let Some(wqe) = qp.sender.window.get(0) else { return Flow::Done };
        let mut entry = flushed(at.handle, wqe.request.wr_id, cqe_opcode(wqe.request.opcode));
        let mut due = true;
        if wqe.failed.is_none() && wqe.is_over() {
            // It had succeeded before the error; only its completion was not delivered.
            (entry.status, entry.byte_len, entry.solicited) = (Status::Success, wqe.total, false);
            due = all || wqe.request.flags & FLAG_SIGNALED != 0;
        }
        budget.spend(0, 1);
        match if due { nic.post(&mut self.sched, cq, &entry) } else { Posted::Yes } {
            Posted::Yes | Posted::Lost => {
                nic.unstall(at.handle, Half::Sender, now);
                if let Some(qp) = nic.qps.get_mut(at.handle) {
                    qp.sender.window.pop();
                }
                Flow::Go
            }
            Posted::Later => self.flush_later(at, now),
        }
    }

    /// Flushes one receive.
    fn flush_receive(&mut self, at: QpRef, now: u64, budget: &mut Budget) -> Flow {
        if budget.is_spent() {
            return self.next_call(at);
        }
        let nic = &mut self.nics[at.nic];
        let Some(qp) = nic.qps.get(at.handle) else { return Flow::Done };
        if !qp.receiver.taken {
            if let RecvQueue::Shared(_) = qp.recv_queue() {
                return Flow::Done;
            }
            match nic.take_receive(at.handle) {
                Fetch::Got | Fetch::Malformed => {}
                Fetch::Empty | Fetch::Corrupt => return Flow::Done,
                Fetch::Miss(_) => return self.flush_later(at, now),
            }
        }
        let Some(qp) = nic.qps.get(at.handle) else { return Flow::Done };
        let cq = qp.init.recv_cq;
        let entry = flushed(at.handle, qp.receiver.recv.wr_id, CqeOpcode::Recv);
        budget.spend(0, 1);
        match nic.post(&mut self.sched, cq, &entry) {
            Posted::Yes | Posted::Lost => {
                nic.unstall(at.handle, Half::Sender, now);
                if let Some(qp) = nic.qps.get_mut(at.handle) {
                    qp.receiver.taken = false;
                }
                Flow::Go
            }
            Posted::Later => self.flush_later(at, now),
        }
    }

    /// The budget is spent.
    fn next_call(&mut self, at: QpRef) -> Flow {
        if let Some(qp) = self.nics[at.nic].qps.get_mut(at.handle) {
            self.sched.ready(qp);
        }
        Flow::Wait
    }

    /// A ring's memory misses: comes back, or gives that queue up.
    fn flush_later(&mut self, at: QpRef, now: u64) -> Flow {
        match self.nics[at.nic].stall(at.handle, Half::Sender, now) {
            Some(then) => {
                self.wait(at, then);
                Flow::Wait
            }
            None => Flow::Done,
        }
    }
}
