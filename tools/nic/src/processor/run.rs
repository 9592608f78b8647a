//! The thread's loop: when to spin, when to sleep, for how long.
//!
//! An idle-friendly processor spins for a while after the last work. Then it says in every doorbell
//! page that it sleeps and naps for 50 µs, so that the stores of clients that read "awake" before
//! have arrived, looks at everything once more, and blocks. Clients that see it asleep wake it with
//! a message; the naps are bounded all the same while queue pairs exist, since a stock driver does
//! not look.

use std::time::Duration;

use super::lane::Lane;
use super::{Processor, quiesce};

/// When the processor sleeps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PollMode {
    /// Never: it owns its core.
    Always,
    /// After this long without work.
    Idle {
        /// How long to spin after the last work.
        spin: Duration,
    },
}

impl Default for PollMode {
    fn default() -> Self {
        Self::Idle { spin: Duration::from_micros(100) }
    }
}

/// Lets stores arrive that were made before the sleep was announced.
const SETTLE: Duration = Duration::from_micros(50);
/// First and longest nap while clients may ring doorbells in memory.
const NAP_MIN: Duration = Duration::from_millis(1);
const NAP_MAX: Duration = Duration::from_millis(10);

impl Processor {
    /// Runs until told to stop.
    pub(crate) fn run(&mut self, mode: PollMode) {
        self.online();
        let mut idle_since = self.now;
        while !self.stopped {
            let turn = self.turn();
            if turn.busy {
                idle_since = self.now;
                continue;
            }
            if let PollMode::Idle { spin } = mode
                && self.now.saturating_sub(idle_since) > spin.as_nanos() as u64
            {
                self.sleep(turn.deadline);
                idle_since = self.now;
            }
            std::hint::spin_loop();
        }
        self.offline();
    }

    /// Sleeps until there is something to do.
    #[cold]
    fn sleep(&mut self, deadline: Option<u64>) {
        self.sleeps += 1;
        self.set_asleep(true);
        let mut nap = if self.may_ring() { SETTLE } else { Duration::ZERO };
        loop {
            if !nap.is_zero() {
                self.doze(Some(self.limit(nap, deadline)));
            }
            if self.bell.is_rung() || self.expired(deadline) || self.sweep() {
                break;
            }
            nap = match nap {
                // Only messages and timers can wake it: no need to look again.
                _ if !self.may_ring() => match deadline {
                    None => {
                        self.doze(None);
                        continue;
                    }
                    Some(_) => Duration::from_secs(3600),
                },
                SETTLE => NAP_MIN,
                nap => (nap * 2).min(NAP_MAX),
            };
        }
        self.set_asleep(false);
    }

    fn doze(&mut self, limit: Option<Duration>) {
        self.offline();
        self.bell.sleep(limit);
        self.online();
    }

    fn limit(&self, nap: Duration, deadline: Option<u64>) -> Duration {
        let left = deadline.map(|at| Duration::from_nanos(at.saturating_sub(self.now)));
        left.map_or(nap, |left| nap.min(left))
    }

    fn expired(&self, deadline: Option<u64>) -> bool {
        deadline.is_some_and(|at| at <= self.now)
    }

    fn set_asleep(&self, asleep: bool) {
        for lane in &self.lanes {
            lane.set_asleep(asleep);
        }
    }

    fn may_ring(&mut self) -> bool {
        self.lanes.iter().any(|lane| lane.may_ring(&mut self.engine))
    }

    fn sweep(&mut self) -> bool {
        let mut found = false;
        for lane in 0..self.lanes.len() {
            found |= Lane::sweep(&mut self.lanes, lane, &mut self.engine, self.now);
        }
        quiesce(&mut self.engine, &self.lanes);
        found
    }
}
