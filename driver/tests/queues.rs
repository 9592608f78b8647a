//! The data path against a scripted device: what is written, what comes back, and what a hostile
//! device can do with both.

mod fake;

use std::sync::Arc;
use std::time::Duration;

use fake::{Fake, Model};
use holdfast_driver::wire::attr::{QpState, QpType};
use holdfast_driver::wire::completion::{Cqe, CqeOpcode, Status, WC_WITH_IMM};
use holdfast_driver::wire::wqe::{self, FLAG_INLINE, Opcode, Sge};
use holdfast_driver::wire::{regs, uar};
use holdfast_driver::{
    AddressHandle, Completion, CompletionQueue, Datagram, Device, DoorbellPolicy, Error, Init,
    Path, PostError, ProtectionDomain, QpConfig, QueuePair, ReadyToReceive, ReadyToSend, Remote,
    SendFlags, Uar,
};
use proptest::prelude::*;
use zerocopy::{FromBytes, IntoBytes};

const SGE: Sge = Sge { addr: 0x4000, length: 64, lkey: 0x77 };
const REMOTE: Remote = Remote { addr: 0x1_0000_0000, rkey: 0x99 };
const SIGNALED: SendFlags = SendFlags::SIGNALED;

struct Bench {
    qp: QueuePair,
    cq: CompletionQueue,
    pd: Arc<ProtectionDomain>,
    uar: Arc<Uar>,
    device: Arc<Device>,
    fake: Arc<Fake>,
}

fn connect(qp: &QueuePair) {
    qp.control.to_init(&Init::default()).unwrap();
    if qp.control.qp_type() == QpType::Ud {
        qp.control.to_rtr_datagram().unwrap();
        return qp.control.to_rts_datagram(0).unwrap();
    }
    let rtr = ReadyToReceive {
        path: Path::new([2; 16], 3),
        path_mtu: 5,
        dest_qpn: 0x123,
        rq_psn: 0,
        max_dest_rd_atomic: 4,
        min_rnr_timer: 12,
    };
    qp.control.to_rtr(&rtr).unwrap();
    qp.control.to_rts(&ReadyToSend::default()).unwrap();
}

/// A device with the GIDs bound that the tests' paths name.
fn open(fake: &Arc<Fake>) -> Arc<Device> {
    let device = fake.open().unwrap();
    device.bind_gid(2, [1; 16]).unwrap();
    device.bind_gid(3, [1; 16]).unwrap();
    device
}

fn bench(model: Model, config: &QpConfig) -> Bench {
    let fake = Fake::new(model);
    let device = open(&fake);
    let uar = device.alloc_uar().unwrap();
    let pd = device.alloc_pd(&uar).unwrap();
    let cq = device.create_cq(&uar, 256).unwrap();
    let qp = device.create_qp(&pd, &uar, config, &cq, &cq).unwrap();
    connect(&qp);
    Bench { qp, cq, pd, uar, device, fake }
}

fn rc(depth: u32) -> QpConfig {
    QpConfig::new(QpType::Rc, depth)
}

fn poll_all(cq: &mut CompletionQueue) -> Vec<Completion> {
    let mut all = Vec::new();
    let mut batch = [Completion::default(); 3];
    loop {
        match cq.poll(&mut batch).unwrap() {
            0 => return all,
            count => all.extend_from_slice(&batch[..count]),
        }
    }
}

