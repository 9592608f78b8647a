//! A device without a NIC, that is done with everything at once: what the throughput loop achieves
//! on it is the most that it can measure, and the time it needs is its own doing.
//!
//! What the library does for a request is left out (writing it into a queue, the doorbell, reading a
//! completion); all else is the loop of a measurement: which queue pair and slot is next, what is
//! outstanding, a completion for each batch, receives for messages, the looks at the clock, and what is
//! recorded. A message arrives whether or not a receive is posted, and waits.

use std::cell::Cell;
use std::hint::black_box;
use std::ops::ControlFlow;
use std::rc::Rc;
use std::time::Duration;

use holdfast::cores::Step;
use holdfast::stats::{Stats, Turns};
use holdfast::{Completion, SendFlags};
use serde::Serialize;

use super::device::{Poll, Requests};
use super::progress::{OverTime, Progress};
use super::sides::{Part, Sides};
use crate::command::bench::layout::Layout;
use crate::command::bench::plan::{Plan, Stop};
use crate::command::clock::{Clock, Time as _};
use crate::command::patience::Patience;

/// Operations of a stretch on the null device, and stretches.
const OPERATIONS: u64 = 100_000;
const STRETCHES: usize = 10;
/// Completions taken at a time, as the library's loop does.
const BATCH: usize = 32;

/// What the measuring costs, and so the most that it can measure.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Overhead {
    /// Time for each operation that is the tool's, recording included: the mean of the quietest of
    /// ten stretches.
    pub per_operation_ns: f64,
    /// 10^6 operations a second on a device that takes no time.
    pub highest_mops: f64,
}

/// Measures the loop of the plan with these parts, on this thread; nothing where none sends. Takes some
/// milliseconds.
pub fn overhead(
    plan: &Plan,
    parts: [Option<Part>; 2],
    clock: &Clock,
) -> anyhow::Result<Option<Overhead>> {
    if !parts.iter().flatten().any(|part| part.sends) {
        return Ok(None);
    }
    let mut per_operation_ns = f64::MAX;
    // The first warms up.
    for stretch in 0..=STRETCHES {
        let mut device = Device::new(plan, parts, OPERATIONS);
        let (seconds, over_time) = device.run(plan, parts, OPERATIONS, clock)?;
        let done: u64 = over_time.slices.iter().map(|slice| slice.count).sum();
        if stretch > 0 {
            per_operation_ns = per_operation_ns.min(seconds * 1e9 / done.max(1) as f64);
        }
    }
    Ok(Some(Overhead { per_operation_ns, highest_mops: 1e3 / per_operation_ns }))
}

/// The ends, and the queues to poll.
struct Device {
    ends: [Vec<NullQueuePair>; 2],
    poll: NullPoll,
}

impl Device {
    /// The ends of these parts, for so many operations of each.
    fn new(plan: &Plan, parts: [Option<Part>; 2], operations: u64) -> Self {
        let mut queues = Vec::new();
        let inbox = || Rc::new(Inbox::new(plan.qps as usize));
        let receives = |part: Option<Part>| part.is_some_and(|part| part.receives);
        let inboxes = parts.map(|part| receives(part).then(inbox));
        let ends = [0, 1].map(|end| {
            let done = Rc::new(Done::new(plan, operations));
            let Some(part) = parts[end] else { return Vec::new() };
            queues.extend(inboxes[end].clone().map(NullQueue::Messages));
            queues.extend(part.sends.then(|| NullQueue::Sends(Rc::clone(&done))));
            // Where the peer is not here, as many messages come from it as go to it.
            let peer = if parts[1 - end].is_some() { 1 - end } else { end };
            let qp = |at| {
                let (done, peer) = (Rc::clone(&done), inboxes[peer].clone());
                NullQueuePair { at, done, peer, messages: 0 }
            };
            (0..plan.qps as usize).map(qp).collect()
        });
        Self { ends, poll: NullPoll { queues, turns: Turns::default() } }
    }

    /// Seconds that so many operations of each end take, and when they were done.
    fn run(
        &mut self,
        plan: &Plan,
        parts: [Option<Part>; 2],
        operations: u64,
        clock: &Clock,
    ) -> anyhow::Result<(f64, OverTime)> {
        // Counted like any other, but shown to nobody.
        let stats = Stats::new("null device");
        let slots = Layout::new(plan).slots;
        let mut sides = Sides::new();
        for (part, qps) in parts.into_iter().zip(&mut self.ends) {
            let Some(part) = part else { continue };
            sides.add(
                part,
                plan,
                qps,
                vec![[0; 10]; slots],
                vec![[0; 3]; slots],
                stats.lane("null"),
            )?;
        }
        let watch = Patience::new(Duration::from_secs(10));
        let mut progress = Progress::new(clock.ticks_of(Duration::from_millis(1)));
        let stop = Stop::Iterations(operations);
        let started = clock.ticks();
        super::turns(&mut self.poll, &mut sides, watch, clock, stop, &mut progress)?;
        let ticks = clock.ticks().wrapping_sub(started);
        let over_time = progress.finish(ticks, sides.done(), clock.ns_per_tick(), plan.size);
        Ok((clock.ns(ticks) / 1e9, over_time))
    }
}

