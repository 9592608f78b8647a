//! Two NICs under one driver, played by one thread: the same loops for either driver, with as few
//! busy threads as can be. On a machine of two processors that says more than two processes which
//! wait for each other's turn.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use serde::{Deserialize, Serialize};

use crate::end::{Done, End, Operation, RECEIVED, Request};

/// Bytes of each end's memory.
pub const MEMORY: usize = 1 << 20;
/// Where messages land.
const LANDING: usize = 1 << 19;
/// Round trips timed.
const ROUNDS: u64 = 2000;
/// Most to wait for one thing.
const PATIENCE: Duration = Duration::from_secs(20);

/// What one driver came to.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Loops {
    /// Median of half of a round trip of 8-byte WRITEs, in microseconds.
    pub write_lat_us: f64,
    /// The same of SENDs.
    pub send_lat_us: f64,
    /// 64 KiB WRITEs, 16 under way, 10^9 bits a second.
    pub write_gbit_per_s: f64,
    /// 8-byte WRITEs, 32 under way, each with a doorbell of its own, 10^6 a second.
    pub write_mops: f64,
}

/// Connects two ends and runs all loops.
pub fn run(a: &mut dyn End, b: &mut dyn End) -> Result<Loops> {
    let (at_a, at_b) = (a.address(), b.address());
    a.connect(&at_b)?;
    b.connect(&at_a)?;
    let write_lat_us = median(|round| write_round(a, b, round))?;
    a.receive(LANDING, 8)?;
    b.receive(LANDING, 8)?;
    let send_lat_us = median(|_| send_round(a, b))?;
    let seconds = stream(a, b, 64 << 10, 16, 2000)?;
    let write_gbit_per_s = 2000.0 * f64::from(64 << 10) * 8.0 / seconds / 1e9;
    let seconds = stream(a, b, 8, 32, 20_000)?;
    let write_mops = 20_000.0 / seconds / 1e6;
    Ok(Loops { write_lat_us, send_lat_us, write_gbit_per_s, write_mops })
}

/// Median of half of the rounds, in microseconds. The first tenth warms up.
fn median(mut round: impl FnMut(u64) -> Result<Duration>) -> Result<f64> {
    let mut times = Vec::new();
    for number in 1..=ROUNDS + ROUNDS / 10 {
        let time = round(number)?;
        if number > ROUNDS / 10 {
            times.push(time);
        }
    }
    times.sort();
    Ok(times[times.len() / 2].as_secs_f64() * 1e6 / 2.0)
}

/// Spins until `done` gives something.
fn spin<T>(what: &str, mut done: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    let start = Instant::now();
    loop {
        for _ in 0..1000 {
            if let Some(value) = done()? {
                return Ok(value);
            }
            std::hint::spin_loop();
        }
        ensure!(start.elapsed() < PATIENCE, "waited in vain for {what}");
    }
}

fn completion(end: &mut dyn End) -> Result<Done> {
    let done = spin("a completion", || end.poll())?;
    ensure!(done.status == 0, "a request ended with status {}", done.status);
    Ok(done)
}

fn write(from: &mut dyn End, to: &dyn End, len: usize) -> Result<()> {
    let address = to.address();
    let (addr, rkey) = (address.addr + LANDING as u64, address.rkey);
    from.post(&Request { operation: Operation::Write, local: 0, len, addr, rkey })
}

/// One side writes a number; the other sees it and writes it back.
fn write_round(a: &mut dyn End, b: &mut dyn End, number: u64) -> Result<Duration> {
    let seen = |end: &dyn End| {
        spin("a WRITE", || {
            let mut bytes = [0; 8];
            end.read_memory(LANDING, &mut bytes)?;
            Ok((bytes == number.to_ne_bytes()).then_some(()))
        })
    };
    a.write_memory(0, &number.to_ne_bytes())?;
    b.write_memory(0, &number.to_ne_bytes())?;
    let start = Instant::now();
    write(a, b, 8)?;
    seen(b)?;
    write(b, a, 8)?;
    seen(a)?;
    let time = start.elapsed();
    completion(a)?;
    completion(b)?;
    Ok(time)
}

/// One side sends; the other receives and sends back.
fn send_round(a: &mut dyn End, b: &mut dyn End) -> Result<Duration> {
    let send = Request { operation: Operation::Send, local: 0, len: 8, addr: 0, rkey: 0 };
    // Whether the receive came before the completion of the same end's own send.
    let received = |end: &mut dyn End, others: &mut u32| -> Result<()> {
        while completion(end)?.opcode != RECEIVED {
            *others += 1;
        }
        Ok(())
    };
    let (mut sent_a, mut sent_b) = (0, 0);
    let start = Instant::now();
    a.post(&send)?;
    received(b, &mut sent_b)?;
    b.post(&send)?;
    received(a, &mut sent_a)?;
    let time = start.elapsed();
    if sent_a == 0 {
        completion(a)?;
    }
    if sent_b == 0 {
        completion(b)?;
    }
    a.receive(LANDING, 8)?;
    b.receive(LANDING, 8)?;
    Ok(time)
}

/// Keeps so many WRITEs under way until all have completed; the seconds that took.
fn stream(a: &mut dyn End, b: &dyn End, len: usize, window: u32, count: u32) -> Result<f64> {
    let start = Instant::now();
    let (mut posted, mut completed) = (0, 0);
    while completed < count {
        while posted < count && posted - completed < window {
            write(a, b, len)?;
            posted += 1;
        }
        completion(a)?;
        completed += 1;
    }
    Ok(start.elapsed().as_secs_f64())
}

#[cfg(test)]
mod tests {
    use holdfast::{Device, EmulatedNic, EmulatedOptions};

    use super::*;
    use crate::holdfast_end::HoldfastEnd;

    #[test]
    fn all_loops_come_to_an_end_and_a_figure() {
        let nics = EmulatedNic::start(EmulatedOptions { nics: 2, ..Default::default() }).unwrap();
        let end = |device: Device| {
            HoldfastEnd::new(&device, &device.protection_domain().unwrap(), MEMORY).unwrap()
        };
        let (mut a, mut b) = (end(nics.open(0).unwrap()), end(nics.open(1).unwrap()));
        let loops = run(&mut a, &mut b).unwrap();
        assert!(loops.write_lat_us > 0.0 && loops.send_lat_us > 0.0);
        assert!(loops.write_gbit_per_s > 0.0 && loops.write_mops > 0.0);
    }
}
