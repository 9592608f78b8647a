//! Every opcode, many sizes, over every path, with unaligned and scattered buffers: what arrives is
//! what was sent, and nothing beside it changes.

mod engine_support;

use engine_support::*;
use holdfast_wire::completion::{CqeOpcode, Status, WC_GRH, WC_WITH_IMM, WC_WITH_INVALIDATE};
use holdfast_wire::wqe::*;
use zerocopy::IntoBytes;

const SIZES: [usize; 6] = [0, 1, 4095, 4096, 4097, 1 << 20];
/// Where the source and the destination start: unaligned, apart, also on one NIC.
const SOURCE: u64 = BASE + 0x0e31;
const TARGET: u64 = BASE + 0x0014_0c07;

/// `len` bytes from `addr` on in four pieces of odd lengths, one of them empty.
fn scattered(side: Side, addr: u64, len: usize) -> Vec<Sge> {
    let cuts = [len / 7, 0, len / 3, len - len / 7 - len / 3];
    let mut at = addr;
    let piece = |n: usize| {
        let sge = sge(side, at, n);
        at += n as u64;
        sge
    };
    cuts.into_iter().map(piece).collect()
}

/// Checks `len` bytes at `addr` and that the neighbours are still as `around` filled them.
fn check(pair: &mut Pair, side: Side, addr: u64, data: &[u8], what: &str) {
    let got = pair.read(side, addr - 8, data.len() + 16);
    assert!(got[8..8 + data.len()] == *data, "{what}: payload differs");
    assert!(got[..8] == [0xee; 8] && got[8 + data.len()..] == [0xee; 8], "{what}: neighbours");
}

fn each_size(mut body: impl FnMut(&mut Pair, usize, &[u8], &str)) {
    for path in PATHS {
        let mut pair = Pair::on(path);
        for (seed, len) in SIZES.into_iter().enumerate() {
            let data = pattern(len, seed as u8 + 1);
            body(&mut pair, len, &data, &format!("{path:?}, {len} bytes"));
        }
    }
}

#[test]
fn writes_arrive() {
    for opcode in [Opcode::RdmaWrite, Opcode::RdmaWriteImm] {
        each_size(|pair, len, data, what| {
            let (a, b) = (pair.a, pair.b);
            pair.write(b, TARGET - 8, &vec![0xee; len + 16]);
            pair.write(a, SOURCE, data);
            pair.recv(b, 5, &[]);
            let mut wr = rdma(opcode, &scattered(a, SOURCE, len), TARGET, b.mr.rkey);
            wr.ex = 0x0102_0304;
            pair.send(a, wr);
            let done = pair.sent(a);
            assert_status(done, Status::Success);
            assert_eq!(done.opcode, CqeOpcode::RdmaWrite.wire());
            check(pair, b, TARGET, data, what);
            if opcode == Opcode::RdmaWriteImm {
                let got = pair.received(b);
                assert_eq!(got.opcode, CqeOpcode::RecvRdmaWithImm.wire());
                assert_eq!((got.imm_data, got.wc_flags), (0x0102_0304, WC_WITH_IMM));
                assert_eq!((got.byte_len, got.wr_id), (len as u32, 5));
            }
        });
    }
}

#[test]
fn sends_arrive() {
    for opcode in [Opcode::Send, Opcode::SendImm] {
        each_size(|pair, len, data, what| {
            let (a, b) = (pair.a, pair.b);
            pair.write(b, TARGET - 8, &vec![0xee; len + 16]);
            pair.write(a, SOURCE, data);
            pair.recv(b, 6, &scattered(b, TARGET, len));
            let mut wr = request(opcode, &scattered(a, SOURCE, len), &[]);
            wr.ex = 0xabcd;
            wr.flags |= FLAG_SOLICITED;
            pair.send(a, wr);
            assert_status(pair.sent(a), Status::Success);
            check(pair, b, TARGET, data, what);
            let got = pair.received(b);
            assert_eq!((got.status, got.byte_len, got.wr_id), (Status::Success, len as u32, 6));
            assert!(got.solicited);
            let imm = if opcode == Opcode::SendImm { (WC_WITH_IMM, 0xabcd) } else { (0, 0) };
            assert_eq!((got.wc_flags, got.imm_data), imm);
        });
    }
}

#[test]
fn reads_arrive() {
    each_size(|pair, len, data, what| {
        let (a, b) = (pair.a, pair.b);
        pair.write(a, TARGET - 8, &vec![0xee; len + 16]);
        pair.write(b, SOURCE, data);
        pair.send(a, rdma(Opcode::RdmaRead, &scattered(a, TARGET, len), SOURCE, b.mr.rkey));
        let done = pair.sent(a);
        assert_eq!((done.status, done.byte_len), (Status::Success, len as u32), "{what}");
        check(pair, a, TARGET, data, what);
    });
}

