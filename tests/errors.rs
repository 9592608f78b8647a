//! Every error a verbs user knows, produced between two endpoints and seen with its proper status;
//! and what the driver refuses before the device sees it.

mod support;

use std::time::{Duration, Instant};

use holdfast::{
    Access, Completion, CompletionQueue, Datagram, DeregisterError, PostError, QpType, QueuePair,
    QueuePairOptions, Remote, SendFlags, Status,
};
use holdfast_driver as driver;
use holdfast_wire::attr::QpState;
use holdfast_wire::event::EventKind;
use holdfast_wire::wqe::Sge;
use support::{
    Pair, SETTINGS, Side, any_setting, connect_with, expect_silence, options, settings,
    short_retries, unconnected,
};

const LEN: usize = 1 << 16;
const SIGNALED: SendFlags = SendFlags::SIGNALED;

/// What the requester does, to a pair whose target region has the rights of the row.
type Request = fn(&mut Pair);

fn post_raw(pair: &mut Pair, sge: Sge) {
    let remote = pair.b.at(0);
    pair.a.qp.driver().send.write(9, &[sge], remote, SIGNALED).unwrap();
}

fn write_to(pair: &mut Pair, remote: Remote, len: usize) {
    let local = pair.a.region.slice(0, len).unwrap();
    pair.a.qp.write(9, &[local], remote, SIGNALED).unwrap();
}

fn good_sge(pair: &Pair) -> Sge {
    Sge { addr: pair.a.region.remote().addr, length: 64, lkey: pair.a.region.lkey() }
}

#[test]
fn a_request_that_must_fail_fails_with_its_own_status_and_stops_the_queue_pair() {
    let rows: &[(&str, Access, Request, Status)] = &[
        (
            "a local key that does not exist",
            Access::ALL,
            |pair| {
                let sge = Sge { lkey: good_sge(pair).lkey ^ 0x00ff_ff00, ..good_sge(pair) };
                post_raw(pair, sge);
            },
            Status::LocalProtection,
        ),
        (
            "a local entry that runs past its region",
            Access::ALL,
            |pair| {
                let end = good_sge(pair).addr + pair.a.region.len() as u64;
                let sge = Sge { addr: end - 63, ..good_sge(pair) };
                post_raw(pair, sge);
            },
            Status::LocalProtection,
        ),
        (
            "a remote key that does not exist",
            Access::ALL,
            |pair| {
                let remote = Remote { rkey: pair.b.at(0).rkey ^ 0x00ff_ff00, ..pair.b.at(0) };
                write_to(pair, remote, 64);
            },
            Status::RemoteAccess,
        ),
        (
            "a remote key of a region that is gone",
            Access::ALL,
            |pair| {
                let gone = pair.b.pd.register(support::memory(LEN), Access::ALL).unwrap();
                let remote = Remote { addr: gone.remote().addr, rkey: gone.rkey() };
                gone.deregister().unwrap();
                write_to(pair, remote, 64);
            },
            Status::RemoteAccess,
        ),
        (
            "a remote address one byte out of range",
            Access::ALL,
            |pair| {
                let remote = pair.b.at(pair.b.region.len() - 63);
                write_to(pair, remote, 64);
            },
            Status::RemoteAccess,
        ),
        (
            "a WRITE to a region that peers may only read",
            Access::REMOTE_READ,
            |pair| {
                let remote = pair.b.at(0);
                write_to(pair, remote, 64);
            },
            Status::RemoteAccess,
        ),
        (
            "a READ of a region that peers may only write",
            Access::REMOTE_WRITE,
            |pair| {
                let (local, remote) = (pair.a.region.slice(0, 64).unwrap(), pair.b.at(0));
                pair.a.qp.read(9, &[local], remote, SIGNALED).unwrap();
            },
            Status::RemoteAccess,
        ),
        (
            "an atomic on a region without that right",
            Access::REMOTE_WRITE,
            |pair| {
                let (local, remote) = (pair.a.region.slice(0, 8).unwrap(), pair.b.at(0));
                pair.a.qp.fetch_add(9, local, remote, 1, SIGNALED).unwrap();
            },
            Status::RemoteAccess,
        ),
        (
            "a SEND into a receive that is too short",
            Access::ALL,
            |pair| {
                pair.b.qp.receive(1, &[pair.b.region.slice(0, 63).unwrap()]).unwrap();
                pair.b.qp.ring_receives();
                let local = pair.a.region.slice(0, 64).unwrap();
                pair.a.qp.send(9, &[local], SIGNALED).unwrap();
            },
            Status::RemoteInvalidRequest,
        ),
    ];
    for setting in settings(&SETTINGS) {
        for (what, access, request, status) in rows {
            let mut pair = Pair::with(setting, LEN, *access, &options());
            pair.b.region.memory().fill(0, LEN, 0x5a).unwrap();
            request(&mut pair);
            // Two more behind it, which must not be carried out.
            for id in [10, 11] {
                let (local, remote) = (pair.a.region.slice(0, 8).unwrap(), pair.b.at(0));
                pair.a.qp.write(id, &[local], remote, SIGNALED).unwrap();
            }
            pair.a.qp.ring_sends();
            let failed = pair.a.completion();
            assert_eq!((failed.wr_id, failed.status), (9, *status), "{setting:?}: {what}");
            for id in [10, 11] {
                let flushed = pair.a.completion();
                let expected = (id, Status::WorkRequestFlushed);
                assert_eq!((flushed.wr_id, flushed.status), expected, "{setting:?}: {what}");
            }
            let state = pair.a.qp.driver().control.query_state().unwrap();
            assert_eq!(state, QpState::Error, "{setting:?}: {what}");
            let untouched = pair.b.bytes(0, LEN).iter().all(|byte| *byte == 0x5a);
            assert!(untouched, "{setting:?}: {what}: the target was touched");
            if *what == "a SEND into a receive that is too short" {
                assert_eq!(pair.b.completion().status, Status::LocalLength, "{setting:?}");
            }
        }
    }
}

