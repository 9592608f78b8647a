//! Replies at the requester: progress, retries, and what is over.
//!
//! Replies from a peer in this process come inside the turn that sent the burst; those of a link
//! come on their own and are checked against what was asked.

use holdfast_wire::attr::{QpState, rnr_timer_ns};
use holdfast_wire::completion::Status;
use holdfast_wire::wqe::FLAG_SIGNALED;

use super::Engine;
use super::completion::{Half, Posted, cqe_opcode, patience};
use super::fabric::Route;
use super::host::{Completion, Host};
use super::packet::{Nak, Reply, psn_add};
use super::requester::Step;
use super::sched::QpRef;
use super::vendor;

/// A peer that says for this long that it is busy is given up, in nanoseconds.
const BUSY_BOUND: u64 = 10_000_000_000;

impl<H: Host> Engine<H> {
    /// Takes a reply. The data of a READ or atomic has been written before.
    #[inline]
    pub(super) fn answer(&mut self, at: QpRef, reply: Reply, now: u64) -> Step {
        let Some(qp) = self.nics[at.nic].qps.get_mut(at.handle) else { return Step::Stop };
        let news = match reply {
            Reply::Ack { psn } => qp.sender.acknowledge(psn_add(psn, 1)),
            Reply::Read { psn, packets } => qp.sender.window.answered(psn, packets),
            Reply::Atomic { psn, .. } => qp.sender.window.answered(psn, 1),
            _ => return self.trouble(at, reply, now),
        };
        if !news {
            // It answers nothing that is under way.
            return self.trouble(at, Reply::Silence, now);
        }
        let Some(qp) = self.nics[at.nic].qps.get_mut(at.handle) else { return Step::Stop };
        qp.refill_retries();
        if qp.sender.ack_deadline != 0 {
            qp.await_ack(now);
        }
        self.settle(at, now)
    }

    /// Takes a reply that is no progress.
    #[cold]
    fn trouble(&mut self, at: QpRef, reply: Reply, now: u64) -> Step {
        let nic = &mut self.nics[at.nic];
        let Some(qp) = nic.qps.get_mut(at.handle) else { return Step::Stop };
        if let Reply::Nak { psn, .. } | Reply::Rnr { psn, .. } | Reply::Busy { psn } = reply
            && qp.sender.acknowledge(psn)
        {
            qp.refill_retries();
        }
        match reply {
            Reply::Nak { why: Nak::Sequence, .. } => {
                nic.counters.naks_received += 1;
                self.retry(at);
            }
            Reply::Nak { why, .. } => {
                nic.counters.naks_received += 1;
                let status = match why {
                    Nak::Access => Status::RemoteAccess,
                    Nak::Operation => Status::RemoteOperation,
                    _ => Status::RemoteInvalidRequest,
                };
                self.fail_oldest(at, status);
            }
            Reply::Rnr { timer, .. } => {
                nic.counters.rnr_naks_received += 1;
                if qp.sender.rnr_retries == 0 {
                    self.fail_oldest(at, Status::RnrRetryExceeded);
                    return Step::Go;
                }
                if qp.attr.rnr_retry != 7 {
                    qp.sender.rnr_retries -= 1;
                }
                self.rewind(at);
                self.wait(at, now.saturating_add(rnr_timer_ns(timer)));
            }
            Reply::Busy { .. } => {
                let waited = now.saturating_sub(*qp.sender.busy_since.get_or_insert(now));
                if waited > BUSY_BOUND {
                    self.fail_oldest(at, Status::RetryExceeded);
                    return Step::Go;
                }
                self.rewind(at);
                self.wait(at, now.saturating_add(patience(waited)));
            }
            Reply::RequesterGone => {
                self.rewind(at);
                let oldest = self.oldest(at);
                return self.missed(at, oldest, now);
            }
            // A link's stray acknowledgement says nothing.
            _ if matches!(qp.route, Route::Link(_)) => {}
            _ => {
                // Nobody answered: nothing more is sent before the timeout.
                if qp.sender.ack_deadline == 0 {
                    qp.await_ack(now);
                }
                let then = qp.sender.ack_deadline;
                self.wait(at, if then == 0 { u64::MAX } else { then });
            }
        }
        Step::Go
    }

    /// Sends again what is not acknowledged, as long as retries are left.
    fn retry(&mut self, at: QpRef) {
        let nic = &mut self.nics[at.nic];
        let Some(qp) = nic.qps.get_mut(at.handle) else { return };
        match qp.sender.retries.checked_sub(1) {
            Some(left) => {
                qp.sender.retries = left;
                nic.counters.retries += 1;
                self.rewind(at);
            }
            None => self.fail_oldest(at, Status::RetryExceeded),
        }
    }

