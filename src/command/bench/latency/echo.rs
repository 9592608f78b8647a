//! Messages that the peer answers with one of its own: RDMA WRITEs that the other side sees in its
//! memory, or SENDs that it receives. The round trip counts; one way is taken for half of it.
//!
//! Message `n` travels on queue pair `n mod qps` through slot `n mod slots`, and so does its answer.
//! A write is seen by its last byte, its *mark*, which differs from use to use of a slot.
//!
//! Where both ends are in this process, one thread plays both.

use std::sync::atomic::{AtomicU8, Ordering};

use holdfast::{Completion, CompletionQueue, QueuePair, Remote, SendFlags, Slice};

use super::{Exchange, Seen};
use crate::command::bench::layout::Layout;
use crate::command::bench::plan::{Operation, Pace, Plan};
use crate::command::endpoints::{End, succeeded};
use crate::command::patience::Patience;

/// One of so many messages of a queue pair is signalled.
const SIGNAL_INTERVAL: u64 = 16;
/// Completions taken at a time.
const POLL: usize = 8;

/// Depth of the send queues for so many messages under way: those of which completions have not
/// been taken yet come on top.
pub fn send_depth(depth: u32) -> u32 {
    depth + 3 * SIGNAL_INTERVAL as u32
}

/// Messages from this process, answered by its other end or by another process.
#[derive(Debug)]
pub struct Echo<'a> {
    active: Player<'a>,
    passive: Option<Player<'a>>,
}

impl<'a> Echo<'a> {
    /// Both ends, or the active one.
    pub fn new(active: Player<'a>, passive: Option<Player<'a>>) -> Self {
        Self { active, passive }
    }
}

impl Exchange for Echo<'_> {
    #[inline(always)]
    fn post(&mut self, n: u64) -> anyhow::Result<()> {
        self.active.post(n)
    }

    #[inline(always)]
    fn ring(&mut self, n: u64) {
        self.active.ring(n);
    }

    #[inline(always)]
    fn look(&mut self) -> anyhow::Result<Seen> {
        if let Some(passive) = &mut self.passive {
            if let Some(n) = passive.arrived()? {
                passive.post(n)?;
                passive.ring(n);
                return Ok(Seen::Answered);
            }
            passive.tidy()?;
        }
        match self.active.arrived()? {
            Some(n) => Ok(Seen::Done(n)),
            None => {
                self.active.tidy()?;
                Ok(Seen::Nothing)
            }
        }
    }

    fn blame(&mut self) -> anyhow::Result<()> {
        self.active.reap()?;
        self.passive.as_mut().map_or(Ok(()), Player::reap)
    }
}

/// One end.
#[derive(Debug)]
pub struct Player<'a> {
    qps: &'a mut [QueuePair],
    send_cq: &'a mut CompletionQueue,
    recv_cq: &'a mut CompletionQueue,
    slots: Vec<Slot<'a>>,
    sends: bool,
    /// The message, where it is put into the ring.
    inline: Option<Vec<u8>>,
    /// Number of the next message on each queue pair.
    next: Vec<u64>,
    /// Queue pair whose next message is looked for.
    at: usize,
    /// Whether more than one may be under way, so that another queue pair's may come first: a look
    /// is then one at each, or the turns of the loop until one comes to it would add to its latency.
    several: bool,
    /// Completions are due.
    untidy: bool,
    /// Messages that may be outstanding on a queue pair.
    most: u32,
}

/// Where a message lies here, where one arrives, and where the peer's arrive.
#[derive(Debug)]
struct Slot<'a> {
    source: Slice<'a>,
    target: Slice<'a>,
    remote: Remote,
    source_mark: &'a AtomicU8,
    target_mark: &'a AtomicU8,
}

