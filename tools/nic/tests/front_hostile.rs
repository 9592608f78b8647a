//! Clients that ask for too much, post what cannot run, or do not listen: the NIC serves the others.

mod front_rig;

use std::os::fd::OwnedFd;
use std::sync::atomic::Ordering;
use std::time::Duration;

use front_rig::pair::{GID, pair};
use front_rig::{Client, IOVA, PAGE, bytes, eventually, process};
use holdfast_nic::server::{Backend, IrqAction};
use holdfast_wire::attr::{QpAttr, QpType, mask};
use holdfast_wire::cmd::{self, Command, ResponseHeader};
use holdfast_wire::completion::{Status, WC_GRH, WC_WITH_NETWORK_HDR_TYPE};
use holdfast_wire::wqe::{Av, FLAG_SIGNALED, Opcode, SendHeader, Sge, Ud};
use holdfast_wire::{regs, uar};
use nix::errno::Errno;
use zerocopy::IntoBytes;

#[test]
fn an_interrupt_can_only_be_an_eventfd() {
    let process = process(1, |_| {});
    let client = Client::start(&process, 0);
    let [_, event, _] = client.bind_irqs();
    let bind = |fd: OwnedFd| {
        process.with_backend(0, |b| b.set_irqs(2, 1, IrqAction::Bind(vec![Some(fd)])))
    };
    let (reader, writer) = std::io::pipe().unwrap();
    assert_eq!(bind(writer.into()), Err(Errno::EINVAL), "a pipe");
    assert_eq!(bind(reader.into()), Err(Errno::EINVAL), "its other end");
    assert_eq!(bind(client.fd.try_clone().unwrap()), Err(Errno::EINVAL), "memory");
    let socket = std::os::unix::net::UnixStream::pair().unwrap().0;
    assert_eq!(bind(socket.into()), Err(Errno::EINVAL), "a socket");
    process.with_backend(0, |b| b.set_irqs(2, 1, IrqAction::Fire(vec![true]))).unwrap();
    assert_eq!(event.read(), Ok(1), "what was bound stays");
}

#[test]
fn a_doorbell_message_is_one_store() {
    let process = process(1, |_| {});
    let _client = Client::start(&process, 0);
    let ring = |len| process.with_backend(0, |b| b.write(regs::BAR_UAR, 0, &vec![0; len]));
    assert_eq!(ring(4), Ok(()));
    assert_eq!(ring(8), Ok(()));
    assert_eq!(ring(12), Err(Errno::EINVAL), "each word is a round trip to the processor");
}

/// One directory whose tables are all the same names queues of any size.
#[test]
fn queue_pages_are_counted_however_often_they_are_named() {
    let process = process(1, |_| {});
    let mut client = Client::start(&process, 0);
    let pd = client.create_pd();
    let cq = client.create_cq(64);
    let page = client.alloc(512);
    let (pdir, table) = (page.first + 512 * PAGE, page.first + 513 * PAGE);
    for entry in 0..512 {
        client.memory.write(pdir + 8 * entry, &(IOVA + table as u64).to_le_bytes());
    }
    let (mut request, _, _) = client.qp_request(pd, &cq, 0);
    request.pdir_dma = page.pdir;
    request.total_chunks = 8193;
    let mut made = Vec::new();
    let refusal = loop {
        assert!(made.len() < 1000, "nothing limits the pages of queues");
        match client.execute(request.as_bytes()) {
            0 => made.push(client.response::<cmd::CreateQpRespV2>().qp_handle),
            errno => break errno,
        }
    };
    assert_eq!(refusal, (-libc::ENOMEM) as u32);
    assert!(made.len() > 100, "{} fit", made.len());
    let qp_handle = made[0];
    let _: ResponseHeader = client
        .call(Command::DestroyQp, |hdr| {
            bytes(&cmd::DestroyQp { hdr, qp_handle, ..Default::default() })
        })
        .unwrap();
    assert_eq!(client.execute(request.as_bytes()), 0, "destroyed queues give theirs back");
}

#[test]
fn a_full_notification_ring_delays_but_loses_nothing() {
    let process = process(1, |_| {});
    let mut pair = pair(&process);
    for qp in [0, 1] {
        pair.post_write(qp, 1, 0, 0x4000, 8);
        pair.ring(qp);
        let tail = pair.client.memory.word(pair.cqs[qp].pages.first + 8);
        eventually(|| (tail.load(Ordering::Acquire) == 1).then_some(()));
    }
    // Arming a queue that holds something fires at once. Four pages make a ring of 1024 slots
    // whose indices run modulo 2048: more entries than that would look like none.
    for _ in 0..2047 {
        pair.client.arm(&pair.cqs[0], uar::CQ_ARM);
    }
    pair.client.arm(&pair.cqs[1], uar::CQ_ARM);
    let (first, second) = (pair.cqs[0].handle, pair.cqs[1].handle);
    for n in 0..1024 {
        assert_eq!(pair.client.next_notification(), Some(first), "entry {n}");
    }
    let mut late = [(); 2].map(|()| eventually(|| pair.client.next_notification()));
    late.sort_unstable();
    assert_eq!(late, [first.min(second), first.max(second)]);
    let front = process.report().unwrap().nics[0].front;
    assert_eq!(front.delayed_notifications, 2);
}

