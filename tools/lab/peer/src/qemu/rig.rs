//! An open device with memory, and queue pairs that are connected to each other.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use holdfast::{
    Access, Completion, CompletionQueue, Device, DeviceAddress, Memory, MemoryRegion, Path,
    Populate, ProtectionDomain, QpType, SendFlags, Source,
};
use holdfast_driver::wire::wqe::Sge;
use holdfast_driver::{Init, QpConfig, QpControl, QueuePair, ReadyToReceive, ReadyToSend, Uar};

/// Bytes of the region: a half to send from, a half to receive into.
pub const HALF: usize = 2 << 20;
/// Queue key of datagram queue pairs.
pub const QKEY: u32 = 0x1234;
/// How long anything may take.
const PATIENCE: Duration = Duration::from_secs(20);

/// The device, and what every check needs of it.
pub struct Rig {
    pub pd: ProtectionDomain,
    pub region: MemoryRegion,
    pub uar: Arc<Uar>,
    pub device: Device,
}

/// Two queue pairs whose work completes in one queue.
pub struct Pair {
    pub a: QueuePair,
    pub b: QueuePair,
    pub cq: CompletionQueue,
}

impl Rig {
    /// Opens the device for polling.
    pub fn open(address: &DeviceAddress) -> Result<Self> {
        Self::new(Device::open(address).with_context(|| format!("cannot open {address}"))?)
    }

    /// With an open device.
    pub fn new(device: Device) -> Result<Self> {
        let pd = device.protection_domain()?;
        let memory = Memory::open(&Source::Memfd, 2 * HALF, Populate::Yes)?;
        let region = pd.register(memory, Access::LOCAL_WRITE)?;
        let uar = device.driver().alloc_uar()?;
        Ok(Self { pd, region, uar, device })
    }

    /// Bytes of the region, as a request names them.
    pub fn sge(&self, offset: usize, len: usize) -> Sge {
        let (addr, lkey) = (self.region.remote().addr + offset as u64, self.region.lkey());
        Sge { addr, length: len as u32, lkey }
    }

    /// A completion queue.
    pub fn cq(&self, depth: u32) -> Result<CompletionQueue> {
        Ok(self.device.driver().create_cq(&self.uar, depth)?)
    }

    /// A queue pair in RESET.
    pub fn qp(&self, config: &QpConfig, cq: &CompletionQueue) -> Result<QueuePair> {
        Ok(self.device.driver().create_qp(self.pd.driver(), &self.uar, config, cq, cq)?)
    }

    /// Two connected queue pairs of that depth and number of entries.
    pub fn pair(&self, depth: u32, sges: u32) -> Result<Pair> {
        let cq = self.cq(4 * depth)?;
        let config =
            QpConfig { send_sges: sges, recv_sges: sges, ..QpConfig::new(QpType::Rc, depth) };
        let (a, b) = (self.qp(&config, &cq)?, self.qp(&config, &cq)?);
        self.connect(&a.control, &b.control)?;
        Ok(Pair { a, b, cq })
    }

    /// Connects two queue pairs with each other.
    pub fn connect(&self, a: &QpControl, b: &QpControl) -> Result<()> {
        for (this, peer) in [(a, b), (b, a)] {
            this.to_init(&Init::default())?;
            this.to_rtr(&self.way_to(peer.qpn()))?;
            this.to_rts(&ReadyToSend { max_rd_atomic: 1, ..ReadyToSend::default() })?;
        }
        Ok(())
    }

    /// The step to RTR towards a queue pair of this device.
    pub fn way_to(&self, dest_qpn: u32) -> ReadyToReceive {
        ReadyToReceive {
            path: Path::new(self.device.gid(), 0),
            path_mtu: self.device.mtu(),
            dest_qpn,
            rq_psn: 0,
            max_dest_rd_atomic: 1,
            min_rnr_timer: 12,
        }
    }