#[test]
fn a_receive_into_memory_that_is_not_there_fails_on_both_sides() {
    for setting in settings(&SETTINGS) {
        let mut pair = Pair::new(setting, LEN);
        let entry = Sge { addr: pair.b.region.remote().addr, length: 64, lkey: 0x00ab_cd00 };
        let queue = pair.b.qp.driver().recv.as_mut().unwrap();
        queue.post(3, &[entry]).unwrap();
        queue.ring();
        let local = pair.a.region.slice(0, 64).unwrap();
        pair.a.qp.send(9, &[local], SIGNALED).unwrap();
        pair.a.qp.ring_sends();
        assert_eq!(pair.a.completion().status, Status::RemoteOperation, "{setting:?}");
        assert_eq!(pair.b.completion().status, Status::LocalProtection, "{setting:?}");
    }
}

/// An address in the device's address space at which nothing is mapped.
const MAPPED_NOWHERE: u64 = 0x3f_ffff_f000;

#[test]
fn memory_that_is_mapped_nowhere_fails_the_request_that_needs_it() {
    for setting in settings(&SETTINGS) {
        let register = |side: &Side| {
            let access =
                holdfast_wire::attr::ACCESS_LOCAL_WRITE | holdfast_wire::attr::ACCESS_REMOTE_WRITE;
            let pd = side.pd.driver();
            pd.device().register_mr(pd, 0x10_0000, 4096, &[MAPPED_NOWHERE], access).unwrap()
        };
        let mut pair = Pair::new(setting, LEN);
        let missing = register(&pair.a);
        post_raw(&mut pair, Sge { addr: missing.start(), length: 64, lkey: missing.lkey() });
        pair.a.qp.ring_sends();
        assert_eq!(pair.a.completion().status, Status::LocalProtection, "{setting:?}");
        drop(missing);
        drop(pair);

        let mut pair = Pair::new(setting, LEN);
        let missing = register(&pair.b);
        write_to(&mut pair, Remote { addr: missing.start(), rkey: missing.rkey() }, 64);
        pair.a.qp.ring_sends();
        assert_eq!(pair.a.completion().status, Status::RemoteOperation, "{setting:?}");
        let event = pair.nics.b.next_event().unwrap().expect("an event at the responder");
        assert_eq!(event.kind, EventKind::QpFatal, "{setting:?}");
    }
}

#[test]
fn a_read_on_a_connection_that_allows_none_is_refused_by_the_device() {
    for setting in settings(&SETTINGS) {
        let (nics, mut a, mut b) = unconnected(setting, LEN);
        let rts = driver::ReadyToSend { sq_psn: 0, max_rd_atomic: 0, ..Default::default() };
        connect_with(&mut a, &mut b, [nics.a.gid(), nics.b.gid()], rts);
        let remote = b.at(0);
        a.qp.read(9, &[a.region.slice(0, 64).unwrap()], remote, SIGNALED).unwrap();
        a.qp.ring_sends();
        assert_eq!(a.completion().status, Status::LocalQpOperation, "{setting:?}");
    }
}

