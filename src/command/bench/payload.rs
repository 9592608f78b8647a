//! What the operations carry, and whether it arrived.

use super::layout::Layout;
use super::measure::INLINE;
use super::plan::{Mode, Operation, Plan};
use crate::command::endpoints::{End, Session};

/// Writes a pattern where payloads come from, and zeroes where they go.
pub fn prepare(session: &Session, plan: &Plan, layout: Layout) -> anyhow::Result<()> {
    let half = layout.slots * layout.stride;
    for end in session.active.iter().chain(&session.passive) {
        let memory = end.region.memory();
        memory.fill(layout.target(0), half, 0)?;
        if plan.op.is_atomic() {
            memory.fill(0, half, 0)?;
            continue;
        }
        for slot in 0..layout.slots {
            let bytes: Vec<u8> = (0..plan.size).map(|i| pattern(plan.op, slot, i)).collect();
            memory.write_at(layout.source(slot), &bytes)?;
        }
    }
    Ok(())
}

/// A byte of the payload, never 0: what did not arrive differs. A message lands in whichever
/// receive is next, so all messages are the same.
fn pattern(op: Operation, slot: usize, byte: usize) -> u8 {
    let slot = if op == Operation::Send { 0 } else { slot };
    ((byte.wrapping_mul(31) ^ slot.wrapping_mul(97) ^ byte >> 8) % 255) as u8 + 1
}

/// Compares what arrived in `iters` operations with what was sent, where both ends are here: slots
/// that differ, and those that are missing. (The marks of a latency test are the last byte, which
/// both sides share in the end.)
pub fn wrong(session: &Session, plan: &Plan, layout: Layout, iters: u64) -> anyhow::Result<u64> {
    let (Some(active), Some(passive)) = (&session.active, &session.passive) else { return Ok(0) };
    if plan.op.is_atomic() || plan.mode == Mode::Lat && plan.size <= INLINE {
        return Ok(0);
    }
    let iters = if plan.bidirectional { iters / 2 } else { iters };
    let used = slots_used(plan, layout, iters);
    let mut wrong = match plan.op {
        Operation::Read => differing(passive, active, plan, layout, used)?,
        _ => differing(active, passive, plan, layout, used)?,
    };
    if plan.bidirectional || plan.op == Operation::Mixed {
        wrong += differing(passive, active, plan, layout, used)?;
    }
    Ok(wrong)
}

/// Slots that arrived wrong, and how many fewer than `used` arrived at all.
fn differing(from: &End, to: &End, plan: &Plan, layout: Layout, used: u64) -> anyhow::Result<u64> {
    let (mut sent, mut arrived) = (vec![0; plan.size], vec![0; plan.size]);
    let (mut wrong, mut unused) = (0, 0);
    for slot in 0..layout.slots {
        to.region.memory().read_at(layout.target(slot), &mut arrived)?;
        from.region.memory().read_at(layout.source(slot), &mut sent)?;
        if arrived.iter().all(|byte| *byte == 0) {
            unused += 1;
        } else {
            wrong += u64::from(arrived != sent);
        }
    }
    Ok(wrong + used.saturating_sub(layout.slots as u64 - unused))
}

/// Slots that so many operations in one direction use at least.
fn slots_used(plan: &Plan, layout: Layout, iters: u64) -> u64 {
    let slots = (layout.slots as u64).min(iters);
    match (plan.op, plan.mode) {
        // The busiest queue pair had its share, and its receives were posted in order.
        (Operation::Send, Mode::Bw | Mode::Rate) => {
            slots.min(iters.div_ceil(u64::from(plan.qps))).min(u64::from(plan.recv_depth()))
        }
        // Which slots are written and which read depends on the proportion.
        (Operation::Mixed, _) => 0,
        // In order, by all queue pairs together.
        _ => slots,
    }
}

#[cfg(test)]
mod tests {
    use super::super::measure::tests::{plan, session};
    use super::*;

    #[test]
    fn payloads_that_differ_or_never_arrived_are_errors() {
        for op in [Operation::Write, Operation::Read, Operation::Send] {
            let plan = plan(op, Mode::Rate, 64, 2, 20);
            let layout = Layout::new(&plan);
            let session = session(&plan);
            prepare(&session, &plan, layout).unwrap();
            let least = if op == Operation::Send { 10 } else { 20 };
            assert_eq!(wrong(&session, &plan, layout, 20).unwrap(), least, "{op:?}");
            // All arrive, one of them with a wrong byte.
            let end = if op == Operation::Read { &session.active } else { &session.passive };
            let memory = end.as_ref().unwrap().region.memory();
            for slot in 0..20 {
                let bytes: Vec<u8> = (0..64).map(|i| pattern(op, slot, i)).collect();
                memory.write_at(layout.target(slot), &bytes).unwrap();
            }
            assert_eq!(wrong(&session, &plan, layout, 20).unwrap(), 0, "{op:?}");
            memory.fill(layout.target(3) + 63, 1, 0).unwrap();
            assert_eq!(wrong(&session, &plan, layout, 20).unwrap(), 1, "{op:?}");
        }
    }
}