    /// A datagram queue pair that may send.
    pub fn datagrams(&self, depth: u32, cq: &CompletionQueue) -> Result<QueuePair> {
        let qp = self.qp(&QpConfig::new(QpType::Ud, depth), cq)?;
        qp.control.to_init(&Init { qkey: QKEY, ..Init::default() })?;
        qp.control.to_rtr_datagram()?;
        qp.control.to_rts_datagram(0)?;
        Ok(qp)
    }

    /// Fills a sending place with bytes that nothing else has.
    pub fn fill(&self, offset: usize, len: usize, seed: u64) -> Result<()> {
        Ok(self.region.memory().write_at(offset, &pattern(len, seed))?)
    }

    /// Fails unless those bytes have arrived at a place.
    pub fn expect(&self, offset: usize, len: usize, seed: u64) -> Result<()> {
        let mut bytes = vec![0; len];
        self.region.memory().read_at(offset, &mut bytes)?;
        let wrong = bytes.iter().zip(pattern(len, seed)).position(|(is, was)| *is != was);
        match wrong {
            Some(at) => bail!("byte {at} of {len} of message {seed} is wrong"),
            None => Ok(()),
        }
    }

    /// Wipes a receiving place.
    pub fn wipe(&self, offset: usize, len: usize) -> Result<()> {
        Ok(self.region.memory().fill(offset, len, 0xee)?)
    }
}

impl Pair {
    /// One message of `len` bytes from a to b, checked on arrival.
    pub fn exchange(&mut self, rig: &Rig, len: usize, seed: u64) -> Result<()> {
        rig.fill(0, len, seed)?;
        rig.wipe(HALF, len)?;
        let recv = self.b.recv.as_mut().context("a receive queue")?;
        recv.post(2, &[rig.sge(HALF, len)])?;
        recv.ring();
        self.a.send.send(1, &[rig.sge(0, len)], SendFlags::SIGNALED)?;
        self.a.send.ring();
        let done = wait(&mut self.cq, 2)?;
        for one in &done {
            ensure!(one.is_success(), "{one:?}");
        }
        let received = done.iter().find(|one| one.is_receive()).context("no receive completed")?;
        ensure!(received.byte_len as usize == len, "{} bytes of {len}", received.byte_len);
        rig.expect(HALF, len, seed)
    }
}

impl Pair {
    /// One short message from a to b, whose completions must be there after one POLL.
    pub fn exchange_polled(&mut self, rig: &Rig, seed: u64) -> Result<()> {
        rig.fill(0, 64, seed)?;
        let recv = self.b.recv.as_mut().context("a receive queue")?;
        recv.post(2, &[rig.sge(HALF, 64)])?;
        recv.ring();
        self.a.send.send(1, &[rig.sge(0, 64)], SendFlags::SIGNALED)?;
        self.a.send.ring();
        self.cq.poll_device();
        let mut done = [Completion::default(); 2];
        let found = self.cq.poll(&mut done)?;
        ensure!(found == 2, "{found} of 2 completions after POLL");
        rig.expect(HALF, 64, seed)
    }
}

/// Polls until `count` completions are there.
pub fn wait(cq: &mut CompletionQueue, count: usize) -> Result<Vec<Completion>> {
    let start = Instant::now();
    let mut done = Vec::new();
    let mut batch = [Completion::default(); 16];
    while done.len() < count {
        let room = batch.len().min(count - done.len());
        let found = cq.poll(&mut batch[..room])?;
        done.extend_from_slice(&batch[..found]);
        if start.elapsed() > PATIENCE {
            bail!("{} of {count} completions came in {PATIENCE:?}: {done:?}", done.len());
        }
    }
    Ok(done)
}

/// Bytes that depend on their place and on `seed` (splitmix64).
fn pattern(len: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0xd134_2543_de82_ef95);
    let words = std::iter::repeat_with(move || {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (state ^ state >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        (z ^ z >> 27).to_le_bytes()
    });
    words.flatten().take(len).collect()
}