#[test]
fn every_operation_is_written_as_the_interface_says() {
    let config = QpConfig { send_sges: 2, max_inline: 40, ..rc(16) };
    let mut b = bench(Model::default(), &config);
    let sq = &mut b.qp.send;
    let word = Sge { length: 8, ..SGE };
    sq.write(1, &[SGE, word], REMOTE, SIGNALED).unwrap();
    sq.write_imm(2, &[SGE], REMOTE, 0x0102_0304, SIGNALED).unwrap();
    sq.read(3, &[SGE], REMOTE, SIGNALED | SendFlags::FENCE).unwrap();
    sq.send(4, &[], SIGNALED).unwrap();
    sq.send_imm(5, &[SGE], 0xdead_beef, SIGNALED | SendFlags::SOLICITED).unwrap();
    sq.compare_swap(6, word, REMOTE, 11, 22, SIGNALED).unwrap();
    sq.fetch_add(7, word, REMOTE, 33, SIGNALED).unwrap();
    sq.write_inline(8, b"hello, ring", REMOTE, SIGNALED).unwrap();
    assert_eq!(b.fake.state().doorbells, 0, "nothing is shown before the doorbell");
    sq.ring();
    assert_eq!(b.fake.state().doorbells, 1, "one doorbell for the batch");

    let sends = b.fake.state().qps[&b.qp.handle()].sends.clone();
    let opcodes: Vec<_> = sends.iter().map(|(h, _)| Opcode::try_from(h.opcode).unwrap()).collect();
    use Opcode::*;
    let posted =
        [RdmaWrite, RdmaWriteImm, RdmaRead, Send, SendImm, CompareSwap, FetchAdd, RdmaWrite];
    assert_eq!(opcodes, posted);
    let counts: Vec<_> = sends.iter().map(|(h, _)| h.num_sge).collect();
    assert_eq!(counts, [2, 1, 1, 0, 1, 1, 1, 0]);
    for (header, _) in &sends {
        assert_eq!(header.as_bytes()[wqe::GID_INDEX_BYTE], 3, "each names the source GID");
        assert_eq!(header.send_flags & 2, 2);
    }
    assert_eq!(&sends[0].1[..32], [SGE, word].as_bytes());
    assert_eq!(sends[1].0.ex.to_be_bytes(), [4, 3, 2, 1].map(|b: u8| b), "network order in memory");
    assert_eq!(sends[1].0.ex.as_bytes(), [1, 2, 3, 4]);
    let rdma = wqe::Rdma::read_from_prefix(&sends[2].0.wr).unwrap().0;
    assert_eq!((rdma.remote_addr, rdma.rkey), (REMOTE.addr, REMOTE.rkey));
    let cas = wqe::Atomic::read_from_prefix(&sends[5].0.wr).unwrap().0;
    assert_eq!((cas.compare_add, cas.swap, cas.rkey), (11, 22, REMOTE.rkey));
    let faa = wqe::Atomic::read_from_prefix(&sends[6].0.wr).unwrap().0;
    assert_eq!((faa.compare_add, faa.swap, faa.remote_addr), (33, 0, REMOTE.addr));
    let (header, payload) = &sends[7];
    assert_eq!((header.total_len, header.send_flags & FLAG_INLINE), (11, FLAG_INLINE));
    assert_eq!(&payload[..11], b"hello, ring");

    let done = poll_all(&mut b.cq);
    assert_eq!(done.iter().map(|c| c.wr_id).collect::<Vec<_>>(), (1..=8).collect::<Vec<_>>());
    assert_eq!(done[2].opcode, CqeOpcode::RdmaRead, "what was posted, whatever the device says");
    assert!(done.iter().all(|c| c.is_success() && c.qp == b.qp.handle()));
    assert_eq!(b.qp.send.outstanding(), 0);
}

#[test]
fn datagrams_carry_their_address() {
    let mut b = bench(Model::default(), &QpConfig::new(QpType::Ud, 4));
    let gid = [0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0x52, 0x54, 0, 0xff, 0xfe, 0x12, 0x34, 0x56];
    let ah = AddressHandle::new(&b.pd, &Path::new(gid, 2)).unwrap();
    let to = Datagram { to: &ah, qpn: 0x55, qkey: 0x66 };
    b.qp.send.ud_send(1, &[SGE], to, SIGNALED).unwrap();
    b.qp.send.ring();
    let header = b.fake.state().qps[&b.qp.handle()].sends[0].0;
    let ud = wqe::Ud::read_from_bytes(&header.wr).unwrap();
    assert_eq!((ud.remote_qpn, ud.remote_qkey), (0x55, 0x66));
    assert_eq!((ud.av.dgid, ud.av.gid_index, ud.av.src_path_bits), (gid, 2, 0x80));
    assert_eq!(ud.av.dmac, [0x50, 0x54, 0, 0x12, 0x34, 0x56]);
    assert_eq!(ud.av.port_pd, b.pd.handle() | 1 << 24);
    // The port's MTU is 1024 bytes.
    let long = Sge { length: 1025, ..SGE };
    let error = b.qp.send.ud_send(2, &[long], to, SIGNALED).unwrap_err();
    assert_eq!(error, PostError::MessageTooLong { given: 1025, limit: 1024 });
    assert!(b.qp.send.send(3, &[SGE], SIGNALED).is_err(), "a datagram needs an address");
    assert!(b.qp.send.write(4, &[SGE], REMOTE, SIGNALED).is_err(), "UD has no RDMA");
}

