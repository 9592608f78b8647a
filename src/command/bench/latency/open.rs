//! The open loop: operations start at a rate, whatever becomes of those before, and each counts
//! from the time at which it was meant to start.
//!
//! Operation `i` is meant to start at `i / rate`. It is posted then, or as soon after as the thread
//! comes to it and a slot is free, and its latency runs from the intended start in any case. So
//! what a stall does to the operations that come in the meantime (to wait for the device, for a
//! slot, or for the measuring thread) is in their latencies, which is what a client would see. No
//! correction is made afterwards, because nothing was left out.

use std::time::Duration;

use super::closed::wait;
use super::{Exchange, Outcome, Seen};
use crate::command::bench::recorder::Recorder;
use crate::command::clock::Time;
use crate::command::histogram::Latencies;
use crate::command::interrupt;
use crate::command::patience::Patience;

/// A turn of the loop that takes as long as this means that the thread was away.
const ABSENCE: Duration = Duration::from_micros(2);

/// What starts when.
#[derive(Debug, Clone, Copy)]
pub struct Schedule {
    /// Number of the first operation.
    pub first: u64,
    /// Operations a second.
    pub rate: f64,
    /// How many.
    pub total: u64,
    /// When to give up on a rate that is not reached; never, where a peer counts those it answers.
    pub limit: Option<Duration>,
    /// How many may be outstanding: one in each slot, which are used in turns.
    pub slots: usize,
}

/// Where latencies go.
#[derive(Debug)]
pub struct Recorders<'a> {
    /// From the intended start.
    pub response: &'a mut Recorder,
    /// From the real start.
    pub service: &'a mut Latencies,
}

/// Where an operation is in its slot.
#[derive(Debug, Clone, Copy)]
struct Slot {
    /// Its number, while it is under way.
    n: Option<u64>,
    /// When it really started.
    started: u64,
}

/// Runs the schedule, until it is through or a request fails.
pub fn run<T: Time, E: Exchange>(
    time: &T,
    exchange: &mut E,
    schedule: &Schedule,
    recorders: &mut Recorders<'_>,
    watch: &mut Patience,
    outcome: &mut Outcome,
) -> anyhow::Result<()> {
    let interval = 1e9 / schedule.rate / time.ns_per_tick();
    let limit = schedule.limit.map_or(u64::MAX, |limit| time.ticks_of(limit));
    let ps_per_tick = time.ns_per_tick() * 1000.0;
    let mut slots = vec![Slot { n: None, started: 0 }; schedule.slots];
    let mut before = time.ticks();
    let mut absences = Absences::new(time.ticks_of(ABSENCE));
    let began = before;
    let intended = |i: u64| began.wrapping_add((i as f64 * interval) as u64);
    recorders.response.start(began);
    while outcome.done < schedule.total {
        let now = time.ticks();
        let since = now.wrapping_sub(began);
        absences.turn(now, now.wrapping_sub(before));
        before = now;
        if since > limit || interrupt::requested() {
            break;
        }
        let i = outcome.posted;
        let due = i < schedule.total && since >= intended(i).wrapping_sub(began);
        let slot = ((schedule.first + i) % schedule.slots as u64) as usize;
        if due && slots[slot].n.is_none() {
            slots[slot] = Slot { n: Some(i), started: now };
            exchange.post(schedule.first + i)?;
            outcome.posted += 1;
            exchange.ring(schedule.first + i);
        }
        match exchange.look()? {
            Seen::Done(n) => {
                let now = time.ticks();
                let i = n - schedule.first;
                let slot = &mut slots[(n % schedule.slots as u64) as usize];
                anyhow::ensure!(slot.n == Some(i), "operation {i} is done, but not under way");
                slot.n = None;
                let service = now.wrapping_sub(slot.started);
                let latency = now.wrapping_sub(intended(i));
                recorders.service.record_ps((service as f64 * ps_per_tick) as u64);
                let response = &mut *recorders.response;
                let away = || Some(absences.longest_in_the_last(latency, now));
                response.record_away(now, latency, away);
                outcome.done += 1;
                outcome.ticks = now.wrapping_sub(began);
                watch.progress();
            }
            Seen::Answered => watch.progress(),
            // Waiting for the next start is no waiting for the device.
            Seen::Nothing if outcome.done == outcome.posted => watch.progress(),
            Seen::Nothing => wait(exchange, watch)?,
        }
    }
    // What was meant to have started by now has waited at least so long.
    let now = time.ticks();
    let due = (now.wrapping_sub(began) as f64 / interval) as u64 + 1;
    let due = due.clamp(outcome.posted, schedule.total);
    let under_way = slots.iter().filter_map(|slot| slot.n);
    for i in under_way.clone().chain(outcome.posted..due) {
        recorders.response.record(now, now.wrapping_sub(intended(i)));
        outcome.unfinished += 1;
    }
    finish(exchange, under_way.count(), watch)
}