#[test]
fn a_datagram_needs_the_right_queue_key_and_a_receive_that_is_long_enough() {
    const QKEY: u32 = 0x1111_2222;
    for setting in settings(&SETTINGS) {
        let ud = QueuePairOptions { qp_type: QpType::Ud, qkey: QKEY, inline: 0, ..options() };
        let nics = support::Nics::new(setting);
        let mut a = Side::new(&nics.a, LEN, Access::ALL, &ud);
        let mut b = Side::new(&nics.b, LEN, Access::ALL, &ud);
        a.qp.start_datagrams().unwrap();
        b.qp.start_datagrams().unwrap();
        let path = driver::Path::new(nics.b.gid(), 0);
        let handle = driver::AddressHandle::new(a.pd.driver(), &path).unwrap();
        let send = |a: &mut Side, b: &mut Side, qkey: u32| {
            let to = Datagram { to: &handle, qpn: b.qp.info().qpn, qkey };
            let local = a.region.slice(0, 100).unwrap();
            a.qp.send_datagram(6, &[local], to, SIGNALED).unwrap();
            a.qp.ring_sends();
            assert!(a.completion().is_success(), "nobody tells the sender");
        };
        // 40 bytes of it are for the GRH.
        b.qp.receive(4, &[b.region.slice(0, 139).unwrap()]).unwrap();
        b.qp.ring_receives();
        for _ in 0..3 {
            send(&mut a, &mut b, QKEY ^ 1);
        }
        expect_silence(&mut b.cq, Duration::from_millis(100));
        // The route to another process may not be known yet: the first ones may be lost.
        let failed = loop {
            send(&mut a, &mut b, QKEY);
            let mut out = [Completion::default()];
            std::thread::sleep(Duration::from_millis(100));
            if b.cq.poll(&mut out).unwrap() == 1 {
                break out[0];
            }
        };
        assert_eq!((failed.wr_id, failed.status), (4, Status::LocalLength), "{setting:?}");
    }
}

#[test]
fn a_send_without_a_receive_is_retried_and_then_fails_with_rnr() {
    for setting in settings(&SETTINGS) {
        let (nics, mut a, mut b) = unconnected(setting, LEN);
        let gids = [nics.a.gid(), nics.b.gid()];
        let rts = driver::ReadyToSend { sq_psn: 0, rnr_retry: 3, ..Default::default() };
        connect_with(&mut a, &mut b, gids, rts);
        a.qp.send(9, &[a.region.slice(0, 64).unwrap()], SIGNALED).unwrap();
        a.qp.ring_sends();
        assert_eq!(a.completion().status, Status::RnrRetryExceeded, "{setting:?}");
    }
}

#[test]
fn a_send_waits_for_a_receive_for_as_long_as_it_may() {
    for setting in settings(&SETTINGS) {
        let mut pair = Pair::new(setting, LEN);
        let local = pair.a.region.slice(0, 64).unwrap();
        pair.a.qp.send(9, &[local], SIGNALED).unwrap();
        pair.a.qp.ring_sends();
        expect_silence(&mut pair.a.cq, Duration::from_millis(50));
        pair.b.qp.receive(1, &[pair.b.region.slice(0, 64).unwrap()]).unwrap();
        pair.b.qp.ring_receives();
        assert!(pair.a.completion().is_success(), "{setting:?}");
        assert!(pair.b.completion().is_success(), "{setting:?}");
    }
}

#[test]
fn a_peer_that_went_away_is_reported_after_the_retries() {
    for setting in settings(&SETTINGS) {
        let (nics, mut a, mut b) = unconnected(setting, LEN);
        connect_with(&mut a, &mut b, [nics.a.gid(), nics.b.gid()], short_retries());
        let remote = b.at(0);
        drop(b);
        a.qp.write(9, &[a.region.slice(0, 64).unwrap()], remote, SIGNALED).unwrap();
        a.qp.ring_sends();
        assert_eq!(a.completion().status, Status::RetryExceeded, "{setting:?}");
    }
}

