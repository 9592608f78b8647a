//! Whose turn it is: queue pairs with work, in order, and queue pairs that wait for a time.
//!
//! A queue pair stands at most once in either. NICs take turns, so that one with many ready queue
//! pairs takes no more than its share. Within a process and without loss nothing here is
//! touched: a doorbell runs its queue pair at once, and no acknowledgement is ever waited for.

use std::collections::{BTreeSet, VecDeque};

use super::qp::Qp;

/// A queue pair, so that one that takes over a handle is not mistaken for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct QpRef {
    pub(crate) nic: usize,
    pub(crate) handle: u32,
    pub(crate) serial: u64,
}

#[derive(Default)]
pub(crate) struct Sched {
    /// Ready queue pairs, by NIC.
    ready: Vec<VecDeque<QpRef>>,
    /// NICs with ready queue pairs, each once, the next first.
    turns: VecDeque<usize>,
    ready_len: usize,
    timers: BTreeSet<(u64, QpRef)>,
    serial: u64,
}

impl Sched {
    /// A number for a new queue pair.
    pub(crate) fn next_serial(&mut self) -> u64 {
        self.serial += 1;
        self.serial
    }

    /// The queue pair has work.
    pub(crate) fn ready(&mut self, qp: &mut Qp) {
        if !qp.queued {
            qp.queued = true;
            let nic = qp.me.nic;
            if self.ready.len() <= nic {
                self.ready.resize_with(nic + 1, VecDeque::new);
            }
            if self.ready[nic].is_empty() {
                self.turns.push_back(nic);
            }
            self.ready[nic].push_back(qp.me);
            self.ready_len += 1;
        }
    }

    /// The next ready queue pair of the NIC whose turn it is.
    pub(crate) fn pop_ready(&mut self) -> Option<QpRef> {
        let nic = self.turns.pop_front()?;
        let next = self.ready[nic].pop_front()?;
        self.ready_len -= 1;
        if !self.ready[nic].is_empty() {
            self.turns.push_back(nic);
        }
        Some(next)
    }

    /// Whether no queue pair has work or waits for a time.
    #[inline]
    pub(crate) fn is_idle(&self) -> bool {
        self.ready_len == 0 && self.timers.is_empty()
    }

    pub(crate) fn ready_len(&self) -> usize {
        self.ready_len
    }

    /// Makes sure that the queue pair is looked at by its earliest deadline. A timer that is set
    /// earlier than needed stays: it is looked at in vain once.
    pub(crate) fn arm(&mut self, qp: &mut Qp) {
        let Some(deadline) = qp.deadline() else { return };
        if qp.timer_at.is_none_or(|at| deadline < at) {
            self.disarm(qp);
            qp.timer_at = Some(deadline);
            self.timers.insert((deadline, qp.me));
        }
    }

    pub(crate) fn disarm(&mut self, qp: &mut Qp) {
        if let Some(at) = qp.timer_at.take() {
            self.timers.remove(&(at, qp.me));
        }
    }

    /// The next queue pair whose timer is over.
    pub(crate) fn pop_expired(&mut self, now: u64) -> Option<QpRef> {
        let (at, _) = *self.timers.first()?;
        if at > now {
            return None;
        }
        self.timers.pop_first().map(|(_, qp)| qp)
    }

    pub(crate) fn next_deadline(&self) -> Option<u64> {
        self.timers.first().map(|(at, _)| *at)
    }
}

#[cfg(test)]
mod tests {
    use holdfast_wire::attr::{QpCap, QpType};

    use super::*;
    use crate::engine::host::QpInit;

    fn qp(nic: usize, handle: u32) -> Qp {
        let init = QpInit {
            qp_type: QpType::Rc,
            pd: 0,
            send_cq: 0,
            recv_cq: 0,
            srq: None,
            signal_all: false,
            cap: QpCap::default(),
        };
        Qp::new(QpRef { nic, handle, serial: 0 }, handle, init)
    }

    #[test]
    fn a_nic_with_many_ready_queue_pairs_lets_the_others_have_their_turns() {
        let mut sched = Sched::default();
        for handle in 0..4 {
            sched.ready(&mut qp(0, handle));
        }
        sched.ready(&mut qp(2, 9));
        sched.ready(&mut qp(1, 7));
        let order: Vec<(usize, u32)> =
            std::iter::from_fn(|| sched.pop_ready()).map(|qp| (qp.nic, qp.handle)).collect();
        assert_eq!(order, [(0, 0), (2, 9), (1, 7), (0, 1), (0, 2), (0, 3)]);
        assert_eq!(sched.ready_len(), 0);
    }
}
