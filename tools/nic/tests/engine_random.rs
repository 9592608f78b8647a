//! Properties: any split of source and destination gives the same bytes, lost and repeated packets
//! do not show, and nothing that a client or a peer process writes makes the engine panic.

mod engine_support;

use std::io::Write;
use std::os::unix::net::UnixStream;

use engine_support::*;
use holdfast_nic::engine::host::SendRequest;
use holdfast_wire::attr::*;
use holdfast_wire::completion::Status;
use holdfast_wire::wqe::*;
use proptest::prelude::*;
use zerocopy::IntoBytes;

const SOURCE: u64 = BASE;
const TARGET: u64 = BASE + 0x10_0000;
/// Room for the pieces of one side, gaps included.
const ROOM: u64 = 0x4_0000;

/// Lengths and gaps of up to 32 pieces.
fn pieces() -> impl Strategy<Value = Vec<(usize, u64)>> {
    prop::collection::vec((0usize..6000, 0u64..1500), 1..=32)
}

/// Entries for `len` bytes in the given pieces; the last takes what is left.
fn entries(side: Side, start: u64, pieces: &[(usize, u64)], len: usize) -> Vec<Sge> {
    let (mut at, mut left) = (start, len);
    let mut out = Vec::new();
    for (n, (length, gap)) in pieces.iter().enumerate() {
        let last = n + 1 == pieces.len();
        let take = if last { left } else { left.min(*length) };
        out.push(sge(side, at + gap, take));
        at += gap + take as u64;
        left -= take;
    }
    out
}

fn gathered(pair: &mut Pair, side: Side, sges: &[Sge]) -> Vec<u8> {
    sges.iter().flat_map(|s| pair.read(side, s.addr, s.length as usize)).collect()
}

fn any_path() -> impl Strategy<Value = Path> {
    prop::sample::select(PATHS.to_vec())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn any_split_of_both_sides_gives_equal_bytes(
        path in any_path(),
        mtu in 1u32..=5,
        from in pieces(),
        to in pieces(),
        len in 0usize..100_000,
        seed: u8,
    ) {
        let mut options = Options::new(path);
        options.mtu = mtu;
        let mut pair = Pair::new(options);
        let (a, b) = (pair.a, pair.b);
        prop_assert!(len as u64 + 32 * 1500 < ROOM);
        let source = entries(a, SOURCE, &from, len);
        let target = entries(b, TARGET, &to, len);
        pair.write(a, SOURCE, &pattern(ROOM as usize, seed));
        let sent = gathered(&mut pair, a, &source);

        pair.recv(b, 1, &target);
        pair.send(a, send(&source));
        assert_status(pair.sent(a), Status::Success);
        assert_status(pair.received(b), Status::Success);
        prop_assert!(gathered(&mut pair, b, &target) == sent, "send");

        pair.send(a, rdma(Opcode::RdmaWrite, &source, TARGET + ROOM, b.mr.rkey));
        assert_status(pair.sent(a), Status::Success);
        prop_assert!(pair.read(b, TARGET + ROOM, len) == sent, "write");

        pair.write(a, SOURCE, &vec![0; ROOM as usize]);
        pair.send(a, rdma(Opcode::RdmaRead, &source, TARGET + ROOM, b.mr.rkey));
        assert_status(pair.sent(a), Status::Success);
        prop_assert!(gathered(&mut pair, a, &source) == sent, "read");
    }

    #[test]
    fn no_request_makes_it_panic(
        path in any_path(),
        ud: bool,
        requests in prop::collection::vec(
            (
                0usize..Opcode::ALL.len(),
                any::<u32>(),
                prop::collection::vec((any::<u64>(), any::<u32>(), any::<u32>(), any::<bool>()), 0..=4),
                prop::collection::vec(any::<u8>(), 48),
                any::<bool>(),
            ),
            1..20,
        ),
    ) {
        let mut options = Options::new(path);
        options.timeout = 1;
        options.rnr_retry = 1;
        if ud {
            options.qp_type = QpType::Ud;
        }
        let mut pair = Pair::new(options);
        let (a, b) = (pair.a, pair.b);
        for (opcode, flags, sges, body, sane) in requests {
            let mut wr = SendRequest { opcode: Opcode::ALL[opcode], flags, ..send(&[]) };
            for (addr, length, lkey, near) in sges {
                let (addr, lkey) = if near { (BASE + addr % 0x100_0000, a.mr.lkey) } else { (addr, lkey) };
                let length = if near { length % 0x2_0000 } else { length };
                wr.sges.push(Sge { addr, length, lkey });
            }
            wr.body.copy_from_slice(&body);
            if sane {
                let addr = TARGET + u64::from(body[0]);
                let front = Rdma { remote_addr: addr, rkey: b.mr.rkey, reserved: 0 };
                wr.body[..16].copy_from_slice(front.as_bytes());
            }
            pair.send(a, wr);
            pair.recv(b, 1, &[sge(b, TARGET, 5000)]);
            pair.poll();
        }
        for _ in 0..50 {
            pair.poll();
        }
    }

    #[test]
    fn no_attributes_make_it_panic(
        steps in prop::collection::vec((any::<u32>(), prop::collection::vec(any::<u8>(), 160)), 1..10),
    ) {
        let mut pair = Pair::on(Path::TwoNics);
        let (a, b) = (pair.a, pair.b);
        for (bits, bytes) in steps {
            let mut attr: QpAttr = zerocopy::FromBytes::read_from_bytes(&bytes).expect("160 bytes");
            attr.qp_state %= 8;
            let _ = pair.engine(a).modify_qp(a.nic, a.qp.handle, bits & 0x1f_ffff, &attr);
            let _ = pair.engine(a).modify_qp(a.nic, a.qp.handle, mask::STATE, &attr);
            pair.send(a, rdma(Opcode::RdmaWrite, &[sge(a, SOURCE, 9)], TARGET, b.mr.rkey));
            pair.poll();
        }
    }

    #[test]
    fn no_peer_makes_it_panic(chunks in prop::collection::vec(frame(), 0..20), hello: bool) {
        let mut pair = Pair::on(Path::TwoNics);
        let (ours, mut theirs) = UnixStream::pair().expect("a socket pair");
        let link = pair.engines[0].add_link(ours, Box::new(|| {})).expect("a link");
        if hello {
            theirs.write_all(&hello_frame()).expect("room");
        }
        for mut chunk in chunks {
            if chunk.get(AIM_AT) == Some(&AIM) {
                chunk[AIM_AT].copy_from_slice(&pair.b.qp.qpn.to_le_bytes());
            }
            // The link may be down by now.
            let _ = theirs.write_all(&chunk);
            pair.poll();
        }
        drop(theirs);
        pair.until("the link is down", |p| p.engines[0].links()[0].down_reason.is_some());
        pair.engines[0].remove_link(link);
        let (a, b) = (pair.a, pair.b);
        pair.recv(b, 1, &[]);
        pair.send(a, send(&[]));
        assert_status(pair.sent(a), Status::Success);
    }
}