#[test]
fn every_limit_is_checked_before_the_device_sees_it() {
    let mut b = bench(Model::default(), &QpConfig { max_inline: 16, ..rc(4) });
    let sq = &mut b.qp.send;
    let long = Sge { length: (1 << 20) + 1, ..SGE };
    let odd = Remote { addr: 4, ..REMOTE };
    let word = Sge { length: 8, ..SGE };
    let cases = [
        (sq.write(0, &[SGE; 2], REMOTE, SIGNALED), PostError::TooManySges { given: 2, limit: 1 }),
        (
            sq.write(0, &[long], REMOTE, SIGNALED),
            PostError::MessageTooLong { given: (1 << 20) + 1, limit: 1 << 20 },
        ),
        (sq.send_inline(0, &[0; 17], SIGNALED), PostError::InlineTooLong { given: 17, limit: 16 }),
        (sq.fetch_add(0, word, odd, 1, SIGNALED), PostError::AtomicOperand { address: 4 }),
        (
            sq.compare_swap(0, SGE, REMOTE, 1, 2, SIGNALED),
            PostError::AtomicOperand { address: REMOTE.addr },
        ),
    ];
    for (result, expected) in cases {
        assert_eq!(result, Err(expected));
    }
    for i in 0..4 {
        sq.write(i, &[SGE], REMOTE, SIGNALED).unwrap();
    }
    assert_eq!(sq.write(4, &[SGE], REMOTE, SIGNALED), Err(PostError::QueueFull { depth: 4 }));
    sq.ring();
    assert_eq!(
        sq.write(4, &[SGE], REMOTE, SIGNALED),
        Err(PostError::QueueFull { depth: 4 }),
        "the device has fetched them all, but nothing was polled: ring space is not credit"
    );
    assert_eq!(poll_all(&mut b.cq).len(), 4);
    b.qp.send.write(4, &[SGE], REMOTE, SIGNALED).unwrap();
    assert_eq!(b.fake.state().qps[&b.qp.handle()].sends.len(), 4, "the refused ones left no trace");
}

#[test]
fn posting_waits_for_the_right_state() {
    let fake = Fake::new(Model::default());
    let device = open(&fake);
    let uar = device.alloc_uar().unwrap();
    let pd = device.alloc_pd(&uar).unwrap();
    let cq = device.create_cq(&uar, 64).unwrap();
    let mut qp = device.create_qp(&pd, &uar, &rc(4), &cq, &cq).unwrap();
    let recv = qp.recv.as_mut().unwrap();
    assert_eq!(recv.post(0, &[SGE]), Err(PostError::QpState { state: QpState::Reset }));
    qp.control.to_init(&Init::default()).unwrap();
    recv.post(0, &[SGE]).unwrap();
    let error = qp.send.send(0, &[SGE], SIGNALED);
    assert_eq!(error, Err(PostError::QpState { state: QpState::Init }));
}

#[test]
fn what_the_device_lacks_cannot_be_posted() {
    let mut model = Model::default();
    model.caps.atomic_ops = 1;
    let mut b = bench(model, &rc(4));
    let word = Sge { length: 8, ..SGE };
    b.qp.send.compare_swap(0, word, REMOTE, 1, 2, SIGNALED).unwrap();
    let error = b.qp.send.fetch_add(0, word, REMOTE, 1, SIGNALED);
    assert_eq!(error, Err(PostError::OpcodeUnsupported { opcode: Opcode::FetchAdd }));
    let mut b = bench(Model::qemu(), &rc(4));
    let refused = [
        b.qp.send.write(0, &[SGE], REMOTE, SIGNALED),
        b.qp.send.read(0, &[SGE], REMOTE, SIGNALED),
        b.qp.send.send_imm(0, &[SGE], 1, SIGNALED),
    ];
    assert!(refused.iter().all(|r| matches!(r, Err(PostError::OpcodeUnsupported { .. }))));
    b.qp.send.send(0, &[SGE], SIGNALED).unwrap();
}

#[test]
fn receives_report_what_the_sender_did() {
    let mut b = bench(Model::default(), &rc(4));
    let recv = b.qp.recv.as_mut().unwrap();
    (10..13).for_each(|id| recv.post(id, &[SGE]).unwrap());
    recv.ring();
    let handle = b.qp.handle();
    let plain = Cqe { opcode: 128, byte_len: 5, ..Cqe::default() };
    let imm = u32::from_ne_bytes([1, 2, 3, 4]);
    let with_imm = Cqe { opcode: 129, wc_flags: WC_WITH_IMM, imm_data: imm, ..plain };
    b.fake.receive(handle, plain);
    b.fake.receive(handle, with_imm);
    b.fake.receive(handle, Cqe { status: 1, ..plain });
    let done = poll_all(&mut b.cq);
    assert_eq!(done.iter().map(|c| c.wr_id).collect::<Vec<_>>(), [10, 11, 12]);
    assert_eq!((done[0].opcode, done[0].byte_len, done[0].imm()), (CqeOpcode::Recv, 5, None));
    assert_eq!((done[1].opcode, done[1].imm()), (CqeOpcode::RecvRdmaWithImm, Some(0x0102_0304)));
    assert_eq!(done[2].status, Status::LocalLength);
    assert!(done.iter().all(Completion::is_receive));
}

