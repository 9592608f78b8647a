//! One end of a test: a device with a region, completion queues and queue pairs, and what the other
//! end must know of it.

use holdfast::coherence::{Guard, GuardOptions, Policy};
use holdfast::connect::{Endpoint, Exchange};
use holdfast::cores;
use holdfast::{
    Access, CompletionQueue, Device, Memory, MemoryRegion, Populate, QueuePair, QueuePairOptions,
    Remote, Source,
};

/// What each end is made of.
#[derive(Debug, Clone)]
pub struct Shape {
    /// What both sides must agree on.
    pub purpose: String,
    /// Bytes needed in each region.
    pub bytes: usize,
    /// What the passive end's region is made of; the active end's is a memfd.
    pub region: Source,
    /// Queue pairs.
    pub qps: u32,
    /// Depth of each send queue.
    pub send_depth: u32,
    /// Depth of each receive queue.
    pub recv_depth: u32,
    /// Inline bytes wanted, if the device has them.
    pub inline: u32,
    /// The operation that reaches into the peer's region; `None` for SEND.
    pub one_sided: Option<&'static str>,
    /// Who guards the passive end's region; a DAX file is always guarded.
    pub guard: Option<Guard>,
}

/// One end.
#[derive(Debug)]
pub struct End {
    /// Connected, in the order of the peer's.
    pub qps: Vec<QueuePair>,
    /// Where sends of all of them complete.
    pub send_cq: CompletionQueue,
    /// Where receives of all of them complete.
    pub recv_cq: CompletionQueue,
    /// This end's memory, which the peer reaches.
    pub region: MemoryRegion,
    /// The peer's memory.
    pub remote: Remote,
    /// Bytes of it.
    pub remote_len: u64,
    // Last: everything above belongs to it.
    pub(super) device: Device,
}

impl End {
    /// An end whose memory is near `cpu`, which touches it first.
    pub(super) fn new(
        device: Device,
        source: &Source,
        shape: &Shape,
        cpu: Option<usize>,
    ) -> anyhow::Result<Self> {
        if let (true, Some(operation)) = (device.sends_only(), shape.one_sided) {
            anyhow::bail!(
                "{} carries out only SEND and RECV, no RDMA WRITE, READ or atomics, so '{operation}' \
                 cannot be measured on it: use 'holdfast bench send' or 'holdfast pingpong'",
                device.address()
            );
        }
        let access = if device.sends_only() { Access::LOCAL_WRITE } else { Access::ALL };
        let memory = {
            let _there = cpu.map(cores::pin).transpose()?;
            Memory::open(source, shape.bytes, Populate::Yes)?
        };
        let pd = device.protection_domain()?;
        let guard = match &shape.guard {
            Some(guard) if *source == shape.region => Some(guard.clone()),
            None if memory.kind().may_move() => Some(Guard::start(GuardOptions::default())?),
            _ => None,
        };
        let region = match guard {
            Some(guard) => pd.register_guarded(memory, access, &guard, Policy::FOLLOW)?,
            None => pd.register(memory, access)?,
        };
        let send_cq = device.completion_queue(shape.send_depth * shape.qps)?;
        let recv_cq = device.completion_queue(shape.recv_depth.max(1) * shape.qps)?;
        let options = QueuePairOptions {
            send_depth: shape.send_depth,
            recv_depth: shape.recv_depth,
            inline: shape.inline.min(device.max_inline()),
            ..QueuePairOptions::default()
        };
        let qps = (0..shape.qps)
            .map(|_| pd.queue_pair(&options, &send_cq, &recv_cq))
            .collect::<holdfast::Result<_>>()?;
        let (remote, remote_len) = (Remote::default(), 0);
        Ok(Self { qps, send_cq, recv_cq, region, remote, remote_len, device })
    }

    /// What the peer needs to know.
    pub(super) fn describe(&self, shape: &Shape) -> Endpoint {
        Endpoint {
            purpose: shape.purpose.clone(),
            gid: self.device.gid(),
            mtu: self.device.mtu(),
            rd_atomic: self.device.max_rd_atomic(),
            queue_pairs: self.qps.iter().map(QueuePair::info).collect(),
            regions: vec![self.region.remote()],
        }
    }

    pub(super) fn meet(&mut self, exchange: &mut Exchange, shape: &Shape) -> anyhow::Result<()> {
        let theirs = exchange.swap(&self.describe(shape))?;
        self.connect(&theirs)?;
        let [region] = theirs.regions.as_slice() else {
            anyhow::bail!("the peer offers {} regions; one was expected", theirs.regions.len());
        };
        anyhow::ensure!(
            region.len >= shape.bytes as u64,
            "the peer's region has {:#x} bytes, but {:#x} are needed",
            region.len,
            shape.bytes
        );
        exchange.barrier("connected")?;
        Ok(())
    }

    pub(super) fn connect(&mut self, peer: &Endpoint) -> anyhow::Result<()> {
        anyhow::ensure!(
            peer.queue_pairs.len() == self.qps.len() && !peer.regions.is_empty(),
            "the peer has {} queue pairs, this side {}",
            peer.queue_pairs.len(),
            self.qps.len()
        );
        for (qp, info) in self.qps.iter_mut().zip(&peer.queue_pairs) {
            qp.connect(info, peer)?;
        }
        self.remote = Remote { addr: peer.regions[0].addr, rkey: peer.regions[0].rkey };
        self.remote_len = peer.regions[0].len;
        Ok(())
    }

    /// The peer's memory at `offset`.
    #[inline(always)]
    pub fn remote_at(&self, offset: usize) -> Remote {
        Remote { addr: self.remote.addr + offset as u64, rkey: self.remote.rkey }
    }
}
