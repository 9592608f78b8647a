//! Shared receive queues, and the regions their receives keep alive.

use holdfast_driver as driver;
use holdfast_driver::PostError;

use crate::hold::Holds;
use crate::queue_pair::with_entries;
use crate::region::RegionInner;
use crate::{Result, Slice};

/// A queue of receives for several queue pairs, with one owner, who posts to it. Receives complete
/// in any order, in the completion queue of the queue pair that took them, so the regions that
/// they name are held until none at all is outstanding.
#[derive(Debug)]
pub struct SharedReceiveQueue {
    // Gone before the regions.
    queue: driver::SharedReceiveQueue,
    holds: Holds<RegionInner>,
}

impl SharedReceiveQueue {
    pub(crate) fn new(queue: driver::SharedReceiveQueue) -> Self {
        Self { queue, holds: Holds::default() }
    }

    pub(crate) fn share(&self) -> driver::SrqHandle {
        self.queue.share()
    }

    /// Posts a receive into `local`.
    #[inline]
    pub fn receive(&mut self, wr_id: u64, local: &[Slice<'_>]) -> Result<(), PostError> {
        for slice in local {
            // Nothing is ever counted as posted here, so what is needed stays until `clear`.
            self.holds.need(slice.region, || 0);
        }
        with_entries(local, |sges| self.queue.post(wr_id, sges))
    }

    /// Shows all posted receives to the device.
    #[inline]
    pub fn ring(&mut self) {
        self.queue.ring();
    }

    /// Receives posted that have not completed.
    pub fn outstanding(&self) -> u32 {
        self.queue.outstanding()
    }

    /// Gives up all regions if no receive is outstanding, and says whether it did.
    pub fn release(&mut self) -> bool {
        let idle = self.queue.outstanding() == 0;
        if idle {
            self.holds.clear();
        }
        idle
    }

    /// Asks for one event when fewer than `limit` receives are left; 0 takes that back. Blocks for
    /// a command.
    pub fn set_limit(&self, limit: u32) -> Result<()> {
        Ok(self.queue.set_limit(limit)?)
    }

    /// The device's handle, as events name it.
    pub fn handle(&self) -> u32 {
        self.queue.handle()
    }
}
