//! What many links, many peers and peers that misbehave make of an engine.

mod engine_support;

use std::io::Write;
use std::os::unix::net::UnixStream;

use engine_support::*;
use holdfast_nic::engine::Engine;
use holdfast_wire::attr::*;
use holdfast_wire::completion::Status;
use holdfast_wire::wqe::*;

const AT: u64 = BASE + 0x2000;
const THERE: u64 = BASE + 0x8_0000;
/// Links that an engine takes.
const MAX_LINKS: usize = 64;

fn words(words: [u32; 4]) -> Vec<u8> {
    words.iter().flat_map(|w| w.to_le_bytes()).collect()
}

fn hello() -> Vec<u8> {
    words([8, 1, 0x4b4e_4c48, 1])
}

/// A frame that announces a GID.
fn announce(n: u8) -> Vec<u8> {
    let mut frame = words([16, 2, 0, 0]);
    frame.truncate(8);
    frame.extend(gid(n));
    frame
}

/// A peer of an engine's new link that says hello and then one GID `count` times.
fn chatter(engine: &mut Engine<MemHost>, n: u8, count: usize) -> UnixStream {
    let (ours, mut theirs) = UnixStream::pair().expect("a socket pair");
    engine.add_link(ours, Box::new(|| {})).expect("a link");
    let mut said = hello();
    for _ in 0..count {
        said.extend(announce(n));
    }
    theirs.write_all(&said).expect("room");
    let start = std::time::Instant::now();
    while engine.links().last().expect("a link").bytes_received < said.len() as u64 {
        assert!(start.elapsed().as_secs() < 20, "the reader reads");
        std::thread::yield_now();
    }
    theirs
}

#[test]
fn peers_that_always_have_something_to_say_starve_nobody() {
    let mut pair = Pair::on(Path::TwoNics);
    let (a, b) = (pair.a, pair.b);
    let _peers = [1, 2, 3].map(|n| chatter(pair.engine(a), 100 + n, 60));
    for _ in 0..100 {
        let wr = rdma(Opcode::RdmaWrite, &[sge(a, AT, 8)], THERE, b.mr.rkey);
        pair.host(a).sends.entry(a.qp.handle).or_default().push_back(wr);
    }
    let now = pair.now;
    assert!(pair.engine(a).send_doorbell(a.nic, a.qp.handle, now), "more is left");
    assert_eq!(pair.pending(a), 32);
    let progress = pair.engine(a).poll(now);
    assert_eq!(pair.pending(a), 64, "queue pairs go on beside the links");
    assert!(progress.more_to_do);
    assert!(pair.engine(a).links().iter().all(|link| link.up), "each link had a turn");
}

#[test]
fn a_reset_gives_back_the_room_of_reads_under_way() {
    const LEN: usize = 1 << 20;
    let mut pair = Pair::unconnected(Options::new(Path::Link));
    let (a, b, options) = (pair.a, pair.b, pair.options.clone());
    let reset = QpAttr { qp_state: QpState::Reset.wire(), ..QpAttr::default() };
    // Four READs of 1 MiB each time: more than the 8 MiB that may be under way.
    for _ in 0..3 {
        pair.bring_up(a, b, &options);
        for _ in 0..4 {
            pair.send(a, rdma(Opcode::RdmaRead, &[sge(a, AT, LEN)], AT, b.mr.rkey));
        }
        for _ in 0..100 {
            pair.now += 1_000;
            let now = pair.now;
            pair.engine(a).poll(now);
        }
        assert!(pair.engine(a).counters(a.nic).packets_sent > 0);
        pair.engine(a).modify_qp(a.nic, a.qp.handle, mask::STATE, &reset).expect("always");
        pair.settle();
    }
    let sent = pair.engine(a).counters(a.nic).packets_sent;
    assert_eq!(sent, 3 * 4 * (LEN >> 16) as u64, "every READ had left");
    pair.bring_up(a, b, &options);
    pair.bring_up(b, a, &options);
    pair.send(a, rdma(Opcode::RdmaRead, &[sge(a, AT, LEN)], AT, b.mr.rkey));
    assert_status(pair.sent(a), Status::Success);
}