/// Completions of sends that are there to be taken, in order.
#[derive(Debug)]
struct Done {
    ids: Box<[Cell<u64>]>,
    first: Cell<usize>,
    last: Cell<usize>,
}

impl Done {
    /// Room for all that the plan has outstanding at a time.
    fn new(plan: &Plan, operations: u64) -> Self {
        let most = u64::from(plan.depth / plan.batch) * u64::from(plan.qps);
        let room = most.min(operations).next_power_of_two() as usize;
        Self { ids: vec![Cell::new(0); room].into(), first: Cell::new(0), last: Cell::new(0) }
    }

    #[inline(always)]
    fn put(&self, id: u64) {
        let last = self.last.get();
        debug_assert!(last - self.first.get() < self.ids.len(), "more than the plan has");
        self.ids[last & (self.ids.len() - 1)].set(id);
        self.last.set(last + 1);
    }

    #[inline(always)]
    fn take(&self) -> Option<u64> {
        let first = self.first.get();
        (first < self.last.get()).then(|| {
            self.first.set(first + 1);
            self.ids[first & (self.ids.len() - 1)].get()
        })
    }
}

/// Messages that have arrived at an end and were not taken.
#[derive(Debug)]
struct Inbox {
    /// By queue pair, and of all.
    arrived: Box<[Cell<u64>]>,
    all: Cell<u64>,
    /// The queue pair whose messages are taken next.
    at: Cell<usize>,
}

impl Inbox {
    fn new(qps: usize) -> Self {
        Self { arrived: vec![Cell::new(0); qps].into(), all: Cell::new(0), at: Cell::new(0) }
    }

    #[inline(always)]
    fn put(&self, qp: usize, messages: u64) {
        self.arrived[qp].set(self.arrived[qp].get() + messages);
        self.all.set(self.all.get() + messages);
    }

    #[inline(always)]
    fn take(&self) -> Option<u64> {
        if self.all.get() == 0 {
            return None;
        }
        let mut at = self.at.get();
        while self.arrived[at].get() == 0 {
            at = if at + 1 == self.arrived.len() { 0 } else { at + 1 };
        }
        self.at.set(at);
        self.arrived[at].set(self.arrived[at].get() - 1);
        self.all.set(self.all.get() - 1);
        Some(at as u64)
    }
}

/// A queue pair of the null device.
#[derive(Debug)]
struct NullQueuePair {
    at: usize,
    done: Rc<Done>,
    /// Where its messages arrive, if anywhere here.
    peer: Option<Rc<Inbox>>,
    /// Those that the device was not shown yet.
    messages: u64,
}

impl NullQueuePair {
    #[inline(always)]
    fn post(&mut self, id: u64, at: &[u64; 10], flags: SendFlags) -> anyhow::Result<()> {
        black_box(at);
        if black_box(flags) == SendFlags::SIGNALED {
            self.done.put(black_box(id));
        }
        Ok(())
    }
}

impl Requests for NullQueuePair {
    /// As large as where a payload is.
    type Slot<'a> = [u64; 10];
    type Target<'a> = [u64; 3];

    #[inline(always)]
    fn write(&mut self, id: u64, at: &[u64; 10], flags: SendFlags) -> anyhow::Result<()> {
        self.post(id, at, flags)
    }

    #[inline(always)]
    fn read(&mut self, id: u64, at: &[u64; 10], flags: SendFlags) -> anyhow::Result<()> {
        self.post(id, at, flags)
    }

    #[inline(always)]
    fn send(&mut self, id: u64, at: &[u64; 10], flags: SendFlags) -> anyhow::Result<()> {
        self.messages += 1;
        self.post(id, at, flags)
    }

    #[inline(always)]
    fn cas(&mut self, id: u64, at: &[u64; 10], flags: SendFlags) -> anyhow::Result<()> {
        self.post(id, at, flags)
    }

    #[inline(always)]
    fn faa(&mut self, id: u64, at: &[u64; 10], flags: SendFlags) -> anyhow::Result<()> {
        self.post(id, at, flags)
    }

    #[inline(always)]
    fn ring_sends(&mut self) {
        let messages = black_box(std::mem::take(&mut self.messages));
        if let Some(peer) = &self.peer {
            peer.put(self.at, messages);
        }
    }

    #[inline(always)]
    fn receive(&mut self, id: u64, at: &[u64; 3]) -> anyhow::Result<()> {
        black_box((id, at));
        Ok(())
    }

    #[inline(always)]
    fn ring_receives(&mut self) {
        black_box(self.at);
    }

    fn outstanding_receives(&self) -> u32 {
        0
    }
}

/// A queue of the null device.
#[derive(Debug)]
enum NullQueue {
    Sends(Rc<Done>),
    Messages(Rc<Inbox>),
}

