//! Every error a verbs user knows, produced and seen with its status, and what becomes of the
//! queue pairs and of the work that was posted behind it.

mod engine_support;

use engine_support::*;
use holdfast_nic::engine::host::{RecvQueue, SendRequest};
use holdfast_wire::attr::*;
use holdfast_wire::completion::Status;
use holdfast_wire::event::EventKind;
use holdfast_wire::wqe::*;
use zerocopy::IntoBytes;

const AT: u64 = BASE + 0x2000;
const THERE: u64 = BASE + 0x8_0000;
const END: u64 = BASE + REGION as u64;

fn atomic(side: Side, remote_addr: u64, rkey: u32) -> SendRequest {
    let body = Atomic { remote_addr, compare_add: 1, swap: 0, rkey, reserved: 0 };
    request(Opcode::FetchAdd, &[sge(side, AT, 8)], body.as_bytes())
}

/// A request that fails, what the requester and the responder's queue pair make of it.
struct Case {
    what: &'static str,
    options: fn(&mut Options),
    request: fn(Side, Side) -> SendRequest,
    status: Status,
    responder: QpState,
    event: Option<EventKind>,
}

const NONE: fn(&mut Options) = |_| {};

const CASES: &[Case] = &[
    Case {
        what: "bad lkey",
        options: NONE,
        request: |a, b| {
            let mut sge = sge(a, AT, 8);
            sge.lkey ^= 1;
            rdma(Opcode::RdmaWrite, &[sge], THERE, b.mr.rkey)
        },
        status: Status::LocalProtection,
        responder: QpState::ReadyToSend,
        event: None,
    },
    Case {
        what: "local entry out of range",
        options: NONE,
        request: |a, _| send(&[sge(a, END - 7, 8)]),
        status: Status::LocalProtection,
        responder: QpState::ReadyToSend,
        event: None,
    },
    Case {
        what: "bad rkey",
        options: NONE,
        request: |a, b| rdma(Opcode::RdmaWrite, &[sge(a, AT, 8)], THERE, b.mr.rkey ^ 0x80),
        status: Status::RemoteAccess,
        responder: QpState::Error,
        event: Some(EventKind::QpAccessError),
    },
    Case {
        what: "remote range ends one byte late",
        options: NONE,
        request: |a, b| rdma(Opcode::RdmaWrite, &[sge(a, AT, 8)], END - 7, b.mr.rkey),
        status: Status::RemoteAccess,
        responder: QpState::Error,
        event: Some(EventKind::QpAccessError),
    },
    Case {
        what: "remote range wraps around",
        options: NONE,
        request: |a, b| rdma(Opcode::RdmaRead, &[sge(a, AT, 8)], u64::MAX - 3, b.mr.rkey),
        status: Status::RemoteAccess,
        responder: QpState::Error,
        event: Some(EventKind::QpAccessError),
    },
    Case {
        what: "region gives no remote write",
        options: |o| o.mr_access = ACCESS_LOCAL_WRITE | ACCESS_REMOTE_READ,
        request: |a, b| rdma(Opcode::RdmaWrite, &[sge(a, AT, 8)], THERE, b.mr.rkey),
        status: Status::RemoteAccess,
        responder: QpState::Error,
        event: Some(EventKind::QpAccessError),
    },
    Case {
        what: "queue pair gives no remote read",
        options: |o| o.qp_access = ACCESS_REMOTE_WRITE,
        request: |a, b| rdma(Opcode::RdmaRead, &[sge(a, AT, 8)], THERE, b.mr.rkey),
        status: Status::RemoteAccess,
        responder: QpState::Error,
        event: Some(EventKind::QpAccessError),
    },
    Case {
        what: "region gives no atomics",
        options: |o| o.mr_access = ACCESS_LOCAL_WRITE | ACCESS_REMOTE_WRITE,
        request: |a, b| atomic(a, THERE & !7, b.mr.rkey),
        status: Status::RemoteAccess,
        responder: QpState::Error,
        event: Some(EventKind::QpAccessError),
    },
    Case {
        what: "unaligned atomic",
        options: NONE,
        request: |a, b| atomic(a, (THERE & !7) + 4, b.mr.rkey),
        status: Status::RemoteInvalidRequest,
        responder: QpState::Error,
        event: Some(EventKind::QpRequestError),
    },
    Case {
        what: "no read at this requester",
        options: |o| o.reads = 0,
        request: |a, b| rdma(Opcode::RdmaRead, &[sge(a, AT, 8)], THERE, b.mr.rkey),
        status: Status::LocalQpOperation,
        responder: QpState::ReadyToSend,
        event: None,
    },
    Case {
        what: "memory windows",
        options: NONE,
        request: |_, _| request(Opcode::BindMw, &[], &[]),
        status: Status::LocalQpOperation,
        responder: QpState::ReadyToSend,
        event: None,
    },
    Case {
        what: "invalidation of an ordinary key",
        options: NONE,
        request: |a, _| {
            let mut wr = request(Opcode::LocalInv, &[], &[]);
            wr.ex = a.mr.lkey;
            wr
        },
        status: Status::MemoryWindowBind,
        responder: QpState::ReadyToSend,
        event: None,
    },
    Case {
        what: "message above the limit",
        options: NONE,
        request: |a, _| send(&[sge(a, AT, 0x4000_0001)]),
        status: Status::LocalLength,
        responder: QpState::ReadyToSend,
        event: None,
    },
    Case {
        what: "no receive and no retries",
        options: |o| o.rnr_retry = 0,
        request: |a, _| send(&[sge(a, AT, 8)]),
        status: Status::RnrRetryExceeded,
        responder: QpState::ReadyToSend,
        event: None,
    },
    Case {
        what: "no receive after two retries",
        options: |o| o.rnr_retry = 2,
        request: |a, b| rdma(Opcode::RdmaWriteImm, &[sge(a, AT, 8)], THERE, b.mr.rkey),
        status: Status::RnrRetryExceeded,
        responder: QpState::ReadyToSend,
        event: None,
    },
];

