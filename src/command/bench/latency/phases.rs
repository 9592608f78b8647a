//! Where the time of one operation goes: each operation taken apart by more looks at the clock than
//! a measurement can afford, in a loop of its own after the measurement.
//!
//! | phase | from | to |
//! |---|---|---|
//! | post | the beginning | the request is in its queue |
//! | doorbell | | the device has been told |
//! | there | | the peer begins the look that shows the message (where it is in this process) |
//! | answer | | the peer has answered: its look, its post, its doorbell |
//! | back, or device | | the look begins that shows the end |
//! | poll | | that look is over |

use std::ops::Range;
use std::time::Duration;

use serde::Serialize;

use super::closed::wait;
use super::{Exchange, Seen};
use crate::command::clock::Time;
use crate::command::histogram::{Latencies, Percentiles};
use crate::command::interrupt;
use crate::command::patience::Patience;

/// Distributions of the phases, and of the whole.
#[derive(Debug)]
pub struct Phases {
    post: Latencies,
    doorbell: Latencies,
    there: Latencies,
    answer: Latencies,
    back: Latencies,
    poll: Latencies,
    whole: Latencies,
}

/// Phases summed up.
#[derive(Debug, Clone, Serialize)]
pub struct Breakdown {
    /// Operations that were taken apart.
    pub operations: u64,
    /// The whole, median in nanoseconds: longer than in the measurement by the looks at the clock.
    pub whole_p50_ns: f64,
    /// In order.
    pub phases: Vec<Phase>,
}

/// One phase.
#[derive(Debug, Clone, Serialize)]
pub struct Phase {
    /// Its name.
    pub name: &'static str,
    /// Median.
    pub p50_ns: f64,
    /// 99 %.
    pub p99_ns: f64,
    /// Mean; the means of all phases make up that of the whole.
    pub mean_ns: f64,
}

impl Phases {
    /// Empty ones.
    pub fn new() -> Self {
        let new = Latencies::new;
        Self {
            post: new(),
            doorbell: new(),
            there: new(),
            answer: new(),
            back: new(),
            poll: new(),
            whole: new(),
        }
    }

    /// Operations that were taken apart.
    pub fn operations(&self) -> u64 {
        self.whole.len()
    }

    /// Sums up; phases that never were are left out.
    pub fn breakdown(&self) -> Breakdown {
        let echoed = self.there.len() > 0;
        let phase = |name, latencies: &Latencies| {
            let Percentiles { p50_ns, p99_ns, mean_ns, .. } = latencies.percentiles();
            (latencies.len() > 0).then_some(Phase { name, p50_ns, p99_ns, mean_ns })
        };
        let phases = [
            phase("post", &self.post),
            phase("doorbell", &self.doorbell),
            phase("there", &self.there),
            phase("answer", &self.answer),
            phase(if echoed { "back" } else { "device" }, &self.back),
            phase("poll", &self.poll),
        ];
        Breakdown {
            operations: self.whole.len(),
            whole_p50_ns: self.whole.percentiles().p50_ns,
            phases: phases.into_iter().flatten().collect(),
        }
    }
}

/// Takes the operations of these numbers apart, one at a time, until that has taken `limit`.
#[inline(always)]
pub fn run<T: Time, E: Exchange>(
    time: &T,
    exchange: &mut E,
    numbers: Range<u64>,
    limit: Option<Duration>,
    phases: &mut Phases,
    watch: &mut Patience,
) -> anyhow::Result<()> {
    let between = |from: u64, to: u64| time.ns(to.wrapping_sub(from));
    let limit = limit.map_or(u64::MAX, |limit| time.ticks_of(limit));
    let began = time.ticks();
    for n in numbers {
        interrupt::check()?;
        let start = time.ticks();
        if start.wrapping_sub(began) >= limit {
            break;
        }
        exchange.post(n)?;
        let posted = time.ticks();
        exchange.ring(n);
        let rung = time.ticks();
        let mut sent = rung;
        let (looked, done) = loop {
            let looks = time.ticks();
            match exchange.look()? {
                Seen::Nothing => wait(exchange, watch)?,
                Seen::Answered => {
                    phases.there.record_ns(between(sent, looks));
                    sent = time.ticks();
                    phases.answer.record_ns(between(looks, sent));
                }
                Seen::Done(_) => break (looks, time.ticks()),
            }
        };
        watch.progress();
        phases.post.record_ns(between(start, posted));
        phases.doorbell.record_ns(between(posted, rung));
        phases.back.record_ns(between(sent, looked));
        phases.poll.record_ns(between(looked, done));
        phases.whole.record_ns(between(start, done));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::virtual_time::VirtualTime;
    use super::*;

    /// Everything takes its own time, in nanoseconds.
    struct Timed {
        time: VirtualTime,
        /// Looks since the post.
        looks: u32,
        answered: bool,
    }

    impl Exchange for Timed {
        fn post(&mut self, _: u64) -> anyhow::Result<()> {
            self.time.pass(30);
            self.looks = 0;
            Ok(())
        }

        fn ring(&mut self, _: u64) {
            self.time.pass(7);
        }

        fn look(&mut self) -> anyhow::Result<Seen> {
            self.looks += 1;
            match self.looks {
                11 if self.answered => {
                    self.time.pass(41);
                    Ok(Seen::Answered)
                }
                21 => {
                    self.time.pass(3);
                    Ok(Seen::Done(1))
                }
                _ => {
                    self.time.pass(10);
                    Ok(Seen::Nothing)
                }
            }
        }

        fn blame(&mut self) -> anyhow::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn each_phase_takes_its_time_and_together_they_are_the_whole() {
        for (answered, expected) in [
            (
                true,
                &[
                    ("post", 30),
                    ("doorbell", 7),
                    ("there", 100),
                    ("answer", 41),
                    ("back", 90),
                    ("poll", 3),
                ][..],
            ),
            (false, &[("post", 30), ("doorbell", 7), ("device", 200), ("poll", 3)]),
        ] {
            let time = VirtualTime::new();
            let mut exchange = Timed { time: time.clone(), looks: 0, answered };
            let mut phases = Phases::new();
            let mut watch = Patience::new(Duration::from_secs(600));
            run(&time, &mut exchange, 5..9, None, &mut phases, &mut watch).unwrap();
            let breakdown = phases.breakdown();
            let phases: Vec<_> =
                breakdown.phases.iter().map(|phase| (phase.name, phase.mean_ns as u64)).collect();
            assert_eq!(phases, expected);
            let sum: u64 = expected.iter().map(|(_, ns)| ns).sum();
            assert_eq!((breakdown.operations, breakdown.whole_p50_ns as u64), (4, sum));
        }
    }

    #[test]
    fn no_more_are_taken_apart_than_there_is_time_for() {
        let time = VirtualTime::new();
        let mut exchange = Timed { time: time.clone(), looks: 0, answered: false };
        let mut watch = Patience::new(Duration::from_secs(600));
        let mut phases = Phases::new();
        // Each takes 240 ns.
        let limit = Some(Duration::from_nanos(1000));
        run(&time, &mut exchange, 0..100, limit, &mut phases, &mut watch).unwrap();
        assert_eq!(phases.operations(), 5);
    }
}