/// The loop over its queues: as the library's, without the library's work.
#[derive(Debug)]
struct NullPoll {
    queues: Vec<NullQueue>,
    turns: Turns,
}

impl Poll for NullPoll {
    #[inline(always)]
    fn run(
        &mut self,
        mut handle: impl FnMut(Step<'_>) -> anyhow::Result<ControlFlow<()>>,
    ) -> anyhow::Result<()> {
        let mut batch = [Completion::default(); BATCH];
        loop {
            let mut completions = 0;
            for (queue, kind) in self.queues.iter().enumerate() {
                let mut taken = 0;
                while taken < BATCH {
                    let id = match kind {
                        NullQueue::Sends(done) => done.take(),
                        NullQueue::Messages(inbox) => inbox.take(),
                    };
                    let Some(id) = id else { break };
                    batch[taken].wr_id = id;
                    taken += 1;
                }
                completions += taken;
                for completion in &black_box(&batch)[..taken] {
                    if handle(Step::Completion { queue, completion })?.is_break() {
                        return Ok(());
                    }
                }
            }
            self.turns.turn(completions as u64);
            if handle(Step::Turn { completions })?.is_break() {
                return Ok(());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::bench::measure::tests::plan;
    use crate::command::bench::plan::{Mode, Operation};

    /// Each end here does so many operations.
    fn counts(plan: &Plan, here: (bool, bool), operations: u64) -> u64 {
        let parts = Part::of(plan, here.0, here.1);
        let mut device = Device::new(plan, parts, operations);
        let (_, over_time) = device.run(plan, parts, operations, &Clock::calibrate()).unwrap();
        for (part, inbox) in parts.iter().zip(device.ends) {
            // All that was sent to an end that receives has been taken.
            let left = inbox.iter().filter_map(|qp| qp.peer.as_ref()).map(|peer| peer.all.get());
            assert_eq!(left.sum::<u64>(), 0, "{part:?} of {plan:?}");
        }
        over_time.slices.iter().map(|slice| slice.count).sum()
    }

    #[test]
    fn the_null_device_is_done_once_with_each() {
        for op in [Operation::Write, Operation::Mixed, Operation::Send, Operation::Faa] {
            for (qps, depth, batch) in [(1, 1, 1), (3, 16, 1), (2, 128, 32), (1, 100, 33)] {
                let one_way = Plan { depth, batch, ..plan(op, Mode::Rate, 8, qps, 0) };
                let both_ways = Plan { bidirectional: true, ..one_way };
                // 32 messages are taken in a turn, and these are no multiple of anything.
                assert_eq!(counts(&one_way, (true, true), 5003), 5003);
                assert_eq!(counts(&both_ways, (true, true), 5003), 10_006);
                assert_eq!(counts(&one_way, (true, false), 5003), 5003);
                assert_eq!(counts(&both_ways, (false, true), 5003), 5003);
            }
        }
    }

    #[test]
    fn the_tool_has_a_rate_wherever_it_sends() {
        let clock = Clock::calibrate();
        let of = |op, batch, here: (bool, bool)| {
            let plan = Plan { depth: 128, batch, ..plan(op, Mode::Rate, 8, 1, 0) };
            overhead(&plan, Part::of(&plan, here.0, here.1), &clock).unwrap()
        };
        let write = of(Operation::Write, 32, (true, true)).unwrap();
        assert!(write.per_operation_ns > 0.0, "{write:?}");
        assert!((write.highest_mops * write.per_operation_ns - 1e3).abs() < 1e-6, "{write:?}");
        // A completion for each, and a message to take for each.
        let single = of(Operation::Write, 1, (true, true)).unwrap();
        let send = of(Operation::Send, 32, (true, true)).unwrap();
        for more in [single, send] {
            assert!(more.per_operation_ns > write.per_operation_ns, "{more:?} {write:?}");
        }
        assert!(of(Operation::Write, 32, (false, true)).is_none());
        assert!(of(Operation::Send, 32, (false, true)).is_none());
    }

    #[test]
    fn however_long_the_loop_runs_it_allocates_no_more() {
        use holdfast_lab_check::allocations;
        let calls = |operations| {
            let plan = Plan { depth: 128, batch: 32, ..plan(Operation::Send, Mode::Rate, 8, 2, 0) };
            let parts = Part::of(&plan, true, true);
            let clock = Clock::calibrate();
            let mut device = Device::new(&plan, parts, operations);
            let before = allocations::calls();
            assert!(allocations::watch_thread("measuring"));
            let (_, over_time) = device.run(&plan, parts, operations, &clock).unwrap();
            let calls = allocations::calls() - before;
            (calls, over_time.slices.len())
        };
        let measuring = std::thread::Builder::new().name("measuring".to_owned());
        let ran = measuring.spawn(move || (calls(10), calls(1_000_000))).unwrap();
        let ((few, _), (many, slices)) = ran.join().unwrap();
        // The slices that are told in the end are one call, however many they are.
        assert_eq!(few, many, "{slices} slices");
        assert!(slices > 10, "the long run went through slices: {slices}");
    }
}