#[test]
fn a_signalled_completion_retires_the_unsignalled_before_it() {
    for (model, name) in [(Model::default(), "selective"), (Model::qemu(), "completes all")] {
        let mut b = bench(model, &rc(8));
        for round in 0..100 {
            for i in 0..7 {
                b.qp.send.send(i, &[SGE], SendFlags::NONE).unwrap();
            }
            b.qp.send.send(1000 + round, &[SGE], SIGNALED).unwrap();
            assert!(b.qp.send.send(0, &[SGE], SIGNALED).is_err(), "{name}: full");
            b.qp.send.ring();
            let done = poll_all(&mut b.cq);
            assert_eq!(done.len(), 1, "{name}: only what was asked for is reported");
            assert_eq!(done[0].wr_id, 1000 + round);
            assert_eq!(b.qp.send.outstanding(), 0);
        }
    }
}

#[test]
fn notifications_that_nobody_asked_for_do_not_pile_up_under_load() {
    for (model, left, name) in [(Model::qemu(), 0, "unasked"), (Model::default(), 5, "asked")] {
        let mut b = bench(model, &rc(8));
        for handle in 0..5u32 {
            b.fake.notify(&handle.to_le_bytes());
        }
        // No look at the completion queue finds it empty.
        for id in 0..9 {
            b.qp.send.send(id, &[SGE], SIGNALED).unwrap();
            b.qp.send.ring();
            assert_eq!(b.cq.poll(&mut [Completion::default()]).unwrap(), 1);
        }
        let device = b.cq.device();
        let found = std::iter::from_fn(|| device.next_notification().unwrap()).count();
        assert_eq!(found, left, "{name}");
    }
}

#[test]
fn draining_flushes_everything_and_hides_its_marker() {
    let model = Model { hold_sends: true, ..Model::default() };
    let mut b = bench(model, &rc(8));
    for id in 0..3 {
        b.qp.send.write(id, &[SGE], REMOTE, SendFlags::NONE).unwrap();
    }
    b.qp.send.ring();
    let recv = b.qp.recv.as_mut().unwrap();
    recv.post(50, &[SGE]).unwrap();
    recv.ring();
    let mut seen = Vec::new();
    let deadline = Duration::from_secs(5);
    b.qp.drain(&mut [&mut b.cq], deadline, &mut |done| seen.push(done)).unwrap();
    assert_eq!(b.qp.outstanding(), 0);
    // The sends were fetched before the error and never completed; the marker retired them.
    assert_eq!(seen.iter().map(|c| c.wr_id).collect::<Vec<_>>(), [50]);
    assert_eq!(seen[0].status, Status::WorkRequestFlushed);
    b.qp.send.write(9, &[SGE], REMOTE, SendFlags::NONE).unwrap();
    b.qp.send.ring();
    assert_eq!(poll_all(&mut b.cq)[0].wr_id, 9, "posting in ERR is flushed");
}

#[test]
fn a_reset_queue_pair_starts_over_and_forgets_its_past() {
    let mut b = bench(Model::default(), &rc(4));
    for id in 0..3 {
        b.qp.send.send(id, &[SGE], SIGNALED).unwrap();
    }
    b.qp.send.ring();
    b.qp.reset().unwrap();
    assert!(b.qp.send.send(9, &[SGE], SIGNALED).is_err(), "in RESET");
    connect(&b.qp);
    b.qp.send.send(9, &[SGE], SIGNALED).unwrap();
    b.qp.send.ring();
    let done = poll_all(&mut b.cq);
    assert_eq!(done.iter().map(|c| c.wr_id).collect::<Vec<_>>(), [9]);
    assert_eq!(b.cq.leftovers(), 3);
}

#[test]
fn completions_of_a_destroyed_queue_pair_are_dropped() {
    let Bench { qp, mut cq, pd, uar, device, fake } = bench(Model::default(), &rc(4));
    let mut qp = qp;
    qp.send.send(1, &[SGE], SIGNALED).unwrap();
    qp.send.ring();
    drop(qp);
    let mut qp = device.create_qp(&pd, &uar, &rc(4), &cq, &cq).unwrap();
    connect(&qp);
    qp.send.send(2, &[SGE], SIGNALED).unwrap();
    qp.send.ring();
    let done = poll_all(&mut cq);
    assert_eq!(done.iter().map(|c| c.wr_id).collect::<Vec<_>>(), [2]);
    assert_eq!(cq.leftovers(), 1);
    drop(fake);
}

#[test]
fn several_queue_pairs_share_a_completion_queue() {
    let mut b = bench(Model::default(), &rc(8));
    let mut other = b.device.create_qp(&b.pd, &b.uar, &rc(8), &b.cq, &b.cq).unwrap();
    connect(&other);
    for i in 0..5 {
        b.qp.send.send(i, &[SGE], SIGNALED).unwrap();
        b.qp.send.ring();
        other.send.send(100 + i, &[SGE], SIGNALED).unwrap();
        other.send.ring();
    }
    let done = poll_all(&mut b.cq);
    let ours = done.iter().filter(|c| c.qp == b.qp.handle()).map(|c| c.wr_id);
    assert_eq!(ours.collect::<Vec<_>>(), [0, 1, 2, 3, 4]);
    let theirs = done.iter().filter(|c| c.qp == other.handle()).map(|c| c.wr_id);
    assert_eq!(theirs.collect::<Vec<_>>(), [100, 101, 102, 103, 104]);
}