/// Waits for what is still under way, so that whoever uses the queues next finds them empty.
fn finish<E: Exchange>(
    exchange: &mut E,
    mut under_way: usize,
    watch: &mut Patience,
) -> anyhow::Result<()> {
    while under_way > 0 && !interrupt::requested() {
        match exchange.look()? {
            Seen::Done(_) => {
                under_way -= 1;
                watch.progress();
            }
            Seen::Answered => watch.progress(),
            Seen::Nothing => wait(exchange, watch)?,
        }
    }
    Ok(())
}

/// When the measuring thread was away: turns of the loop that took long. The last few.
#[derive(Debug)]
struct Absences {
    last: [(u64, u64); 32],
    next: usize,
    threshold: u64,
}

impl Absences {
    fn new(threshold: u64) -> Self {
        Self { last: [(0, 0); 32], next: 0, threshold }
    }

    /// A turn ended `now` and took so long.
    #[inline(always)]
    fn turn(&mut self, now: u64, ticks: u64) {
        if ticks > self.threshold {
            self.last[self.next] = (now, ticks);
            self.next = (self.next + 1) % self.last.len();
        }
    }

    /// The longest that ended in the last so many ticks; 0 if none did.
    fn longest_in_the_last(&self, ticks: u64, now: u64) -> u64 {
        let recent = self.last.iter().filter(|(end, _)| now.wrapping_sub(*end) <= ticks);
        recent.map(|(_, length)| *length).max().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::super::closed;
    use super::super::virtual_time::VirtualTime;
    use super::*;
    use crate::command::bench::plan::Stop;
    use crate::command::bench::recorder::Recorded;
    use crate::command::live;

    const MS: u64 = 1_000_000;

    /// A device that is done with an operation 10 us after it was posted, one after the other, but
    /// does nothing between two times. Each look takes 100 ns.
    struct Stalling {
        time: VirtualTime,
        stall: std::ops::Range<u64>,
        /// Numbers under way, and when each will be done.
        under_way: std::collections::VecDeque<(u64, u64)>,
        free_at: u64,
    }

    impl Exchange for Stalling {
        fn post(&mut self, n: u64) -> anyhow::Result<()> {
            let mut start = self.time.ticks().max(self.free_at);
            if self.stall.contains(&start) || self.stall.contains(&(start + 10_000)) {
                start = self.stall.end;
            }
            self.free_at = start + 10_000;
            self.under_way.push_back((n, self.free_at));
            Ok(())
        }

        fn ring(&mut self, _: u64) {}

        fn look(&mut self) -> anyhow::Result<Seen> {
            self.time.pass(100);
            let now = self.time.ticks();
            let done = self.under_way.pop_front_if(|(_, end)| *end <= now);
            Ok(done.map_or(Seen::Nothing, |(n, _)| Seen::Done(n)))
        }

        fn blame(&mut self) -> anyhow::Result<()> {
            Ok(())
        }
    }

    fn stalling(time: &VirtualTime, from_ms: u64, length_ms: u64) -> Stalling {
        let from = time.ticks() + from_ms * MS;
        let stall = from..from + length_ms * MS;
        let time = time.clone();
        Stalling { time, stall, under_way: std::collections::VecDeque::new(), free_at: 0 }
    }

    /// One second at 10,000 a second with a stall of so many milliseconds in the middle.
    fn open_loop(stall_ms: u64, slots: usize) -> (Recorded, Latencies, Outcome) {
        let time = VirtualTime::new();
        let mut device = stalling(&time, 500, stall_ms);
        let mut recorder = Recorder::new(&time, Duration::from_secs(1), live::lane("test"), 8);
        let mut service = Latencies::new();
        let schedule = Schedule { first: 5, rate: 1e4, total: 10_000, limit: None, slots };
        let mut outcome = Outcome::default();
        let mut recorders = Recorders { response: &mut recorder, service: &mut service };
        let mut watch = Patience::new(Duration::from_secs(600));
        run(&time, &mut device, &schedule, &mut recorders, &mut watch, &mut outcome).unwrap();
        (recorder.finish(), service, outcome)
    }

    #[test]
    fn a_stall_is_in_every_latency_that_it_made_longer() {
        for slots in [1, 32] {
            let (recorded, service, outcome) = open_loop(50, slots);
            assert_eq!((outcome.done, outcome.unfinished, recorded.all.len()), (10_000, 0, 10_000));
            // 50 ms at 10,000 a second: 500 operations were meant to start in the stall, evenly
            // from one that waited for all of it to one that waited for nothing. Those behind them
            // wait for the backlog, which goes down by nine in ten.
            let p = recorded.all.percentiles();
            assert!((p.max_ns - 50e6).abs() < 0.2e6, "{p:?}");
            for (over_ms, least, most) in [(45.0, 50, 60), (25.0, 250, 285), (5.0, 450, 510)] {
                let count = recorded.all.at_least(over_ms * 1e6);
                assert!((least..=most).contains(&count), "{slots}: {count} over {over_ms} ms");
            }
            // The hundredth longest: 100 times 0.09 ms less than the longest.
            assert!((p.p99_ns - 41e6).abs() < 0.2e6, "{p:?}");
            assert!(p.p50_ns < 11e3, "{p:?}");
            // What was not corrected: as many long ones as there are slots.
            assert!(service.at_least(5e6) <= slots as u64, "{}", service.at_least(5e6));
        }
    }

    #[test]
    fn the_closed_loop_sees_the_same_stall_once() {
        let time = VirtualTime::new();
        let mut device = stalling(&time, 500, 50);
        let mut recorder = Recorder::new(&time, Duration::from_secs(1), live::lane("test"), 8);
        let mut watch = Patience::new(Duration::from_secs(600));
        let mut outcome = Outcome::default();
        let stop = Stop::Time(Duration::from_secs(1));
        closed::run(&time, &mut device, 5, stop, &mut recorder, &mut watch, &mut outcome).unwrap();
        let recorded = recorder.finish();
        assert!(outcome.done > 90_000, "{outcome:?}");
        assert_eq!(recorded.all.at_least(1e6), 1);
        let p = recorded.all.percentiles();
        assert!(p.p9999_ns < 11e3 && p.max_ns > 49e6, "{p:?}");
    }

    #[test]
    fn without_a_stall_the_rate_is_kept_and_nothing_waits() {
        let (recorded, service, outcome) = open_loop(0, 4);
        let p = recorded.all.percentiles();
        assert!(p.max_ns < 10.4e3 && p.min_ns >= 10e3, "{p:?}");
        assert!(service.percentiles().max_ns < 10.4e3);
        assert!((outcome.ticks as f64 / 1e9 - 1.0).abs() < 1e-3, "{outcome:?}");
        assert!(recorded.slices.iter().all(|slice| (90..=110).contains(&slice.len())));
    }

    #[test]
    fn a_rate_that_is_not_reached_is_given_up_and_nobody_forgotten() {
        // The device does 100,000 a second; ten times that is asked for, for at most 20 ms.
        let time = VirtualTime::new();
        let mut device = stalling(&time, 0, 0);
        let mut recorder = Recorder::new(&time, Duration::from_millis(10), live::lane("test"), 8);
        let mut service = Latencies::new();
        let limit = Some(Duration::from_millis(20));
        let schedule = Schedule { first: 0, rate: 1e6, total: 10_000, limit, slots: 8 };
        let mut outcome = Outcome::default();
        let mut recorders = Recorders { response: &mut recorder, service: &mut service };
        let mut watch = Patience::new(Duration::from_secs(600));
        run(&time, &mut device, &schedule, &mut recorders, &mut watch, &mut outcome).unwrap();
        assert!((1900..=2000).contains(&outcome.done), "{outcome:?}");
        assert_eq!(outcome.done + outcome.unfinished, 10_000);
        assert_eq!(outcome.posted, outcome.done + 8, "what was under way");
        assert!(device.under_way.is_empty(), "and is waited for");
        let recorded = recorder.finish();
        assert_eq!(recorded.all.len(), 10_000, "each has a latency");
        assert!(recorded.all.percentiles().p90_ns > 10e6);
    }

    #[test]
    fn absences_of_the_thread_are_told_apart_from_the_devices() {
        let mut absences = Absences::new(1000);
        absences.turn(10_000, 900);
        assert_eq!(absences.longest_in_the_last(5_000, 10_000), 0, "no absence");
        absences.turn(20_000, 7_000);
        absences.turn(30_000, 2_000);
        assert_eq!(absences.longest_in_the_last(5_000, 31_000), 2_000);
        assert_eq!(absences.longest_in_the_last(15_000, 31_000), 7_000);
    }
}
