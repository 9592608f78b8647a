//! Closed loops: one operation at a time, each timed. Nothing here allocates once it runs.
//!
//! Write and send go back and forth between the ends, and half of the round trip counts: the
//! active end writes, the passive end sees its memory change (or its receive complete) and writes
//! back, as in perftest. Read and the atomics count from posting to completion.
//!
//! Where both ends are in this process, one thread plays both: it is never waiting for itself,
//! because only one end has something to do at a time.

use std::sync::atomic::{AtomicU8, Ordering};

use holdfast::{Completion, SendFlags, Slice};

use super::options::{Operation, Plan, Stop};
use super::{LATENCY_DEPTH, Layout, Measured};
use crate::command::clock::Clock;
use crate::command::endpoints::{End, Session, failures, succeeded, wait_for};
use crate::command::histogram::Latencies;
use crate::command::interrupt;
use crate::command::patience::Patience;

/// One of so many writes or sends is signalled.
const SIGNAL_INTERVAL: u64 = 16;
/// So many may be outstanding before completions are waited for.
const MOST_OUTSTANDING: u32 = LATENCY_DEPTH / 2;

/// Runs the loop of the operation.
pub fn run(
    session: &mut Session,
    plan: &Plan,
    layout: Layout,
    clock: &Clock,
    stop: Stop,
) -> anyhow::Result<Measured> {
    let mut timing = Timing::new(clock, stop);
    let ended = rounds(session, plan, layout, &mut timing);
    Ok(timing.finish(failures(ended)?))
}

/// Round after round, until it is enough or a request fails.
#[inline(always)]
fn rounds(
    session: &mut Session,
    plan: &Plan,
    layout: Layout,
    timing: &mut Timing<'_>,
) -> anyhow::Result<()> {
    let mut watch = session.watch();
    match plan.op {
        Operation::Write | Operation::Send => {
            let sends = plan.op == Operation::Send;
            // Rounds are counted on from loop to loop, so that no mark comes twice in a row.
            let mut round = session.round;
            let player = |end| Player::new(end, plan, layout);
            let mut active = session.active.as_mut().map(player).transpose()?;
            let mut passive = session.passive.as_mut().map(player).transpose()?;
            for player in active.iter_mut().chain(&mut passive) {
                player.start(sends)?;
            }
            while timing.go_on() {
                if let Some(active) = &mut active {
                    active.serve(round, sends, &mut watch)?;
                }
                if let Some(passive) = &mut passive {
                    passive.wait(round, sends, &mut watch)?;
                    passive.serve(round, sends, &mut watch)?;
                }
                if let Some(active) = &mut active {
                    active.wait(round, sends, &mut watch)?;
                }
                timing.sample(0.5);
                round += 1;
            }
            session.round = round;
        }
        Operation::Read | Operation::Cas | Operation::Faa => {
            let Some(end) = &mut session.active else { return Ok(()) };
            while timing.go_on() {
                post(end, plan, layout)?;
                wait_for(&mut end.send_cq, &mut watch, "a completion")?;
                timing.sample(1.0);
            }
        }
    }
    Ok(())
}

/// Posts one read or atomic and rings.
#[inline]
fn post(end: &mut End, plan: &Plan, layout: Layout) -> anyhow::Result<()> {
    let remote = end.remote_at(layout.source(0));
    let local = end.region.slice(layout.target(0), plan.size)?;
    let qp = &mut end.qps[0];
    match plan.op {
        Operation::Read => qp.read(0, &[local], remote, SendFlags::SIGNALED)?,
        Operation::Cas => qp.compare_swap(0, local, remote, 0, 0, SendFlags::SIGNALED)?,
        _ => qp.fetch_add(0, local, remote, 1, SendFlags::SIGNALED)?,
    }
    qp.ring_sends();
    Ok(())
}

/// When the loop ends, and how long each round took.
struct Timing<'a> {
    clock: &'a Clock,
    latencies: Latencies,
    stop: Stop,
    started: u64,
    last: u64,
    deadline: u64,
    rounds: u64,
}

impl<'a> Timing<'a> {
    fn new(clock: &'a Clock, stop: Stop) -> Self {
        let now = clock.ticks();
        let deadline = match stop {
            Stop::Time(time) => clock.ticks_of(time),
            Stop::Iterations(_) => u64::MAX,
        };
        let latencies = Latencies::new();
        Self { clock, latencies, stop, started: now, last: now, deadline, rounds: 0 }
    }

    /// Starts a round, or says that it is enough.
    #[inline(always)]
    fn go_on(&mut self) -> bool {
        let more = match self.stop {
            Stop::Iterations(iters) => self.rounds < iters,
            Stop::Time(_) => self.last.wrapping_sub(self.started) < self.deadline,
        };
        if !more || interrupt::requested() {
            return false;
        }
        self.last = self.clock.ticks();
        true
    }

