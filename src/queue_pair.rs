//! Queue pairs, and the regions their requests keep alive.

use std::sync::Arc;
use std::time::Duration;

use arrayvec::ArrayVec;
use holdfast_driver as driver;
use holdfast_driver::{
    Datagram, DoorbellPolicy, Init, Path, PostError, ReadyToReceive, ReadyToSend,
};
use holdfast_driver::{Remote, SendFlags};
use holdfast_wire::attr::QpType;
use holdfast_wire::wqe::Sge;

use crate::connect::{Endpoint, QueuePairInfo};
use crate::device::{DeviceInner, GID_INDEX};
use crate::hold::Holds;
use crate::region::RegionInner;
use crate::shared_queue_pair::{self, SharedQueuePair};
use crate::shared_receive::Legacy;
use crate::{
    Completion, CompletionQueue, DoorbellPage, MemoryRegion, ProtectionDomain, Result,
    SharedReceiveQueue, Slice,
};

/// Most scatter/gather entries of a request.
pub const MAX_SGE: usize = 32;
/// RNR NAK timer code: 0.64 ms, as perftest's.
const RNR_TIMER: u8 = 12;

/// What a queue pair is to be.
#[derive(Debug, Clone, Copy)]
pub struct QueuePairOptions<'a> {
    /// [`QpType::Rc`], a connection, or [`QpType::Ud`], datagrams.
    pub qp_type: QpType,
    /// Sends that may be outstanding.
    pub send_depth: u32,
    /// Receives that may be outstanding.
    pub recv_depth: u32,
    /// Scatter/gather entries of a request, at most [`MAX_SGE`].
    pub max_sge: u32,
    /// Bytes that a send may carry in the ring itself; see [`crate::Device::max_inline`].
    pub inline: u32,
    /// Every send gives a completion, whatever its flags.
    pub signal_all: bool,
    /// When its queues ring their doorbells.
    pub doorbells: DoorbellPolicy,
    /// Where its doorbells are; `None` for the page that the device's queues share.
    pub page: Option<&'a DoorbellPage>,
    /// What the peer may do to regions of this protection domain that allow it.
    pub access: crate::Access,
    /// Queue key (datagrams).
    pub qkey: u32,
    /// First packet sequence number sent, 24 bits.
    pub psn: u32,
    /// Take receives from here.
    pub shared_receives: Option<&'a SharedReceiveQueue>,
}

impl Default for QueuePairOptions<'_> {
    fn default() -> Self {
        Self {
            qp_type: QpType::Rc,
            send_depth: 128,
            recv_depth: 128,
            max_sge: 1,
            inline: 0,
            signal_all: false,
            doorbells: DoorbellPolicy::Batched,
            page: None,
            access: crate::Access::ALL,
            qkey: 0,
            psn: 0,
            shared_receives: None,
        }
    }
}

/// A queue pair: a send queue and a receive queue, with one owner.
///
/// Posting writes requests into a ring; [`QueuePair::ring_sends`] and [`QueuePair::ring_receives`]
/// show the whole batch to the device. None of these allocates, blocks or makes a system call, but
/// for the first request that names another region than the one before. The queue holds on to
/// every region that an outstanding request names (see [`MemoryRegion`]).
///
/// Credit comes back when the completion queue that belongs to it is polled: after as many posts
/// as the queue is deep, posting fails with [`PostError::QueueFull`]. A completion retires all
/// earlier requests of its queue, so of a long run of requests only some need to be signalled; a
/// queue full of unsignalled ones never comes back.
#[derive(Debug)]
pub struct QueuePair {
    // Gone before the regions, so that nothing is under way when they go.
    qp: driver::QueuePair,
    sends: Holds<RegionInner>,
    receives: Holds<RegionInner>,
    _shared_receives: Option<Arc<Legacy>>,
    psn: u32,
    qkey: u32,
    device: Arc<DeviceInner>,
}