#[test]
fn a_shared_receive_queue_completes_in_any_order() {
    let fake = Fake::new(Model::default());
    let device = open(&fake);
    let uar = device.alloc_uar().unwrap();
    let pd = device.alloc_pd(&uar).unwrap();
    let mut cq = device.create_cq(&uar, 64).unwrap();
    let mut srq = device.create_srq(&pd, &uar, 3, 1).unwrap();
    let config = QpConfig { srq: Some(srq.share()), ..rc(4) };
    let qp = device.create_qp(&pd, &uar, &config, &cq, &cq).unwrap();
    assert!(qp.recv.is_none());
    for round in 0..50u64 {
        for id in 0..3 {
            srq.post(round * 10 + id, &[SGE]).unwrap();
        }
        assert_eq!(srq.post(99, &[SGE]), Err(PostError::QueueFull { depth: 3 }));
        srq.ring();
        let mut ids = fake.take_shared(srq.handle());
        assert_eq!(ids.len(), 3);
        ids.rotate_left(round as usize % 3);
        for wr_id in ids {
            let cqe = Cqe { wr_id, qp: qp.handle().into(), opcode: 128, ..Cqe::default() };
            fake.complete(&mut fake.state(), cq.handle(), &cqe);
        }
        let mut done: Vec<_> = poll_all(&mut cq).iter().map(|c| c.wr_id).collect();
        done.rotate_right(round as usize % 3);
        assert_eq!(done, [round * 10, round * 10 + 1, round * 10 + 2]);
        assert_eq!(srq.outstanding(), 0);
    }
}

#[test]
fn receives_of_a_shared_queue_come_back_when_their_queue_pair_is_gone() {
    for poll in [true, false] {
        let fake = Fake::new(Model::default());
        let device = open(&fake);
        let uar = device.alloc_uar().unwrap();
        let pd = device.alloc_pd(&uar).unwrap();
        let mut srq = device.create_srq(&pd, &uar, 3, 1).unwrap();
        let config = QpConfig { srq: Some(srq.share()), ..rc(4) };
        for round in 0..10 {
            let mut cq = device.create_cq(&uar, 64).unwrap();
            let qp = device.create_qp(&pd, &uar, &config, &cq, &cq).unwrap();
            for id in 0..3 {
                srq.post(id, &[SGE]).unwrap_or_else(|error| panic!("round {round}: {error}"));
            }
            srq.ring();
            for wr_id in fake.take_shared(srq.handle()) {
                let cqe = Cqe { wr_id, qp: qp.handle().into(), opcode: 128, ..Cqe::default() };
                fake.complete(&mut fake.state(), cq.handle(), &cqe);
            }
            // The queue pair goes first; then the queue is polled, or goes as well.
            drop(qp);
            if poll {
                assert_eq!(poll_all(&mut cq), []);
                assert_eq!(cq.leftovers(), 3);
            }
        }
        assert_eq!(srq.outstanding(), 0);
    }
}

#[test]
fn room_of_a_destroyed_queue_pair_is_given_out_once_its_completions_are_polled() {
    let fake = Fake::new(Model::default());
    let device = open(&fake);
    let uar = device.alloc_uar().unwrap();
    let pd = device.alloc_pd(&uar).unwrap();
    let mut cq = device.create_cq(&uar, 64).unwrap();
    let mut qp = device.create_qp(&pd, &uar, &rc(32), &cq, &cq).unwrap();
    connect(&qp);
    qp.send.send(1, &[SGE], SIGNALED).unwrap();
    qp.send.ring();
    drop(qp);
    let error = device.create_qp(&pd, &uar, &rc(32), &cq, &cq).unwrap_err();
    assert!(matches!(error, Error::CqTooSmall { depth: 64, needed: 96 }), "{error:?}");
    poll_all(&mut cq);
    device.create_qp(&pd, &uar, &rc(32), &cq, &cq).unwrap();
}

