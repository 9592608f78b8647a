//! An end that Linux's driver drives, through libibverbs.

use anyhow::Result;
use holdfast::{Memory, Populate, Source};

use crate::end::{Address, DEPTH, Done, End, Request};
use crate::verbs::{CompletionQueue, Context, Domain, QueuePair, Region};

/// First packet sequence number.
const PSN: u32 = 0x4321;

/// An RDMA device, opened through libibverbs.
pub struct KernelEnd {
    // In the order in which they must go.
    qp: QueuePair,
    cq: CompletionQueue,
    region: Region,
    gid: [u8; 16],
}

impl KernelEnd {
    /// Opens a device, with `bytes` of memory within the peer's reach.
    pub fn open(name: &str, bytes: usize) -> Result<Self> {
        let context = Context::open(name)?;
        let domain = Domain::new(&context)?;
        Self::new(&context, &domain, bytes)
    }

    /// An end on an open device.
    pub fn new(context: &Context, domain: &Domain, bytes: usize) -> Result<Self> {
        let region = domain.register(Memory::open(&Source::Anon, bytes, Populate::Yes)?)?;
        let cq = context.completion_queue(2 * DEPTH)?;
        let qp = domain.queue_pair(&cq, DEPTH)?;
        Ok(Self { qp, cq, region, gid: context.gid(0)? })
    }
}

impl End for KernelEnd {
    fn driver(&self) -> &'static str {
        "Linux"
    }

    fn address(&self) -> Address {
        let (addr, rkey) = (self.region.addr(), self.region.rkey());
        Address { gid: self.gid, qpn: self.qp.number(), psn: PSN, addr, rkey }
    }

    fn connect(&mut self, peer: &Address) -> Result<()> {
        self.qp.connect(peer, PSN)
    }

    fn post(&mut self, request: &Request) -> Result<()> {
        self.qp.post_send(&self.region, request)
    }

    fn receive(&mut self, offset: usize, len: usize) -> Result<()> {
        self.qp.post_recv(&self.region, offset, len)
    }

    fn poll(&mut self) -> Result<Option<Done>> {
        self.cq.poll()
    }

    fn write_memory(&self, offset: usize, bytes: &[u8]) -> Result<()> {
        Ok(self.region.memory().write_at(offset, bytes)?)
    }

    fn read_memory(&self, offset: usize, bytes: &mut [u8]) -> Result<()> {
        Ok(self.region.memory().read_at(offset, bytes)?)
    }
}