impl QueuePair {
    pub(crate) fn new(
        pd: &ProtectionDomain,
        device: &Arc<DeviceInner>,
        options: &QueuePairOptions<'_>,
        send_cq: &CompletionQueue,
        recv_cq: &CompletionQueue,
    ) -> Result<Self> {
        let config = driver::QpConfig {
            qp_type: options.qp_type,
            send_depth: options.send_depth,
            recv_depth: options.recv_depth,
            send_sges: options.max_sge.clamp(1, MAX_SGE as u32),
            recv_sges: options.max_sge.clamp(1, MAX_SGE as u32),
            max_inline: options.inline,
            signal_all: options.signal_all,
            doorbells: options.doorbells,
            srq: options.shared_receives.map(SharedReceiveQueue::share),
            overcommit: false,
        };
        let uar = options.page.map_or(&device.uar, |page| &page.0);
        let qp = device.driver.create_qp(pd.driver(), uar, &config, send_cq, recv_cq)?;
        let remote = options.access.bits() & !holdfast_wire::attr::ACCESS_LOCAL_WRITE;
        qp.control.to_init(&Init { access: remote, qkey: options.qkey, ..Init::default() })?;
        Ok(Self {
            qp,
            sends: Holds::default(),
            receives: Holds::default(),
            _shared_receives: options.shared_receives.map(SharedReceiveQueue::legacy),
            psn: options.psn & 0xff_ffff,
            qkey: options.qkey,
            device: Arc::clone(device),
        })
    }

    /// What a peer needs to connect to it.
    pub fn info(&self) -> QueuePairInfo {
        QueuePairInfo { qpn: self.qp.qpn(), psn: self.psn, qkey: self.qkey }
    }

    /// Connects to a queue pair of `peer` (whose GID and MTU count). The peer must do the same;
    /// send only when both have. Blocks for two commands.
    pub fn connect(&mut self, theirs: &QueuePairInfo, peer: &Endpoint) -> Result<()> {
        let reads = self.max_rd_atomic(peer);
        self.qp.control.to_rtr(&ReadyToReceive {
            path: Path::new(peer.gid, GID_INDEX),
            path_mtu: if peer.mtu == 0 {
                self.device_mtu()
            } else {
                self.device_mtu().min(peer.mtu)
            },
            dest_qpn: theirs.qpn,
            rq_psn: theirs.psn,
            max_dest_rd_atomic: reads,
            min_rnr_timer: RNR_TIMER,
        })?;
        self.qp.control.to_rts(&ReadyToSend {
            sq_psn: self.psn,
            max_rd_atomic: reads,
            ..ReadyToSend::default()
        })?;
        Ok(())
    }

    /// Connects two queue pairs of this process, on any two devices that reach each other (or on
    /// one). Blocks for four commands.
    pub fn connect_pair(a: &mut Self, b: &mut Self) -> Result<()> {
        let (at_a, at_b) = (a.endpoint(), b.endpoint());
        a.connect(&b.info(), &at_b)?;
        b.connect(&a.info(), &at_a)
    }

    /// Lets a datagram queue pair send and receive. Blocks for two commands.
    pub fn start_datagrams(&mut self) -> Result<()> {
        self.qp.control.to_rtr_datagram()?;
        Ok(self.qp.control.to_rts_datagram(self.psn)?)
    }

    /// This side of a connection with this queue pair alone and no region.
    fn endpoint(&self) -> Endpoint {
        Endpoint {
            gid: self.device.gid(),
            mtu: self.device_mtu(),
            rd_atomic: self.device.max_rd_atomic(),
            queue_pairs: vec![self.info()],
            ..Endpoint::default()
        }
    }

    fn device_mtu(&self) -> u32 {
        self.device.mtu()
    }

    /// What both sides can have under way.
    fn max_rd_atomic(&self, peer: &Endpoint) -> u8 {
        let ours = self.device.max_rd_atomic();
        if peer.rd_atomic == 0 { ours } else { ours.min(peer.rd_atomic) }
    }

