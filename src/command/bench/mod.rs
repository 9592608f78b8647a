//! `holdfast bench`: latency, bandwidth and rate, each beside what the hardware can do.

mod baseline;
mod latency;
mod options;
mod payload;
mod report;
mod throughput;

use std::process::ExitCode;
use std::time::Duration;

use holdfast_dax::Source;

pub use options::BenchOptions;
use options::{Mode, Operation, Plan, Stop};
use report::{Report, Throughput};

use super::affinity::Placement;
use super::clock::Clock;
use super::endpoints::{End, Session, Shape};
use super::histogram::Latencies;
use super::machine::Machine;
use super::{Usage, interrupt, print};

/// How long to warm up.
const WARM_UP: Duration = Duration::from_millis(200);
/// How long to warm up in operations, where both sides must count.
const WARM_UP_OPERATIONS: u64 = 2000;
/// Receives that a latency test keeps posted.
const LATENCY_DEPTH: u32 = 64;
/// Longest payload that a latency test puts into the ring itself.
const INLINE: usize = 64;
/// Bytes of each region that throughput tests go round in: within reach of the caches, as
/// perftest's buffers are.
const FOOTPRINT: usize = 1 << 20;

/// Where the payload lies: slots of one operation each, a sending half and a receiving half.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Layout {
    /// Bytes from one slot to the next.
    stride: usize,
    /// Slots in each half.
    slots: usize,
}

impl Layout {
    fn new(plan: &Plan) -> Self {
        let stride = plan.size.next_multiple_of(64);
        let slots = match plan.mode {
            Mode::Lat => 1,
            _ => (FOOTPRINT / stride).clamp(1, (plan.depth * plan.qps) as usize),
        };
        Self { stride, slots }
    }

    /// Offset of a sending slot.
    fn source(&self, slot: usize) -> usize {
        slot * self.stride
    }

    /// Offset of a receiving slot.
    fn target(&self, slot: usize) -> usize {
        (self.slots + slot) * self.stride
    }

    fn bytes(&self) -> usize {
        2 * self.slots * self.stride
    }
}

/// What one measuring loop came to.
#[derive(Debug)]
pub(crate) struct Measured {
    /// Operations.
    iters: u64,
    /// Seconds they took.
    seconds: f64,
    /// Latencies, in a latency test.
    latencies: Option<Latencies>,
    /// Work completions that were not successes, and payloads that came out wrong.
    errors: u64,
}

/// Runs the benchmark.
pub fn run(options: &BenchOptions) -> anyhow::Result<ExitCode> {
    let plan = options.plan().map_err(Usage::error)?;
    options.endpoints.check()?;
    check_region(options)?;
    let placement = options.endpoints.device.placement();
    let clock = Clock::calibrate();
    // Before the NIC starts: it would be in the way.
    let baseline = Baseline::measure(&plan, &clock, placement)?;
    let layout = Layout::new(&plan);
    let shape = shape(&plan, layout, &options.region);
    let mut session = Session::start(&options.endpoints, placement, &shape)?;
    let measured = measure(&mut session, &plan, layout, &clock)?;
    let kind = session.passive.as_ref().or(session.active.as_ref()).map(region_kind);
    let passive_only = session.active.is_none();
    drop(session);

    let mut machine = Machine::read();
    machine.timer = Some(clock.name());
    let report = baseline.report(&plan, options, placement, &measured, machine, kind);
    if options.json {
        print(format_args!("{}\n", serde_json::to_string_pretty(&report)?))?;
    } else if passive_only && measured.iters == 0 {
        print("served; the other side has the result\n")?;
    } else {
        let bars = measured.latencies.as_ref().map(Latencies::draw);
        print(report.table(bars.as_deref()))?;
    }
    Ok(match (report.errors, report.interrupted) {
        (0, false) => ExitCode::SUCCESS,
        (0, true) => ExitCode::from(interrupt::EXIT_INTERRUPTED),
        _ => ExitCode::from(super::EXIT_FAILED),
    })
}