#[test]
fn a_queue_pair_in_error_flushes_sends_and_receives_in_order() {
    for setting in settings(&SETTINGS) {
        let mut pair = Pair::new(setting, LEN);
        for id in 0..8 {
            pair.b.qp.receive(100 + id, &[pair.b.region.slice(0, 64).unwrap()]).unwrap();
        }
        pair.b.qp.ring_receives();
        pair.b.qp.driver().to_error().unwrap();
        for id in 0..8 {
            let flushed = pair.b.completion();
            let expected = (100 + id, Status::WorkRequestFlushed, true);
            assert_eq!((flushed.wr_id, flushed.status, flushed.is_receive()), expected);
        }
        // The other side's sends find nobody, and drain ends them.
        let (local, remote) = (pair.a.region.slice(0, 8).unwrap(), pair.b.at(0));
        for id in 0..4 {
            pair.a.qp.write(id, &[local], remote, SIGNALED).unwrap();
        }
        pair.a.qp.ring_sends();
        let mut ended = Vec::new();
        let mut sink = |completion: Completion| ended.push((completion.wr_id, completion.status));
        let mut queues: [&mut CompletionQueue; 1] = [&mut pair.a.cq];
        pair.a.qp.drain(&mut queues, support::PATIENCE, &mut sink).unwrap();
        let ids: Vec<u64> = ended.iter().map(|(id, _)| *id).collect();
        assert_eq!(ids, [0, 1, 2, 3], "{setting:?}: {ended:?}");
        assert!(ended.iter().all(|(_, status)| *status != Status::Success), "{ended:?}");
        assert_eq!(pair.a.qp.outstanding_sends(), 0);
    }
}

#[test]
fn posting_checks_every_limit_before_the_device_sees_anything() {
    let mut pair = Pair::new(any_setting(), LEN);
    let region = pair.a.region.clone();
    let slice = region.slice(0, 8).unwrap();
    let remote = pair.b.at(0);
    let qp = &mut pair.a.qp;

    let five = [slice; 5];
    let error = qp.write(1, &five, remote, SIGNALED).unwrap_err();
    assert_eq!(error, PostError::TooManySges { given: 5, limit: 4 });
    let error = qp.write_inline(1, &[0; 65], remote, SIGNALED).unwrap_err();
    assert!(matches!(error, PostError::InlineTooLong { given: 65, .. }), "{error}");
    let odd = Remote { addr: remote.addr + 4, ..remote };
    let error = qp.fetch_add(1, slice, odd, 1, SIGNALED).unwrap_err();
    assert!(matches!(error, PostError::AtomicOperand { .. }), "{error}");

    // A full queue says so, and takes requests again once one completes.
    let depth = 128;
    for id in 0..depth {
        qp.write(id, &[slice], remote, SIGNALED).unwrap();
    }
    let error = qp.write(depth, &[slice], remote, SIGNALED).unwrap_err();
    assert_eq!(error, PostError::QueueFull { depth: depth as u32 });
    qp.ring_sends();
    for id in 0..depth {
        assert_eq!(pair.a.completion().wr_id, id);
    }
    pair.a.qp.write(depth, &[slice], remote, SIGNALED).unwrap();

    let receive = pair.b.region.slice(0, 8).unwrap();
    for id in 0..depth {
        pair.b.qp.receive(id, &[receive]).unwrap();
    }
    let error = pair.b.qp.receive(depth, &[receive]).unwrap_err();
    assert_eq!(error, PostError::QueueFull { depth: depth as u32 });
    assert!(pair.a.region.slice(LEN - 7, 8).is_err(), "a slice stays inside its region");
}

#[test]
fn a_queue_pair_that_is_not_connected_refuses_to_send() {
    let (_nics, mut a, b) = unconnected(any_setting(), LEN);
    let error = a.qp.write(1, &[a.region.slice(0, 8).unwrap()], b.at(0), SIGNALED).unwrap_err();
    assert!(matches!(error, PostError::QpState { .. }), "{error}");
}