    /// RDMA WRITE of `local` to the peer's memory.
    #[inline]
    pub fn write(
        &mut self,
        wr_id: u64,
        local: &[Slice<'_>],
        remote: Remote,
        flags: SendFlags,
    ) -> Result<(), PostError> {
        self.send_with(local, |queue, sges| queue.write(wr_id, sges, remote, flags))
    }

    /// RDMA WRITE with immediate data (host order), which uses up a receive at the peer.
    #[inline]
    pub fn write_imm(
        &mut self,
        wr_id: u64,
        local: &[Slice<'_>],
        remote: Remote,
        imm: u32,
        flags: SendFlags,
    ) -> Result<(), PostError> {
        self.send_with(local, |queue, sges| queue.write_imm(wr_id, sges, remote, imm, flags))
    }

    /// RDMA WRITE of `payload`, copied into the ring now.
    #[inline]
    pub fn write_inline(
        &mut self,
        wr_id: u64,
        payload: &[u8],
        remote: Remote,
        flags: SendFlags,
    ) -> Result<(), PostError> {
        self.qp.send.write_inline(wr_id, payload, remote, flags)?;
        self.sends.posted_alone();
        Ok(())
    }

    /// RDMA READ of the peer's memory into `local`.
    #[inline]
    pub fn read(
        &mut self,
        wr_id: u64,
        local: &[Slice<'_>],
        remote: Remote,
        flags: SendFlags,
    ) -> Result<(), PostError> {
        self.send_with(local, |queue, sges| queue.read(wr_id, sges, remote, flags))
    }

    /// SEND of `local` into a receive of the peer.
    #[inline]
    pub fn send(
        &mut self,
        wr_id: u64,
        local: &[Slice<'_>],
        flags: SendFlags,
    ) -> Result<(), PostError> {
        self.send_with(local, |queue, sges| queue.send(wr_id, sges, flags))
    }

    /// SEND with immediate data (host order).
    #[inline]
    pub fn send_imm(
        &mut self,
        wr_id: u64,
        local: &[Slice<'_>],
        imm: u32,
        flags: SendFlags,
    ) -> Result<(), PostError> {
        self.send_with(local, |queue, sges| queue.send_imm(wr_id, sges, imm, flags))
    }

    /// SEND of `payload`, copied into the ring now.
    #[inline]
    pub fn send_inline(
        &mut self,
        wr_id: u64,
        payload: &[u8],
        flags: SendFlags,
    ) -> Result<(), PostError> {
        self.qp.send.send_inline(wr_id, payload, flags)?;
        self.sends.posted_alone();
        Ok(())
    }

    /// Atomic compare and swap on 8 bytes of the peer's memory; the old value lands in `old`.
    #[inline]
    pub fn compare_swap(
        &mut self,
        wr_id: u64,
        old: Slice<'_>,
        remote: Remote,
        compare: u64,
        swap: u64,
        flags: SendFlags,
    ) -> Result<(), PostError> {
        self.send_with(&[old], |queue, sges| {
            queue.compare_swap(wr_id, sges[0], remote, compare, swap, flags)
        })
    }

    /// Atomic fetch and add on 8 bytes of the peer's memory; the old value lands in `old`.
    #[inline]
    pub fn fetch_add(
        &mut self,
        wr_id: u64,
        old: Slice<'_>,
        remote: Remote,
        add: u64,
        flags: SendFlags,
    ) -> Result<(), PostError> {
        self.send_with(&[old], |queue, sges| queue.fetch_add(wr_id, sges[0], remote, add, flags))
    }

    /// SEND of a datagram.
    #[inline]
    pub fn send_datagram(
        &mut self,
        wr_id: u64,
        local: &[Slice<'_>],
        to: Datagram<'_>,
        flags: SendFlags,
    ) -> Result<(), PostError> {
        self.send_with(local, |queue, sges| queue.ud_send(wr_id, sges, to, flags))
    }

    /// Shows all posted sends to the device.
    #[inline]
    pub fn ring_sends(&mut self) {
        self.qp.send.ring();
    }

    /// Posts a receive into `local`. (Of a datagram, the first 40 bytes are its GRH.)
    ///
    /// # Errors
    /// Besides those of posting, [`PostError::QueueFull`] with depth 0 on a queue pair that takes
    /// its receives from a shared queue: post them there.
    #[inline]
    pub fn receive(&mut self, wr_id: u64, local: &[Slice<'_>]) -> Result<(), PostError> {
        let Some(queue) = &mut self.qp.recv else {
            return Err(PostError::QueueFull { depth: 0 });
        };
        with_entries(local, |sges| queue.post(wr_id, sges))?;
        // Only now: a request that was refused needs nothing. The device sees none of it before
        // the doorbell, which takes `&mut self` too.
        hold(&mut self.receives, local, || queue.outstanding());
        Ok(())
    }

    /// Shows all posted receives to the device.
    #[inline]
    pub fn ring_receives(&mut self) {
        if let Some(queue) = &mut self.qp.recv {
            queue.ring();
        }
    }

    /// Sends that have been posted and not retired.
    pub fn outstanding_sends(&self) -> u32 {
        self.qp.send.outstanding()
    }

    /// Receives that have been posted and not completed; those of a shared queue do not count.
    pub fn outstanding_receives(&self) -> u32 {
        self.qp.recv.as_ref().map_or(0, driver::RecvQueue::outstanding)
    }

    /// Most inline bytes of a send.
    pub fn max_inline(&self) -> u32 {
        self.qp.send.max_inline()
    }

    /// Gives up this queue pair's hold on `region`.
    ///
    /// # Errors
    /// The number of requests, counted from the oldest outstanding one up to the last that names
    /// the region: poll their completions first. The region stays held.
    pub fn release(&mut self, region: &MemoryRegion) -> Result<(), Busy> {
        let sends = self.sends.needing(&region.inner, self.qp.send.outstanding());
        let receives = self.outstanding_receives();
        let receives = self.receives.needing(&region.inner, receives);
        match sends + receives {
            0 => Ok(()),
            outstanding => Err(Busy { outstanding }),
        }
    }

    /// Moves to ERR and polls `queues`, which must be its completion queues, until nothing is
    /// outstanding; then gives up all regions. Every completion met, of this or of another queue
    /// pair, goes to `sink`.
    pub fn drain(
        &mut self,
        queues: &mut [&mut CompletionQueue],
        deadline: Duration,
        sink: &mut dyn FnMut(Completion),
    ) -> Result<()> {
        self.qp.drain(queues, deadline, sink)?;
        self.sends.sweep(0);
        self.receives.sweep(0);
        Ok(())
    }

    /// Lets several threads post sends, of `regions` and no others. The queue pair must be connected.
    /// What was posted and not rung for is rung for. Receives that are posted stay posted.
    ///
    /// # Errors
    /// [`PostError::QpState`] when the queue pair is not connected; it is destroyed then.
    pub fn share(self, regions: &[&MemoryRegion]) -> Result<SharedQueuePair, PostError> {
        let (control, send, recv) = self.qp.into_parts();
        let sends = send.share().map_err(|(_, error)| error)?;
        let parts = shared_queue_pair::Parts {
            sends,
            control,
            recv,
            sends_before: self.sends,
            receives: self.receives,
            shared_receives: self._shared_receives,
            device: self.device,
        };
        Ok(SharedQueuePair::new(parts, regions))
    }

    /// The driver's object below, for commands that this library does not wrap. Requests posted
    /// through it hold no region: whoever does that answers for the region's life.
    pub fn driver(&mut self) -> &mut driver::QueuePair {
        &mut self.qp
    }

    #[inline(always)]
    fn send_with(
        &mut self,
        local: &[Slice<'_>],
        post: impl Fn(&mut driver::SendQueue, &[Sge]) -> Result<(), PostError>,
    ) -> Result<(), PostError> {
        let queue = &mut self.qp.send;
        with_entries(local, |sges| post(queue, sges))?;
        // After the post, as for receives.
        hold(&mut self.sends, local, || queue.outstanding());
        Ok(())
    }
}

/// A region is still needed by requests that have not completed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("up to {outstanding} outstanding requests need the memory region: poll their completions")]
pub struct Busy {
    /// Requests that must be retired first.
    pub outstanding: u32,
}

/// Notes what regions a request that was posted needs.
#[inline(always)]
fn hold(holds: &mut Holds<RegionInner>, local: &[Slice<'_>], outstanding: impl Fn() -> u32) {
    match local {
        [one] => holds.posted(one.region, outstanding),
        many => holds.posted_all(many.iter().map(|slice| slice.region), outstanding()),
    }
}

/// Calls `post` with the entries of a request; the usual one is made without a copy loop.
#[inline(always)]
pub(crate) fn with_entries(
    local: &[Slice<'_>],
    mut post: impl FnMut(&[Sge]) -> Result<(), PostError>,
) -> Result<(), PostError> {
    match local {
        [one] => post(&[one.sge]),
        many => post(&gather(many)?),
    }
}

#[inline(never)]
fn gather(local: &[Slice<'_>]) -> Result<ArrayVec<Sge, MAX_SGE>, PostError> {
    if local.len() > MAX_SGE {
        let given = u32::try_from(local.len()).unwrap_or(u32::MAX);
        return Err(PostError::TooManySges { given, limit: MAX_SGE as u32 });
    }
    Ok(local.iter().map(|slice| slice.sge).collect())
}
