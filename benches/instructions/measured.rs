//! The functions whose instructions are counted, as a caller would write them. None is inlined, so
//! that callgrind finds them; all that they call is.

use holdfast::{Completion, CompletionQueue, QueuePair, Remote, SendFlags, Slice};
use holdfast_driver::wire::wqe::Sge;
use holdfast_driver::{Error, SendQueue};
use holdfast_nic::processor::Processor;

const SIGNALED: SendFlags = SendFlags::SIGNALED;

/// One signalled WRITE of one entry, with its doorbell.
#[inline(never)]
pub fn write_one(queue: &mut SendQueue, id: u64, sge: Sge, remote: Remote) {
    if queue.write(id, &[sge], remote, SIGNALED).is_err() {
        refused();
    }
    queue.ring();
}

#[cold]
#[inline(never)]
fn refused() -> ! {
    panic!("the queue is sound and has room");
}

/// So many, with one doorbell.
#[inline(never)]
pub fn write_batch(queue: &mut SendQueue, count: u64, sge: Sge, remote: Remote) -> bool {
    let posted = (0..count).all(|id| queue.write(id, &[sge], remote, SIGNALED).is_ok());
    queue.ring();
    posted
}

/// Whatever has completed.
#[inline(never)]
pub fn poll(queue: &mut CompletionQueue, out: &mut [Completion]) -> Result<usize, Error> {
    queue.poll(out)
}

/// So many polls of a ring that stays empty.
#[inline(never)]
pub fn poll_empty(queue: &mut CompletionQueue, out: &mut [Completion], times: u64) -> usize {
    let mut found = 0;
    for _ in 0..times {
        match queue.poll(out) {
            Ok(count) => found += count,
            Err(_) => refused(),
        }
    }
    found
}

/// As [`write_one`], through the library.
#[inline(never)]
pub fn library_write_one(queue: &mut QueuePair, id: u64, local: Slice<'_>, remote: Remote) -> bool {
    let posted = queue.write(id, &[local], remote, SIGNALED).is_ok();
    queue.ring_sends();
    posted
}

/// As [`write_batch`], through the library.
#[inline(never)]
pub fn library_write_batch(
    queue: &mut QueuePair,
    count: u64,
    local: Slice<'_>,
    remote: Remote,
) -> bool {
    let posted = (0..count).all(|id| queue.write(id, &[local], remote, SIGNALED).is_ok());
    queue.ring_sends();
    posted
}

/// So many rounds of the emulated NIC's processor.
#[inline(never)]
pub fn nic_rounds(processor: &mut Processor, rounds: u64) -> bool {
    (0..rounds).fold(false, |busy, _| processor.turn().busy | busy)
}

/// Rounds of the emulated NIC's processor until it finds no more to do: how many.
#[inline(never)]
pub fn nic_until_idle(processor: &mut Processor) -> u64 {
    let mut rounds = 1;
    while processor.turn().busy {
        rounds += 1;
    }
    rounds
}