/// What each end is made of.
fn shape(plan: &Plan, layout: Layout, region: &Source) -> Shape {
    let lat = plan.mode == Mode::Lat;
    let sends = plan.op == Operation::Send;
    Shape {
        purpose: plan.purpose(),
        bytes: layout.bytes(),
        region: region.clone(),
        qps: plan.qps,
        send_depth: if lat { LATENCY_DEPTH } else { plan.depth },
        recv_depth: match (sends, lat) {
            (false, _) => 1,
            (true, true) => LATENCY_DEPTH,
            (true, false) => 2 * plan.depth,
        },
        inline: if lat && plan.size <= INLINE { INLINE as u32 } else { 0 },
        one_sided: (!sends).then(|| plan.op.name()),
        guard: None,
    }
}

fn region_kind(end: &End) -> String {
    end.region.memory().kind().to_string()
}

/// Refuses a region that this kind of device cannot reach, before anything is started.
fn check_region(options: &BenchOptions) -> anyhow::Result<()> {
    use holdfast::DeviceAddress;
    let user = |address: &DeviceAddress| !matches!(address, DeviceAddress::Pci(_));
    if options.region == Source::Anon && options.endpoints.device.devices.iter().any(user) {
        return Err(Usage::error(
            "--region anon cannot be shared with a NIC in another process, which maps memory by \
             descriptor; use memfd (anon is for PCI devices)",
        ));
    }
    Ok(())
}

/// Warms up and measures.
fn measure(
    session: &mut Session,
    plan: &Plan,
    layout: Layout,
    clock: &Clock,
) -> anyhow::Result<Measured> {
    // Both sides work, and must agree on how often.
    payload::prepare(session, plan, layout)?;
    let both =
        plan.op == Operation::Send || (plan.op == Operation::Write && plan.mode == Mode::Lat);
    let counted = both && session.exchange.is_some();
    if session.active.is_none() && !both {
        // The peer does it all by itself.
        let patience = match plan.stop {
            Stop::Time(time) => time,
            Stop::Iterations(_) => Duration::from_secs(24 * 3600),
        };
        session.line_up("ready", Duration::ZERO)?;
        session.line_up("start", WARM_UP + patience)?;
        session.line_up("done", patience)?;
        return Ok(Measured { iters: 0, seconds: 0.0, latencies: None, errors: 0 });
    }
    let run = |session: &mut Session, stop| match plan.mode {
        Mode::Lat => latency::run(session, plan, layout, clock, stop),
        Mode::Bw | Mode::Rate => throughput::run(session, plan, layout, clock, stop),
    };
    let warm_up = match plan.stop {
        _ if counted => Stop::Iterations(WARM_UP_OPERATIONS),
        Stop::Iterations(iters) => Stop::Iterations((iters / 10).clamp(1, WARM_UP_OPERATIONS)),
        Stop::Time(time) => Stop::Time(WARM_UP.min(time)),
    };
    session.line_up("ready", Duration::ZERO)?;
    let warm = run(session, warm_up)?;
    if warm.errors > 0 {
        return Ok(warm);
    }
    let stop = match plan.stop {
        Stop::Time(time) if counted => agree(session, &warm, time)?,
        stop => stop,
    };
    session.line_up("start", Duration::ZERO)?;
    let mut measured = run(session, stop)?;
    if measured.errors == 0 && !interrupt::requested() {
        session.line_up("done", Duration::ZERO)?;
        measured.errors += payload::wrong(session, plan, layout, measured.iters)?;
    }
    Ok(measured)
}