#[test]
fn the_oldest_link_that_is_down_makes_room_for_a_new_one() {
    let mut engine: Engine<MemHost> = Engine::new();
    let mut peers = Vec::new();
    let mut add = |engine: &mut Engine<MemHost>| {
        let (ours, theirs) = UnixStream::pair().expect("a socket pair");
        peers.push(theirs);
        engine.add_link(ours, Box::new(|| {}))
    };
    let ids: Vec<_> = (0..MAX_LINKS).map(|_| add(&mut engine).expect("room")).collect();
    let full = add(&mut engine).expect_err("all are in use");
    assert!(full.to_string().contains("64"), "{full}");
    engine.remove_link(ids[9]);
    engine.remove_link(ids[4]);
    assert_eq!(engine.links().iter().filter(|link| link.down_reason.is_some()).count(), 2);
    for (place, old) in [(9, ids[9]), (4, ids[4])] {
        let new = add(&mut engine).expect("one is down");
        assert!(!ids.contains(&new));
        // The old name means nothing any more.
        engine.remove_link(old);
        let status = &engine.links()[place];
        assert_eq!((status.id, &status.down_reason), (place + MAX_LINKS, &None));
    }
    assert_eq!(engine.links().len(), MAX_LINKS);
    add(&mut engine).expect_err("all are in use");
}

#[test]
fn a_link_in_the_place_of_another_carries_traffic() {
    let mut pair = Pair::on(Path::Link);
    let (a, b) = (pair.a, pair.b);
    // The other places are taken by peers that say nothing.
    let mut silent = Vec::new();
    for _ in 1..MAX_LINKS {
        let (ours, theirs) = UnixStream::pair().expect("a socket pair");
        pair.engines[0].add_link(ours, Box::new(|| {})).expect("room");
        silent.push(theirs);
    }
    let old = pair.links[0];
    pair.engines[0].remove_link(old);
    pair.until("both are down", |p| p.engines[1].links()[0].down_reason.is_some());
    let (one, other) = UnixStream::pair().expect("a socket pair");
    pair.engines[0].add_link(one, Box::new(|| {})).expect("one is down");
    pair.engines[1].add_link(other, Box::new(|| {})).expect("room");
    pair.until("both are up", |p| {
        p.engines[0].links()[0].gids == 1 && p.engines[1].links()[1].gids == 1
    });
    assert_eq!(pair.engines[0].links()[0].id, MAX_LINKS);
    for (from, to) in [(a, b), (b, a)] {
        for opcode in [Opcode::RdmaWrite, Opcode::RdmaRead] {
            pair.send(from, rdma(opcode, &[sge(from, AT, 100_000)], THERE, to.mr.rkey));
            assert_status(pair.sent(from), Status::Success);
        }
    }
}

#[test]
fn a_gid_behind_a_link_cannot_be_bound_here() {
    let mut pair = Pair::on(Path::Link);
    let (a, b) = (pair.a, pair.b);
    let refused = pair.engine(a).bind_gid(a.nic, 7, b.gid).expect_err("it is the peer's");
    assert_eq!(refused.errno(), libc::EINVAL);
    pair.write(a, AT, &[5; 8]);
    pair.send(a, rdma(Opcode::RdmaWrite, &[sge(a, AT, 8)], THERE, b.mr.rkey));
    assert_status(pair.sent(a), Status::Success);
    assert_eq!(pair.read(b, THERE, 8), [5; 8]);
    pair.engine(b).unbind_gid(b.nic, 1).expect("it was there");
    pair.until("the peer has none", |p| p.engines[0].links()[0].gids == 0);
    pair.engine(a).bind_gid(a.nic, 7, b.gid).expect("nobody has it");
}

#[test]
fn a_peer_that_announces_too_many_gids_keeps_its_link() {
    let mut pair = Pair::on(Path::TwoNics);
    let (ours, mut theirs) = UnixStream::pair().expect("a socket pair");
    pair.engines[0].add_link(ours, Box::new(|| {})).expect("a link");
    let mut said = hello();
    for n in 1..5000u128 {
        let mut frame = announce(0);
        frame[8..].copy_from_slice(&(n << 64).to_be_bytes());
        said.extend(frame);
    }
    let len = said.len() as u64;
    std::thread::scope(|scope| {
        scope.spawn(|| theirs.write_all(&said).expect("it is read"));
        pair.until("all is read", |p| {
            let status = &p.engines[0].links()[0];
            status.bytes_received == len && status.gids == 4096
        });
    });
    pair.settle();
    assert!(pair.engines[0].links()[0].up);
}
