//! The preloadable library through its C interface, as QEMU drives it.
#![allow(unsafe_code, missing_docs)]
// Every block reads a structure that the library gave out, or calls it with objects of the rig.
#![allow(clippy::undocumented_unsafe_blocks, clippy::macro_metavars_in_unsafe)]

mod rig;

use std::ffi::CStr;
use std::ptr::null_mut;
use std::time::Duration;

use holdfast_verbs::abi::*;
use rig::*;

const LOCAL_LENGTH: u32 = 1;
const LOCAL_PROTECTION: u32 = 4;
const FLUSHED: u32 = 5;
const REMOTE_INVALID: u32 = 9;
const REMOTE_ACCESS: u32 = 10;
const RETRY_EXCEEDED: u32 = 12;
const RNR_RETRY_EXCEEDED: u32 = 13;

#[test]
fn devices_are_found_and_say_what_they_are() {
    let names: Vec<_> = devices().into_iter().map(|d| d.0).collect();
    assert_eq!(names, ["hf0", "hf1"]);
    let context = open(0);
    assert_ne!(unsafe { (*context).abi_compat }, usize::MAX);
    let mut attr: DeviceAttr = unsafe { std::mem::zeroed() };
    assert_eq!(call!(ibv_query_device, context, &mut attr), 0);
    assert!(attr.max_qp == 1024 && attr.max_sge >= 4 && attr.phys_port_cnt == 1);
    let mut port: PortAttr = unsafe { std::mem::zeroed() };
    assert_eq!(call!(ibv_query_port, context, 1, &mut port), 0);
    assert!(port.state == 4 && port.gid_tbl_len == 2);
    assert_eq!(call!(ibv_query_port, context, 2, &mut port), libc::EINVAL);
    let words = call!(ibv_wc_status_str, 12);
    let words = unsafe { CStr::from_ptr(words) };
    assert_eq!(words.to_str(), Ok("transport retry counter exceeded"));
    assert_eq!(call!(ibv_close_device, context), 0);
    assert_eq!(call!(ibv_close_device, context), libc::EINVAL, "closed before");
}

#[test]
fn a_scan_of_the_gid_table_comes_to_an_end() {
    let context = open(1);
    let mut table = Vec::new();
    let mut gid = [0xff; 16];
    while call!(ibv_query_gid, context, 1, table.len() as i32, &mut gid) == 0 {
        table.push(gid);
        assert!(table.len() < 300);
    }
    assert_eq!(table.len(), 2);
    assert_eq!(table[0], [0; 16], "index 0 is nobody's");
    assert_eq!(table[1][..2], [0xfe, 0x80]);
    assert_eq!(call!(ibv_query_gid, context, 1, -1, &mut gid), -1);
    call!(ibv_close_device, context);
}

#[test]
fn a_send_arrives_on_the_other_device_in_the_order_of_its_pieces() {
    let (a, b) = pair(Options::default());
    a.fill(100, b"hold");
    a.fill(5000, b"fast");
    b.recv(7, &mut [b.sge(300, 3), b.sge(9000, 100)]);
    a.send(8, &mut [a.sge(100, 4), a.sge(5000, 4)], |_| {});
    let (sent, received) = (a.next(), b.next());
    assert_eq!((sent.wr_id, sent.status, sent.opcode, sent.qp_num), (8, 0, 0, a.number()));
    assert_eq!((received.wr_id, received.status, received.opcode), (7, 0, WC_RECV));
    assert_eq!((received.byte_len, received.qp_num), (8, b.number()));
    assert_eq!(b.bytes(300, 3), b"hol");
    assert_eq!(b.bytes(9000, 5), b"dfast");
}