/// Turns a time into a number of operations, which the active side decides.
fn agree(session: &mut Session, warm: &Measured, time: Duration) -> anyhow::Result<Stop> {
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

/// What the hardware can do.
#[derive(Debug, Default)]
struct Baseline {
    cache_line_ns: Option<f64>,
    memcpy_gbit_per_s: Option<f64>,
}

impl Baseline {
    fn measure(plan: &Plan, clock: &Clock, placement: Placement) -> anyhow::Result<Self> {
        let mut baseline = Self::default();
        match (plan.mode, placement.bench, placement.nic) {
            (Mode::Lat, Some(bench), Some(nic)) => {
                baseline.cache_line_ns = baseline::cache_line_ping_pong(clock, (bench, nic))?;
            }
            (Mode::Bw, ..) => {
                let layout = Layout::new(plan);
                let speed = baseline::memcpy(placement.bench, plan.size, layout.slots)?;
                baseline.memcpy_gbit_per_s = Some(speed);
            }
            _ => {}
        }
        Ok(baseline)
    }

    fn report(
        &self,
        plan: &Plan,
        options: &BenchOptions,
        placement: Placement,
        measured: &Measured,
        machine: Machine,
        kind: Option<String>,
    ) -> Report {
        let latency = measured.latencies.as_ref().map(Latencies::percentiles);
        let throughput = (plan.mode != Mode::Lat)
            .then(|| Throughput::new(measured.iters, plan.size, measured.seconds));
        let ratio = latency.zip(self.cache_line_ns).map(|(l, line)| l.p50_ns / line);
        let percent =
            throughput.zip(self.memcpy_gbit_per_s).map(|(t, copy)| t.gbit_per_s / copy * 100.0);
        Report {
            op: plan.op,
            mode: plan.mode,
            size: plan.size,
            iters: measured.iters,
            device: options.endpoints.device.name(),
            errors: measured.errors,
            latency,
            throughput,
            seconds: measured.seconds,
            depth: plan.depth,
            qps: plan.qps,
            batch: plan.batch,
            region: options.region.to_string(),
            region_kind: kind.unwrap_or_default(),
            cpu: placement.bench,
            nic_cpu: placement.nic,
            cache_line_ping_pong_ns: self.cache_line_ns,
            ratio_to_ping_pong: ratio,
            memcpy_gbit_per_s: self.memcpy_gbit_per_s,
            percent_of_memcpy: percent,
            interrupted: interrupt::requested(),
            machine,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::endpoints::{DeviceOptions, EndpointOptions};
    use super::*;

    pub fn plan(op: Operation, mode: Mode, size: usize, qps: u32, iters: u64) -> Plan {
        let depth = if mode == Mode::Lat { 1 } else { 16 };
        Plan { op, mode, size, depth, qps, batch: 1, stop: Stop::Iterations(iters) }
    }

    pub fn session(plan: &Plan) -> Session {
        let devices = vec![holdfast::DeviceAddress::Emulated];
        let device = DeviceOptions { devices, cpu: None, nic_cpu: None, in_process: true };
        let options = EndpointOptions::local(device, Duration::from_secs(10));
        let placement = Placement { bench: None, nic: None };
        let shape = shape(plan, Layout::new(plan), &Source::Memfd);
        Session::start(&options, placement, &shape).unwrap()
    }

    #[test]
    fn payloads_that_arrived_are_right_wherever_they_landed() {
        let clock = Clock::calibrate();
        for (op, mode) in [
            (Operation::Write, Mode::Rate),
            (Operation::Read, Mode::Bw),
            (Operation::Send, Mode::Rate),
            (Operation::Write, Mode::Lat),
            (Operation::Send, Mode::Lat),
        ] {
            for (size, qps, iters) in [(1, 3, 1005), (100, 1, 7), (4097, 3, 100)] {
                let qps = if mode == Mode::Lat { 1 } else { qps };
                let plan = plan(op, mode, size, qps, iters);
                let mut session = session(&plan);
                let measured = measure(&mut session, &plan, Layout::new(&plan), &clock).unwrap();
                assert_eq!((measured.iters, measured.errors), (iters, 0), "{plan:?}");
            }
        }
    }

    #[test]
    fn a_request_that_fails_is_an_error_of_the_result() {
        let clock = Clock::calibrate();
        for (op, mode) in [
            (Operation::Write, Mode::Rate),
            (Operation::Read, Mode::Lat),
            (Operation::Faa, Mode::Bw),
        ] {
            let plan = plan(op, mode, 8, 1, 50);
            let mut session = session(&plan);
            // No region has this key.
            session.active.as_mut().unwrap().remote.rkey ^= 0xff00;
            let measured = measure(&mut session, &plan, Layout::new(&plan), &clock).unwrap();
            assert_eq!((measured.errors, measured.iters), (1, 0), "{plan:?}");
        }
    }
}