    /// Ends a round, of which `share` counts.
    #[inline(always)]
    fn sample(&mut self, share: f64) {
        let now = self.clock.ticks();
        self.latencies.record_ns(self.clock.ns(now.wrapping_sub(self.last)) * share);
        self.rounds += 1;
    }

    fn finish(self, errors: u64) -> Measured {
        let seconds = self.clock.ns(self.clock.ticks().wrapping_sub(self.started)) / 1e9;
        Measured { iters: self.rounds, seconds, latencies: Some(self.latencies), errors }
    }
}

/// One end of a ping-pong.
struct Player<'a> {
    qp: &'a mut holdfast::QueuePair,
    send_cq: &'a mut holdfast::CompletionQueue,
    recv_cq: &'a mut holdfast::CompletionQueue,
    /// Where the message is sent from, and where one arrives.
    source: Slice<'a>,
    target: Slice<'a>,
    remote: holdfast::Remote,
    /// Last byte of each, which changes with every round.
    source_mark: &'a AtomicU8,
    target_mark: &'a AtomicU8,
    /// The message, where it is put into the ring.
    inline: Option<Vec<u8>>,
}

impl<'a> Player<'a> {
    fn new(end: &'a mut End, plan: &Plan, layout: Layout) -> anyhow::Result<Self> {
        let remote = end.remote_at(layout.target(0));
        let End { qps, send_cq, recv_cq, region, .. } = end;
        let region = &*region;
        let (source, target) = (layout.source(0), layout.target(0));
        let mark = |at: usize| region.memory().atomic_u8(at + plan.size - 1);
        let qp = &mut qps[0];
        let inline = plan.size <= qp.max_inline() as usize;
        Ok(Self {
            source: region.slice(source, plan.size)?,
            target: region.slice(target, plan.size)?,
            remote,
            source_mark: mark(source)?,
            target_mark: mark(target)?,
            inline: inline.then(|| vec![0; plan.size]),
            qp,
            send_cq,
            recv_cq,
        })
    }

    /// Makes the first round possible.
    fn start(&mut self, sends: bool) -> anyhow::Result<()> {
        while sends && self.qp.outstanding_receives() < LATENCY_DEPTH {
            self.qp.receive(0, &[self.target])?;
        }
        self.qp.ring_receives();
        Ok(())
    }

    /// Sends the message of a round.
    #[inline(always)]
    fn serve(&mut self, round: u64, sends: bool, watch: &mut Patience) -> anyhow::Result<()> {
        let signalled = round.is_multiple_of(SIGNAL_INTERVAL);
        let flags = if signalled { SendFlags::SIGNALED } else { SendFlags::NONE };
        let mark = mark_of(round);
        match &mut self.inline {
            Some(bytes) => {
                if let Some(last) = bytes.last_mut() {
                    *last = mark;
                }
                if sends {
                    self.qp.send_inline(round, bytes, flags)?;
                } else {
                    self.qp.write_inline(round, bytes, self.remote, flags)?;
                }
            }
            None => {
                self.source_mark.store(mark, Ordering::Release);
                if sends {
                    self.qp.send(round, &[self.source], flags)?;
                } else {
                    self.qp.write(round, &[self.source], self.remote, flags)?;
                }
            }
        }
        self.qp.ring_sends();
        // Off the critical path: the message is on its way.
        if signalled {
            self.reap(watch)?;
        }
        Ok(())
    }

    /// Waits for the message of a round.
    #[inline(always)]
    fn wait(&mut self, round: u64, sends: bool, watch: &mut Patience) -> anyhow::Result<()> {
        if sends {
            wait_for(self.recv_cq, watch, "a message")?;
            self.qp.receive(0, &[self.target])?;
            self.qp.ring_receives();
            return Ok(());
        }
        let mark = mark_of(round);
        while self.target_mark.load(Ordering::Acquire) != mark {
            self.look(watch)?;
        }
        watch.progress();
        Ok(())
    }

    /// While nothing arrives: an error completion would be why.
    #[inline(always)]
    fn look(&mut self, watch: &mut Patience) -> anyhow::Result<()> {
        if let Err(error) = watch.tick("the write back") {
            self.poll_sends()?;
            return Err(error);
        }
        Ok(())
    }

    fn poll_sends(&mut self) -> anyhow::Result<()> {
        let mut completions = [Completion::default(); 8];
        let count = self.send_cq.poll(&mut completions)?;
        for completion in &completions[..count] {
            succeeded(completion)?;
        }
        Ok(())
    }

    /// Takes completions of sends, and waits for some when too many are outstanding.
    fn reap(&mut self, watch: &mut Patience) -> anyhow::Result<()> {
        self.poll_sends()?;
        while self.qp.outstanding_sends() > MOST_OUTSTANDING {
            self.poll_sends()?;
            watch.tick("a completion")?;
        }
        Ok(())
    }
}

/// The mark of a round: never 0, and never the same twice in a row.
#[inline(always)]
fn mark_of(round: u64) -> u8 {
    (round % 255) as u8 + 1
}