#[test]
fn one_sided_operations_and_inline_data_work_too() {
    let (a, b) = pair(Options::default());
    let rkey = u64::from(unsafe { (*b.mr).rkey });
    a.fill(0, &41u64.to_le_bytes());
    let remote = b.at(64);
    let to = |opcode| move |wr: &mut SendWr| (wr.opcode, wr.wr) = (opcode, [remote, rkey, 0, 0]);
    a.send(1, &mut [a.sge(0, 8)], to(wr::RDMA_WRITE));
    a.send(2, &mut [a.sge(8, 8)], |wr| {
        (wr.opcode, wr.wr) = (wr::ATOMIC_FETCH_AND_ADD, [remote, 1, 0, rkey]);
    });
    a.send(3, &mut [a.sge(16, 8)], to(wr::RDMA_READ));
    b.recv(4, &mut [b.sge(128, 8)]);
    let word = 43u64.to_le_bytes();
    let addr = word.as_ptr().expose_provenance() as u64;
    a.send(5, &mut [Sge { addr, length: 8, lkey: 0 }], |wr| {
        (wr.opcode, wr.send_flags) = (wr::SEND_WITH_IMM, SEND_SIGNALED | SEND_INLINE);
        wr.imm_data = 99;
    });
    for (id, opcode) in [(1, 1), (2, 4), (3, 2), (5, 0)] {
        let wc = a.next();
        assert_eq!((wc.wr_id, wc.status, wc.opcode), (id, 0, opcode));
    }
    assert_eq!(a.bytes(8, 16), [41u64.to_le_bytes(), 42u64.to_le_bytes()].concat());
    let received = b.next();
    assert_eq!((received.imm_data, received.wc_flags), (99, WC_WITH_IMM));
    assert_eq!(b.bytes(128, 8), word);
}

#[test]
fn a_datagram_comes_with_forty_bytes_of_header() {
    let (a, b) = pair(Options { qp_type: QPT_UD, ..Options::default() });
    let ah = handle_to(&a, &b);
    a.fill(0, b"datagram");
    b.recv(1, &mut [b.sge(0, 128)]);
    a.send(2, &mut [a.sge(0, 8)], |wr| datagram(wr, ah, b.number()));
    assert_eq!((a.next().status, a.poll(1)), (0, vec![]));
    let wc = b.next();
    assert_eq!((wc.status, wc.byte_len, wc.wc_flags), (0, 48, WC_GRH));
    assert_eq!(wc.src_qp, a.number());
    assert_eq!(b.bytes(8, 32), [a.gid, b.gid].concat(), "source and destination in the header");
    assert_eq!(b.bytes(40, 8), b"datagram");
    assert_eq!(call!(ibv_destroy_ah, ah), 0);
    let gone = a.try_send(3, &mut [a.sge(0, 8)], |wr| datagram(wr, ah, b.number()));
    assert_eq!(gone, libc::EINVAL, "a handle that was destroyed");
}

#[test]
fn another_devices_address_handle_stands_for_its_destination() {
    let (a, b) = pair(Options { qp_type: QPT_UD, ..Options::default() });
    let foreign = handle_to(&b, &a);
    a.recv(1, &mut [a.sge(0, 128)]);
    a.send(2, &mut [a.sge(1024, 8)], |wr| datagram(wr, foreign, a.number()));
    let opcodes = [a.next().opcode, a.next().opcode];
    assert!(opcodes.contains(&WC_RECV), "it went to itself: {opcodes:?}");
}

#[test]
fn a_shared_receive_queue_serves_its_queue_pairs() {
    let options = Options { srq: true, ..Options::default() };
    let (a, b) = pair(options);
    let second = Side::new(0, &options);
    let b2 = b.create_qp(&options);
    second.connect(second.qp, &b.gid, unsafe { (*b2).qp_num }, &options);
    b.connect(b2, &second.gid, second.number(), &options);
    for id in 0..4 {
        b.recv(id, &mut [b.sge(id as usize * 64, 64)]);
    }
    for side in [&a, &second] {
        side.send(1, &mut [side.sge(0, 16)], |_| {});
        side.send(2, &mut [side.sge(0, 16)], |_| {});
    }
    let got: Vec<_> = (0..4).map(|_| b.next()).map(|wc| (wc.wr_id, wc.qp_num)).collect();
    let (one, two) = (b.number(), unsafe { (*b2).qp_num });
    assert_eq!(got, [(0, one), (1, one), (2, two), (3, two)]);

    let mut attr = SrqAttr { srq_limit: 3, ..SrqAttr::default() };
    assert_eq!(call!(ibv_modify_srq, b.srq, &mut attr, 2), 0);
    assert_eq!(call!(ibv_query_srq, b.srq, &mut attr), 0);
    assert_eq!((attr.max_wr, attr.max_sge, attr.srq_limit), (64, 4, 3));
    assert_eq!(call!(ibv_destroy_srq, b.srq), libc::EBUSY);
}

