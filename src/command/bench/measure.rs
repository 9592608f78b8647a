//! One measurement: what the hardware can do, the ends and the NIC, a warm-up, the loop itself, and
//! for latency the phases of single operations.

use std::time::{Duration, Instant};

use holdfast::dma::RingMemory;
use holdfast::stats::TurnCounts;
use holdfast_dax::Source;

use super::disturbance::{Counters, Disturbance};
use super::latency::phases::Phases;
use super::latency::{self, Recording, Timed};
use super::layout::Layout;
use super::plan::{Mode, Operation, Pace, Plan, Stop};
use super::throughput::progress::{OverTime, Progress};
use super::{payload, throughput};
use crate::command::affinity::Placement;
use crate::command::clock::{Clock, Time as _};
use crate::command::endpoints::{End, EndpointOptions, Session, Shape, failures};
use crate::command::interrupt;

/// How long to warm up.
const WARM_UP: Duration = Duration::from_millis(200);
/// How long to warm up in operations, where both sides must count.
const WARM_UP_OPERATIONS: u64 = 2000;
/// Longest payload that a latency test puts into the ring itself.
pub const INLINE: usize = 64;
/// Operations that are taken apart at most; one in ten of those measured.
const PHASE_OPERATIONS: u64 = 20_000;
/// How long a measurement may be that counts operations, for all that is known beforehand.
const UNKNOWN: Duration = Duration::from_secs(24 * 3600);

/// What one measurement came to.
#[derive(Debug)]
pub struct Measured {
    /// When the measurement began: after the NIC's start and the warm-up.
    pub began: Instant,
    /// Operations.
    pub iters: u64,
    /// Seconds they took.
    pub seconds: f64,
    /// Work completions that were not successes, and payloads that came out wrong.
    pub errors: u64,
    /// Latencies, in a latency test.
    pub timed: Option<Timed>,
    /// Phases of single operations, in a latency test.
    pub phases: Option<Phases>,
    /// What disturbed the measuring thread meanwhile.
    pub disturbance: Disturbance,
    /// What the region turned out to be.
    pub region_kind: String,
    /// NUMA node of the processor that the measuring thread was bound to.
    pub cpu_node: Option<u32>,
    /// What the rings of an end that is here lie in.
    pub rings: Option<RingMemory>,
    /// What the poll loop has counted (`bw`, `rate`).
    pub poll_loop: Option<TurnCounts>,
    /// The run as it went (`bw`, `rate`).
    pub over_time: Option<OverTime>,
    /// Whether the other process has the result.
    pub elsewhere: bool,
    /// What went wrong after the measurement, which counts all the same.
    pub failed: Option<anyhow::Error>,
}

/// What each end is made of.
fn shape(plan: &Plan, layout: Layout, region: &Source) -> Shape {
    let sends = plan.op == Operation::Send;
    Shape {
        purpose: plan.purpose(),
        bytes: layout.bytes(),
        region: region.clone(),
        qps: plan.qps,
        send_depth: plan.send_depth(),
        recv_depth: plan.recv_depth(),
        inline: if plan.echoes() && plan.size <= INLINE { INLINE as u32 } else { 0 },
        one_sided: (!sends).then(|| plan.op.name()),
        guard: None,
    }
}

/// Brings the ends up, warms up and measures. Binds the calling thread to its processor while it
/// does.
pub fn measure(
    endpoints: &EndpointOptions,
    placement: Placement,
    region: &Source,
    plan: &Plan,
    clock: &Clock,
) -> anyhow::Result<Measured> {
    let layout = Layout::new(plan);
    let mut session = Session::start(endpoints, placement, &shape(plan, layout, region))?;
    run(&mut session, plan, layout, clock, placement.bench)
}

