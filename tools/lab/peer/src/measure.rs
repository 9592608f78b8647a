//! What perftest cannot measure, measured in the same way through either driver: registration of
//! memory, and the control path from opening a device to the first completion; and the loops of
//! [`one_thread`].
//!
//! Memory is populated before it is registered, so what is timed is pinning, mapping and the
//! device's command. The control path opens the device, registers a page, makes a completion
//! queue and a queue pair, connects that to itself and writes 8 bytes. Holdfast brings the whole
//! device up on the way; Linux did that when its driver was loaded, which does not count here.

use std::time::Instant;

use anyhow::Result;
use holdfast::{Access, Device, DeviceAddress, Memory, Populate, ProtectionDomain, Source};
use serde::{Deserialize, Serialize};

use crate::end::{End, Operation, Request};
use crate::holdfast_end::HoldfastEnd;
use crate::kernel_end::KernelEnd;
use crate::one_thread::{self, Loops};
use crate::verbs::{Context, Domain};

/// Registrations, with their names in the table, and how often each is done.
const SIZES: [(&str, usize, usize); 3] =
    [("4 KiB", 4 << 10, 100), ("2 MiB", 2 << 20, 30), ("64 MiB", 64 << 20, 5)];
/// Times the control path is walked.
const OPENINGS: usize = 7;

/// Medians of one driver, in microseconds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Figures {
    /// Registration, by size.
    pub register_us: Vec<(String, f64)>,
    /// From opening the device to the first completion.
    pub open_to_completion_us: f64,
    /// Two NICs and one thread.
    pub loops: Loops,
}

/// Measures Holdfast on two NICs; where one will do, on the first.
pub fn holdfast(address: &DeviceAddress, other: &DeviceAddress) -> Result<Figures> {
    let loops = one_thread::run(
        &mut HoldfastEnd::open(address, one_thread::MEMORY)?,
        &mut HoldfastEnd::open(other, one_thread::MEMORY)?,
    )?;
    let open_to_completion_us = median(OPENINGS, || {
        let start = Instant::now();
        let mut end = HoldfastEnd::open(address, 4096)?;
        write_to_itself(&mut end)?;
        Ok(start.elapsed().as_secs_f64())
    })?;
    let device = Device::open(address)?;
    let pd = device.protection_domain()?;
    let register = |memory: Memory| register_once(&pd, memory);
    Ok(Figures { register_us: registrations(register)?, open_to_completion_us, loops })
}

fn register_once(pd: &ProtectionDomain, memory: Memory) -> Result<(f64, Memory)> {
    let start = Instant::now();
    let region = pd.register(memory, Access::ALL)?;
    let seconds = start.elapsed().as_secs_f64();
    Ok((seconds, region.deregister()?))
}

/// Measures Linux's driver on two RDMA devices; where one will do, on the first.
pub fn kernel(name: &str, other: &str) -> Result<Figures> {
    let loops = one_thread::run(
        &mut KernelEnd::open(name, one_thread::MEMORY)?,
        &mut KernelEnd::open(other, one_thread::MEMORY)?,
    )?;
    let open_to_completion_us = median(OPENINGS, || {
        let start = Instant::now();
        let mut end = KernelEnd::open(name, 4096)?;
        write_to_itself(&mut end)?;
        Ok(start.elapsed().as_secs_f64())
    })?;
    let context = Context::open(name)?;
    let domain = Domain::new(&context)?;
    let register = |memory: Memory| {
        let start = Instant::now();
        let region = domain.register(memory)?;
        let seconds = start.elapsed().as_secs_f64();
        Ok((seconds, region.deregister()))
    };
    Ok(Figures { register_us: registrations(register)?, open_to_completion_us, loops })
}

/// Connects an end to itself and moves 8 bytes.
fn write_to_itself(end: &mut dyn End) -> Result<()> {
    let address = end.address();
    end.connect(&address)?;
    let (addr, rkey) = (address.addr + 64, address.rkey);
    end.post(&Request { operation: Operation::Write, local: 0, len: 8, addr, rkey })?;
    end.wait_success()?;
    Ok(())
}

fn registrations(
    mut register: impl FnMut(Memory) -> Result<(f64, Memory)>,
) -> Result<Vec<(String, f64)>> {
    let mut figures = Vec::new();
    for (name, bytes, count) in SIZES {
        let mut memory = Some(Memory::open(&Source::Anon, bytes, Populate::Yes)?);
        let median = median(count, || {
            let given = match memory.take() {
                Some(memory) => memory,
                None => Memory::open(&Source::Anon, bytes, Populate::Yes)?,
            };
            let (seconds, back) = register(given)?;
            memory = Some(back);
            Ok(seconds)
        })?;
        figures.push((name.to_owned(), median));
    }
    Ok(figures)
}

/// Median of so many measurements, seconds turned into microseconds.
fn median(count: usize, mut measure: impl FnMut() -> Result<f64>) -> Result<f64> {
    let mut seconds = (0..count).map(|_| measure()).collect::<Result<Vec<_>>>()?;
    seconds.sort_by(f64::total_cmp);
    Ok(seconds[count / 2] * 1e6)
}