fn hello_frame() -> Vec<u8> {
    [8u32, 1, 0x4b4e_4c48, 1].iter().flat_map(|w| w.to_le_bytes()).collect()
}

/// Stands in a generated frame for the number of a queue pair, which is not known before it is made.
const AIM: [u8; 4] = [0xa1; 4];
/// Where a frame names the queue pair it is for: behind its head and two GIDs.
const AIM_AT: std::ops::Range<usize> = 40..44;

/// A frame with a sound head; sometimes one that names this engine's queue pairs and GIDs.
fn frame() -> impl Strategy<Value = Vec<u8>> {
    let body = prop::collection::vec(any::<u8>(), 0..200);
    (2u32..8, body, any::<bool>(), any::<[u8; 4]>()).prop_map(|(kind, mut body, aimed, small)| {
        if aimed && body.len() >= 40 {
            body[..16].copy_from_slice(&gid(2));
            body[16..32].copy_from_slice(&gid(9));
            body[32..36].copy_from_slice(&AIM);
        }
        if aimed && body.len() >= 112 && kind == 4 {
            // A request whose numbers are small, as sound ones are.
            for (n, byte) in small.iter().enumerate() {
                body[40 + 4 * n..44 + 4 * n].copy_from_slice(&u32::from(*byte % 8).to_le_bytes());
            }
            let len = if body[40] < 5 { body.len() as u32 - 112 } else { 8 };
            body[60..64].copy_from_slice(&len.to_le_bytes());
        }
        if kind == 2 && body.len() >= 16 {
            body.truncate(16);
            body.copy_from_slice(&gid(9));
        }
        let head = [body.len() as u32, kind];
        head.iter().flat_map(|w| w.to_le_bytes()).chain(body).collect()
    })
}