/// Warms up and measures between these ends.
fn run(
    session: &mut Session,
    plan: &Plan,
    layout: Layout,
    clock: &Clock,
    cpu: Option<usize>,
) -> anyhow::Result<Measured> {
    payload::prepare(session, plan, layout)?;
    let end = session.passive.as_ref().or(session.active.as_ref());
    let region_kind = end.map(region_kind).unwrap_or_default();
    let mut measured = Measured {
        began: Instant::now(),
        iters: 0,
        seconds: 0.0,
        errors: 0,
        timed: None,
        phases: None,
        disturbance: Disturbance::default(),
        region_kind,
        cpu_node: session.core.node(),
        rings: session.ring_memory(),
        poll_loop: None,
        over_time: None,
        elsewhere: session.active.is_none() && !plan.bidirectional,
        failed: None,
    };
    if session.active.is_none() && !plan.both_work() {
        // The peer does it all by itself, and gives up what takes longer.
        let patience = latency::longest(plan.duration().unwrap_or(UNKNOWN));
        session.line_up("ready", Duration::ZERO)?;
        session.line_up("start", latency::longest(WARM_UP) + patience)?;
        measured.began = Instant::now();
        session.line_up("measured", patience)?;
        session.line_up("done", patience)?;
        return Ok(measured);
    }
    let counted = plan.both_work() && session.exchange.is_some();
    session.line_up("ready", Duration::ZERO)?;
    let records = Records::new(plan, clock, WARM_UP);
    let warm = Loop::run(session, plan, layout, clock, warm_up(plan, counted), records)?;
    if warm.errors > 0 {
        return Ok(Measured { errors: warm.errors, ..measured });
    }
    if interrupt::requested() {
        return Ok(measured);
    }
    let stop = match plan.stop {
        Stop::Time(time) if counted => agree(session, &warm, time)?,
        stop => stop,
    };
    let expected = plan.duration().unwrap_or_else(|| warm.expected(plan.stop));
    let records = Records::new(plan, clock, expected);
    session.line_up("start", Duration::ZERO)?;
    let before = Counters::read(cpu);
    measured.began = Instant::now();
    let done = Loop::run(session, plan, layout, clock, stop, records)?;
    measured.disturbance = before.until(&Counters::read(cpu));
    (measured.iters, measured.seconds, measured.errors) = (done.iters, done.seconds, done.errors);
    if done.errors == 0 && !interrupt::requested() {
        let operations = phase_operations(stop, done.iters);
        let looked = look_closer(session, plan, layout, clock, operations, &mut measured);
        // What a signal cut short, the run says by itself.
        measured.failed = looked.err().filter(|_| !interrupt::requested());
    }
    (measured.timed, measured.poll_loop) = (done.timed, done.poll_loop);
    measured.over_time = done.over_time;
    Ok(measured)
}

/// After the measurement: takes single operations apart and compares payloads.
fn look_closer(
    session: &mut Session,
    plan: &Plan,
    layout: Layout,
    clock: &Clock,
    operations: u64,
    measured: &mut Measured,
) -> anyhow::Result<()> {
    session.line_up("measured", Duration::ZERO)?;
    if plan.mode == Mode::Lat {
        measured.phases = latency::take_apart(session, plan, layout, clock, operations)?;
    }
    session.line_up("done", Duration::ZERO)?;
    measured.errors += payload::wrong(session, plan, layout, measured.iters)?;
    Ok(())
}

/// Errors of a loop that has ended: one, if a request failed. A signal ends it like any other end.
pub fn errors_of(ended: anyhow::Result<()>) -> anyhow::Result<u64> {
    match ended {
        Err(error) if error.is::<interrupt::Interrupted>() => Ok(0),
        ended => failures(ended),
    }
}

/// What a loop of either kind writes into, taken before it runs.
enum Records {
    Latency(Box<Recording>),
    Throughput(Box<Progress>),
}

impl Records {
    /// For a run of about this long.
    fn new(plan: &Plan, clock: &Clock, expected: Duration) -> Self {
        match plan.mode {
            Mode::Lat => Self::Latency(Box::new(Recording::new(plan, clock, expected))),
            Mode::Bw | Mode::Rate => {
                Self::Throughput(Box::new(Progress::new(clock.ticks_of(expected))))
            }
        }
    }
}