#[test]
fn inline_data_arrives() {
    for path in PATHS {
        let mut pair = Pair::on(path);
        let (a, b) = (pair.a, pair.b);
        for len in [0, 1, 432] {
            let data = pattern(len, 9);
            let mut wr = rdma(Opcode::RdmaWrite, &[], TARGET, b.mr.rkey);
            wr.flags |= FLAG_INLINE;
            wr.inline.extend(data.iter().copied());
            pair.send(a, wr);
            assert_status(pair.sent(a), Status::Success);
            assert_eq!(pair.read(b, TARGET, len), data);
        }
    }
}

#[test]
fn atomics_change_the_word_and_give_the_old_value() {
    let word = TARGET - TARGET % 8;
    let old = 0x1111_2222_3333_4444u64;
    let plain = |opcode, compare_add, swap, rkey| {
        let body = Atomic { remote_addr: word, compare_add, swap, rkey, reserved: 0 };
        request(opcode, &[], body.as_bytes())
    };
    let masked = |opcode, swap_add, compare_boundary, swap_mask, compare_mask, rkey| {
        let body = MaskedAtomic {
            remote_addr: word,
            log_arg_sz: 3,
            rkey,
            swap_add,
            compare_boundary,
            swap_mask,
            compare_mask,
        };
        request(opcode, &[], body.as_bytes())
    };
    for path in PATHS {
        let mut pair = Pair::on(path);
        let (a, b) = (pair.a, pair.b);
        let key = b.mr.rkey;
        let cases = [
            (plain(Opcode::CompareSwap, old, 5, key), 5),
            (plain(Opcode::CompareSwap, old + 1, 5, key), old),
            (plain(Opcode::FetchAdd, u64::MAX, 0, key), old - 1),
            (masked(Opcode::MaskedCompareSwap, u64::MAX, old, 0xff, u64::MAX, key), old | 0xff),
            (masked(Opcode::MaskedCompareSwap, 0, 0x5555, 0xff, 0xff, key), old),
            (
                masked(Opcode::MaskedFetchAdd, 0xffff_ffff, 0x8000_0000, 0, 0, key),
                0x1111_2222_3333_4443,
            ),
        ];
        for (n, (mut wr, expected)) in cases.into_iter().enumerate() {
            pair.write(b, word, &old.to_le_bytes());
            wr.sges.extend([sge(a, SOURCE, 3), sge(a, SOURCE + 100, 5)]);
            pair.send(a, wr);
            assert_status(pair.sent(a), Status::Success);
            assert_eq!(pair.read(b, word, 8), expected.to_le_bytes(), "{path:?}, case {n}");
            let mut result = pair.read(a, SOURCE, 3);
            result.extend(pair.read(a, SOURCE + 100, 5));
            assert_eq!(result, old.to_le_bytes(), "{path:?}, case {n}");
        }
    }
}

#[test]
fn fast_registrations_live_until_they_are_invalidated() {
    for path in PATHS {
        let mut pair = Pair::on(path);
        let (a, b) = (pair.a, pair.b);
        let init = engine_support::fast_reg(b, 4);
        let engine = pair.engine(b);
        let fast = engine.create_mr(b.nic, init).expect("a region");
        // Directory in page 600, table in page 601, pages 10 and 12 of memory.
        let (directory, table) = (MemHost::iova_of(600), MemHost::iova_of(601));
        pair.write_page(b, 600, &table.to_le_bytes());
        let list = [MemHost::iova_of(10), MemHost::iova_of(12)];
        pair.write_page(b, 601, list.as_bytes());
        let key = fast.rkey & !0xff | 0x5a;
        let register = FastReg {
            iova_start: 0x9000_0000,
            pl_pdir_dma: directory,
            page_shift: 12,
            page_list_len: 2,
            length: 8192,
            access_flags: ALL_ACCESS,
            rkey: key,
            reserved: 0,
        };
        pair.send(b, request(Opcode::FastReg, &[], register.as_bytes()));
        let done = pair.sent(b);
        assert_eq!((done.status, done.opcode), (Status::Success, CqeOpcode::FastReg.wire()));

        pair.write(a, SOURCE, &pattern(5000, 3));
        pair.send(a, rdma(Opcode::RdmaWrite, &[sge(a, SOURCE, 5000)], 0x9000_0800, key));
        assert_status(pair.sent(a), Status::Success);
        assert_eq!(pair.read_page(b, 10)[0x800..], pattern(5000, 3)[..0x800]);
        assert_eq!(pair.read_page(b, 12)[..5000 - 0x800], pattern(5000, 3)[0x800..]);

        pair.recv(b, 1, &[sge(b, TARGET, 16)]);
        let mut wr = request(Opcode::SendInv, &[], &[]);
        wr.ex = key;
        pair.send(a, wr);
        assert_status(pair.sent(a), Status::Success);
        let got = pair.received(b);
        assert_eq!((got.wc_flags, got.imm_data), (WC_WITH_INVALIDATE, key));

        pair.send(b, request(Opcode::FastReg, &[], register.as_bytes()));
        assert_status(pair.sent(b), Status::Success);
        let mut wr = request(Opcode::LocalInv, &[], &[]);
        wr.ex = key;
        pair.send(b, wr);
        assert_status(pair.sent(b), Status::Success);

        pair.send(a, rdma(Opcode::RdmaWrite, &[sge(a, SOURCE, 8)], 0x9000_0000, key));
        assert_status(pair.sent(a), Status::RemoteAccess);
    }
}