#[test]
fn nonsense_in_a_completion_is_an_error_and_the_next_one_still_counts() {
    type Lie = fn(&mut Cqe);
    let lies: [(&str, Lie); 8] = [
        ("unknown queue pair", |c| c.qp += 1),
        ("queue pair beyond 32 bits", |c| c.qp |= 1 << 40),
        ("unknown opcode", |c| c.opcode = 77),
        ("a receive's opcode", |c| c.opcode = 128),
        ("unknown status", |c| c.status = 22),
        ("id that was never given", |c| c.wr_id = !0),
        ("id of nobody", |c| c.wr_id = 0),
        ("position that is not outstanding", |c| c.wr_id ^= 0x10),
    ];
    for (name, lie) in lies {
        let model = Model { hold_sends: true, ..Model::default() };
        let mut b = bench(model, &rc(4));
        b.qp.send.send(1, &[SGE], SIGNALED).unwrap();
        b.qp.send.ring();
        let honest = {
            let header = b.fake.state().qps[&b.qp.handle()].sends[0].0;
            let qp = b.qp.handle().into();
            Cqe { wr_id: header.wr_id, qp, opcode: 0, ..Cqe::default() }
        };
        let mut cqe = honest;
        lie(&mut cqe);
        let cq = b.cq.handle();
        b.fake.complete(&mut b.fake.state(), cq, &cqe);
        b.fake.complete(&mut b.fake.state(), cq, &honest);
        b.fake.complete(&mut b.fake.state(), cq, &honest);
        let mut out = [Completion::default(); 4];
        let error = b.cq.poll(&mut out).unwrap_err();
        assert!(matches!(error, Error::DeviceNonsense { .. }), "{name}: {error:?}");
        assert_eq!(b.cq.poll(&mut out).unwrap(), 1, "{name}");
        assert_eq!((out[0].wr_id, b.qp.send.outstanding()), (1, 0), "{name}");
        assert!(b.cq.poll(&mut out).is_err(), "{name}: completed twice");
    }
}

#[test]
fn absurd_ring_indices_are_errors() {
    let mut b = bench(Model::default(), &rc(4));
    let cq_state = b.fake.state().cqs[&b.cq.handle()].state;
    let mut out = [Completion::default(); 4];
    for tail in [512u32, !0, 257] {
        b.fake.put(cq_state, tail.as_bytes());
        let error = b.cq.poll(&mut out).unwrap_err();
        assert!(matches!(error, Error::DeviceNonsense { value, .. } if value == u64::from(tail)));
    }
    // What was taken before the index was found wrong is not lost.
    b.fake.put(cq_state, 0u32.as_bytes());
    b.qp.send.send(0, &[SGE], SIGNALED).unwrap();
    b.qp.send.ring();
    assert_eq!(b.cq.poll(&mut out).unwrap(), 1);
    for id in 1..=3 {
        b.qp.send.send(id, &[SGE], SIGNALED).unwrap();
    }
    b.qp.send.ring();
    let tail = 4u32;
    b.fake.put(cq_state, (tail | 0x8000_0000).as_bytes());
    assert_eq!(b.cq.poll(&mut out).unwrap(), 3);
    assert!(b.cq.poll(&mut out).is_err());
    b.fake.put(cq_state, tail.as_bytes());
    assert_eq!(b.cq.poll(&mut out).unwrap(), 0);

    let mut b = bench(Model::default(), &rc(4));
    let sq_state = b.fake.state().qps[&b.qp.handle()].send.state;
    b.fake.put(sq_state + 4, 1234u32.as_bytes());
    let error = b.qp.send.send(1, &[SGE], SIGNALED);
    assert_eq!(error, Err(PostError::DeviceNonsense { value: 1234 }));
}

#[test]
fn a_completion_queue_that_cannot_hold_the_work_is_refused() {
    let b = bench(Model::default(), &rc(100));
    let error = b.device.create_qp(&b.pd, &b.uar, &rc(100), &b.cq, &b.cq).unwrap_err();
    assert!(matches!(error, Error::CqTooSmall { depth: 256, .. }), "{error:?}");
    let config = QpConfig { overcommit: true, ..rc(100) };
    b.device.create_qp(&b.pd, &b.uar, &config, &b.cq, &b.cq).unwrap();
    drop(b.qp);
    b.device.create_qp(&b.pd, &b.uar, &rc(100), &b.cq, &b.cq).expect("the room came back");
}

#[test]
fn a_mapped_doorbell_is_a_store_and_a_sleeping_device_is_woken() {
    let features = regs::EXT_FEATURE_MEMORY_DOORBELLS | regs::EXT_FEATURE_WAKE;
    let model = Model { extension: Some(features), mapped_doorbells: true, ..Model::default() };
    let mut b = bench(model, &rc(4));
    let pages = b.fake.doorbell_pages();
    let page = b.uar.page() as usize * 4096;
    let writes = b.fake.state().writes.len();
    b.qp.send.send(1, &[SGE], SIGNALED).unwrap();
    b.qp.send.ring();
    assert_eq!(pages.read_u32(page + uar::QP), b.qp.handle() | uar::QP_SEND);
    b.cq.poll_device();
    assert_eq!(pages.read_u32(page + uar::CQ), 0, "the word is left to those who arm");
    assert_eq!(b.fake.state().writes.len(), writes, "no register was touched");

    pages.write_u32(page + uar::ASLEEP, 1);
    b.qp.send.ring();
    let last = *b.fake.state().writes.last().unwrap();
    assert_eq!((last.0, last.1), (regs::BAR_REGS, regs::EXT_WAKE));
    pages.write_u32(page + uar::ASLEEP, 0);

    // Two ARMs of one page wait for each other, and each returns once the device has taken it.
    let mut other = b.device.create_cq(&b.uar, 64).unwrap();
    let words = [b.cq.handle() | uar::CQ_ARM_SOLICITED, other.handle() | uar::CQ_ARM_SOLICITED];
    std::thread::scope(|scope| {
        let device = scope.spawn(|| {
            let mut taken = Vec::new();
            while taken.len() < 2 {
                match pages.read_u32(page + uar::CQ) {
                    0 => std::thread::yield_now(),
                    word => {
                        // A careless second ARM would overwrite the first one meanwhile.
                        std::thread::sleep(Duration::from_millis(20));
                        taken.push(word);
                        pages.write_u32(page + uar::CQ, 0);
                    }
                }
            }
            taken
        });
        scope.spawn(|| other.arm(true).unwrap());
        b.cq.arm(true).unwrap();
        let mut taken = device.join().unwrap();
        taken.sort_unstable();
        let mut words = words;
        words.sort_unstable();
        assert_eq!(taken, words);
    });
    assert!(matches!(b.cq.arm(false), Err(Error::Late { .. })), "nobody takes this one");
}