    /// Makes everything unacknowledged unsent; nothing is awaited then.
    fn rewind(&mut self, at: QpRef) {
        let Some(qp) = self.nics[at.nic].qps.get_mut(at.handle) else { return };
        qp.sender.window.rewind();
        qp.sender.ack_deadline = 0;
        qp.sender.wait_until = 0;
        self.links.return_credit(qp.route, std::mem::take(&mut qp.sender.read_credit));
        self.sched.ready(qp);
    }

    /// Position of the oldest request that is not over.
    fn oldest(&self, at: QpRef) -> usize {
        let qp = self.nics[at.nic].qps.get(at.handle);
        qp.and_then(|qp| qp.sender.window.iter().position(|w| !w.is_over())).unwrap_or(0)
    }

    /// Fails the oldest request that is not over.
    fn fail_oldest(&mut self, at: QpRef, status: Status) {
        let oldest = self.oldest(at);
        self.fail_at(at, oldest, status, vendor::REMOTE);
        if let Some(qp) = self.nics[at.nic].qps.get_mut(at.handle) {
            qp.sender.wait_until = 0;
            qp.sender.ack_deadline = 0;
            self.sched.ready(qp);
        }
    }

    /// Looks at the clocks of a queue pair whose turn it is.
    #[inline]
    pub(super) fn expire(&mut self, at: QpRef, now: u64) {
        let Some(qp) = self.nics[at.nic].qps.get_mut(at.handle) else { return };
        let sender = &mut qp.sender;
        if sender.wait_until != 0 && now >= sender.wait_until {
            sender.wait_until = 0;
        }
        if sender.ack_deadline != 0 && now >= sender.ack_deadline {
            sender.ack_deadline = 0;
            if sender.window.awaits() {
                self.retry(at);
            }
        }
    }

    /// Completes what is over, oldest first. `Stop` when the queue pair cannot go on now.
    #[inline]
    pub(super) fn settle(&mut self, at: QpRef, now: u64) -> Step {
        let nic = &mut self.nics[at.nic];
        loop {
            let Some(qp) = nic.qps.get_mut(at.handle) else { return Step::Stop };
            let Some(wqe) = qp.sender.window.get(0) else { break };
            let (status, vendor_err) = match wqe.failed {
                Some(failed) => failed,
                None if wqe.is_over() => (Status::Success, 0),
                None => break,
            };
            let success = status == Status::Success;
            if !success || wqe.request.flags & FLAG_SIGNALED != 0 || qp.init.signal_all {
                let cq = qp.init.send_cq;
                let entry = Completion {
                    wr_id: wqe.request.wr_id,
                    qp_handle: at.handle,
                    opcode: cqe_opcode(wqe.request.opcode).wire(),
                    status,
                    byte_len: wqe.total,
                    imm_data: 0,
                    src_qp: 0,
                    wc_flags: 0,
                    vendor_err,
                    solicited: !success,
                };
                match nic.post(&mut self.sched, cq, &entry) {
                    Posted::Yes => {}
                    Posted::Later => {
                        match nic.stall(at.handle, Half::Sender, now) {
                            Some(then) => self.wait(at, then),
                            None => nic.fail_cq(&mut self.sched, cq),
                        }
                        return Step::Stop;
                    }
                    Posted::Lost => {
                        nic.fatal(&mut self.sched, at.handle);
                        return Step::Stop;
                    }
                }
            }
            let Some(qp) = nic.qps.get_mut(at.handle) else { return Step::Stop };
            qp.sender.window.pop();
            // A stall that no unsent request explains was this completion's, and is over.
            if qp.sender.stalled_since.is_some() && !qp.sender.window.has_unsent() {
                nic.unstall(at.handle, Half::Sender, now);
            }
            if !success {
                nic.send_failed(&mut self.sched, at.handle);
                return Step::Stop;
            }
            let Some(qp) = nic.qps.get(at.handle) else { return Step::Stop };
            if qp.sender.window.is_empty() && qp.state == QpState::ReadyToSend {
                return Step::Go;
            }
        }
        match nic.qps.get(at.handle) {
            Some(qp) if qp.state == QpState::SendQueueDrained => {
                nic.tell_drained(at.handle);
                Step::Go
            }
            Some(qp) if qp.state == QpState::ReadyToSend => Step::Go,
            _ => Step::Stop,
        }
    }
}