#[test]
fn a_full_queue_and_a_long_list_are_refused() {
    let (a, b) = pair(Options { max_wr: 2, ..Options::default() });
    assert_eq!([b.try_recv(1, &mut []), b.try_recv(2, &mut [])], [0, 0]);
    assert_eq!(b.try_recv(3, &mut []), libc::ENOMEM);
    assert_eq!(a.try_send(4, &mut [a.sge(0, 1); 5], |_| {}), libc::EINVAL);
    let inline = |wr: &mut SendWr| wr.send_flags |= SEND_INLINE;
    assert_eq!(a.try_send(5, &mut [a.sge(0, 65)], inline), libc::EINVAL);
    let fresh = Side::new(0, &Options::default());
    assert_eq!(fresh.try_send(6, &mut [], |_| {}), libc::EINVAL, "the queue pair is in reset");
    assert_eq!(fresh.try_recv(7, &mut []), libc::EINVAL);
}

#[test]
fn an_event_comes_once_for_the_first_completion_after_it_was_asked_for() {
    let (a, b) = pair(Options::default());
    b.nonblocking();
    let one = |id| {
        b.recv(id, &mut [b.sge(0, 64)]);
        a.send(id, &mut [a.sge(0, 8)], |_| {});
        assert_eq!(a.next().status, 0);
    };
    one(1);
    assert!(!b.readable(0), "nobody asked");
    b.arm(false);
    assert!(!b.readable(0), "a completion that was there before does not count");
    assert_eq!(b.event(), Err(libc::EAGAIN));
    one(2);
    one(3);
    assert!(b.readable(0));
    assert_eq!(b.event(), Ok(b.cq));
    assert!(!b.readable(0));
    call!(ibv_ack_cq_events, b.cq, 1);
    assert_eq!(b.poll(8).len(), 3);

    b.arm(true);
    one(4);
    assert!(!b.readable(0), "not solicited");
    b.recv(5, &mut [b.sge(0, 64)]);
    a.send(5, &mut [a.sge(0, 8)], |wr| wr.send_flags |= SEND_SOLICITED);
    assert!(b.readable(1000));
}

#[test]
fn whoever_waits_for_an_event_is_woken_by_it_or_by_the_channels_end() {
    let (a, b) = pair(Options::default());
    b.arm(false);
    b.recv(1, &mut [b.sge(0, 64)]);
    std::thread::scope(|scope| {
        let waits = scope.spawn(|| b.event().map(|cq| cq.addr()));
        a.send(1, &mut [a.sge(0, 8)], |_| {});
        assert_eq!(waits.join().expect("no panic"), Ok(b.cq.addr()));
    });
    call!(ibv_ack_cq_events, b.cq, 1);
    assert_eq!(call!(ibv_destroy_qp, b.qp), 0);
    assert_eq!(call!(ibv_destroy_cq, b.cq), 0);
    std::thread::scope(|scope| {
        let waits = scope.spawn(|| b.event().map(|cq| cq.addr()));
        // Whether it waits by then or comes too late, it is refused.
        std::thread::sleep(Duration::from_millis(20));
        assert_eq!(call!(ibv_destroy_comp_channel, b.channel), 0);
        let refused = waits.join().expect("no panic").expect_err("no event");
        assert!([libc::EBADF, libc::EINVAL].contains(&refused), "{refused}");
    });
}

#[test]
fn a_destroyed_queue_pairs_completions_are_gone() {
    let (a, b) = pair(Options::default());
    for id in 0..4 {
        b.recv(id, &mut [b.sge(0, 64)]);
        a.send(id, &mut [a.sge(0, 8)], |_| {});
    }
    assert_eq!(b.poll(1).len(), 1);
    assert_eq!(call!(ibv_destroy_qp, b.qp), 0);
    assert_eq!(b.poll(8), []);
    assert_eq!(a.poll(8).len(), 4, "the peer keeps its own");
}

#[test]
fn what_is_in_use_is_not_destroyed_and_nothing_is_destroyed_twice() {
    let (a, b) = pair(Options::default());
    assert_eq!(call!(ibv_destroy_cq, b.cq), libc::EBUSY);
    assert_eq!(call!(ibv_destroy_comp_channel, b.channel), libc::EBUSY);
    assert_eq!(call!(ibv_dealloc_pd, b.pd), libc::EBUSY);
    assert_eq!(call!(ibv_destroy_qp, b.qp), 0);
    assert_eq!(call!(ibv_destroy_qp, b.qp), libc::EINVAL);
    assert_eq!(call!(ibv_dealloc_pd, b.pd), libc::EBUSY, "the region is in it");
    assert_eq!(call!(ibv_dereg_mr, b.mr), 0);
    assert_eq!(call!(ibv_dereg_mr, b.mr), libc::EINVAL);
    assert_eq!(call!(ibv_dealloc_pd, b.pd), 0);
    assert_eq!(call!(ibv_dealloc_pd, b.pd), libc::EINVAL);
    assert_eq!(call!(ibv_destroy_cq, b.cq), 0);
    assert_eq!(call!(ibv_destroy_cq, b.cq), libc::EINVAL);
    assert_eq!(call!(ibv_destroy_comp_channel, b.channel), 0);
    assert_eq!(call!(ibv_destroy_comp_channel, b.channel), libc::EINVAL);
    for null in [call!(ibv_destroy_qp, null_mut()), call!(ibv_destroy_cq, null_mut())] {
        assert_eq!(null, libc::EINVAL);
    }
    assert!(call!(ibv_alloc_pd, null_mut()).is_null());
    assert_eq!(errno(), libc::EINVAL);
    drop(a);
}

