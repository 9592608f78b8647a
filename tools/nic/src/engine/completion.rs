//! Completions, and what becomes of queue pairs when something fails for good.
//!
//! A completion queue that refuses an entry for good has *failed*: that is told once, every queue
//! pair attached to it stops, and completions for it are dropped from then on. One whose memory
//! misses is asked again later, and the request that is to complete stays where it is.

use holdfast_wire::attr::{QpState, QpType};
use holdfast_wire::completion::{CqeOpcode, Status};
use holdfast_wire::event::EventKind;
use holdfast_wire::wqe::Opcode;

use super::config::MissPolicy;
use super::host::{Completion, CqRefusal, Fetch, Host, RecvQueue};
use super::nic::Nic;
use super::qp::Qp;
use super::sched::Sched;

/// What became of a completion.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Posted {
    Yes,
    /// The queue's memory misses: try again later.
    Later,
    /// The queue has failed, and with it the queue pair.
    Lost,
}

impl<H: Host> Nic<H> {
    /// Puts a completion in a queue.
    #[inline]
    pub(crate) fn post(&mut self, sched: &mut Sched, cq: u32, entry: &Completion) -> Posted {
        if self.cqs.get(cq).is_none_or(|cq| cq.failed) {
            self.counters.lost_completions += 1;
            return Posted::Lost;
        }
        match self.host.complete(cq, entry) {
            Ok(()) => {
                match entry.status {
                    Status::Success => self.counters.completions += 1,
                    Status::WorkRequestFlushed => self.counters.flushed += 1,
                    _ => self.counters.error_completions += 1,
                }
                Posted::Yes
            }
            Err(CqRefusal::Miss(_)) => {
                self.counters.translation_misses += 1;
                Posted::Later
            }
            Err(CqRefusal::Overrun | CqRefusal::Dead) => {
                self.counters.lost_completions += 1;
                self.fail_cq(sched, cq);
                Posted::Lost
            }
        }
    }

    /// A completion queue is of no more use.
    #[cold]
    pub(crate) fn fail_cq(&mut self, sched: &mut Sched, cq: u32) {
        match self.cqs.get_mut(cq) {
            Some(cq) if !cq.failed => cq.failed = true,
            _ => return,
        }
        self.event(EventKind::CqError, cq);
        for handle in self.qps.handles().collect::<Vec<_>>() {
            let attached = |qp: &Qp| qp.init.send_cq == cq || qp.init.recv_cq == cq;
            if self.qps.get(handle).is_some_and(|qp| attached(qp)) {
                self.fatal(sched, handle);
            }
        }
    }

    /// A queue pair cannot go on and cannot say so in a completion.
    #[cold]
    pub(crate) fn fatal(&mut self, sched: &mut Sched, handle: u32) {
        let stopped = [QpState::Reset, QpState::Error];
        if self.qps.get(handle).is_some_and(|qp| !stopped.contains(&qp.state)) {
            self.event(EventKind::QpFatal, handle);
            self.enter_error(sched, handle);
        }
    }

    /// Puts a queue pair in state Error; what it holds is flushed when its turn comes.
    #[cold]
    pub(crate) fn enter_error(&mut self, sched: &mut Sched, handle: u32) {
        if let Some(qp) = self.qps.get_mut(handle) {
            qp.state = QpState::Error;
            qp.sender.wait_until = 0;
            qp.sender.ack_deadline = 0;
            qp.sender.stalled_since = None;
            qp.receiver.stalled_since = None;
            qp.receiver.message = None;
            sched.ready(qp);
        }
    }

    /// After a failed send: Error for connections, SQE for datagrams.
    #[cold]
    pub(crate) fn send_failed(&mut self, sched: &mut Sched, handle: u32) {
        let Some(qp) = self.qps.get_mut(handle) else { return };
        if qp.init.qp_type == QpType::Rc {
            return self.enter_error(sched, handle);
        }
        if qp.state != QpState::Error {
            qp.state = QpState::SendQueueError;
            qp.sender.wait_until = 0;
            qp.sender.stalled_since = None;
            sched.ready(qp);
        }
    }