#[test]
fn each_error_has_its_status_and_flushes_what_follows() {
    for path in PATHS {
        for case in CASES {
            let mut options = Options::new(path);
            (case.options)(&mut options);
            let mut pair = Pair::new(options);
            let (a, b) = (pair.a, pair.b);
            let what = format!("{} on {path:?}", case.what);
            // An unsignalled success before it, and one of each kind behind it.
            let before = rdma(Opcode::RdmaWrite, &[], 0, 0);
            let access_needed = pair.options.qp_access & ACCESS_REMOTE_WRITE != 0;
            if access_needed {
                pair.send(a, before);
                assert_status(pair.sent(a), Status::Success);
            }
            let failing = (case.request)(a, b);
            let queue = pair.host(a).sends.entry(a.qp.handle).or_default();
            queue.push_back(failing);
            for wr_id in [501, 502] {
                queue.push_back(SendRequest { wr_id, flags: 0, ..send(&[]) });
            }
            pair.recv(a, 601, &[]);
            let now = pair.now;
            pair.engine(a).send_doorbell(a.nic, a.qp.handle, now);
            let done = pair.sent(a);
            assert_eq!((done.status, done.wr_id), (case.status, 77), "{what}");
            for wr_id in [501, 502] {
                let done = pair.sent(a);
                assert_eq!(
                    (done.status, done.wr_id),
                    (Status::WorkRequestFlushed, wr_id),
                    "{what}"
                );
            }
            let flushed = pair.received(a);
            assert_eq!(
                (flushed.status, flushed.wr_id),
                (Status::WorkRequestFlushed, 601),
                "{what}"
            );
            assert_eq!(pair.state(a), QpState::Error, "{what}");
            assert_eq!(pair.state(b), case.responder, "{what}");
            if let Some(kind) = case.event {
                assert!(pair.events(b).contains(&kind), "{what}: {:?}", pair.events(b));
            }
            // What is posted to a queue pair in error is flushed too.
            pair.send(a, SendRequest { wr_id: 503, ..send(&[]) });
            let done = pair.sent(a);
            assert_eq!((done.status, done.wr_id), (Status::WorkRequestFlushed, 503), "{what}");
            pair.recv(a, 602, &[]);
            assert_status(pair.received(a), Status::WorkRequestFlushed);
        }
    }
}

#[test]
fn a_responder_without_read_resources_refuses_reads() {
    for path in PATHS {
        let options = Options::new(path);
        let mut pair = Pair::unconnected(options.clone());
        let (a, b) = (pair.a, pair.b);
        pair.bring_up(a, b, &options);
        pair.bring_up(b, a, &Options { reads: 0, ..options });
        pair.send(a, rdma(Opcode::RdmaRead, &[sge(a, AT, 8)], THERE, b.mr.rkey));
        assert_status(pair.sent(a), Status::RemoteInvalidRequest);
    }
}