#[test]
fn a_completion_queue_destroyed_under_an_event_lives_until_it_is_acknowledged() {
    let (a, b) = pair(Options::default());
    b.arm(false);
    b.recv(1, &mut [b.sge(0, 64)]);
    a.send(1, &mut [a.sge(0, 8)], |_| {});
    assert_eq!(b.event(), Ok(b.cq));
    assert_eq!(call!(ibv_destroy_qp, b.qp), 0);
    assert_eq!(call!(ibv_destroy_cq, b.cq), 0);
    let context = unsafe { (*b.cq).context };
    assert_eq!(context, b.context, "its structure is still there");
    let poll = unsafe { (*context).ops.poll_cq.expect("an operation") };
    assert_eq!(unsafe { poll(b.cq, 1, &mut Wc::default()) }, -libc::EINVAL);
    call!(ibv_ack_cq_events, b.cq, 1);
}

#[test]
fn errors_have_their_statuses_and_flush_what_follows() {
    // What the requester sees, and the responder.
    type Case = (&'static str, fn(&Side, &Side), u32, Option<u32>);
    let cases: [Case; 4] = [
        (
            "a key of nobody",
            |a, _| a.send(1, &mut [Sge { lkey: 0xdead, ..a.sge(0, 8) }], |_| {}),
            LOCAL_PROTECTION,
            None,
        ),
        (
            "an entry beyond its region",
            |a, _| a.send(1, &mut [a.sge(MEMORY - 4, 8)], |_| {}),
            LOCAL_PROTECTION,
            None,
        ),
        (
            "a receive that is too short",
            |a, b| {
                b.recv(1, &mut [b.sge(0, 4)]);
                a.send(1, &mut [a.sge(0, 8)], |_| {});
            },
            REMOTE_INVALID,
            Some(LOCAL_LENGTH),
        ),
        (
            "a write with a key of nobody",
            |a, b| {
                let wr = [b.at(0), 0xdead, 0, 0];
                a.send(1, &mut [a.sge(0, 8)], |w| (w.opcode, w.wr) = (wr::RDMA_WRITE, wr));
            },
            REMOTE_ACCESS,
            None,
        ),
    ];
    for (what, fail, requester, responder) in cases {
        let (a, b) = pair(Options::default());
        fail(&a, &b);
        let wc = a.next();
        assert_eq!((wc.wr_id, wc.status), (1, requester), "{what}");
        if let Some(status) = responder {
            assert_eq!(b.next().status, status, "{what}");
        }
        a.send(2, &mut [a.sge(0, 8)], |_| {});
        let wc = a.next();
        assert_eq!((wc.wr_id, wc.status), (2, FLUSHED), "{what}");
        let mut attr = QpAttr::default();
        let mut init: QpInitAttr = unsafe { std::mem::zeroed() };
        assert_eq!(call!(ibv_query_qp, a.qp, &mut attr, 1, &mut init), 0);
        assert_eq!((attr.qp_state, init.cap.max_send_wr), (6, 64), "{what}");
    }
}

#[test]
fn time_passes_while_nobody_calls() {
    // 4 µs · 2^8: about a millisecond, eight times.
    let options = Options { rnr_retry: 0, timeout: 8, ..Options::default() };
    let (a, b) = pair(options);
    a.send(1, &mut [a.sge(0, 8)], |_| {});
    assert_eq!(a.next().status, RNR_RETRY_EXCEEDED, "no receive was posted");
    let lonely = Side::new(0, &options);
    lonely.connect(lonely.qp, &b.gid, 1023, &options);
    lonely.arm(false);
    lonely.send(1, &mut [lonely.sge(0, 8)], |_| {});
    assert!(lonely.readable(20_000), "the library's own thread completes it");
    assert_eq!(lonely.next().status, RETRY_EXCEEDED);
}

#[test]
fn a_receive_that_comes_late_is_waited_for() {
    let (a, b) = pair(Options::default());
    a.send(1, &mut [a.sge(0, 8)], |_| {});
    std::thread::sleep(Duration::from_millis(3));
    assert_eq!(a.poll(1), []);
    b.recv(2, &mut [b.sge(0, 64)]);
    assert_eq!((a.next().status, b.next().status), (0, 0));
}

#[test]
fn a_queue_pair_in_error_gives_everything_back() {
    let (a, b) = pair(Options::default());
    for id in 0..40 {
        b.recv(id, &mut [b.sge(0, 64)]);
    }
    let mut attr = QpAttr { qp_state: 6, ..QpAttr::default() };
    assert_eq!(call!(ibv_modify_qp, b.qp, &mut attr, 1), 0);
    for id in 0..40 {
        let wc = b.next();
        assert_eq!((wc.wr_id, wc.status), (id, FLUSHED));
    }
    drop(a);
    // And back into use: RESET forgets everything.
    attr.qp_state = 0;
    assert_eq!(call!(ibv_modify_qp, b.qp, &mut attr, 1), 0);
    let c = Side::new(0, &Options::default());
    c.connect(c.qp, &b.gid, b.number(), &Options::default());
    b.connect(b.qp, &c.gid, c.number(), &Options::default());
    b.recv(50, &mut [b.sge(0, 64)]);
    c.send(51, &mut [c.sge(0, 8)], |_| {});
    assert_eq!((c.next().status, b.next().wr_id), (0, 50));
}

#[test]
fn only_memory_that_is_there_can_be_registered() {
    let side = Side::new(0, &Options::default());
    let hole = unsafe {
        let prot = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        let map = libc::mmap(null_mut(), 12288, prot, flags, -1, 0);
        assert_eq!(libc::munmap(map.byte_add(4096), 4096), 0);
        map
    };
    assert!(call!(ibv_reg_mr, side.pd, hole, 12288, ALL_ACCESS).is_null());
    assert_eq!(errno(), libc::EFAULT);
    assert!(call!(ibv_reg_mr, side.pd, hole, 0, ALL_ACCESS).is_null());
    assert_eq!(errno(), libc::EINVAL);
    let (at, own) = (hole.addr() as u64, hole);
    assert!(call!(ibv_reg_mr_iova2, side.pd, own, 4096, at + 8, 1).is_null(), "another offset");
    assert!(call!(ibv_reg_mr, side.pd, hole, 4096, 2).is_null(), "remote writes need local ones");
    let mr = call!(ibv_reg_mr_iova2, side.pd, hole, 4096, 0x10_0000, 1);
    assert!(!mr.is_null());
    assert_eq!(call!(ibv_dereg_mr, mr), 0);
    assert_eq!(unsafe { libc::munmap(hole, 12288) }, 0);
}

#[test]
fn numbers_are_small_and_apart() {
    let side = Side::new(0, &Options::default());
    let mut numbers: Vec<_> = (0..100)
        .map(|_| side.create_qp(&Options::default()))
        .map(|qp| unsafe { (*qp).qp_num })
        .collect();
    assert!(numbers.iter().all(|n| (2..1024).contains(n)), "{numbers:?}");
    numbers.sort_unstable();
    numbers.dedup();
    assert_eq!(numbers.len(), 100);
}

#[test]
fn threads_share_devices_while_another_takes_events() {
    const EACH: u64 = 500;
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let (a, b) = pair(Options::default());
                b.nonblocking();
                b.arm(false);
                let mut received = 0;
                std::thread::scope(|inner| {
                    inner.spawn(|| {
                        for id in 0..EACH {
                            a.send(id, &mut [a.sge(0, 32)], |_| {});
                            let wc = a.next();
                            assert_eq!((wc.wr_id, wc.status), (id, 0));
                        }
                    });
                    for id in 0..8 {
                        b.recv(id, &mut [b.sge(0, 64)]);
                    }
                    while received < EACH {
                        assert!(b.readable(20_000), "{received} of {EACH}");
                        let cq = b.event().expect("an event");
                        b.arm(false);
                        for wc in b.poll(16) {
                            assert_eq!((wc.wr_id, wc.status), (received, 0));
                            b.recv(received + 8, &mut [b.sge(0, 64)]);
                            received += 1;
                        }
                        call!(ibv_ack_cq_events, cq, 1);
                    }
                });
            });
        }
    });
}
