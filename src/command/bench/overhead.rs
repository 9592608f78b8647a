//! What the measuring itself costs: the loop of the mode on a device that is done with everything at
//! once.

use std::thread;

use holdfast::cores::pin;
use serde::Serialize;

use super::latency;
use super::plan::{Mode, Plan};
use super::throughput::{self, sides::Part};
use crate::command::clock::Clock;

/// That of either kind of loop.
#[derive(Debug, Clone, Copy, Serialize)]
#[serde(untagged)]
pub enum Overhead {
    /// `lat`
    Latency(latency::null::Overhead),
    /// `bw`, `rate`
    Throughput(throughput::null::Overhead),
}

impl Overhead {
    /// Measures it, on `cpu` if that is given; nothing where this process sends nothing. `here` says
    /// which ends are in this process: the active one, and the passive one.
    pub fn measure(
        plan: &Plan,
        here: (bool, bool),
        clock: &Clock,
        cpu: Option<usize>,
    ) -> anyhow::Result<Option<Self>> {
        // On a thread of its own: the NIC's process would inherit this one's processor.
        thread::scope(|scope| {
            let measuring = scope.spawn(|| {
                let _pinned = cpu.map(pin).transpose()?;
                Ok(match plan.mode {
                    Mode::Lat => Some(Self::Latency(latency::null::overhead(clock)?)),
                    Mode::Bw | Mode::Rate => {
                        let parts = Part::of(plan, here.0, here.1);
                        throughput::null::overhead(plan, parts, clock)?.map(Self::Throughput)
                    }
                })
            });
            measuring
                .join()
                .map_err(|_| anyhow::anyhow!("the thread of the null device panicked"))?
        })
    }
}
