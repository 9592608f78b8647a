//! Shared receive queues, and the regions their receives keep alive.

use std::sync::{Arc, Mutex};

use holdfast_driver as driver;
use holdfast_driver::PostError;

use crate::hold::Holds;
use crate::lock::lock;
use crate::queue_pair::with_entries;
use crate::region::RegionInner;
use crate::{Result, Slice};

/// A queue of receives for several queue pairs, with one owner, who posts to it. Receives complete
/// in any order, in the completion queue of the queue pair that took them, so the regions that
/// they name are held until none at all is outstanding.
///
/// It may be dropped before the queue pairs that take its receives: what is posted stays theirs to
/// take, and the regions stay until the last of them is gone.
#[derive(Debug)]
pub struct SharedReceiveQueue {
    // Gone before the regions.
    queue: driver::SharedReceiveQueue,
    holds: Holds<RegionInner>,
    legacy: Arc<Legacy>,
}

/// The holds of a shared receive queue whose owner is gone. Every queue pair that takes its
/// receives has a part in it, and lets go of that after the device has let go of the queue pair.
#[derive(Debug, Default)]
pub(crate) struct Legacy(Mutex<Holds<RegionInner>>);

impl SharedReceiveQueue {
    pub(crate) fn new(queue: driver::SharedReceiveQueue) -> Self {
        Self { queue, holds: Holds::default(), legacy: Arc::default() }
    }

    /// A part in what this queue leaves behind.
    pub(crate) fn legacy(&self) -> Arc<Legacy> {
        Arc::clone(&self.legacy)
    }

    pub(crate) fn share(&self) -> driver::SrqHandle {
        self.queue.share()
    }

    /// Posts a receive into `local`.
    #[inline]
    pub fn receive(&mut self, wr_id: u64, local: &[Slice<'_>]) -> Result<(), PostError> {
        with_entries(local, |sges| self.queue.post(wr_id, sges))?;
        for slice in local {
            self.holds.keep(slice.region);
        }
        Ok(())
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

impl Drop for SharedReceiveQueue {
    fn drop(&mut self) {
        let mut legacy = lock(&self.legacy.0);
        *legacy = std::mem::take(&mut self.holds);
    }
}

#[cfg(test)]
mod tests {
    use holdfast_dax::{Memory, Populate, Source};

    use crate::{
        Access, Completion, EmulatedNic, EmulatedOptions, QueuePair, QueuePairOptions, SendFlags,
    };

    #[test]
    fn a_queue_that_is_dropped_leaves_its_receives_and_their_regions_to_its_queue_pairs() {
        let device = EmulatedNic::start(EmulatedOptions::default()).unwrap().open(0).unwrap();
        let pd = device.protection_domain().unwrap();
        let cq = device.completion_queue(512).unwrap();
        let mut recv_cq = device.completion_queue(512).unwrap();
        let mut shared = pd.shared_receive_queue(8, 1).unwrap();
        let options = QueuePairOptions { inline: 64, ..QueuePairOptions::default() };
        let taker = QueuePairOptions { shared_receives: Some(&shared), ..options };
        let mut sender = pd.queue_pair(&options, &cq, &cq).unwrap();
        let mut taker = pd.queue_pair(&taker, &cq, &recv_cq).unwrap();
        QueuePair::connect_pair(&mut sender, &mut taker).unwrap();

        let before = device.address_space().mappings();
        let region = pd
            .register(Memory::open(&Source::Memfd, 4096, Populate::Yes).unwrap(), Access::ALL)
            .unwrap();
        shared.receive(7, &[region.slice(0, 4096).unwrap()]).unwrap();
        shared.ring();
        drop((region, shared));

        sender.send_inline(1, b"still here", SendFlags::SIGNALED).unwrap();
        sender.ring_sends();
        let mut done = [Completion::default()];
        while recv_cq.poll(&mut done).unwrap() == 0 {
            std::thread::yield_now();
        }
        assert!(done[0].is_success(), "{:?}", done[0]);
        assert_eq!((done[0].wr_id, done[0].byte_len), (7, 10));
        assert_eq!(device.address_space().mappings(), before + 1, "the region is still mapped");
        drop(taker);
        assert_eq!(device.address_space().mappings(), before, "and now it is not");
    }
}
