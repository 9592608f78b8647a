//! The emulated NIC, stepped by hand: its own engine, the library's rings in mapped memory, doorbells
//! in mapped pages. The NIC's thread serves the set-up and then gives its processor away.

use holdfast::{
    Access, Completion, CompletionQueue, Device, DeviceAddress, Memory, MemoryRegion, Populate,
    QueuePair, QueuePairOptions, Remote, SendFlags, Source, Status,
};
use holdfast_nic::processor::Processor;
use holdfast_nic::{NicOptions, NicProcess};

/// The processor looks at its clock in one of so many rounds without work.
pub const CLOCK_ROUNDS: u64 = 16;

/// Pairs of connected queue pairs on one NIC, whose rounds are whoever's that holds this.
pub struct Nic {
    pub processor: Processor,
    qps: Vec<QueuePair>,
    cq: CompletionQueue,
    region: MemoryRegion,
    out: Vec<Completion>,
    _process: NicProcess,
}

impl Nic {
    /// A NIC with `pairs` pairs of queue pairs, each used once, on which nothing is left to do.
    /// It is never given back: its queues could not be destroyed without the NIC's thread.
    pub fn new(pairs: usize) -> &'static mut Self {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("nic");
        let options = NicOptions { sockets: vec![socket.clone()], ..NicOptions::default() };
        let mut process = NicProcess::start(options).unwrap();
        let device = Device::open(&DeviceAddress::VfioUser(socket)).unwrap();
        let pd = device.protection_domain().unwrap();
        let memory = Memory::open(&Source::Memfd, 1 << 20, Populate::Yes).unwrap();
        let region = pd.register(memory, Access::ALL).unwrap();
        let cq = device.completion_queue(8192).unwrap();
        let options = QueuePairOptions {
            send_depth: 64,
            recv_depth: 16,
            inline: 64,
            ..QueuePairOptions::default()
        };
        let mut qps = Vec::new();
        for _ in 0..pairs {
            let mut qp = pd.queue_pair(&options, &cq, &cq).unwrap();
            let mut peer = pd.queue_pair(&options, &cq, &cq).unwrap();
            QueuePair::connect_pair(&mut qp, &mut peer).unwrap();
            qps.extend([qp, peer]);
        }
        let mut processor = process.take_processor().unwrap();
        processor.online();
        let out = vec![Completion::default(); 64];
        let mut nic = Box::new(Self { processor, qps, cq, region, out, _process: process });
        for qp in 0..nic.qps.len() {
            nic.post(qp, 1, 8);
            while nic.processor.turn().busy {}
            assert_eq!(nic.completed(), 1);
        }
        // The clock is read at the same place of each count.
        while !nic.processor.report().turns.is_multiple_of(CLOCK_ROUNDS) {
            assert!(!nic.processor.turn().busy);
        }
        Box::leak(nic)
    }

    /// As [`Nic::new`], with so many signalled 8-byte WRITEs posted on the first queue pair, and rung.
    pub fn with_writes(pairs: usize, count: u64) -> &'static mut Self {
        let nic = Self::new(pairs);
        nic.post(0, count, 8);
        nic
    }

    /// As [`Nic::with_writes`], with one WRITE whose 8 bytes lie in the ring.
    pub fn with_inline(pairs: usize) -> &'static mut Self {
        let nic = Self::new(pairs);
        let remote = nic.remote();
        nic.qps[0].write_inline(1, &[7; 8], remote, SendFlags::SIGNALED).unwrap();
        nic.qps[0].ring_sends();
        nic
    }

    fn remote(&self) -> Remote {
        let addr = self.region.remote().addr + self.region.len() as u64 / 2;
        Remote { addr, rkey: self.region.rkey() }
    }

    fn post(&mut self, qp: usize, count: u64, length: usize) {
        let local = self.region.slice(0, length).unwrap();
        let remote = self.remote();
        for id in 0..count {
            self.qps[qp].write(id, &[local], remote, SendFlags::SIGNALED).unwrap();
        }
        self.qps[qp].ring_sends();
    }

    /// Completions with success that have come meanwhile.
    pub fn completed(&mut self) -> usize {
        let count = self.cq.poll(&mut self.out).unwrap();
        assert!(self.out[..count].iter().all(|done| done.status == Status::Success));
        count
    }
}