#[test]
fn a_receive_that_is_too_small_fails_both_sides() {
    for path in PATHS {
        let mut pair = Pair::on(path);
        let (a, b) = (pair.a, pair.b);
        pair.recv(b, 1, &[sge(b, THERE, 99)]);
        pair.send(a, send(&[sge(a, AT, 100)]));
        assert_status(pair.sent(a), Status::RemoteInvalidRequest);
        assert_status(pair.received(b), Status::LocalLength);
        assert_eq!(pair.state(b), QpState::Error);
        assert_eq!(pair.read(b, THERE, 99), [0; 99]);
    }
}

#[test]
fn a_receive_with_a_bad_key_fails_both_sides() {
    for path in PATHS {
        let mut pair = Pair::on(path);
        let (a, b) = (pair.a, pair.b);
        let bad = Sge { lkey: 0xdead_beef, ..sge(b, THERE, 100) };
        pair.recv(b, 1, &[bad]);
        pair.send(a, send(&[sge(a, AT, 100)]));
        assert_status(pair.sent(a), Status::RemoteOperation);
        assert_status(pair.received(b), Status::LocalProtection);
    }
}

#[test]
fn a_late_receive_is_waited_for() {
    for path in PATHS {
        let mut pair = Pair::on(path);
        let (a, b) = (pair.a, pair.b);
        pair.send(a, send(&[sge(a, AT, 100)]));
        pair.until("an RNR NAK arrived", |p| p.engines[0].counters(a.nic).rnr_naks_received > 0);
        assert_eq!(pair.pending(a), 0, "{path:?}");
        pair.recv(b, 1, &[sge(b, THERE, 100)]);
        assert_status(pair.sent(a), Status::Success);
        assert_status(pair.received(b), Status::Success);
    }
}

/// What makes a peer fall silent.
type Silence = fn(&mut Pair);

#[test]
fn a_peer_that_is_gone_ends_in_retry_exceeded() {
    let ways: [(&str, Silence); 4] = [
        ("its NIC is reset", |p| {
            let b = p.b;
            p.engine(b).reset_nic(b.nic);
        }),
        ("its queue pair is destroyed", |p| {
            let b = p.b;
            p.engine(b).destroy_qp(b.nic, b.qp.handle).expect("it was there");
        }),
        ("its queue pair is reset", |p| {
            let b = p.b;
            let attr = QpAttr { qp_state: QpState::Reset.wire(), ..QpAttr::default() };
            p.engine(b).modify_qp(b.nic, b.qp.handle, mask::STATE, &attr).expect("always");
        }),
        ("its GID is gone", |p| {
            let b = p.b;
            p.engine(b).unbind_gid(b.nic, 1).expect("bound");
        }),
    ];
    for path in [Path::TwoNics, Path::Link] {
        for (what, silence) in ways {
            let mut options = Options::new(path);
            options.timeout = 8;
            let mut pair = Pair::new(options);
            let a = pair.a;
            silence(&mut pair);
            pair.send(a, send(&[]));
            let done = pair.sent(a);
            assert_eq!(done.status, Status::RetryExceeded, "{what} on {path:?}");
            let counted = pair.engine(a).counters(a.nic).retries;
            assert_eq!(counted, 3, "{what} on {path:?}");
        }
    }
}

#[test]
fn a_link_that_goes_down_ends_in_retry_exceeded() {
    let mut options = Options::new(Path::Link);
    options.timeout = 8;
    let mut pair = Pair::new(options);
    let (a, b) = (pair.a, pair.b);
    // The other process dies.
    pair.engines.truncate(1);
    pair.until("the link is down", |p| p.engines[0].links()[0].down_reason.is_some());
    assert_eq!(pair.engines[0].links()[0].gids, 0);
    pair.send(a, rdma(Opcode::RdmaWrite, &[sge(a, AT, 8)], THERE, b.mr.rkey));
    assert_status(pair.sent(a), Status::RetryExceeded);
}

#[test]
fn packet_numbers_that_do_not_fit_end_in_retry_exceeded() {
    for path in [Path::TwoNics, Path::Link] {
        let options = Options { timeout: 8, ..Options::new(path) };
        let mut pair = Pair::unconnected(options.clone());
        let (a, b) = (pair.a, pair.b);
        pair.bring_up(a, b, &options);
        for (bits, attr) in way_up(b, a, &options) {
            let attr = QpAttr { rq_psn: 5, ..attr };
            pair.engine(b).modify_qp(b.nic, b.qp.handle, bits, &attr).expect("way up");
        }
        pair.send(a, send(&[]));
        assert_status(pair.sent(a), Status::RetryExceeded);
    }
}

