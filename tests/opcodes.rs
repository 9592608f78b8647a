//! Every operation between two endpoints, on NICs of one process and of two: sizes around the MTU
//! and the page, unaligned buffers, scattered entries, and every byte checked, those around the
//! target included.

mod support;

use holdfast::{
    Access, AddressHandle, Datagram, Path, PostError, QpType, QueuePairOptions, SendFlags,
};
use support::{Pair, SETTINGS, Side, options, payload, scattered, settings};

const SIZES: [usize; 6] = [0, 1, 4095, 4096, 4097, 1 << 20];
const LARGE: usize = 64 << 20;
/// Bytes around the payload that must stay as they are.
const MARGIN: usize = 64;
const FILLER: u8 = 0xa5;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Op {
    Write,
    WriteImm,
    Send,
    SendImm,
    Read,
}

const OPS: [Op; 5] = [Op::Write, Op::WriteImm, Op::Send, Op::SendImm, Op::Read];

/// Moves `len` bytes by `op` from `from` of the source to `to` of the target, and checks them.
fn transfer(pair: &mut Pair, op: Op, len: usize, (from, to): (usize, usize), parts: usize) {
    let seed = (len * 31 + from * 7 + to) as u64 ^ (op as u64) << 48;
    let bytes = payload(seed, len);
    // A READ pulls: its source is the peer.
    let (source, target) = if op == Op::Read {
        (&pair.b.region, &pair.a.region)
    } else {
        (&pair.a.region, &pair.b.region)
    };
    source.memory().write_at(from, &bytes).unwrap();
    target.memory().fill(to - MARGIN, len + 2 * MARGIN, FILLER).unwrap();

    let imm = 0x1234_5678 ^ len as u32;
    if matches!(op, Op::WriteImm | Op::Send | Op::SendImm) {
        let receive = match op {
            Op::WriteImm => Vec::new(),
            _ => scattered(&pair.b.region, to, len, parts),
        };
        pair.b.qp.receive(77, &receive).unwrap();
        pair.b.qp.ring_receives();
    }
    let flags = SendFlags::SIGNALED;
    let remote = match op {
        Op::Read => pair.b.at(from),
        _ => pair.b.at(to),
    };
    let local = match op {
        Op::Read => scattered(&pair.a.region, to, len, parts),
        _ => scattered(&pair.a.region, from, len, parts),
    };
    match op {
        Op::Write => pair.a.qp.write(5, &local, remote, flags),
        Op::WriteImm => pair.a.qp.write_imm(5, &local, remote, imm, flags),
        Op::Send => pair.a.qp.send(5, &local, flags),
        Op::SendImm => pair.a.qp.send_imm(5, &local, imm, flags),
        Op::Read => pair.a.qp.read(5, &local, remote, flags),
    }
    .unwrap();
    pair.a.qp.ring_sends();

    let what = format!("{op:?} of {len} bytes from {from} to {to} in {parts} entries");
    let sent = pair.a.completion();
    assert!(sent.is_success() && sent.wr_id == 5 && !sent.is_receive(), "{what}: {sent:?}");
    if matches!(op, Op::WriteImm | Op::Send | Op::SendImm) {
        let received = pair.b.completion();
        assert!(received.is_success() && received.is_receive(), "{what}: {received:?}");
        assert_eq!((received.wr_id, received.byte_len as usize), (77, len), "{what}");
        let expected = if op == Op::Send { None } else { Some(imm) };
        assert_eq!(received.imm(), expected, "{what}");
    }
    let side = if op == Op::Read { &pair.a } else { &pair.b };
    let around = side.bytes(to - MARGIN, len + 2 * MARGIN);
    assert!(around[MARGIN..MARGIN + len] == bytes[..], "{what}: the payload differs");
    let margins = around[..MARGIN].iter().chain(&around[MARGIN + len..]);
    assert!(margins.copied().all(|byte| byte == FILLER), "{what}: bytes around it were touched");
}

#[test]
fn every_operation_moves_every_size_unaligned_and_scattered() {
    for setting in settings(&SETTINGS) {
        let mut pair = Pair::new(setting, (2 << 20) + (64 << 10));
        for op in OPS {
            for len in SIZES {
                for (offsets, parts) in [((64, 64), 1), ((4096 + 13, 101), 3), ((67, 8191), 4)] {
                    transfer(&mut pair, op, len, offsets, parts);
                }
            }
        }
    }
}

#[test]
fn every_operation_moves_64_mib() {
    for setting in settings(&SETTINGS) {
        let mut pair = Pair::new(setting, LARGE + (64 << 10));
        for op in OPS {
            transfer(&mut pair, op, LARGE, (77, 4095), 2);
        }
    }
}