/// How many operations to take apart: both sides must come to the same number.
fn phase_operations(stop: Stop, done: u64) -> u64 {
    let measured = match stop {
        Stop::Iterations(iters) => iters,
        Stop::Time(_) => done,
    };
    (measured / 10).clamp(1, PHASE_OPERATIONS)
}

/// When the warm-up ends. An open loop warms up at its rate.
fn warm_up(plan: &Plan, counted: bool) -> Stop {
    match (plan.stop, plan.pace) {
        (Stop::Iterations(iters), Pace::Open(rate)) => {
            let operations = (rate * WARM_UP.as_secs_f64()) as u64;
            Stop::Iterations(operations.clamp(1, iters))
        }
        _ if counted => Stop::Iterations(WARM_UP_OPERATIONS),
        (Stop::Iterations(iters), _) => Stop::Iterations((iters / 10).clamp(1, WARM_UP_OPERATIONS)),
        (Stop::Time(time), _) => Stop::Time(WARM_UP.min(time)),
    }
}

/// What a loop came to, of either kind.
struct Loop {
    iters: u64,
    seconds: f64,
    errors: u64,
    timed: Option<Timed>,
    poll_loop: Option<TurnCounts>,
    over_time: Option<OverTime>,
}

impl Loop {
    fn run(
        session: &mut Session,
        plan: &Plan,
        layout: Layout,
        clock: &Clock,
        stop: Stop,
        records: Records,
    ) -> anyhow::Result<Self> {
        Ok(match records {
            Records::Latency(recording) => {
                let run = latency::run(session, plan, layout, clock, stop, *recording)?;
                let latency::Run { iters, seconds, errors, timed } = run;
                let timed = Some(timed);
                Self { iters, seconds, errors, timed, poll_loop: None, over_time: None }
            }
            Records::Throughput(progress) => {
                let run = throughput::run(session, plan, layout, clock, stop, *progress)?;
                let throughput::Run { iters, seconds, errors, counts, over_time } = run;
                let (poll_loop, over_time) = (Some(counts), Some(over_time));
                Self { iters, seconds, errors, timed: None, poll_loop, over_time }
            }
        })
    }

    /// How long so many operations will take.
    fn expected(&self, stop: Stop) -> Duration {
        match stop {
            Stop::Iterations(iters) => {
                let each = self.seconds / self.iters.max(1) as f64;
                Duration::from_secs_f64((each * iters as f64).min(1e7))
            }
            Stop::Time(time) => time,
        }
    }
}

fn region_kind(end: &End) -> String {
    end.region.memory().kind().to_string()
}

/// Turns a time into a number of operations, which the active side decides.
fn agree(session: &mut Session, warm: &Loop, time: Duration) -> anyhow::Result<Stop> {
    let active = session.active.is_some();
    let Some(exchange) = &mut session.exchange else { return Ok(Stop::Time(time)) };
    if active {
        let each = (warm.seconds / warm.iters.max(1) as f64).max(1e-9);
        let iters = ((time.as_secs_f64() / each) as u64).max(1);
        exchange.tell("iterations", iters)?;
        Ok(Stop::Iterations(iters))
    } else {
        Ok(Stop::Iterations(exchange.hear("iterations")?.max(1)))
    }
}

#[cfg(test)]
pub mod tests {
    use super::super::plan::Until;
    use super::*;
    use crate::command::endpoints::DeviceOptions;

    pub fn plan(op: Operation, mode: Mode, size: usize, qps: u32, iters: u64) -> Plan {
        let until = match op {
            Operation::Write | Operation::Send => Until::Echo,
            _ => Until::Completion,
        };
        Plan {
            op,
            mode,
            size,
            depth: if mode == Mode::Lat { 1 } else { 16 },
            qps,
            batch: 1,
            stop: Stop::Iterations(iters),
            pace: Pace::Closed,
            until,
            bidirectional: false,
            reads: 30,
        }
    }