impl<'a> Player<'a> {
    /// An end that is ready for messages from number `first` on.
    pub fn new(end: &'a mut End, plan: &Plan, layout: Layout, first: u64) -> anyhow::Result<Self> {
        let base = end.remote;
        let End { qps, send_cq, recv_cq, region, .. } = end;
        let region = &*region;
        let mark = |at: usize| region.memory().atomic_u8(at + plan.size - 1);
        let slot = |slot: usize| -> anyhow::Result<Slot<'a>> {
            let (source, target) = (layout.source(slot), layout.target(slot));
            Ok(Slot {
                source: region.slice(source, plan.size)?,
                target: region.slice(target, plan.size)?,
                remote: Remote { addr: base.addr + target as u64, rkey: base.rkey },
                source_mark: mark(source)?,
                target_mark: mark(target)?,
            })
        };
        let count = qps.len() as u64;
        let next = (0..count).map(|qp| first + (qp + count - first % count) % count).collect();
        let inline = qps.iter().all(|qp| plan.size <= qp.max_inline() as usize);
        let mut player = Self {
            slots: (0..layout.slots).map(slot).collect::<anyhow::Result<_>>()?,
            sends: plan.op == Operation::Send,
            inline: inline.then(|| vec![0; plan.size]),
            next,
            at: (first % count) as usize,
            several: plan.pace != Pace::Closed,
            untidy: false,
            most: send_depth(plan.depth),
            qps,
            send_cq,
            recv_cq,
        };
        player.post_receives(plan.recv_depth())?;
        Ok(player)
    }

    fn post_receives(&mut self, depth: u32) -> anyhow::Result<()> {
        if !self.sends {
            return Ok(());
        }
        for (at, qp) in self.qps.iter_mut().enumerate() {
            while qp.outstanding_receives() < depth {
                qp.receive(at as u64, &[self.slots[0].target])?;
            }
            qp.ring_receives();
        }
        Ok(())
    }

    /// Answers so many messages of another process.
    pub fn answer(&mut self, count: u64, watch: &mut Patience) -> anyhow::Result<()> {
        let mut answered = 0;
        while answered < count {
            if let Some(n) = self.arrived()? {
                self.post(n)?;
                self.ring(n);
                answered += 1;
                watch.progress();
                continue;
            }
            self.tidy()?;
            if let Err(error) = watch.tick("a message of the other side") {
                self.reap()?;
                return Err(error);
            }
        }
        Ok(())
    }

    /// Writes message `n` into its queue.
    #[inline(always)]
    fn post(&mut self, n: u64) -> anyhow::Result<()> {
        let at = self.queue_pair_of(n);
        if self.qps[at].outstanding_sends() >= self.most {
            self.make_room(at)?;
        }
        let signalled = (n / self.qps.len() as u64).is_multiple_of(SIGNAL_INTERVAL);
        let flags = if signalled { SendFlags::SIGNALED } else { SendFlags::NONE };
        self.untidy |= signalled;
        let mark = self.mark_of(n);
        let slot = &self.slots[(n % self.slots.len() as u64) as usize];
        let qp = &mut self.qps[at];
        match &mut self.inline {
            Some(bytes) => {
                if let Some(last) = bytes.last_mut() {
                    *last = mark;
                }
                if self.sends {
                    qp.send_inline(n, bytes, flags)?;
                } else {
                    qp.write_inline(n, bytes, slot.remote, flags)?;
                }
            }
            None if self.sends => qp.send(n, &[slot.source], flags)?,
            None => {
                slot.source_mark.store(mark, Ordering::Release);
                qp.write(n, &[slot.source], slot.remote, flags)?;
            }
        }
        Ok(())
    }

    #[inline(always)]
    fn ring(&mut self, n: u64) {
        let at = self.queue_pair_of(n);
        self.qps[at].ring_sends();
    }

    #[inline(always)]
    fn queue_pair_of(&self, n: u64) -> usize {
        if self.qps.len() == 1 { 0 } else { (n % self.qps.len() as u64) as usize }
    }

    /// The mark of a message: never 0, and never that of the one before in its slot.
    #[inline(always)]
    fn mark_of(&self, n: u64) -> u8 {
        (n / self.slots.len() as u64 % 255) as u8 + 1
    }

    /// The number of a message that has arrived, each once.
    #[inline(always)]
    fn arrived(&mut self) -> anyhow::Result<Option<u64>> {
        let at = if self.sends {
            let mut completion = [Completion::default()];
            if self.recv_cq.poll(&mut completion)? == 0 {
                return Ok(None);
            }
            succeeded(&completion[0])?;
            let at = completion[0].wr_id as usize;
            self.qps[at].receive(at as u64, &[self.slots[0].target])?;
            self.qps[at].ring_receives();
            at
        } else {
            let mut looks = if self.several { self.qps.len() } else { 1 };
            loop {
                let (at, n) = (self.at, self.next[self.at]);
                let slot = &self.slots[(n % self.slots.len() as u64) as usize];
                let here = slot.target_mark.load(Ordering::Acquire) == self.mark_of(n);
                if here || self.several {
                    self.at = if at + 1 == self.qps.len() { 0 } else { at + 1 };
                }
                if here {
                    break at;
                }
                looks -= 1;
                if looks == 0 {
                    return Ok(None);
                }
            }
        };
        let n = self.next[at];
        self.next[at] += self.qps.len() as u64;
        Ok(Some(n))
    }

    /// Waits for completions of messages that have long been answered.
    #[cold]
    fn make_room(&mut self, at: usize) -> anyhow::Result<()> {
        // A device that never completes them has posting fail, which says so.
        for _ in 0..1 << 24 {
            self.reap()?;
            if self.qps[at].outstanding_sends() < self.most {
                break;
            }
        }
        Ok(())
    }

    /// Takes completions, when some are due: while nothing else is to do.
    #[inline(always)]
    fn tidy(&mut self) -> anyhow::Result<()> {
        if self.untidy {
            self.untidy = false;
            self.reap()?;
        }
        Ok(())
    }

    fn reap(&mut self) -> anyhow::Result<()> {
        let mut completions = [Completion::default(); POLL];
        let count = self.send_cq.poll(&mut completions)?;
        completions[..count].iter().try_for_each(|completion| Ok(succeeded(completion)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::bench::measure::tests::{plan, session};
    use crate::command::bench::plan::Mode;
    use crate::command::endpoints::Session;

    #[test]
    fn one_look_finds_a_message_on_any_queue_pair() {
        for depth in [1, 2] {
            let plan = plan(Operation::Write, Mode::Lat, 8, 64, 100);
            let plan = Plan { pace: Pace::Open(1e5), depth, ..plan };
            let layout = Layout::new(&plan);
            let mut session = session(&plan);
            let Session { active, passive, .. } = &mut session;
            let player = |end| Player::new(end, &plan, layout, 0).unwrap();
            let mut active = active.as_mut().map(player).unwrap();
            let mut passive = passive.as_mut().map(player).unwrap();
            for n in [40, 7, 63] {
                active.post(n).unwrap();
                active.ring(n);
                let mark = passive.mark_of(n);
                let slot = &passive.slots[n as usize];
                while slot.target_mark.load(Ordering::Acquire) != mark {
                    std::thread::yield_now();
                }
                assert_eq!(passive.arrived().unwrap(), Some(n));
                assert_eq!(passive.arrived().unwrap(), None);
            }
        }
    }
}
