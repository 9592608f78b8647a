//! What is measured, made ready: nothing that only happens once is left to do.

use std::sync::Arc;

use holdfast::{
    Access, Completion, CompletionQueue, EmulatedNic, EmulatedOptions, Memory, MemoryRegion,
    Populate, QueuePairOptions, Remote, SendFlags, Slice, Source,
};
use holdfast_driver::wire::attr::QpType;
use holdfast_driver::wire::wqe::Sge;
use holdfast_driver::{Init, Path, QpConfig, QueuePair, ReadyToReceive, ReadyToSend};

use crate::fake::{Fake, Model};
use crate::figures::COMPLETIONS;

/// A connected queue pair of the driver. Its doorbell page is mapped memory; its rings are filled
/// by a device of this process, which does so when told and not while anybody counts.
pub struct Driver {
    pub qp: QueuePair,
    pub cq: CompletionQueue,
    pub sge: Sge,
    pub remote: Remote,
    pub out: [Completion; COMPLETIONS],
    /// In the ring, to be polled.
    pub completions: usize,
    device: Arc<Fake>,
}

impl Driver {
    pub fn new(completions: usize) -> Box<Self> {
        let fake = Fake::new(Model { mapped_doorbells: true, ..Model::default() });
        let device = fake.open().unwrap();
        device.bind_gid(0, [1; 16]).unwrap();
        let uar = device.alloc_uar().unwrap();
        let pd = device.alloc_pd(&uar).unwrap();
        let cq = device.create_cq(&uar, 256).unwrap();
        let qp = device.create_qp(&pd, &uar, &QpConfig::new(QpType::Rc, 128), &cq, &cq).unwrap();
        qp.control.to_init(&Init::default()).unwrap();
        let path = Path::new([2; 16], 0);
        qp.control
            .to_rtr(&ReadyToReceive {
                path,
                path_mtu: 5,
                dest_qpn: 0x123,
                rq_psn: 0,
                max_dest_rd_atomic: 4,
                min_rnr_timer: 12,
            })
            .unwrap();
        qp.control.to_rts(&ReadyToSend::default()).unwrap();
        let mut rig = Box::new(Self {
            qp,
            cq,
            sge: Sge { addr: 0x4000, length: 64, lkey: 0x77 },
            remote: Remote { addr: 0x1_0000_0000, rkey: 0x99 },
            out: [Completion::default(); COMPLETIONS],
            completions,
            device: fake,
        });
        // The first request looks for room, the first poll at what is attached.
        rig.complete(1);
        assert_eq!(rig.cq.poll(&mut rig.out).unwrap(), 1);
        rig.complete(completions as u64);
        rig
    }

    /// Posts so many requests and has them completed.
    fn complete(&mut self, count: u64) {
        for id in 0..count {
            self.qp.send.write(id, &[self.sge], self.remote, SendFlags::SIGNALED).unwrap();
        }
        self.qp.send.ring();
        self.device.ring(self.qp.handle());
    }
}

/// A connected queue pair of the library, on an emulated NIC that polls.
pub struct Library {
    pub qp: holdfast::QueuePair,
    pub slice: Slice<'static>,
    pub remote: Remote,
    _rest: (holdfast::QueuePair, CompletionQueue),
}

impl Library {
    pub fn new() -> Box<Self> {
        let options = EmulatedOptions { poll: true, ..EmulatedOptions::default() };
        let device = EmulatedNic::start(options).unwrap().open(0).unwrap();
        let pd = device.protection_domain().unwrap();
        let memory = Memory::open(&Source::Memfd, 4096, Populate::Yes).unwrap();
        // Never given back, so that slices of it need not be made where they are counted.
        let region: &'static MemoryRegion =
            Box::leak(Box::new(pd.register(memory, Access::ALL).unwrap()));
        let slice = region.slice(0, 8).unwrap();
        let remote = Remote { addr: region.remote().addr, rkey: region.rkey() };
        let mut cq = device.completion_queue(1024).unwrap();
        let options = QueuePairOptions::default();
        let mut qp = pd.queue_pair(&options, &cq, &cq).unwrap();
        let mut peer = pd.queue_pair(&options, &cq, &cq).unwrap();
        holdfast::QueuePair::connect_pair(&mut qp, &mut peer).unwrap();
        qp.write(1, &[slice], remote, SendFlags::SIGNALED).unwrap();
        qp.ring_sends();
        let mut out = [Completion::default()];
        while cq.poll(&mut out).unwrap() == 0 {
            std::thread::yield_now();
        }
        Box::new(Self { qp, slice, remote, _rest: (peer, cq) })
    }
}
