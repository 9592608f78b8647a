//! Every operation between a NIC of Holdfast's and one of Linux's, in both directions.
//!
//! Both ends are in this process: one thread asks one end to do something and then looks at both.
//! Each transfer moves a pattern of its own, and the bytes around the place where it must land
//! are looked at too.

use anyhow::{Result, ensure};
use holdfast::DeviceAddress;
use holdfast_lab_check::Report;

use crate::end::{Done, End, Operation, RECEIVED, RECEIVED_WRITE, REMOTE_ACCESS, Request};
use crate::holdfast_end::HoldfastEnd;
use crate::kernel_end::KernelEnd;

/// Bytes of each end's memory.
const MEMORY: usize = 8 << 20;
/// Where data comes from, in the memory of the end that has it.
const FROM: usize = 64;
/// Where it goes, in the other's: neither aligned nor on the same page offset.
const TO: usize = (4 << 20) + 1000;
/// Bytes looked at on either side of a target.
const GUARD: usize = 64;
/// What lies there.
const UNTOUCHED: u8 = 0xa5;
/// Nothing, a byte, the edges of a packet and of a page, many pages.
const SIZES: [usize; 9] = [0, 1, 8, 1023, 1025, 4095, 4096, 4097, 1 << 20];

/// Runs all checks; says whether all passed.
pub fn run(device: &DeviceAddress, verbs: &str) -> Result<bool> {
    let mut report = Report::default();
    let mut ours = HoldfastEnd::open(device, MEMORY)?;
    let mut theirs = KernelEnd::open(verbs, MEMORY)?;
    connect(&mut ours, &mut theirs)?;
    both_ways(&mut ours, &mut theirs, &mut report, &directed);
    drop(ours);
    drop(theirs);

    // A refused access ends a connection, so each direction has one of its own.
    for holdfast_asks in [true, false] {
        let mut ours = HoldfastEnd::open(device, MEMORY)?;
        let mut theirs = KernelEnd::open(verbs, MEMORY)?;
        connect(&mut ours, &mut theirs)?;
        if holdfast_asks {
            refused(&mut ours, &mut theirs, &mut report);
        } else {
            refused(&mut theirs, &mut ours, &mut report);
        }
    }
    Ok(report.failed == 0)
}

fn connect(a: &mut dyn End, b: &mut dyn End) -> Result<()> {
    let (at_a, at_b) = (a.address(), b.address());
    a.connect(&at_b)?;
    b.connect(&at_a)
}

/// What is checked from one end to the other.
type Checks = dyn Fn(&mut dyn End, &mut dyn End, &mut Report);

fn both_ways(a: &mut dyn End, b: &mut dyn End, report: &mut Report, checks: &Checks) {
    checks(a, b, report);
    checks(b, a, report);
}

/// All that `asks` can do to `answers`.
fn directed(asks: &mut dyn End, answers: &mut dyn End, report: &mut Report) {
    let way = format!("{} to {}", asks.driver(), answers.driver());
    for (name, operation) in [
        ("SEND", Operation::Send),
        ("SEND with immediate", Operation::SendImm(0x0102_0304)),
        ("WRITE", Operation::Write),
        ("WRITE with immediate", Operation::WriteImm(0xa1b2_c3d4)),
        ("READ", Operation::Read),
    ] {
        report.check(&format!("{way}: {name} of 0 bytes to 1 MiB"), || {
            SIZES.iter().try_for_each(|&len| transfer(asks, answers, operation, len))
        });
    }
    report.check(&format!("{way}: 32 WRITEs under way at a time"), || burst(asks, answers));
    report.check(&format!("{way}: compare and swap"), || compare_swap(asks, answers));
    report.check(&format!("{way}: fetch and add"), || fetch_add(asks, answers));
}

/// Bytes that differ from transfer to transfer and from place to place.
fn pattern(len: usize, seed: usize) -> Vec<u8> {
    (0..len).map(|at| ((at * 31) ^ (at >> 8) ^ (seed * 97)) as u8).collect()
}

fn request(operation: Operation, local: usize, len: usize, to: &dyn End, at: usize) -> Request {
    let address = to.address();
    Request { operation, local, len, addr: address.addr + at as u64, rkey: address.rkey }
}

/// Moves `len` bytes with one request and looks at all that both sides can see of it.
fn transfer(
    asks: &mut dyn End,
    answers: &mut dyn End,
    operation: Operation,
    len: usize,
) -> Result<()> {
    let data = pattern(len, len + 1);
    let reads = operation == Operation::Read;
    let (source, target): (&dyn End, &dyn End) =
        if reads { (answers, asks) } else { (asks, answers) };
    source.write_memory(FROM, &data)?;
    target.write_memory(TO - GUARD, &vec![UNTOUCHED; len + 2 * GUARD])?;

    let imm = match operation {
        Operation::SendImm(imm) | Operation::WriteImm(imm) => Some(imm),
        _ => None,
    };
    let sends = matches!(operation, Operation::Send | Operation::SendImm(_));
    let answered = sends || imm.is_some();
    if sends {
        answers.receive(TO, len)?;
    } else if answered {
        answers.receive(0, 0)?;
    }
    let (local, remote) = if reads { (TO, FROM) } else { (FROM, TO) };
    let request = request(operation, local, len, answers, remote);
    asks.post(&request)?;
    asks.wait_success()?;
    if answered {
        let done = answers.wait_success()?;
        let opcode = if sends { RECEIVED } else { RECEIVED_WRITE };
        let expected = Done { status: 0, opcode, len: u32::try_from(len)?, imm };
        ensure!(done == expected, "{len} bytes: received {done:?}, not {expected:?}");
    }

    let target: &dyn End = if reads { asks } else { answers };
    let mut found = vec![0; len + 2 * GUARD];
    target.read_memory(TO - GUARD, &mut found)?;
    ensure!(found[GUARD..GUARD + len] == data, "{len} bytes: other data arrived");
    let guards = found[..GUARD].iter().chain(&found[GUARD + len..]);
    ensure!(
        guards.clone().all(|&byte| byte == UNTOUCHED),
        "{len} bytes: written beside the target"
    );
    Ok(())
}

