//! The run-to-completion loop: poll, handle in place, ring, and again.

use std::borrow::BorrowMut;
use std::fmt;
use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use crate::stats::{TurnCounts, Turns};
use crate::{Completion, CompletionQueue, Error, Result};

/// Completions taken from a queue at a time: no queue keeps the others waiting for longer.
const BATCH: usize = 32;

/// What a handler is called for.
#[derive(Debug)]
pub enum Step<'a> {
    /// A completion.
    Completion {
        /// The queue that it came from, as [`PollLoop::add`] counts them.
        queue: usize,
        /// What became of a request. Not necessarily a success.
        completion: &'a Completion,
    },
    /// All queues have been polled once: the place for what is to be done in each turn, such as
    /// posting where there is room again, or looking at memory that a peer writes.
    Turn {
        /// Completions of this turn; none: there was nothing to do.
        completions: usize,
    },
}

/// A loop over completion queues, for the thread that owns them. `Q` is a [`CompletionQueue`] or a
/// `&mut` to one.
pub struct PollLoop<Q = CompletionQueue> {
    queues: Vec<Q>,
    /// The queue to poll next, or whose completions are being handled.
    queue: usize,
    batch: [Completion; BATCH],
    /// Of the batch, how many are handled, and how many there are.
    handled: usize,
    taken: usize,
    turns: Turns,
    longest: Option<Duration>,
}

impl<Q> fmt::Debug for PollLoop<Q> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut debug = f.debug_struct("PollLoop");
        debug.field("queues", &self.queues.len()).field("counts", &self.turns.counts());
        debug.finish_non_exhaustive()
    }
}

impl<Q> Default for PollLoop<Q> {
    fn default() -> Self {
        Self {
            queues: Vec::new(),
            queue: 0,
            batch: [Completion::default(); BATCH],
            handled: 0,
            taken: 0,
            turns: Turns::default(),
            longest: None,
        }
    }
}

impl<Q: BorrowMut<CompletionQueue>> PollLoop<Q> {
    /// A loop without queues, which counts for itself alone.
    pub fn new() -> Self {
        Self::default()
    }

    /// Polls this queue too, after those before. Gives its number, counted from 0.
    pub fn add(&mut self, queue: Q) -> usize {
        self.queues.push(queue);
        self.queues.len() - 1
    }

    /// A queue, by its number: to make queue pairs for it, or to arm it.
    pub fn queue(&mut self, number: usize) -> Option<&mut CompletionQueue> {
        self.queues.get_mut(number).map(BorrowMut::borrow_mut)
    }

    /// Counts here from now on, for others to see ([`crate::stats::Stats::turns`]).
    pub fn count_in(&mut self, turns: Turns) {
        self.turns = turns;
    }

    /// What was counted, of all runs.
    pub fn counts(&self) -> TurnCounts {
        self.turns.counts()
    }

    /// From now on measures turns too, which costs a reading of the clock each (some 20 to 40 ns;
    /// more where the kernel's clock is no counter of the processor, see `holdfast cores`).
    pub fn time_turns(&mut self) {
        self.longest.get_or_insert_default();
    }

    /// The longest turn since they are measured: for so long a completion may have waited because of
    /// the handler, or because the thread was away.
    pub fn longest_turn(&self) -> Option<Duration> {
        self.longest
    }

    /// Turn after turn, until the handler breaks with a value or fails. A turn polls each queue once,
    /// for up to 32 completions, calls `handle` for each of them, and at its end once more
    /// ([`Step::Turn`]). Queue pairs whose doorbells are coalesced ring at the next turn's poll of
    /// their queue, and once more when the loop ends; nothing stays unrung.
    ///
    /// A loop that has ended can be run again and goes on where it was: completions that had been
    /// taken and not handled come first.
    ///
    /// Never sleeps. Allocates nothing, takes no lock and makes no system call, but for the first
    /// poll after a queue pair was made or destroyed, as far as the handler does not.
    ///
    /// # Errors
    /// The handler's, and those of [`CompletionQueue::poll`].
    pub fn run<T, E: From<Error>>(
        &mut self,
        mut handle: impl FnMut(Step<'_>) -> Result<ControlFlow<T>, E>,
    ) -> Result<T, E> {
        let ended = loop {
            match self.timed_turn(&mut handle) {
                Ok(ControlFlow::Continue(())) => {}
                Ok(ControlFlow::Break(value)) => break Ok(value),
                Err(error) => break Err(error),
            }
        };
        let rung = self.ring();
        let value = ended?;
        rung?;
        Ok(value)
    }

    #[inline(always)]
    fn timed_turn<T, E: From<Error>>(
        &mut self,
        handle: &mut impl FnMut(Step<'_>) -> Result<ControlFlow<T>, E>,
    ) -> Result<ControlFlow<T>, E> {
        let Some(longest) = self.longest else { return self.turn(handle) };
        let began = Instant::now();
        let flow = self.turn(handle);
        self.longest = Some(longest.max(began.elapsed()));
        flow
    }

    #[inline(always)]
    fn turn<T, E: From<Error>>(
        &mut self,
        handle: &mut impl FnMut(Step<'_>) -> Result<ControlFlow<T>, E>,
    ) -> Result<ControlFlow<T>, E> {
        let mut completions = 0;
        let flow = self.poll_each(handle, &mut completions);
        if !matches!(flow, Ok(ControlFlow::Continue(()))) {
            self.turns.took(completions as u64);
            return flow;
        }
        self.queue = 0;
        self.turns.turn(completions as u64);
        handle(Step::Turn { completions })
    }

    /// What remains of a turn up to its end; adds what it took, whatever ends it.
    #[inline(always)]
    fn poll_each<T, E: From<Error>>(
        &mut self,
        handle: &mut impl FnMut(Step<'_>) -> Result<ControlFlow<T>, E>,
        completions: &mut usize,
    ) -> Result<ControlFlow<T>, E> {
        while let Some(queue) = self.queues.get_mut(self.queue) {
            if self.handled == self.taken {
                (self.handled, self.taken) = (0, 0);
                self.taken = queue.borrow_mut().poll(&mut self.batch).map_err(Error::from)?;
                *completions += self.taken;
            }
            while let Some(completion) = self.batch[..self.taken].get(self.handled) {
                self.handled += 1;
                let flow = handle(Step::Completion { queue: self.queue, completion })?;
                if flow.is_break() {
                    return Ok(flow);
                }
            }
            self.queue += 1;
        }
        Ok(ControlFlow::Continue(()))
    }

    /// Rings what waits for the next poll, and takes nothing.
    fn ring(&mut self) -> Result<()> {
        for queue in &mut self.queues {
            queue.borrow_mut().poll(&mut [])?;
        }
        Ok(())
    }
}