#[test]
fn inline_payloads_are_taken_when_they_are_posted() {
    for setting in settings(&SETTINGS) {
        let mut pair = Pair::new(setting, 1 << 16);
        for len in [0usize, 1, 8, 63, 64] {
            let mut bytes = payload(len as u64, len);
            let to = pair.b.at(100);
            pair.a.qp.write_inline(1, &bytes, to, SendFlags::SIGNALED).unwrap();
            let sent = bytes.clone();
            bytes.fill(0);
            pair.a.qp.ring_sends();
            assert!(pair.a.completion().is_success());
            assert_eq!(pair.b.bytes(100, len), sent);

            let receive = pair.b.region.slice(200, 64).unwrap();
            pair.b.qp.receive(2, &[receive]).unwrap();
            pair.b.qp.ring_receives();
            pair.a.qp.send_inline(3, &sent, SendFlags::SIGNALED).unwrap();
            pair.a.qp.ring_sends();
            assert!(pair.a.completion().is_success());
            assert_eq!(pair.b.completion().byte_len as usize, len);
            assert_eq!(pair.b.bytes(200, len), sent);
        }
    }
}

#[test]
fn atomics_change_eight_bytes_and_give_the_old_ones_back() {
    for setting in settings(&SETTINGS) {
        let mut pair = Pair::new(setting, 1 << 16);
        let word = |pair: &Pair| {
            pair.b
                .region
                .memory()
                .atomic_u64(1024)
                .unwrap()
                .load(std::sync::atomic::Ordering::SeqCst)
        };
        let old = |pair: &Pair| u64::from_ne_bytes(pair.a.bytes(512, 8).try_into().unwrap());
        pair.b.region.memory().write_at(1024, &40u64.to_ne_bytes()).unwrap();
        let remote = pair.b.at(1024);

        let landing = pair.a.region.slice(512, 8).unwrap();
        pair.a.qp.fetch_add(1, landing, remote, 2, SendFlags::SIGNALED).unwrap();
        pair.a.qp.ring_sends();
        assert!(pair.a.completion().is_success());
        assert_eq!((old(&pair), word(&pair)), (40, 42));

        for (compare, swap, after) in [(41, 7, 42), (42, u64::MAX, u64::MAX)] {
            let landing = pair.a.region.slice(512, 8).unwrap();
            pair.a.qp.compare_swap(2, landing, remote, compare, swap, SendFlags::SIGNALED).unwrap();
            pair.a.qp.ring_sends();
            assert!(pair.a.completion().is_success());
            assert_eq!((old(&pair), word(&pair)), (42, after), "{compare} -> {swap}");
        }

        // Many of them add up, whatever their order of completion.
        pair.b.region.memory().write_at(1024, &0u64.to_ne_bytes()).unwrap();
        for round in 0..10 {
            for id in 0..32 {
                let landing = pair.a.region.slice(512, 8).unwrap();
                pair.a.qp.fetch_add(id, landing, remote, 1, SendFlags::SIGNALED).unwrap();
            }
            pair.a.qp.ring_sends();
            for id in 0..32 {
                let done = pair.a.completion();
                assert!(done.is_success() && done.wr_id == id, "round {round}: {done:?}");
            }
        }
        assert_eq!(word(&pair), 320);
    }
}

#[test]
fn a_batch_goes_out_with_one_doorbell_and_only_signalled_requests_complete() {
    for setting in settings(&SETTINGS) {
        let mut pair = Pair::new(setting, 1 << 16);
        for index in 0..32u64 {
            pair.a
                .region
                .memory()
                .write_at(index as usize * 8, &(index + 1).to_ne_bytes())
                .unwrap();
            let local = pair.a.region.slice(index as usize * 8, 8).unwrap();
            let to = pair.b.at(8192 + index as usize * 8);
            let flags = if index % 8 == 7 { SendFlags::SIGNALED } else { SendFlags::NONE };
            pair.a.qp.write(index, &[local], to, flags).unwrap();
        }
        pair.a.qp.ring_sends();
        let ids: Vec<u64> = (0..4).map(|_| pair.a.completion().wr_id).collect();
        assert_eq!(ids, [7, 15, 23, 31]);
        assert_eq!(pair.a.qp.outstanding_sends(), 0, "a completion retires those before it");
        for index in 0..32u64 {
            let bytes = pair.b.bytes(8192 + index as usize * 8, 8);
            assert_eq!(u64::from_ne_bytes(bytes.try_into().unwrap()), index + 1);
        }
    }
}

