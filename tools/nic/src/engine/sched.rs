//! Whose turn it is: queue pairs with work, in order, and queue pairs that wait for a time.
//!
//! A queue pair stands at most once in either. Within a process and without loss nothing here is
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
    ready: VecDeque<QpRef>,
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
            self.ready.push_back(qp.me);
        }
    }

    pub(crate) fn pop_ready(&mut self) -> Option<QpRef> {
        self.ready.pop_front()
    }

    pub(crate) fn ready_len(&self) -> usize {
        self.ready.len()
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
