//! Requests from posting to completion: reads, atomics, writes that nobody answers, and a mix of
//! reads and writes.

use holdfast::{Completion, CompletionQueue, QueuePair, Remote, SendFlags, Slice};

use super::{Exchange, Seen};
use crate::command::bench::layout::Layout;
use crate::command::bench::mix::Mix;
use crate::command::bench::plan::{Operation, Plan};
use crate::command::endpoints::{End, succeeded};

/// Completions taken at a time.
const POLL: usize = 4;

/// The active end.
#[derive(Debug)]
pub struct Completions<'a> {
    op: Operation,
    mix: Mix,
    qps: &'a mut [QueuePair],
    cq: &'a mut CompletionQueue,
    slots: Vec<Slot<'a>>,
    /// Completions taken and not told of yet.
    taken: [Completion; POLL],
    next: usize,
    count: usize,
}

/// Both ends of an operation, by direction.
#[derive(Debug)]
struct Slot<'a> {
    write: (Slice<'a>, Remote),
    read: (Slice<'a>, Remote),
}

impl<'a> Completions<'a> {
    /// The operations of the plan, from this end.
    pub fn new(end: &'a mut End, plan: &Plan, layout: Layout) -> anyhow::Result<Self> {
        let base = end.remote;
        let End { qps, send_cq, region, .. } = end;
        let region = &*region;
        let remote = |at: usize| Remote { addr: base.addr + at as u64, rkey: base.rkey };
        let slot = |slot: usize| -> anyhow::Result<Slot<'a>> {
            let (source, target) = (layout.source(slot), layout.target(slot));
            Ok(Slot {
                write: (region.slice(source, plan.size)?, remote(target)),
                read: (region.slice(target, plan.size)?, remote(source)),
            })
        };
        Ok(Self {
            op: plan.op,
            mix: Mix::new(plan.reads),
            slots: (0..layout.slots).map(slot).collect::<anyhow::Result<_>>()?,
            qps,
            cq: send_cq,
            taken: [Completion::default(); POLL],
            next: 0,
            count: 0,
        })
    }
}

impl Exchange for Completions<'_> {
    #[inline(always)]
    fn post(&mut self, n: u64) -> anyhow::Result<()> {
        let slot = &self.slots[(n % self.slots.len() as u64) as usize];
        let ((source, there), (target, from)) = (slot.write, slot.read);
        let at = (n % self.qps.len() as u64) as usize;
        let qp = &mut self.qps[at];
        let flags = SendFlags::SIGNALED;
        match self.op {
            Operation::Write => qp.write(n, &[source], there, flags)?,
            Operation::Read => qp.read(n, &[target], from, flags)?,
            Operation::Mixed if self.mix.next_reads() => qp.read(n, &[target], from, flags)?,
            Operation::Mixed => qp.write(n, &[source], there, flags)?,
            Operation::Cas => qp.compare_swap(n, target, from, 0, 0, flags)?,
            Operation::Faa => qp.fetch_add(n, target, from, 1, flags)?,
            Operation::Send => unreachable!("a send is answered"),
        }
        Ok(())
    }

    #[inline(always)]
    fn ring(&mut self, n: u64) {
        let at = (n % self.qps.len() as u64) as usize;
        self.qps[at].ring_sends();
    }

    #[inline(always)]
    fn look(&mut self) -> anyhow::Result<Seen> {
        if self.next == self.count {
            (self.next, self.count) = (0, self.cq.poll(&mut self.taken)?);
            if self.count == 0 {
                return Ok(Seen::Nothing);
            }
        }
        let completion = &self.taken[self.next];
        self.next += 1;
        succeeded(completion)?;
        Ok(Seen::Done(completion.wr_id))
    }

    fn blame(&mut self) -> anyhow::Result<()> {
        self.look().map(|_| ())
    }
}
