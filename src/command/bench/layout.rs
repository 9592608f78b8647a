//! Where the payload lies: slots of one operation each, a sending half and a receiving half.

use super::plan::{Mode, Operation, Plan};

/// Bytes of each region that throughput tests go round in: within reach of the caches, as
/// perftest's buffers are.
const FOOTPRINT: usize = 1 << 20;

/// Where the payload lies in each region.
#[derive(Debug, Clone, Copy)]
pub struct Layout {
    /// Bytes from one slot to the next.
    pub stride: usize,
    /// Slots in each half.
    pub slots: usize,
}

impl Layout {
    /// That of a plan.
    pub fn new(plan: &Plan) -> Self {
        let stride = plan.size.next_multiple_of(64);
        let at_a_time = (plan.depth * plan.qps) as usize;
        let slots = match plan.mode {
            // A message lands in whichever receive is next.
            Mode::Lat if plan.op == Operation::Send => 1,
            Mode::Lat => at_a_time,
            _ => (FOOTPRINT / stride).clamp(1, at_a_time),
        };
        Self { stride, slots }
    }

    /// Offset of a sending slot.
    pub fn source(&self, slot: usize) -> usize {
        slot * self.stride
    }

    /// Offset of a receiving slot.
    pub fn target(&self, slot: usize) -> usize {
        (self.slots + slot) * self.stride
    }

    /// Bytes of a region.
    pub fn bytes(&self) -> usize {
        2 * self.slots * self.stride
    }
}