#[test]
fn receives_of_a_shared_queue_serve_several_queue_pairs() {
    for setting in settings(&SETTINGS) {
        let nics = support::Nics::new(setting);
        let pd = nics.b.protection_domain().unwrap();
        let mut shared = pd.shared_receive_queue(64, 2).unwrap();
        let mut cq = nics.b.completion_queue(1024).unwrap();
        let region = pd.register(support::memory(1 << 16), Access::ALL).unwrap();
        let with_shared = QueuePairOptions { shared_receives: Some(&shared), ..options() };
        let mut receivers: Vec<_> =
            (0..3).map(|_| pd.queue_pair(&with_shared, &cq, &cq).unwrap()).collect();
        let mut senders: Vec<_> =
            (0..3).map(|_| Side::new(&nics.a, 1 << 16, Access::ALL, &options())).collect();
        for (sender, receiver) in senders.iter_mut().zip(&mut receivers) {
            holdfast::QueuePair::connect_pair(&mut sender.qp, receiver).unwrap();
        }
        for id in 0..30u64 {
            shared.receive(id, &[region.slice(id as usize * 64, 64).unwrap()]).unwrap();
        }
        shared.ring();
        for round in 0..10u32 {
            for (index, sender) in senders.iter_mut().enumerate() {
                sender.qp.send_imm(0, &[], round * 3 + index as u32, SendFlags::SIGNALED).unwrap();
                sender.qp.ring_sends();
                assert!(sender.completion().is_success());
            }
        }
        let mut ids = Vec::new();
        let mut values = Vec::new();
        for _ in 0..30 {
            let received = support::next_completion(&mut cq);
            assert!(received.is_success(), "{received:?}");
            ids.push(received.wr_id);
            values.push(received.imm().unwrap());
        }
        ids.sort_unstable();
        values.sort_unstable();
        assert_eq!(ids, (0..30).collect::<Vec<_>>(), "every receive was used once");
        assert_eq!(values, (0..30).collect::<Vec<_>>(), "every message arrived once");
        assert_eq!(shared.outstanding(), 0);
    }
}

#[test]
fn datagrams_carry_a_grh_and_say_who_sent_them() {
    for setting in settings(&SETTINGS) {
        const QKEY: u32 = 0x1111_2222;
        let ud = QueuePairOptions { qp_type: QpType::Ud, qkey: QKEY, inline: 0, ..options() };
        let nics = support::Nics::new(setting);
        let mut a = Side::new(&nics.a, 1 << 16, Access::ALL, &ud);
        let mut b = Side::new(&nics.b, 1 << 16, Access::ALL, &ud);
        a.qp.start_datagrams().unwrap();
        b.qp.start_datagrams().unwrap();
        let handle = AddressHandle::new(a.pd.driver(), &Path::new(nics.b.gid(), 0)).unwrap();
        let to = Datagram { to: &handle, qpn: b.qp.info().qpn, qkey: QKEY };
        for len in [0usize, 1, 1000, 4096] {
            let bytes = payload(9, len);
            a.region.memory().write_at(3, &bytes).unwrap();
            b.qp.receive(4, &[b.region.slice(11, 40 + 4096).unwrap()]).unwrap();
            b.qp.ring_receives();
            // The route to another process may not be known yet: a datagram may be lost, and
            // then nobody says so.
            let received = loop {
                let local = a.region.slice(3, len).unwrap();
                a.qp.send_datagram(6, &[local], to, SendFlags::SIGNALED).unwrap();
                a.qp.ring_sends();
                assert!(a.completion().is_success());
                let mut out = [holdfast::Completion::default()];
                let start = std::time::Instant::now();
                while b.cq.poll(&mut out).unwrap() == 0
                    && start.elapsed() < std::time::Duration::from_millis(500)
                {
                    std::thread::yield_now();
                }
                if out[0] != holdfast::Completion::default() {
                    break out[0];
                }
            };
            assert!(received.is_success() && received.has_grh(), "{received:?}");
            assert_eq!(received.byte_len as usize, len + 40);
            assert_eq!(received.src_qp, a.qp.info().qpn);
            assert_eq!(b.bytes(11 + 40, len), bytes);
        }
        let local = a.region.slice(0, 4097).unwrap();
        let too_long = a.qp.send_datagram(6, &[local], to, SendFlags::SIGNALED).unwrap_err();
        assert!(matches!(too_long, PostError::MessageTooLong { given: 4097, .. }), "{too_long}");
    }
}

#[test]
fn a_region_can_be_a_file_and_the_file_system_sees_what_arrived() {
    let folder = tempfile::tempdir_in(".").unwrap();
    let path = folder.path().join("region");
    std::fs::write(&path, vec![0u8; 3 << 20]).unwrap();
    for setting in settings(&SETTINGS) {
        let mut pair = Pair::new(setting, 1 << 20);
        let source: holdfast::Source = format!("{}:1M+1M", path.display()).parse().unwrap();
        let file = holdfast::Memory::open(&source, 0, holdfast::Populate::Yes).unwrap();
        let region = pair.b.pd.register(file, Access::ALL).unwrap();
        let bytes = payload(setting as u64, 1 << 20);
        pair.a.region.memory().write_at(0, &bytes).unwrap();
        let remote = holdfast::Remote { addr: region.remote().addr, rkey: region.rkey() };
        let local = pair.a.region.slice(0, 1 << 20).unwrap();
        pair.a.qp.write(1, &[local], remote, SendFlags::SIGNALED).unwrap();
        pair.a.qp.ring_sends();
        assert!(pair.a.completion().is_success());
        let seen = std::fs::read(&path).unwrap();
        assert!(seen[1 << 20..2 << 20] == bytes[..], "{setting:?}");
        assert!(seen[..1 << 20].iter().chain(&seen[2 << 20..]).all(|byte| *byte == 0));
    }
}
