//! What the hardware itself can do, measured in the same run: the measure of every result.
//!
//! A latency means little without the time a cache line needs between two cores, nor a bandwidth
//! without that of a plain copy: both differ several times between machines.

use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use holdfast::cores::pin;

use super::layout::Layout;
use super::overhead::Overhead;
use super::plan::{Mode, Plan};
use crate::command::affinity::Placement;
use crate::command::clock::{Clock, Time as _};
use crate::command::histogram::Latencies;
use crate::command::interrupt;
use crate::command::jitter::Jitter;

/// Round trips that are not counted.
const WARM_UP: u64 = 20_000;
/// Round trips that are.
const ROUNDS: u64 = 200_000;
/// How long they may take: where the processors have other things to do, fewer must do.
const LONGEST: Duration = Duration::from_millis(500);
/// Ends the ping-pong early; no round has this number.
const STOP: u64 = u64::MAX;
/// How long a copy is repeated, and how often the best of it is looked for.
const COPY_TIME: Duration = Duration::from_millis(100);
const COPY_TRIES: usize = 3;

/// How long the core alone is looked at: an eighth of the measurement, within these bounds.
const JITTER: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(2));

/// What the hardware and the tool can do.
#[derive(Debug, Default)]
pub struct Baseline {
    /// Round trip of a cache line between the two processors, median (`lat`).
    pub cache_line_ns: Option<f64>,
    /// Speed of a plain copy (`bw`).
    pub memcpy_gbit_per_s: Option<f64>,
    /// What the core does to a thread that only looks at the clock.
    pub jitter: Option<Jitter>,
    /// What the measuring costs.
    pub overhead: Option<Overhead>,
}

impl Baseline {
    /// Measures what matters to the plan. Do it before the NIC starts, which would be in the way.
    /// `here` says which ends are in this process: the active one, and the passive one.
    pub fn measure(
        plan: &Plan,
        here: (bool, bool),
        clock: &Clock,
        placement: Placement,
    ) -> anyhow::Result<Self> {
        let time = (plan.duration().unwrap_or_default() / 8).clamp(JITTER.0, JITTER.1);
        let jitter = Some(Jitter::measure(clock, placement.bench, time)?);
        let overhead = Overhead::measure(plan, here, clock, placement.bench)?;
        let mut baseline = Self { jitter, overhead, ..Self::default() };
        match plan.mode {
            Mode::Lat => {
                if let (Some(bench), Some(nic)) = (placement.bench, placement.nic) {
                    baseline.cache_line_ns = cache_line_ping_pong(clock, (bench, nic))?;
                }
            }
            Mode::Bw => {
                let layout = Layout::new(plan);
                let speed = memcpy(placement.bench, plan.size, layout.slots)?;
                baseline.memcpy_gbit_per_s = Some(speed);
            }
            Mode::Rate => {}
        }
        Ok(baseline)
    }
}

/// A cache line of its own.
#[repr(align(128))]
struct Line(AtomicU64);

/// Median time in nanoseconds for a cache line to go from `cpus.0` to `cpus.1` and back: one
/// thread on each, one word that they raise in turns. `None` when the two are the same processor.
pub fn cache_line_ping_pong(clock: &Clock, cpus: (usize, usize)) -> anyhow::Result<Option<f64>> {
    if cpus.0 == cpus.1 {
        return Ok(None);
    }
    let line = Line(AtomicU64::new(0));
    let word = &line.0;
    let total = WARM_UP + ROUNDS;
    thread::scope(|scope| {
        let answering = scope.spawn(move || -> anyhow::Result<()> {
            let pinned = pin(cpus.1);
            for round in 0..total {
                // An odd value is a question, the next even one its answer.
                loop {
                    match word.load(Ordering::Acquire) {
                        STOP => return Ok(pinned.map(drop)?),
                        question if question == 2 * round + 1 => break,
                        _ if interrupt::requested() => return Ok(()),
                        _ => std::hint::spin_loop(),
                    }
                }
                word.store(2 * round + 2, Ordering::Release);
            }
            Ok(pinned.map(drop)?)
        });
        let asking = scope.spawn(move || -> anyhow::Result<f64> {
            let pinned = pin(cpus.0);
            let mut latencies = Latencies::new();
            let (longest, began) = (clock.ticks_of(LONGEST), clock.ticks());
            for round in 0..total {
                let start = clock.ticks();
                word.store(2 * round + 1, Ordering::Release);
                while word.load(Ordering::Acquire) != 2 * round + 2 {
                    interrupt::check()?;
                    std::hint::spin_loop();
                }
                let now = clock.ticks();
                let elapsed = now.wrapping_sub(began);
                if round >= WARM_UP || elapsed > longest / 4 {
                    latencies.record_ns(clock.ns(now.wrapping_sub(start)));
                }
                if elapsed > longest {
                    break;
                }
            }
            word.store(STOP, Ordering::Release);
            // The last of them counts in any case.
            Ok(pinned.map(|_| latencies.percentiles().p50_ns)?)
        });
        let panicked = |_| anyhow::anyhow!("a thread of the cache line ping-pong panicked");
        let p50 = asking.join().map_err(panicked)?;
        answering.join().map_err(panicked)??;
        p50.map(Some)
    })
}

/// Gigabits per second of a plain copy by one thread, on `cpu` if that is given: blocks of `block`
/// bytes, round and round through `blocks` of them, as the NIC is made to do. The best of a few
/// tries.
pub fn memcpy(cpu: Option<usize>, block: usize, blocks: usize) -> anyhow::Result<f64> {
    // A thread of its own: the NIC's process would inherit the calling thread's processor.
    thread::scope(|scope| {
        let copying = scope.spawn(move || {
            let _pinned = cpu.map(pin).transpose()?;
            copy(block, blocks)
        });
        copying.join().map_err(|_| anyhow::anyhow!("the copying thread panicked"))?
    })
}

fn copy(block: usize, blocks: usize) -> anyhow::Result<f64> {
    let (block, blocks) = (block.max(1), blocks.max(1));
    let source = vec![0x5a_u8; block * blocks];
    let mut target = vec![0_u8; block * blocks];
    let mut best = 0.0_f64;
    for _ in 0..COPY_TRIES {
        interrupt::check()?;
        let start = Instant::now();
        let mut bytes = 0;
        while start.elapsed() < COPY_TIME {
            for (to, from) in target.chunks_exact_mut(block).zip(source.chunks_exact(block)) {
                std::hint::black_box(&mut *to).copy_from_slice(std::hint::black_box(from));
            }
            bytes += target.len();
        }
        best = best.max(bytes as f64 * 8.0 / start.elapsed().as_secs_f64() / 1e9);
    }
    Ok(best)
}

#[cfg(test)]
mod tests {
    use holdfast::cores::allowed;

    use super::*;

    #[test]
    fn a_line_needs_two_processors_to_travel() {
        let clock = Clock::calibrate();
        assert_eq!(cache_line_ping_pong(&clock, (0, 0)).unwrap(), None);
    }

    #[test]
    fn a_copy_has_a_speed() {
        let cpu = allowed().last().copied();
        let speed = memcpy(cpu, 4096, 4).unwrap();
        assert!(speed > 0.1, "{speed} Gbit/s");
    }

    #[test]
    fn a_copy_runs_on_the_processor_that_is_asked_for_and_leaves_the_caller_alone() {
        let before = allowed();
        assert!(memcpy(Some(1023), 64, 1).unwrap_err().to_string().contains("cpu 1023"));
        memcpy(before.first().copied(), 64, 1).unwrap();
        assert_eq!(allowed(), before);
    }
}