/// Doorbells that the device has heard for the queue pair so far, and what it has fetched.
fn heard(b: &Bench) -> (u32, usize) {
    let state = b.fake.state();
    (state.doorbells, state.qps[&b.qp.handle()].sends.len())
}

#[test]
fn an_immediate_queue_rings_with_every_request() {
    let mut b =
        bench(Model::default(), &QpConfig { doorbells: DoorbellPolicy::Immediate, ..rc(4) });
    for round in 0..10u32 {
        for id in 1..=4 {
            b.qp.send.write(id, &[SGE], REMOTE, SIGNALED).unwrap();
            assert_eq!(heard(&b), (4 * round + id as u32, 4 * round as usize + id as usize));
        }
        let full = b.qp.send.write(5, &[SGE], REMOTE, SIGNALED);
        assert_eq!(full, Err(PostError::QueueFull { depth: 4 }));
        assert_eq!(poll_all(&mut b.cq).len(), 4);
    }
    let before = heard(&b).0;
    b.qp.recv.as_mut().unwrap().post(1, &[SGE]).unwrap();
    assert_eq!(heard(&b).0, before + 1, "receives too");
}

#[test]
fn a_coalesced_queue_rings_once_for_each_poll_whatever_the_poll_finds() {
    let mut b =
        bench(Model::default(), &QpConfig { doorbells: DoorbellPolicy::Coalesced, ..rc(8) });
    let mut out = [Completion::default(); 1];
    for id in 1..=3 {
        b.qp.send.write(id, &[SGE], REMOTE, SIGNALED).unwrap();
        b.qp.send.ring();
    }
    assert_eq!(heard(&b), (0, 0), "it was told three times and waits");
    assert_eq!(b.cq.poll(&mut out).unwrap(), 0);
    assert_eq!(heard(&b), (1, 3), "one doorbell for the three, from a poll that found nothing");
    b.qp.send.write(4, &[SGE], REMOTE, SIGNALED).unwrap();
    assert_eq!((b.cq.poll(&mut out).unwrap(), heard(&b)), (1, (1, 3)), "not told to ring");
    b.qp.send.ring();
    assert_eq!((b.cq.poll(&mut out).unwrap(), heard(&b)), (1, (2, 4)), "a poll that found one");
    assert_eq!((b.cq.poll(&mut out).unwrap(), heard(&b)), (1, (2, 4)), "nothing new, no doorbell");
    assert_eq!((b.cq.poll(&mut out).unwrap(), out[0].wr_id), (1, 4));

    let recv = b.qp.recv.as_mut().unwrap();
    recv.post(9, &[SGE]).unwrap();
    recv.ring();
    assert_eq!(heard(&b).0, 2);
    b.cq.poll(&mut out).unwrap();
    assert_eq!(heard(&b).0, 3, "receives wait as well");
}

#[test]
fn a_coalesced_queue_starts_over_after_a_reset() {
    let mut b =
        bench(Model::default(), &QpConfig { doorbells: DoorbellPolicy::Coalesced, ..rc(4) });
    for life in 0..3 {
        for id in 0..3 {
            b.qp.send.write(id, &[SGE], REMOTE, SIGNALED).unwrap();
        }
        b.qp.send.ring();
        // The same tail as in the life before, which the device of this life has not seen.
        let mut done = Vec::new();
        (0..4).for_each(|_| done.extend(poll_all(&mut b.cq)));
        assert_eq!(done.len(), 3, "life {life}");
        b.qp.reset().unwrap();
        connect(&b.qp);
    }
}

