//! Commands, shared receive queues, draining, selective signalling, and misses.

mod engine_support;

use std::time::Duration;

use engine_support::*;
use holdfast_nic::engine::host::{QpInit, RecvQueue, SendRequest};
use holdfast_nic::engine::{Engine, Error, Limits, MissPolicy, MrInit, MrKind, NicConfig};
use holdfast_wire::attr::*;
use holdfast_wire::completion::Status;
use holdfast_wire::event::EventKind;
use holdfast_wire::wqe::*;
use zerocopy::IntoBytes;

const AT: u64 = BASE + 0x2000;
const THERE: u64 = BASE + 0x8_0000;

#[test]
fn the_limit_of_a_shared_queue_is_told_once() {
    for path in PATHS {
        let mut options = Options::new(path);
        options.srq = true;
        let mut pair = Pair::new(options);
        let (a, b) = (pair.a, pair.b);
        let srq = b.srq.expect("one");
        let attr = SrqAttr { srq_limit: 3, ..SrqAttr::default() };
        pair.engine(b).modify_srq(b.nic, srq, SRQ_MASK_LIMIT, &attr).expect("armed");
        for n in 0..5 {
            pair.recv(b, n, &[sge(b, THERE, 8)]);
        }
        for n in 0..5u64 {
            let told = pair.events(b).contains(&EventKind::SrqLimitReached);
            assert_eq!(told, n > 2, "after {n} messages on {path:?}");
            pair.send(a, send(&[sge(a, AT, 8)]));
            assert_status(pair.sent(a), Status::Success);
            assert_eq!(pair.received(b).wr_id, n);
        }
        let told = |e: &&EventKind| **e == EventKind::SrqLimitReached;
        assert_eq!(pair.events(b).iter().filter(told).count(), 1);
        let left = pair.engine(b).query_srq(b.nic, srq).expect("a queue").srq_limit;
        assert_eq!(left, 0, "disarmed");
    }
}

#[test]
fn a_queue_pair_in_error_leaves_the_shared_queue_alone() {
    let mut options = Options::new(Path::TwoNics);
    options.srq = true;
    let mut pair = Pair::new(options);
    let b = pair.b;
    pair.recv(b, 1, &[]);
    let attr = QpAttr { qp_state: QpState::Error.wire(), ..QpAttr::default() };
    pair.engine(b).modify_qp(b.nic, b.qp.handle, mask::STATE, &attr).expect("always");
    pair.settle();
    assert_eq!(pair.events(b), [EventKind::QpLastWqeReached]);
    let queue = RecvQueue::Shared(b.srq.expect("one"));
    assert_eq!(pair.host(b).receives[&queue].len(), 1);
    assert_eq!(pair.pending(b), 0);
}

#[test]
fn unsignalled_successes_give_no_completion() {
    for path in PATHS {
        let mut options = Options::new(path);
        options.signal_all = false;
        let mut pair = Pair::new(options);
        let (a, b) = (pair.a, pair.b);
        for n in 0..10 {
            let mut wr = rdma(Opcode::RdmaWrite, &[sge(a, AT, 8)], THERE, b.mr.rkey);
            wr.wr_id = n;
            wr.flags = if n == 9 { FLAG_SIGNALED } else { 0 };
            pair.send(a, wr);
        }
        assert_eq!(pair.sent(a).wr_id, 9);
        assert_eq!(pair.pending(a), 0);
    }
}

#[test]
fn draining_ends_with_an_event_and_resumes_where_it_stopped() {
    for path in PATHS {
        let mut pair = Pair::on(path);
        let (a, b) = (pair.a, pair.b);
        // Under way while it waits for a receive.
        pair.send(a, send(&[sge(a, AT, 8)]));
        let attr = QpAttr {
            qp_state: QpState::SendQueueDrained.wire(),
            en_sqd_async_notify: 1,
            ..QpAttr::default()
        };
        let bits = mask::STATE | mask::EN_SQD_ASYNC_NOTIFY;
        pair.engine(a).modify_qp(a.nic, a.qp.handle, bits, &attr).expect("from RTS to SQD");
        pair.send(a, SendRequest { wr_id: 2, ..send(&[]) });
        let query = pair.engine(a).query_qp(a.nic, a.qp.handle).expect("a queue pair");
        assert_eq!((query.sq_draining, pair.events(a).len()), (1, 0), "{path:?}");
        pair.recv(b, 1, &[sge(b, THERE, 8)]);
        assert_status(pair.sent(a), Status::Success);
        assert_eq!(pair.events(a), [EventKind::SendQueueDrained]);
        assert_eq!(pair.pending(a), 0);
        let attr = QpAttr { qp_state: QpState::ReadyToSend.wire(), ..QpAttr::default() };
        pair.engine(a).modify_qp(a.nic, a.qp.handle, mask::STATE, &attr).expect("from SQD to RTS");
        pair.recv(b, 1, &[]);
        assert_eq!(pair.sent(a).wr_id, 2);
    }
}

