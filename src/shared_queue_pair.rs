//! Queue pairs that several threads post sends to.

use std::sync::Arc;

use holdfast_driver as driver;
use holdfast_driver::{PostError, Remote, SendFlags};
use holdfast_wire::wqe::Sge;

use crate::device::DeviceInner;
use crate::hold::Holds;
use crate::queue_pair::with_entries;
use crate::region::RegionInner;
use crate::shared_receive::Legacy;
use crate::{MemoryRegion, Slice};

/// A queue pair whose sends come from several threads, by reference: see [`QueuePair::share`].
///
/// Posting never waits for another thread, and carries its doorbell with it: one thread's doorbell
/// shows the device everything that all of them have written. Completions come, mixed, to the one
/// owner of the completion queue. A queue pair for each thread is faster; this is for those who
/// cannot have one.
///
/// Its regions are those it was given, and they are held until it is dropped: which thread's request
/// needs which is not kept account of.
///
/// [`QueuePair::share`]: crate::QueuePair::share
#[derive(Debug)]
pub struct SharedQueuePair {
    // In the order in which they go: the queue pair before the regions.
    sends: driver::SharedSendQueue,
    control: driver::QpControl,
    _recv: Option<driver::RecvQueue>,
    regions: Box<[MemoryRegion]>,
    // What was posted before it was shared.
    _holds: [Holds<RegionInner>; 2],
    _shared_receives: Option<Arc<Legacy>>,
    _device: Arc<DeviceInner>,
}

/// What a queue pair that is shared is made of.
pub(crate) struct Parts {
    pub(crate) sends: driver::SharedSendQueue,
    pub(crate) control: driver::QpControl,
    pub(crate) recv: Option<driver::RecvQueue>,
    pub(crate) sends_before: Holds<RegionInner>,
    pub(crate) receives: Holds<RegionInner>,
    pub(crate) shared_receives: Option<Arc<Legacy>>,
    pub(crate) device: Arc<DeviceInner>,
}

impl SharedQueuePair {
    pub(crate) fn new(parts: Parts, regions: &[&MemoryRegion]) -> Self {
        Self {
            sends: parts.sends,
            control: parts.control,
            _recv: parts.recv,
            regions: regions.iter().map(|region| (*region).clone()).collect(),
            _holds: [parts.sends_before, parts.receives],
            _shared_receives: parts.shared_receives,
            _device: parts.device,
        }
    }

    /// RDMA WRITE of `local` to the peer's memory.
    #[inline]
    pub fn write(
        &self,
        wr_id: u64,
        local: &[Slice<'_>],
        remote: Remote,
        flags: SendFlags,
    ) -> Result<(), PostError> {
        self.post(local, |queue, sges| queue.write(wr_id, sges, remote, flags))
    }

    /// RDMA WRITE with immediate data (host order), which uses up a receive at the peer.
    #[inline]
    pub fn write_imm(
        &self,
        wr_id: u64,
        local: &[Slice<'_>],
        remote: Remote,
        imm: u32,
        flags: SendFlags,
    ) -> Result<(), PostError> {
        self.post(local, |queue, sges| queue.write_imm(wr_id, sges, remote, imm, flags))
    }

    /// RDMA WRITE of `payload`, copied into the ring now.
    #[inline]
    pub fn write_inline(
        &self,
        wr_id: u64,
        payload: &[u8],
        remote: Remote,
        flags: SendFlags,
    ) -> Result<(), PostError> {
        self.sends.write_inline(wr_id, payload, remote, flags)
    }

    /// RDMA READ of the peer's memory into `local`.
    #[inline]
    pub fn read(
        &self,
        wr_id: u64,
        local: &[Slice<'_>],
        remote: Remote,
        flags: SendFlags,
    ) -> Result<(), PostError> {
        self.post(local, |queue, sges| queue.read(wr_id, sges, remote, flags))
    }

    /// SEND of `local` into a receive of the peer.
    #[inline]
    pub fn send(&self, wr_id: u64, local: &[Slice<'_>], flags: SendFlags) -> Result<(), PostError> {
        self.post(local, |queue, sges| queue.send(wr_id, sges, flags))
    }

    /// SEND of `payload`, copied into the ring now.
    #[inline]
    pub fn send_inline(
        &self,
        wr_id: u64,
        payload: &[u8],
        flags: SendFlags,
    ) -> Result<(), PostError> {
        self.sends.send_inline(wr_id, payload, flags)
    }

    /// Atomic compare and swap on 8 bytes of the peer's memory; the old value lands in `old`.
    #[inline]
    pub fn compare_swap(
        &self,
        wr_id: u64,
        old: Slice<'_>,
        remote: Remote,
        compare: u64,
        swap: u64,
        flags: SendFlags,
    ) -> Result<(), PostError> {
        self.post(&[old], |queue, sges| {
            queue.compare_swap(wr_id, sges[0], remote, compare, swap, flags)
        })
    }

    /// Atomic fetch and add on 8 bytes of the peer's memory; the old value lands in `old`.
    #[inline]
    pub fn fetch_add(
        &self,
        wr_id: u64,
        old: Slice<'_>,
        remote: Remote,
        add: u64,
        flags: SendFlags,
    ) -> Result<(), PostError> {
        self.post(&[old], |queue, sges| queue.fetch_add(wr_id, sges[0], remote, add, flags))
    }

    /// Sends that have been posted and not retired.
    pub fn outstanding_sends(&self) -> u32 {
        self.sends.outstanding()
    }

    /// The driver's commands for it.
    pub fn control(&self) -> &driver::QpControl {
        &self.control
    }

    #[inline(always)]
    fn post(
        &self,
        local: &[Slice<'_>],
        post: impl Fn(&driver::SharedSendQueue, &[Sge]) -> Result<(), PostError>,
    ) -> Result<(), PostError> {
        let held = |slice: &Slice<'_>| {
            self.regions.iter().any(|region| Arc::ptr_eq(&region.inner, slice.region))
        };
        if !local.iter().all(held) {
            return Err(PostError::RegionNotHeld);
        }
        with_entries(local, |sges| post(&self.sends, sges))
    }
}