#[test]
fn datagrams_arrive_behind_a_routing_header() {
    for path in PATHS {
        let mut options = Options::new(path);
        options.qp_type = holdfast_wire::attr::QpType::Ud;
        let mut pair = Pair::new(options);
        let (a, b) = (pair.a, pair.b);
        for len in [0usize, 1, 4095, 4096] {
            pair.write(a, SOURCE, &pattern(len, 4));
            pair.recv(b, 8, &[sge(b, TARGET, 39), sge(b, TARGET + 39, 5000)]);
            let mut wr = datagram(b, &[sge(a, SOURCE, len)]);
            wr.opcode = Opcode::SendImm;
            wr.ex = 3;
            pair.send(a, wr);
            assert_status(pair.sent(a), Status::Success);
            let got = pair.received(b);
            assert_eq!((got.status, got.byte_len), (Status::Success, len as u32 + 40));
            assert_eq!((got.src_qp, got.imm_data), (a.qp.qpn, 3));
            assert_eq!(got.wc_flags, WC_GRH | WC_WITH_IMM);
            let bytes = pair.read(b, TARGET, 40 + len);
            assert_eq!((&bytes[8..24], &bytes[24..40]), (&a.gid[..], &b.gid[..]));
            assert_eq!(bytes[40..], pattern(len, 4));
        }
    }
}

#[test]
fn a_queue_pair_may_be_connected_to_itself() {
    let mut pair = Pair::unconnected(Options::new(Path::SameNic));
    let a = pair.a;
    let options = pair.options.clone();
    pair.bring_up(a, a, &options);
    pair.write(a, SOURCE, &pattern(200_000, 5));
    pair.recv(a, 1, &[sge(a, TARGET, 200_000)]);
    pair.send(a, send(&[sge(a, SOURCE, 200_000)]));
    assert_status(pair.sent(a), Status::Success);
    assert_status(pair.received(a), Status::Success);
    assert_eq!(pair.read(a, TARGET, 200_000), pattern(200_000, 5));
}

#[test]
fn many_requests_of_every_kind_complete_in_order() {
    for path in PATHS {
        let mut pair = Pair::on(path);
        let (a, b) = (pair.a, pair.b);
        pair.write(a, SOURCE, &pattern(300_000, 1));
        for n in 0..200u64 {
            let mut wr = match n % 4 {
                0 => rdma(Opcode::RdmaWrite, &[sge(a, SOURCE, 70_000)], TARGET, b.mr.rkey),
                1 => rdma(Opcode::RdmaRead, &[sge(a, SOURCE, 70_000)], TARGET, b.mr.rkey),
                2 => rdma(Opcode::RdmaWrite, &[], 0, 0),
                _ => {
                    let body = Atomic {
                        remote_addr: BASE - BASE % 8 + 8,
                        compare_add: 1,
                        swap: 0,
                        rkey: b.mr.rkey,
                        reserved: 0,
                    };
                    request(Opcode::FetchAdd, &[sge(a, SOURCE + 80_000, 8)], body.as_bytes())
                }
            };
            wr.wr_id = n;
            if n % 8 == 4 {
                wr.flags |= FLAG_FENCE;
            }
            pair.host(a).sends.entry(a.qp.handle).or_default().push_back(wr);
        }
        let now = pair.now;
        pair.engine(a).send_doorbell(a.nic, a.qp.handle, now);
        for n in 0..200 {
            let done = pair.sent(a);
            assert_eq!((done.wr_id, done.status), (n, Status::Success), "{path:?}");
        }
        let word = pair.read(b, BASE - BASE % 8 + 8, 8);
        assert_eq!(u64::from_le_bytes(word.try_into().expect("8 bytes")), 50, "{path:?}");
    }
}