#[test]
fn an_overrun_is_told_once_and_stops_every_queue_pair_of_the_queue() {
    for path in PATHS {
        let mut pair = Pair::on(path);
        let (a, b) = (pair.a, pair.b);
        pair.host(a).cq_depth = 3;
        for _ in 0..5 {
            pair.send(a, rdma(Opcode::RdmaWrite, &[], 0, b.mr.rkey));
        }
        pair.until("the queue pair stops", |p| p.state(a) == QpState::Error);
        pair.settle();
        let events = pair.events(a);
        let count = |kind| events.iter().filter(|e| **e == kind).count();
        assert_eq!((count(EventKind::CqError), count(EventKind::QpFatal)), (1, 1), "{path:?}");
        assert_eq!(pair.host(a).completions[&a.send_cq].len(), 3);
    }
}

#[test]
fn a_full_receive_queue_at_the_responder_fails_the_requester() {
    for path in [Path::TwoNics, Path::Link] {
        let mut pair = Pair::on(path);
        let (a, b) = (pair.a, pair.b);
        pair.host(b).cq_depth = 0;
        pair.recv(b, 1, &[]);
        pair.send(a, send(&[]));
        assert_status(pair.sent(a), Status::RemoteOperation);
        assert_eq!(pair.events(b), [EventKind::CqError, EventKind::QpFatal]);
    }
}

#[test]
fn modify_to_error_flushes_both_rings_in_order() {
    let mut pair = Pair::on(Path::TwoNics);
    let a = pair.a;
    for n in 0..100 {
        let wr = SendRequest { wr_id: n, flags: 0, ..send(&[]) };
        pair.host(a).sends.entry(a.qp.handle).or_default().push_back(wr);
        pair.recv(a, 1000 + n, &[]);
    }
    let attr = QpAttr { qp_state: QpState::Error.wire(), ..QpAttr::default() };
    pair.engine(a).modify_qp(a.nic, a.qp.handle, mask::STATE, &attr).expect("always");
    for n in 0..100 {
        let (sent, received) = (pair.sent(a), pair.received(a));
        assert_eq!((sent.wr_id, sent.status), (n, Status::WorkRequestFlushed));
        assert_eq!((received.wr_id, received.status), (1000 + n, Status::WorkRequestFlushed));
    }
}

#[test]
fn a_failed_datagram_stops_only_the_send_queue() {
    let options = Options { qp_type: QpType::Ud, ..Options::new(Path::TwoNics) };
    let mut pair = Pair::new(options);
    let (a, b) = (pair.a, pair.b);
    pair.send(a, datagram(b, &[sge(a, AT, 4097)]));
    assert_status(pair.sent(a), Status::LocalLength);
    assert_eq!(pair.state(a), QpState::SendQueueError);
    pair.recv(a, 4, &[sge(a, AT, 100)]);
    pair.send(b, datagram(a, &[sge(b, THERE, 10)]));
    assert_status(pair.received(a), Status::Success);
    let attr = QpAttr { qp_state: QpState::ReadyToSend.wire(), ..QpAttr::default() };
    pair.engine(a).modify_qp(a.nic, a.qp.handle, mask::STATE, &attr).expect("from SQE to RTS");
    pair.recv(b, 5, &[sge(b, THERE, 100)]);
    pair.send(a, datagram(b, &[sge(a, AT, 10)]));
    assert_status(pair.sent(a), Status::Success);
    assert_status(pair.received(b), Status::Success);
}

#[test]
fn datagrams_nobody_takes_are_dropped_without_a_word() {
    let options = Options { qp_type: QpType::Ud, ..Options::new(Path::TwoNics) };
    let mut pair = Pair::new(options);
    let (a, b) = (pair.a, pair.b);
    let drops = |p: &Pair| p.engines[0].counters(b.nic).datagrams_dropped;
    pair.send(a, datagram(b, &[sge(a, AT, 10)]));
    assert_status(pair.sent(a), Status::Success);
    assert_eq!(drops(&pair), 1, "no receive");
    pair.recv(b, 5, &[sge(b, THERE, 100)]);
    let mut wr = datagram(b, &[sge(a, AT, 10)]);
    wr.body[4] ^= 1;
    pair.send(a, wr);
    assert_status(pair.sent(a), Status::Success);
    assert_eq!(drops(&pair), 2, "wrong queue key");
    // The top bit means the queue pair's own key.
    let mut wr = datagram(b, &[sge(a, AT, 10)]);
    wr.body[4..8].copy_from_slice(&0x8000_0000u32.to_le_bytes());
    pair.send(a, wr);
    assert_status(pair.received(b), Status::Success);
    let queue = RecvQueue::Own(b.qp.handle);
    assert!(pair.host(b).receives[&queue].is_empty());
}
