//! The send window: work requests taken from the ring and not yet completed.
//!
//! A request stays here from the moment it is fetched until it is acknowledged, because after a
//! loss it is sent again. Its slot is filled in place. Within a process every burst is answered
//! before the next, so one slot is enough; a queue pair whose peer is behind a link has
//! [`LINK_SLOTS`].

use holdfast_wire::completion::Status;

use super::host::SendRequest;
use super::packet::psn_diff;

/// Slots of a queue pair whose peer is in another process.
pub(crate) const LINK_SLOTS: usize = 32;

/// A work request under way.
#[derive(Debug, Default)]
pub(crate) struct Wqe {
    pub(crate) request: SendRequest,
    /// Payload bytes.
    pub(crate) total: u32,
    /// Number of the first packet.
    pub(crate) psn: u32,
    /// Packets it takes; none for local operations.
    pub(crate) packets: u32,
    /// Packets sent.
    pub(crate) sent: u32,
    /// Packets acknowledged or answered.
    pub(crate) acked: u32,
    /// The answer brings data: a READ or an atomic.
    pub(crate) answered: bool,
    /// A local operation that was carried out.
    pub(crate) done: bool,
    /// It failed before it was sent; it completes so when it is the oldest.
    pub(crate) failed: Option<(Status, u32)>,
}

impl Wqe {
    /// Nothing is left to do but to complete it.
    #[inline]
    pub(crate) fn is_over(&self) -> bool {
        self.done || (self.packets > 0 && self.acked == self.packets)
    }
}

/// A ring of slots; `cursor` counts the requests from the front that are completely sent.
#[derive(Debug)]
pub(crate) struct Window {
    slots: Vec<Wqe>,
    head: usize,
    len: usize,
    pub(crate) cursor: usize,
}

impl Window {
    pub(crate) fn new() -> Self {
        Self { slots: vec![Wqe::default()], head: 0, len: 0, cursor: 0 }
    }

    /// Gives it at least `slots` slots.
    pub(crate) fn reserve(&mut self, slots: usize) {
        if self.slots.len() < slots {
            self.slots.rotate_left(self.head);
            self.head = 0;
            self.slots.resize_with(slots, Wqe::default);
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.len == 0
    }

    pub(crate) fn is_full(&self) -> bool {
        self.len == self.slots.len()
    }

    /// Whether a request waits to be sent, or to be sent further.
    pub(crate) fn has_unsent(&self) -> bool {
        self.cursor < self.len
    }

    #[inline]
    fn slot(&self, n: usize) -> usize {
        let at = self.head + n;
        if at >= self.slots.len() { at - self.slots.len() } else { at }
    }

    /// The `n`th oldest request.
    #[inline]
    pub(crate) fn get(&self, n: usize) -> Option<&Wqe> {
        if n < self.len { self.slots.get(self.slot(n)) } else { None }
    }

    #[inline]
    pub(crate) fn get_mut(&mut self, n: usize) -> Option<&mut Wqe> {
        let slot = self.slot(n);
        if n < self.len { self.slots.get_mut(slot) } else { None }
    }

    /// The request under way, if there is exactly one.
    #[inline]
    pub(crate) fn only(&mut self) -> Option<&mut Wqe> {
        if self.len == 1 { self.slots.get_mut(self.head) } else { None }
    }

    /// The slot that a next request would take. Call only when it is not full.
    #[inline]
    pub(crate) fn vacant(&mut self) -> &mut Wqe {
        let slot = self.slot(self.len);
        &mut self.slots[slot]
    }

    /// Counts the vacant slot as taken.
    pub(crate) fn push(&mut self) {
        self.len += 1;
    }

    /// Drops the oldest.
    #[inline]
    pub(crate) fn pop(&mut self) {
        self.head = self.slot(1);
        self.len -= 1;
        self.cursor = self.cursor.saturating_sub(1);
    }

    /// Requests.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Wqe> {
        (0..self.len).filter_map(|n| self.get(n))
    }

    /// Packets sent or to be sent that are not acknowledged.
    pub(crate) fn outstanding_packets(&self) -> u32 {
        self.iter().map(|w| w.packets - w.acked).sum()
    }

    /// READs and atomics that were sent and not completely answered.
    pub(crate) fn unanswered(&self) -> usize {
        self.iter().filter(|w| w.answered && w.sent > w.acked).count()
    }

    /// Whether something was sent that is not acknowledged.
    pub(crate) fn awaits(&self) -> bool {
        self.iter().any(|w| w.sent > w.acked)
    }

    /// Makes everything that is not acknowledged unsent.
    pub(crate) fn rewind(&mut self) {
        self.cursor = 0;
        for n in 0..self.len {
            if let Some(w) = self.get_mut(n) {
                w.sent = w.acked;
            }
        }
    }

    /// Takes everything before packet `psn` as acknowledged, up to the first READ or atomic whose
    /// answer is due. Says whether that was news.
    #[inline]
    pub(crate) fn acknowledge(&mut self, psn: u32) -> bool {
        let mut news = false;
        for n in 0..self.len {
            let Some(w) = self.get_mut(n) else { break };
            let done = psn_diff(psn, w.psn).clamp(0, w.sent as i32) as u32;
            if w.answered && w.acked < w.packets {
                break;
            }
            if done > w.acked {
                w.acked = done;
                news = true;
            }
            if w.acked < w.packets {
                break;
            }
        }
        news
    }

    /// The READ or atomic that awaits an answer at packet `psn`, if it is the next to be answered:
    /// its position. Everything before counts as acknowledged.
    pub(crate) fn due(&mut self, psn: u32, packets: u32) -> Option<usize> {
        self.acknowledge(psn);
        let n = self.iter().position(|w| !w.is_over())?;
        let w = self.get(n)?;
        let ahead = psn_diff(psn, w.psn);
        let expected = w.answered && ahead >= 0 && ahead as u32 == w.acked;
        (expected && packets > 0 && packets <= w.sent.saturating_sub(w.acked)).then_some(n)
    }

    /// Takes `packets` packets from `psn` as answered. Says whether they were due.
    #[inline]
    pub(crate) fn answered(&mut self, psn: u32, packets: u32) -> bool {
        let Some(n) = self.due(psn, packets) else { return false };
        if let Some(w) = self.get_mut(n) {
            w.acked += packets;
        }
        true
    }
}