#[test]
fn a_coalesced_queue_is_drained_like_any_other() {
    let model = Model { hold_sends: true, ..Model::default() };
    let mut b = bench(model, &QpConfig { doorbells: DoorbellPolicy::Coalesced, ..rc(8) });
    for id in 0..3 {
        b.qp.send.write(id, &[SGE], REMOTE, SendFlags::NONE).unwrap();
    }
    b.qp.send.ring();
    b.qp.drain(&mut [&mut b.cq], Duration::from_secs(5), &mut drop).unwrap();
    assert_eq!(b.qp.outstanding(), 0);
}

#[test]
fn poll_is_rung_ever_more_seldom_while_nothing_comes() {
    let model = Model { extension: None, ..Model::default() };
    let mut b = bench(model, &rc(8));
    let mut out = [Completion::default(); 1];
    let polls = |b: &Bench| {
        let bits = b.cq.handle() | uar::CQ_POLL;
        b.fake.state().writes.iter().filter(|write| write.2 == bits).count()
    };
    // Empty polls up to each of the next four POLLs.
    let mut gaps = |b: &mut Bench| -> Vec<u32> {
        (0..4)
            .map(|_| {
                let (before, mut count) = (polls(b), 0);
                while polls(b) == before {
                    assert_eq!(b.cq.poll(&mut out).unwrap(), 0);
                    count += 1;
                }
                count
            })
            .collect()
    };
    assert_eq!(gaps(&mut b), [64, 128, 256, 512]);
    assert_eq!(gaps(&mut b), [1024, 1024, 1024, 1024]);
    b.qp.send.write(1, &[SGE], REMOTE, SIGNALED).unwrap();
    b.qp.send.ring();
    assert_eq!(poll_all(&mut b.cq).len(), 1);
    assert_eq!(gaps(&mut b)[1..], [64, 128, 256], "something came");
}

#[test]
fn halves_of_a_queue_pair_live_on_different_threads() {
    let Bench { qp, mut cq, pd: _pd, uar: _uar, device: _device, fake } =
        bench(Model::default(), &rc(16));
    let handle = qp.handle();
    let (control, mut send, recv) = qp.into_parts();
    const COUNT: u64 = 20_000;
    std::thread::scope(|scope| {
        scope.spawn(move || {
            let mut id = 0;
            while id < COUNT {
                match send.send(id, &[SGE], SIGNALED) {
                    Ok(()) => id += 1,
                    Err(PostError::QueueFull { .. }) => std::thread::yield_now(),
                    Err(error) => panic!("{error}"),
                }
                send.ring();
            }
        });
        let mut next = 0;
        while next < COUNT {
            for done in poll_all(&mut cq) {
                assert_eq!((done.wr_id, done.qp), (next, handle));
                next += 1;
            }
        }
    });
    assert!(fake.state().qps.contains_key(&handle), "two parts are left");
    drop((control, recv));
    assert!(!fake.state().qps.contains_key(&handle));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Posts, doorbells and polls in any pattern, against a plain count.
    #[test]
    fn credit_agrees_with_a_model(
        depth in 1u32..20,
        complete_all in any::<bool>(),
        steps in prop::collection::vec((0u8..4, any::<bool>()), 1..300),
    ) {
        let model = Model { complete_all, ..Model::default() };
        let mut b = bench(model, &rc(depth));
        let (mut next, mut unrung) = (0u64, Vec::new());
        // What the device has: (id, signalled), oldest first.
        let mut held: std::collections::VecDeque<(u64, bool)> = Default::default();
        let mut out = [Completion::default(); 4];
        for (step, signalled) in steps {
            let outstanding = held.len() + unrung.len();
            prop_assert_eq!(b.qp.send.outstanding() as usize, outstanding);
            match step {
                0 | 1 => {
                    let flags = if signalled { SIGNALED } else { SendFlags::NONE };
                    let result = b.qp.send.send(next, &[SGE], flags);
                    if outstanding as u32 == depth {
                        prop_assert_eq!(result, Err(PostError::QueueFull { depth }));
                    } else {
                        prop_assert_eq!(result, Ok(()));
                        unrung.push((next, signalled));
                        next += 1;
                    }
                }
                2 => {
                    b.qp.send.ring();
                    held.extend(unrung.drain(..));
                }
                _ => {
                    let count = b.cq.poll(&mut out).unwrap();
                    for done in &out[..count] {
                        while let Some((id, signalled)) = held.pop_front() {
                            if signalled {
                                prop_assert_eq!(id, done.wr_id);
                                break;
                            }
                        }
                    }
                    if complete_all && count < out.len() {
                        // Unsignalled ones behind the last signalled were retired silently.
                        while held.front().is_some_and(|(_, signalled)| !signalled) {
                            held.pop_front();
                        }
                    } else if complete_all {
                        let left = b.qp.send.outstanding() as usize - unrung.len();
                        prop_assert!(left <= held.len());
                        held.drain(..held.len() - left);
                    }
                }
            }
        }
    }
}