    pub fn session(plan: &Plan) -> Session {
        let devices = vec![holdfast::DeviceAddress::Emulated];
        let device =
            DeviceOptions { devices, cpu: None, nic_cpu: None, ring_node: None, in_process: true };
        let options = EndpointOptions::local(device, Duration::from_secs(60));
        let placement = Placement { bench: None, nic: None };
        let shape = shape(plan, Layout::new(plan), &Source::Memfd);
        Session::start(&options, placement, &shape).unwrap()
    }

    fn measure(plan: &Plan, change: impl FnOnce(&mut Session)) -> Measured {
        let mut session = session(plan);
        change(&mut session);
        run(&mut session, plan, Layout::new(plan), &Clock::calibrate(), None).unwrap()
    }

    #[test]
    fn payloads_that_arrived_are_right_wherever_they_landed() {
        use Mode::{Bw, Lat, Rate};
        use Operation::{Mixed, Read, Send, Write};
        for (op, mode) in [
            (Write, Rate),
            (Read, Bw),
            (Send, Rate),
            (Mixed, Bw),
            (Write, Lat),
            (Send, Lat),
            (Mixed, Lat),
        ] {
            for (size, qps, iters) in [(1, 3, 1005), (100, 1, 7), (4097, 3, 100)] {
                let closed = plan(op, mode, size, qps, iters);
                let other = match mode {
                    Lat => Plan { pace: Pace::Open(1e5), depth: 5, ..closed },
                    _ => Plan { bidirectional: true, ..closed },
                };
                for plan in [closed, other] {
                    let measured = measure(&plan, |_| ());
                    let both_ways = if plan.bidirectional { 2 } else { 1 };
                    // On a machine with other things to do a rate may not be reached.
                    let timed = measured.timed.as_ref();
                    let all = measured.iters + timed.map_or(0, |timed| timed.unfinished);
                    assert_eq!((all, measured.errors), (both_ways * iters, 0), "{plan:?}");
                    let phases = measured.phases.is_some();
                    assert_eq!((phases, measured.timed.is_some()), (mode == Lat, mode == Lat));
                }
            }
        }
    }

    #[test]
    fn a_signal_that_meets_a_waiting_loop_keeps_what_was_measured() {
        assert_eq!(errors_of(Err(interrupt::Interrupted.into())).unwrap(), 0);
        assert!(errors_of(Err(anyhow::anyhow!("no answer"))).is_err());
    }

    #[test]
    fn a_measurement_begins_when_the_warm_up_is_over() {
        let plan = plan(Operation::Read, Mode::Lat, 8, 1, 1);
        let before = Instant::now();
        let measured = measure(&Plan { stop: Stop::Time(WARM_UP), ..plan }, |_| ());
        assert!(measured.began.duration_since(before) >= WARM_UP, "with the NIC's start before it");
    }

    #[test]
    fn a_write_may_count_until_its_completion() {
        for qps in [1, 3] {
            let plan = plan(Operation::Write, Mode::Lat, 100, qps, 50);
            let plan = Plan { until: Until::Completion, ..plan };
            let measured = measure(&plan, |_| ());
            assert_eq!((measured.iters, measured.errors), (50, 0));
            assert_eq!(measured.timed.unwrap().recorded.all.len(), 50);
        }
    }

    #[test]
    fn a_request_that_fails_is_an_error_of_the_result() {
        for (op, mode) in [
            (Operation::Write, Mode::Rate),
            (Operation::Read, Mode::Lat),
            (Operation::Faa, Mode::Bw),
        ] {
            let plan = plan(op, mode, 8, 1, 50);
            // No region has this key.
            let measured = measure(&plan, |s| s.active.as_mut().unwrap().remote.rkey ^= 0xff00);
            assert_eq!((measured.errors, measured.iters), (1, 0), "{plan:?}");
        }
    }
}
