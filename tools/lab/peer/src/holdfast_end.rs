//! An end that Holdfast drives.

use anyhow::Result;
use holdfast::connect::{Endpoint, QueuePairInfo};
use holdfast::{
    Access, Completion, CompletionQueue, Device, DeviceAddress, Memory, MemoryRegion, Populate,
    ProtectionDomain, QueuePair, QueuePairOptions, Remote, SendFlags, Source,
};

use crate::end::{Address, DEPTH, Done, End, MTU, Operation, Request};

/// A NIC, opened through `/dev/vfio`.
pub struct HoldfastEnd {
    qp: QueuePair,
    cq: CompletionQueue,
    region: MemoryRegion,
    device: Device,
}

impl HoldfastEnd {
    /// Opens a NIC, with `bytes` of memory within the peer's reach.
    pub fn open(address: &DeviceAddress, bytes: usize) -> Result<Self> {
        let device = Device::open(address)?;
        let pd = device.protection_domain()?;
        Self::new(&device, &pd, bytes)
    }

    /// An end on an open NIC.
    pub fn new(device: &Device, pd: &ProtectionDomain, bytes: usize) -> Result<Self> {
        let memory = Memory::open(&Source::Memfd, bytes, Populate::Yes)?;
        let region = pd.register(memory, Access::ALL)?;
        let cq = device.completion_queue(2 * DEPTH)?;
        let options = QueuePairOptions {
            send_depth: DEPTH,
            recv_depth: DEPTH,
            psn: 0x1234,
            ..Default::default()
        };
        let qp = pd.queue_pair(&options, &cq, &cq)?;
        Ok(Self { qp, cq, region, device: device.clone() })
    }
}

impl End for HoldfastEnd {
    fn driver(&self) -> &'static str {
        "Holdfast"
    }

    fn address(&self) -> Address {
        let (info, remote) = (self.qp.info(), self.region.remote());
        let (addr, rkey) = (remote.addr, remote.rkey);
        Address { gid: self.device.gid(), qpn: info.qpn, psn: info.psn, addr, rkey }
    }

    fn connect(&mut self, peer: &Address) -> Result<()> {
        let info = QueuePairInfo { qpn: peer.qpn, psn: peer.psn, qkey: 0 };
        let endpoint = Endpoint { gid: peer.gid, mtu: MTU, ..Endpoint::default() };
        Ok(self.qp.connect(&info, &endpoint)?)
    }

    fn post(&mut self, request: &Request) -> Result<()> {
        let slice = self.region.slice(request.local, request.len)?;
        let local = [slice];
        let remote = Remote { addr: request.addr, rkey: request.rkey };
        let flags = SendFlags::SIGNALED;
        match request.operation {
            Operation::Send => self.qp.send(0, &local, flags)?,
            Operation::SendImm(imm) => self.qp.send_imm(0, &local, imm, flags)?,
            Operation::Write => self.qp.write(0, &local, remote, flags)?,
            Operation::WriteImm(imm) => self.qp.write_imm(0, &local, remote, imm, flags)?,
            Operation::Read => self.qp.read(0, &local, remote, flags)?,
            Operation::CompareSwap { compare, swap } => {
                self.qp.compare_swap(0, slice, remote, compare, swap, flags)?
            }
            Operation::FetchAdd { add } => self.qp.fetch_add(0, slice, remote, add, flags)?,
        }
        self.qp.ring_sends();
        Ok(())
    }

    fn receive(&mut self, offset: usize, len: usize) -> Result<()> {
        self.qp.receive(0, &[self.region.slice(offset, len)?])?;
        self.qp.ring_receives();
        Ok(())
    }

    fn poll(&mut self) -> Result<Option<Done>> {
        let mut found = [Completion::default()];
        if self.cq.poll(&mut found)? == 0 {
            return Ok(None);
        }
        let [done] = found;
        Ok(Some(Done {
            status: done.status.wire(),
            opcode: done.opcode.wire(),
            len: done.byte_len,
            imm: done.imm(),
        }))
    }

    fn write_memory(&self, offset: usize, bytes: &[u8]) -> Result<()> {
        Ok(self.region.memory().write_at(offset, bytes)?)
    }

    fn read_memory(&self, offset: usize, bytes: &mut [u8]) -> Result<()> {
        Ok(self.region.memory().read_at(offset, bytes)?)
    }
}