#[test]
fn a_completion_queue_that_overruns_raises_an_event_and_stops_its_queue_pairs() {
    for setting in settings(&SETTINGS) {
        let nics = support::Nics::new(setting);
        let device = nics.a.driver();
        let uar = device.alloc_uar().unwrap();
        let pd = nics.a.protection_domain().unwrap();
        let region = pd.register(support::memory(LEN), Access::ALL).unwrap();
        let cq = device.create_cq(&uar, 64).unwrap();
        let config = driver::QpConfig {
            overcommit: true,
            ..driver::QpConfig::new(holdfast::QpType::Rc, 256)
        };
        let mut qp = device.create_qp(pd.driver(), &uar, &config, &cq, &cq).unwrap();
        qp.control.to_init(&driver::Init::default()).unwrap();
        let mut b = Side::new(&nics.b, LEN, Access::ALL, &options());
        let info = holdfast::connect::QueuePairInfo { qpn: qp.qpn(), psn: 0, qkey: 0 };
        let at_a = holdfast::connect::Endpoint { gid: nics.a.gid(), mtu: 5, ..Default::default() };
        b.qp.connect(&info, &at_a).unwrap();
        let rtr = driver::ReadyToReceive {
            path: driver::Path::new(nics.b.gid(), 0),
            path_mtu: 5,
            dest_qpn: b.qp.info().qpn,
            rq_psn: 0,
            max_dest_rd_atomic: 1,
            min_rnr_timer: 1,
        };
        qp.control.to_rtr(&rtr).unwrap();
        qp.control.to_rts(&driver::ReadyToSend::default()).unwrap();

        // One more than the queue holds, and nobody polls.
        let sge = Sge { addr: region.remote().addr, length: 8, lkey: region.lkey() };
        for id in 0..65 {
            qp.send.write(id, &[sge], b.at(0), SIGNALED).unwrap();
        }
        qp.send.ring();
        let start = Instant::now();
        let mut events = Vec::new();
        while events.len() < 2 {
            events.extend(device.next_event().unwrap());
            assert!(start.elapsed() < support::PATIENCE, "{setting:?}: only {events:?}");
            std::thread::yield_now();
        }
        let kinds: Vec<_> = events.iter().map(|event| (event.kind, event.info)).collect();
        assert!(kinds.contains(&(EventKind::CqError, cq.handle())), "{kinds:?}");
        assert!(kinds.contains(&(EventKind::QpFatal, qp.handle())), "{kinds:?}");
        assert_eq!(qp.control.query_state().unwrap(), QpState::Error);
    }
}

#[test]
fn a_shared_receive_queue_says_once_when_it_runs_low() {
    for setting in settings(&SETTINGS) {
        let nics = support::Nics::new(setting);
        let pd = nics.b.protection_domain().unwrap();
        let mut shared = pd.shared_receive_queue(64, 1).unwrap();
        let cq = nics.b.completion_queue(256).unwrap();
        let with_shared = QueuePairOptions { shared_receives: Some(&shared), ..options() };
        let mut receiver = pd.queue_pair(&with_shared, &cq, &cq).unwrap();
        let mut a = Side::new(&nics.a, LEN, Access::ALL, &options());
        QueuePair::connect_pair(&mut a.qp, &mut receiver).unwrap();
        for id in 0..8 {
            shared.receive(id, &[]).unwrap();
        }
        shared.ring();
        shared.set_limit(5).unwrap();
        for sent in 1..=6 {
            a.qp.send(sent, &[], SIGNALED).unwrap();
            a.qp.ring_sends();
            assert!(a.completion().is_success());
            let limit = std::iter::from_fn(|| nics.b.next_event().unwrap())
                .filter(|event| event.kind == EventKind::SrqLimitReached)
                .inspect(|event| assert_eq!(event.info, shared.handle()))
                .count();
            assert_eq!(limit, usize::from(sent == 4), "{setting:?}: after {sent} of 8");
        }
    }
}

#[test]
fn a_region_that_a_request_needs_is_not_given_back() {
    let mut pair = Pair::new(any_setting(), LEN);
    let extra = pair.a.pd.register(support::memory(LEN), Access::ALL).unwrap();
    // Nobody has posted a receive, so the SEND stays outstanding.
    pair.a.qp.send(1, &[extra.slice(0, 64).unwrap()], SIGNALED).unwrap();
    pair.a.qp.ring_sends();
    let extra = match extra.deregister() {
        Err(DeregisterError::Busy { region, .. }) => {
            assert!(pair.a.qp.release(&region).is_err(), "a request needs it");
            region
        }
        other => panic!("the region went under an outstanding request: {other:?}"),
    };
    pair.b.qp.receive(1, &[pair.b.region.slice(0, 64).unwrap()]).unwrap();
    pair.b.qp.ring_receives();
    assert!(pair.a.completion().is_success());
    pair.a.qp.release(&extra).unwrap();
    extra.deregister().unwrap();
}