/// Many requests at once: all complete, and each lands in its own place.
fn burst(asks: &mut dyn End, answers: &mut dyn End) -> Result<()> {
    const COUNT: usize = 32;
    const LEN: usize = 5000;
    let data = pattern(COUNT * LEN, 3);
    asks.write_memory(FROM, &data)?;
    answers.write_memory(TO, &vec![UNTOUCHED; COUNT * LEN])?;
    for index in 0..COUNT {
        // In the reverse order at the target.
        let at = TO + (COUNT - 1 - index) * LEN;
        let request = request(Operation::Write, FROM + index * LEN, LEN, answers, at);
        asks.post(&request)?;
    }
    for _ in 0..COUNT {
        asks.wait_success()?;
    }
    let mut found = vec![0; COUNT * LEN];
    answers.read_memory(TO, &mut found)?;
    let reversed = found.chunks(LEN).rev().flatten().copied();
    ensure!(reversed.eq(data), "other data arrived");
    Ok(())
}

/// Carries out one atomic on a word of the answering end; returns what came back and what is there.
fn atomic(
    asks: &mut dyn End,
    answers: &mut dyn End,
    before: u64,
    operation: Operation,
) -> Result<(u64, u64)> {
    let at = 4096;
    answers.write_memory(at, &before.to_ne_bytes())?;
    asks.write_memory(FROM, &u64::MAX.to_ne_bytes())?;
    let request = request(operation, FROM, 8, answers, at);
    asks.post(&request)?;
    asks.wait_success()?;
    let (mut old, mut new) = ([0; 8], [0; 8]);
    asks.read_memory(FROM, &mut old)?;
    answers.read_memory(at, &mut new)?;
    Ok((u64::from_ne_bytes(old), u64::from_ne_bytes(new)))
}

fn compare_swap(asks: &mut dyn End, answers: &mut dyn End) -> Result<()> {
    let before = 0x1122_3344_5566_7788;
    for (compare, after) in [(before, 7), (before + 1, before)] {
        let operation = Operation::CompareSwap { compare, swap: 7 };
        let (old, new) = atomic(asks, answers, before, operation)?;
        ensure!((old, new) == (before, after), "of {compare:#x}: {old:#x} before, {new:#x} after");
    }
    Ok(())
}

fn fetch_add(asks: &mut dyn End, answers: &mut dyn End) -> Result<()> {
    for (before, add) in [(5, 3), (u64::MAX, 2)] {
        let (old, new) = atomic(asks, answers, before, Operation::FetchAdd { add })?;
        let sum = before.wrapping_add(add);
        ensure!((old, new) == (before, sum), "{before} + {add}: {old} before, {new} after");
    }
    Ok(())
}

/// A key that is not the peer's is refused, the memory stays as it is, and the asking side learns
/// why.
fn refused(asks: &mut dyn End, answers: &mut dyn End, report: &mut Report) {
    let name = format!("{} to {}: a wrong key is refused", asks.driver(), answers.driver());
    report.check(&name, || {
        answers.write_memory(TO, &[UNTOUCHED; 8])?;
        let mut request = request(Operation::Write, FROM, 8, answers, TO);
        request.rkey ^= 0x5555;
        asks.post(&request)?;
        let done = asks.wait()?;
        ensure!(done.status == REMOTE_ACCESS, "it ended with status {}", done.status);
        let mut found = [0; 8];
        answers.read_memory(TO, &mut found)?;
        ensure!(found == [UNTOUCHED; 8], "it was written");
        Ok(())
    });
}

#[cfg(test)]
mod tests {
    use holdfast::{Device, EmulatedNic, EmulatedOptions};

    use super::*;

    fn ends() -> (HoldfastEnd, HoldfastEnd) {
        let nics = EmulatedNic::start(EmulatedOptions { nics: 2, ..Default::default() }).unwrap();
        let end = |device: Device| {
            HoldfastEnd::new(&device, &device.protection_domain().unwrap(), MEMORY).unwrap()
        };
        let (mut a, mut b) = (end(nics.open(0).unwrap()), end(nics.open(1).unwrap()));
        connect(&mut a, &mut b).unwrap();
        (a, b)
    }

    #[test]
    fn every_check_passes_between_two_ends_of_holdfast() {
        let (mut a, mut b) = ends();
        let mut report = Report::default();
        both_ways(&mut a, &mut b, &mut report, &directed);
        refused(&mut a, &mut b, &mut report);
        assert_eq!(report.failed, 0);
    }
}