#[test]
fn the_first_packet_before_rts_is_an_event() {
    let options = Options::new(Path::TwoNics);
    let mut pair = Pair::unconnected(options.clone());
    let (a, b) = (pair.a, pair.b);
    pair.bring_up(a, b, &options);
    for (bits, attr) in way_up(b, a, &options).into_iter().take(2) {
        pair.engine(b).modify_qp(b.nic, b.qp.handle, bits, &attr).expect("way up");
    }
    for _ in 0..2 {
        pair.send(a, rdma(Opcode::RdmaWrite, &[sge(a, AT, 8)], THERE, b.mr.rkey));
        assert_status(pair.sent(a), Status::Success);
    }
    assert_eq!(pair.events(b), [EventKind::CommunicationEstablished]);
}

/// What misses, whether it is the requester's own, and under which request.
type Missing = (&'static str, bool, fn(Side, Side) -> SendRequest);

const MISSES: [Missing; 6] = [
    ("source of a write", true, |a, b| {
        rdma(Opcode::RdmaWrite, &[sge(a, AT, 9000)], THERE, b.mr.rkey)
    }),
    ("target of a write", false, |a, b| {
        rdma(Opcode::RdmaWrite, &[sge(a, AT, 9000)], THERE, b.mr.rkey)
    }),
    ("source of a read", false, |a, b| {
        rdma(Opcode::RdmaRead, &[sge(a, AT, 9000)], THERE, b.mr.rkey)
    }),
    ("target of a read", true, |a, b| {
        rdma(Opcode::RdmaRead, &[sge(a, AT, 9000)], THERE, b.mr.rkey)
    }),
    ("target of a send", false, |a, _| send(&[sge(a, AT, 9000)])),
    ("word of an atomic", false, |a, b| {
        let remote_addr = (THERE + 4096) & !7;
        let body = Atomic { remote_addr, compare_add: 1, swap: 0, rkey: b.mr.rkey, reserved: 0 };
        request(Opcode::FetchAdd, &[sge(a, AT, 8)], body.as_bytes())
    }),
];

fn miss(policy: MissPolicy, path: Path, n: usize) -> (Pair, Side, u64) {
    let (_, own, wr) = MISSES[n];
    let mut options = Options::new(path);
    options.miss = policy;
    let mut pair = Pair::new(options);
    let (a, b) = (pair.a, pair.b);
    let (side, addr) = if own { (a, AT + 4096) } else { (b, THERE + 4096) };
    pair.miss(side, addr, true);
    pair.recv(b, 1, &[sge(b, THERE, 9000)]);
    pair.send(a, wr(a, b));
    (pair, side, addr)
}

#[test]
fn a_stalled_request_goes_on_when_the_page_is_back() {
    for path in PATHS {
        for (n, (what, ..)) in MISSES.iter().enumerate() {
            let policy = MissPolicy::Stall { bound: Duration::from_secs(2) };
            let (mut pair, side, addr) = miss(policy, path, n);
            let a = pair.a;
            pair.until("three misses", |p| {
                p.engine(side).counters(side.nic).translation_misses >= 3
            });
            assert_eq!(pair.pending(a), 0, "{what} on {path:?}");
            pair.miss(side, addr, false);
            assert_eq!(pair.sent(a).status, Status::Success, "{what} on {path:?}");
            let counters = pair.engine(side).counters(side.nic).clone();
            assert_eq!(counters.stalls, 1, "{what} on {path:?}");
            assert!(counters.stall_ns > 0, "{what} on {path:?}");
            if n == 5 {
                let word = pair.read(pair.b, (THERE + 4096) & !7, 8);
                assert_eq!(word, 1u64.to_le_bytes(), "added once, on {path:?}");
            }
        }
    }
}

#[test]
fn a_miss_fails_at_once_or_after_the_bound() {
    let bound = Duration::from_millis(1);
    for policy in [MissPolicy::Fail, MissPolicy::Stall { bound }] {
        for path in PATHS {
            for (n, (what, own, _)) in MISSES.iter().enumerate() {
                let (mut pair, side, _) = miss(policy, path, n);
                let (a, b) = (pair.a, pair.b);
                let begun = pair.now;
                let expected = if *own { Status::LocalProtection } else { Status::RemoteOperation };
                assert_eq!(pair.sent(a).status, expected, "{what} on {path:?}, {policy:?}");
                if !own {
                    assert_eq!(pair.state(b), QpState::Error, "{what} on {path:?}");
                }
                let stalls = pair.engine(side).counters(side.nic).stalls;
                match policy {
                    MissPolicy::Fail => assert_eq!(stalls, 0),
                    MissPolicy::Stall { bound } => {
                        assert_eq!(stalls, 1);
                        assert!(pair.now - begun >= bound.as_nanos() as u64);
                    }
                }
            }
        }
    }
}

#[test]
fn an_atomic_whose_answer_cannot_be_written_is_replayed_not_repeated() {
    let mut pair = Pair::on(Path::Link);
    let (a, b) = (pair.a, pair.b);
    let remote_addr = THERE & !7;
    for (n, add) in [(0u64, 5u64), (1, 7)] {
        let body = Atomic { remote_addr, compare_add: add, swap: 0, rkey: b.mr.rkey, reserved: 0 };
        pair.send(a, request(Opcode::FetchAdd, &[sge(a, AT + 8 * n, 8)], body.as_bytes()));
    }
    // Both have left; the page goes before the answers come.
    pair.miss(a, AT, true);
    pair.until("a miss", |p| p.engine(a).counters(a.nic).translation_misses > 0);
    pair.miss(a, AT, false);
    assert_status(pair.sent(a), Status::Success);
    assert_status(pair.sent(a), Status::Success);
    assert!(pair.engine(b).counters(b.nic).duplicates > 0, "it was asked again");
    assert_eq!(pair.read(b, remote_addr, 8), 12u64.to_le_bytes());
    assert_eq!(pair.read(a, AT, 16), [0u64.to_le_bytes(), 5u64.to_le_bytes()].concat());
}

#[test]
fn what_is_behind_a_stalled_or_unready_burst_needs_no_retries() {
    for path in PATHS {
        let mut options = Options::new(path);
        (options.retry, options.miss) = (0, MissPolicy::Stall { bound: Duration::from_secs(2) });
        let mut pair = Pair::new(options);
        let (a, b) = (pair.a, pair.b);
        pair.miss(b, THERE, true);
        for n in 0..40 {
            let wr = match n % 2 {
                0 => rdma(Opcode::RdmaWrite, &[sge(a, AT, 8)], THERE, b.mr.rkey),
                _ => send(&[]),
            };
            pair.send(a, SendRequest { wr_id: n, ..wr });
        }
        pair.until("three misses", |p| p.engine(b).counters(b.nic).translation_misses >= 3);
        pair.miss(b, THERE, false);
        pair.until("RNR", |p| p.engine(a).counters(a.nic).rnr_naks_received > 0);
        for n in 0..40 {
            pair.recv(b, n, &[]);
        }
        for n in 0..40 {
            let done = pair.sent(a);
            assert_eq!((done.wr_id, done.status), (n, Status::Success), "{path:?}");
        }
        assert_eq!(pair.engine(a).counters(a.nic).retries, 0, "{path:?}");
    }
}

#[test]
fn completions_wait_for_a_queue_whose_memory_misses() {
    for path in PATHS {
        let mut pair = Pair::on(path);
        let (a, b) = (pair.a, pair.b);
        pair.host(a).cq_missing = true;
        pair.recv(b, 1, &[]);
        for n in 0..3 {
            let wr = rdma(Opcode::RdmaWrite, &[sge(a, AT, 8)], THERE, b.mr.rkey);
            pair.send(a, SendRequest { wr_id: n, ..wr });
        }
        pair.until("a miss", |p| p.engine(a).counters(a.nic).translation_misses > 0);
        pair.host(a).cq_missing = false;
        for n in 0..3 {
            let done = pair.sent(a);
            assert_eq!((done.wr_id, done.status), (n, Status::Success), "{path:?}");
        }
    }
}

#[test]
fn objects_in_use_are_not_destroyed() {
    let mut pair = Pair::on(Path::TwoNics);
    let a = pair.a;
    let engine = pair.engine(a);
    assert!(matches!(engine.destroy_pd(a.nic, a.pd), Err(Error::Busy { .. })));
    assert!(matches!(engine.destroy_cq(a.nic, a.send_cq), Err(Error::Busy { .. })));
    assert_eq!(engine.destroy_cq(a.nic, a.send_cq).map_err(|e| e.errno()), Err(libc::EBUSY));
    engine.destroy_qp(a.nic, a.qp.handle).expect("a queue pair");
    assert_eq!(
        engine.destroy_qp(a.nic, a.qp.handle),
        Err(Error::NoSuch { what: "queue pair", handle: a.qp.handle })
    );
    engine.destroy_cq(a.nic, a.send_cq).expect("unused");
    engine.destroy_mr(a.nic, a.mr.handle).expect("a region");
    engine.destroy_pd(a.nic, a.pd).expect("unused");
}

#[test]
fn a_key_of_a_destroyed_region_is_refused_though_its_index_lives_again() {
    let limits = Limits { max_mr: 1, ..Limits::default() };
    let mut engine: Engine<MemHost> = Engine::new();
    let nic = engine.add_nic(MemHost::new(), NicConfig { limits, ..NicConfig::default() });
    let pd = engine.create_pd(nic).expect("a domain");
    let init = MrInit { pd, start: 0, length: 0, access: 1, kind: MrKind::Dma };
    let first = engine.create_mr(nic, init.clone()).expect("a region");
    let full = engine.create_mr(nic, init.clone()).expect_err("one is all there may be");
    assert_eq!(full.errno(), libc::ENOMEM);
    engine.destroy_mr(nic, first.handle).expect("a region");
    let second = engine.create_mr(nic, init).expect("a region");
    assert_eq!(second.handle, first.handle);
    assert_ne!(second.lkey, first.lkey);
}

#[test]
fn what_makes_no_sense_is_refused() {
    let mut pair = Pair::on(Path::TwoNics);
    let a = pair.a;
    let page = |pages: Vec<u64>, start, length, access| MrInit {
        pd: a.pd,
        start,
        length,
        access,
        kind: MrKind::Pages(pages),
    };
    let engine = pair.engine(a);
    let bad = [
        page(vec![0x1000], 0xfff, 2, 1),
        page(vec![0x1001], 0, 1, 1),
        page(vec![0x1000], u64::MAX - 10, 11, 1),
        page(vec![0x1000], 0, 1, ACCESS_REMOTE_WRITE),
        page(vec![0x1000], 0, 1, 0x100),
        MrInit { pd: 99, ..page(vec![0x1000], 0, 1, 1) },
    ];
    for init in bad {
        let refused = engine.create_mr(a.nic, init.clone()).expect_err("makes no sense");
        assert_eq!(refused.errno(), libc::EINVAL, "{init:?}");
    }
    engine.create_mr(a.nic, page(vec![0x1000, !0xfff], 0xfff, 2, 1)).expect("sound");
    let init = QpInit {
        qp_type: QpType::Uc,
        pd: a.pd,
        send_cq: a.send_cq,
        recv_cq: a.recv_cq,
        srq: None,
        signal_all: false,
        cap: QpCap::default(),
    };
    assert!(engine.create_qp(a.nic, &init).is_err(), "UC is not supported");
    let gsi = QpInit { qp_type: QpType::Gsi, ..init };
    assert_eq!(engine.create_qp(a.nic, &gsi).expect("the first").qpn, 1);
    assert!(engine.create_qp(a.nic, &gsi).is_err(), "one per NIC");
    assert!(engine.bind_gid(a.nic, 7, [0; 16]).is_err());
    assert!(engine.bind_gid(a.nic, 7, gid(2)).is_err(), "another NIC has it");
    assert!(engine.bind_gid(a.nic, 9999, gid(7)).is_err());
}

#[test]
fn one_call_does_a_bounded_amount_of_work() {
    let mut pair = Pair::on(Path::TwoNics);
    let (a, b) = (pair.a, pair.b);
    for _ in 0..100 {
        let wr = rdma(Opcode::RdmaWrite, &[sge(a, AT, 8)], THERE, b.mr.rkey);
        pair.host(a).sends.entry(a.qp.handle).or_default().push_back(wr);
    }
    let now = pair.now;
    assert!(pair.engine(a).send_doorbell(a.nic, a.qp.handle, now), "more is left");
    assert_eq!(pair.pending(a), 32);
    assert!(pair.engine(a).poll(now).more_to_do);
    assert_eq!(pair.pending(a), 64);
    pair.until("all", |p| p.pending(a) == 100);
    let now = pair.now;
    let idle = pair.engine(a).poll(now);
    assert!(!idle.more_to_do && idle.next_deadline.is_none());
    assert!(!pair.engine(a).has_timers());
}

#[test]
fn registered_pages_have_a_limit_for_all_regions_together() {
    let limits = Limits { max_registered_pages: 8, ..Limits::default() };
    let mut engine: Engine<MemHost> = Engine::new();
    let nic = engine.add_nic(MemHost::new(), NicConfig { limits, ..NicConfig::default() });
    let make = |engine: &mut Engine<MemHost>, kind| {
        let pd = engine.create_pd(nic).expect("a domain");
        engine.create_mr(nic, MrInit { pd, start: 0, length: 0, access: 1, kind })
    };
    // The same page may be named again and again.
    let pages = |n| MrKind::Pages(vec![0x1000; n]);
    for round in 0..3 {
        let first = make(&mut engine, pages(5)).expect("5 of 8");
        let full = make(&mut engine, pages(4)).expect_err("9 of 8");
        assert_eq!(full.errno(), libc::ENOMEM, "round {round}: {full}");
        let full = make(&mut engine, MrKind::FastReg { max_pages: 4 }).expect_err("9 of 8");
        assert_eq!(full.errno(), libc::ENOMEM, "round {round}: {full}");
        make(&mut engine, MrKind::Dma).expect("it has no list");
        make(&mut engine, MrKind::FastReg { max_pages: 3 }).expect("8 of 8");
        engine.destroy_mr(nic, first.handle).expect("a region");
        make(&mut engine, pages(5)).expect("8 of 8 again");
        make(&mut engine, pages(1)).expect_err("9 of 8");
        engine.reset_nic(nic);
    }
}

#[test]
fn the_general_services_queue_pair_has_handle_and_number_1_to_itself() {
    for by_handle in [false, true] {
        let mut engine: Engine<MemHost> = Engine::new();
        let nic = engine.add_nic(MemHost::new(), NicConfig::default());
        if by_handle {
            engine.number_from(nic, 0);
        }
        let pd = engine.create_pd(nic).expect("a domain");
        let cq = engine.create_cq(nic, 16).expect("a queue");
        let init = |qp_type| QpInit {
            qp_type,
            pd,
            send_cq: cq,
            recv_cq: cq,
            srq: None,
            signal_all: true,
            cap: QpCap::default(),
        };
        for _ in 0..3 {
            let before = engine.create_qp(nic, &init(QpType::Rc)).expect("a queue pair");
            let gsi = engine.create_qp(nic, &init(QpType::Gsi)).expect("the only one");
            let after = engine.create_qp(nic, &init(QpType::Ud)).expect("a queue pair");
            assert_eq!((gsi.handle, gsi.qpn), (1, 1));
            for qp in [before, after] {
                assert!(qp.handle > 1 && qp.qpn & 0xffff == qp.handle, "{qp:?}");
                assert_eq!(qp.qpn == qp.handle, by_handle, "{qp:?}");
            }
            engine.destroy_qp(nic, gsi.handle).expect("it was there");
        }
    }
}

#[test]
fn a_stall_that_is_over_leaves_the_next_one_its_whole_patience() {
    const PAUSE: u64 = 1_000_000_000;
    for error in [false, true] {
        // Patience is 10 ms.
        let mut pair = Pair::on(Path::TwoNics);
        let (a, b) = (pair.a, pair.b);
        if error {
            let attr = QpAttr { qp_state: QpState::Error.wire(), ..QpAttr::default() };
            pair.engine(a).modify_qp(a.nic, a.qp.handle, mask::STATE, &attr).expect("always");
        }
        let mut expected = 0;
        for n in 0..2 {
            let missed = pair.engine(a).counters(a.nic).translation_misses;
            pair.host(a).cq_missing = true;
            let wr = rdma(Opcode::RdmaWrite, &[sge(a, AT, 8)], THERE, b.mr.rkey);
            pair.send(a, SendRequest { wr_id: n, ..wr });
            if error {
                pair.poll();
            }
            assert!(pair.engine(a).counters(a.nic).translation_misses > missed, "error {error}");
            pair.host(a).cq_missing = false;
            assert_eq!(pair.sent(a).wr_id, n);
            expected += 1;
            let counters = pair.engine(a).counters(a.nic).clone();
            assert_eq!(counters.stalls, expected, "error {error}");
            assert!(counters.stall_ns > 0 && counters.stall_ns < PAUSE, "error {error}");
            pair.now += PAUSE;
        }
    }
}