#[test]
fn a_queue_pair_that_cannot_send_lets_the_processor_sleep() {
    let process = process(1, |_| {});
    let mut pair = pair(&process);
    let pd = pair.client.create_pd();
    let mut idle = pair.client.create_qp(pd, &pair.cqs[0]);
    let init = QpAttr { qp_state: 1, port_num: 1, ..Default::default() };
    let bits = mask::STATE | mask::PORT | mask::PKEY_INDEX | mask::ACCESS_FLAGS;
    pair.client.modify(&idle, bits, init).unwrap();
    pair.client.post_send(&mut idle, SendHeader::default(), &[]);
    pair.client.ring(uar::QP, idle.handle | uar::QP_SEND);
    // And one that waits for its peer to post a receive, 41 ms at a time.
    let slow = QpAttr { min_rnr_timer: 24, ..Default::default() };
    pair.client.modify(&pair.qps[1], mask::MIN_RNR_TIMER, slow).unwrap();
    pair.send(0, 1, FLAG_SIGNALED);
    let asleep = pair.client.uar.as_ref().unwrap().word(uar::ASLEEP);
    eventually(|| (asleep.load(Ordering::SeqCst) == 1).then_some(()));
    let sleeps = process.report().unwrap().sleeps;
    eventually(|| {
        std::thread::sleep(Duration::from_millis(2));
        (process.report().unwrap().sleeps > sleeps + 3).then_some(())
    });
    pair.recv(1, 2);
    assert_eq!(pair.completion(1).status, Status::Success.wire(), "it went on by itself");
}

#[test]
fn receives_posted_to_a_queue_pair_in_error_are_flushed_without_a_doorbell() {
    let process = process(1, |_| {});
    let mut pair = pair(&process);
    let error = QpAttr { qp_state: 6, ..Default::default() };
    pair.client.modify(&pair.qps[1], mask::STATE, error).unwrap();
    for wr_id in 0..8 {
        pair.recv(1, wr_id);
        // Another queue pair's doorbell took the place of this one's in the word.
        pair.ring(0);
        let cqe = pair.completion(1);
        assert_eq!((cqe.wr_id, cqe.status), (wr_id, Status::WorkRequestFlushed.wire()));
    }
}

#[test]
fn datagrams_say_which_network_they_came_through() {
    for (version, said) in [(17, (0, 0)), (19, (WC_WITH_NETWORK_HDR_TYPE, 2))] {
        let process = process(1, |options| options.version = version);
        let mut client = Client::start(&process, 0);
        client.bind_gid(0, GID);
        let pd = client.create_pd();
        let mut cqs = [client.create_cq(64), client.create_cq(64)];
        let (_, start, lkey) = client.create_mr(pd, 1);
        let mut gsi = client.create_qp_of(QpType::Gsi, pd, &cqs[0]);
        let mut peer = client.create_qp_of(QpType::Ud, pd, &cqs[1]);
        client.open_datagrams(&gsi, 0x8001_0000);
        client.open_datagrams(&peer, 0x8001_0000);
        client.post_recv(&mut gsi, 1, &[Sge { addr: start, length: 512, lkey }]);
        let av = Av { port_pd: 1 << 24 | pd, dgid: GID, hop_limit: 64, ..Default::default() };
        let ud = Ud { remote_qpn: 1, remote_qkey: 0x8001_0000, av };
        let header = SendHeader {
            wr_id: 2,
            num_sge: 1,
            opcode: Opcode::Send.wire(),
            send_flags: FLAG_SIGNALED,
            wr: ud.as_bytes().try_into().unwrap(),
            ..Default::default()
        };
        client.post_send(&mut peer, header, &[Sge { addr: start + 1024, length: 64, lkey }]);
        client.ring(uar::QP, peer.handle | uar::QP_SEND);
        let sent = client.poll(&mut cqs[1], 64);
        assert_eq!((sent.wr_id, sent.status), (2, Status::Success.wire()));
        let cqe = client.poll(&mut cqs[0], 64);
        assert_eq!((cqe.wr_id, cqe.qp, cqe.src_qp), (1, 1, peer.qpn), "version {version}");
        assert_eq!(cqe.wc_flags & WC_GRH, WC_GRH);
        let told = (cqe.wc_flags & WC_WITH_NETWORK_HDR_TYPE, cqe.network_hdr_type);
        assert_eq!(told, said, "version {version}");
    }
}