    /// Raises the event that a drained queue pair was asked for, once nothing is under way.
    pub(crate) fn tell_drained(&mut self, handle: u32) {
        let Some(qp) = self.qps.get_mut(handle) else { return };
        let drained = qp.state == QpState::SendQueueDrained && qp.sender.window.is_empty();
        if drained && std::mem::take(&mut qp.notify_drained) {
            self.event(EventKind::SendQueueDrained, handle);
        }
    }

    /// Takes a receive for a queue pair and watches the limit of a shared queue.
    pub(crate) fn take_receive(&mut self, handle: u32) -> Fetch {
        let Some(qp) = self.qps.get_mut(handle) else { return Fetch::Empty };
        let queue = qp.recv_queue();
        qp.receiver.recv.sges.clear();
        let fetch = self.host.next_recv(queue, &mut qp.receiver.recv);
        match fetch {
            Fetch::Got | Fetch::Malformed => {
                qp.receiver.taken = true;
                self.counters.receives += 1;
            }
            Fetch::Miss(_) => self.counters.translation_misses += 1,
            Fetch::Empty | Fetch::Corrupt => {}
        }
        if let RecvQueue::Shared(srq) = queue
            && let Some(limit) = self.srqs.get(srq).map(|srq| srq.limit).filter(|l| *l > 0)
            && self.host.recv_available(queue) < limit
        {
            if let Some(srq) = self.srqs.get_mut(srq) {
                srq.limit = 0;
            }
            self.event(EventKind::SrqLimitReached, srq);
        }
        fetch
    }

    /// Counts a miss against one half of a queue pair. Says when to try again; `None` when the
    /// policy's patience is over.
    #[cold]
    pub(crate) fn stall(&mut self, handle: u32, half: Half, now: u64) -> Option<u64> {
        self.counters.translation_misses += 1;
        let MissPolicy::Stall { bound } = self.config.miss else { return None };
        let since = half.since(self.qps.get_mut(handle)?);
        if since.is_none() {
            self.counters.stalls += 1;
        }
        let began = *since.get_or_insert(now);
        let waited = now.saturating_sub(began);
        let bound = u64::try_from(bound.as_nanos()).unwrap_or(u64::MAX);
        if waited >= bound {
            self.unstall(handle, half, now);
            return None;
        }
        // Often at first, and not after the bound.
        Some(now.saturating_add(patience(waited).min(bound - waited)))
    }

    /// A stall is over, one way or the other.
    #[inline]
    pub(crate) fn unstall(&mut self, handle: u32, half: Half, now: u64) {
        if let Some(qp) = self.qps.get_mut(handle)
            && let Some(began) = half.since(qp).take()
        {
            self.counters.stall_ns += now.saturating_sub(began);
        }
    }
}

/// One half of a queue pair.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Half {
    Sender,
    Receiver,
}

impl Half {
    fn since(self, qp: &mut Qp) -> &mut Option<u64> {
        match self {
            Half::Sender => &mut qp.sender.stalled_since,
            Half::Receiver => &mut qp.receiver.stalled_since,
        }
    }
}

/// How long to wait before another try, in nanoseconds, after `waited` of waiting.
pub(crate) fn patience(waited: u64) -> u64 {
    (waited / 8).clamp(10_000, 1_000_000)
}

/// The completion opcode of a send request.
pub(crate) fn cqe_opcode(opcode: Opcode) -> CqeOpcode {
    match opcode {
        Opcode::RdmaWrite | Opcode::RdmaWriteImm => CqeOpcode::RdmaWrite,
        Opcode::Send | Opcode::SendImm | Opcode::SendInv => CqeOpcode::Send,
        Opcode::RdmaRead | Opcode::RdmaReadInv => CqeOpcode::RdmaRead,
        Opcode::CompareSwap => CqeOpcode::CompareSwap,
        Opcode::FetchAdd => CqeOpcode::FetchAdd,
        Opcode::Lso => CqeOpcode::Lso,
        Opcode::LocalInv => CqeOpcode::LocalInv,
        Opcode::FastReg => CqeOpcode::FastReg,
        Opcode::MaskedCompareSwap => CqeOpcode::MaskedCompareSwap,
        Opcode::MaskedFetchAdd => CqeOpcode::MaskedFetchAdd,
        Opcode::BindMw => CqeOpcode::BindMw,
    }
}
