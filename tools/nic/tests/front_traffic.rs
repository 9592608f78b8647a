//! Work requests through real rings: data, completions, notifications, lost doorbells, vanishing
//! memory.

mod front_rig;

use std::sync::atomic::Ordering;
use std::time::Duration;

use front_rig::pair::{ENTRIES, Pair, pair};
use front_rig::{IOVA, PAGE, eventually, process};
use holdfast_nic::Doorbells;
use holdfast_nic::engine::MissPolicy;
use holdfast_nic::server::{Backend, DmaMap, DmaUnmap};
use holdfast_wire::completion::{CqeOpcode, Status};
use holdfast_wire::uar;
use holdfast_wire::wqe::{FLAG_SIGNALED, FLAG_SOLICITED};

#[test]
fn a_write_lands_and_completes_at_every_size_and_version() {
    for (version, doorbells) in
        [(20, Doorbells::Mapped), (20, Doorbells::Trapped), (17, Doorbells::Mapped)]
    {
        let process = process(1, |options| {
            options.version = version;
            options.doorbells = doorbells;
        });
        let mut pair = pair(&process);
        for (n, len) in [0, 1, 8, 17, 4095, 4096, 4097, 12288].into_iter().enumerate() {
            let data: Vec<u8> = (0..len).map(|at| (at * 7 + n + 1) as u8).collect();
            pair.fill(0, &data);
            pair.post_write(0, n as u64, 0, 0x8000 + 3, len as u32);
            pair.ring(0);
            let cqe = pair.completion(0);
            assert_eq!((cqe.wr_id, cqe.status), (n as u64, Status::Success.wire()));
            assert_eq!(cqe.qp, u64::from(pair.qps[0].handle), "version {version}");
            assert_eq!(cqe.opcode, CqeOpcode::RdmaWrite.wire());
            assert_eq!(pair.read(0x8000 + 3, len), data, "{len} bytes");
        }
    }
}

#[test]
fn a_ring_wraps_many_times_and_shows_its_head() {
    let process = process(1, |_| {});
    let mut pair = pair(&process);
    for round in 0..200u64 {
        pair.fill(0, &round.to_le_bytes());
        pair.post_write(0, round, 0, 0x4000, 8);
        pair.ring(0);
        assert_eq!(pair.completion(0).wr_id, round);
        assert_eq!(pair.read(0x4000, 8), round.to_le_bytes());
    }
    let (tail, head) = (pair.qps[0].send_tail, pair.qps[0].pages.first + 4);
    eventually(|| (pair.client.memory.word(head).load(Ordering::Acquire) == tail).then_some(()));
}

#[test]
fn the_head_is_shown_without_any_completion() {
    let process = process(1, |_| {});
    let mut pair = pair(&process);
    for _ in 0..3 {
        let (header, sge) = (pair.write_header(0, 0x4000, 0), pair.sge(0, 8));
        pair.client.post_send(&mut pair.qps[0], header, &[sge]);
    }
    pair.ring(0);
    let head = pair.qps[0].pages.first + 4;
    eventually(|| (pair.client.memory.word(head).load(Ordering::Acquire) == 3).then_some(()));
}

#[test]
fn a_send_fills_a_receive() {
    let process = process(1, |_| {});
    let mut pair = pair(&process);
    pair.recv(1, 70);
    pair.fill(0, &[0x42; 64]);
    pair.send(0, 71, FLAG_SIGNALED);
    let recv = pair.completion(1);
    assert_eq!((recv.wr_id, recv.byte_len, recv.opcode), (70, 64, CqeOpcode::Recv.wire()));
    assert_eq!(recv.qp, u64::from(pair.qps[1].handle));
    assert_eq!(pair.completion(0).wr_id, 71);
    assert_eq!(pair.read(0x8000, 64), [0x42; 64]);
}

#[test]
fn malformed_requests_fail_their_queue_pair_only() {
    let process = process(1, |_| {});
    let mut pair = pair(&process);
    let mut header = pair.write_header(5, 0, FLAG_SIGNALED);
    header.num_sge = 1000;
    pair.client.post_send(&mut pair.qps[0], header, &[]);
    pair.ring(0);
    let cqe = pair.completion(0);
    assert_eq!((cqe.wr_id, cqe.status), (5, Status::LocalQpOperation.wire()));
    // A tail that no ring of this size can have.
    let mut pair = {
        pair.client.disconnect();
        self::pair(&process)
    };
    let tail = pair.client.memory.word(pair.qps[0].pages.first);
    tail.store(0xdead_beef, Ordering::Release);
    pair.ring(0);
    let event = eventually(|| pair.client.next_event());
    assert_eq!(event.1, pair.qps[0].handle);
    pair.client.create_pd();
}

#[test]
fn lost_doorbells_are_found() {
    let process = process(1, |_| {});
    let mut pair = pair(&process);
    for round in 0..50 {
        pair.post_write(0, 2 * round, 0, 0x4000, 8);
        pair.post_write(1, 2 * round + 1, 0, 0x5000, 8);
        // Only the second one's doorbell is seen, whoever wins the race for the word.
        pair.ring(1);
        assert_eq!(pair.completion(1).wr_id, 2 * round + 1);
        assert_eq!(pair.completion(0).wr_id, 2 * round, "served although nobody rang");
    }
}

#[test]
fn work_posted_without_any_doorbell_is_found_by_a_sleeper() {
    let process = process(1, |_| {});
    let mut pair = pair(&process);
    eventually(|| {
        let page = pair.client.uar.as_ref().unwrap();
        (page.word(uar::ASLEEP).load(Ordering::SeqCst) == 1).then_some(())
    });
    pair.post_write(0, 1, 0, 0x4000, 8);
    assert_eq!(pair.completion(0).wr_id, 1);
}

#[test]
fn arming_gives_one_event_for_the_next_completion() {
    for doorbells in [Doorbells::Mapped, Doorbells::Trapped] {
        let process = process(1, |options| options.doorbells = doorbells);
        let mut pair = pair(&process);
        let irqs = pair.client.bind_irqs();
        pair.post_write(0, 1, 0, 0x4000, 8);
        pair.ring(0);
        pair.completion(0);
        assert_eq!(pair.client.next_notification(), None, "not armed");
        pair.client.arm(&pair.cqs[0], uar::CQ_ARM);
        assert_eq!(pair.client.next_notification(), None, "nothing new");
        for wr_id in [2, 3] {
            pair.post_write(0, wr_id, 0, 0x4000, 8);
        }
        pair.ring(0);
        eventually(|| irqs[2].read().ok());
        assert_eq!(pair.client.next_notification(), Some(pair.cqs[0].handle));
        assert_eq!((pair.completion(0).wr_id, pair.completion(0).wr_id), (2, 3));
        assert_eq!(pair.client.next_notification(), None, "one event per arming");
    }
}

#[test]
fn arming_a_queue_with_unread_completions_fires_at_once() {
    let process = process(1, |_| {});
    let mut pair = pair(&process);
    pair.post_write(0, 1, 0, 0x4000, 8);
    pair.ring(0);
    let tail = pair.cqs[0].pages.first + 8;
    eventually(|| (pair.client.memory.word(tail).load(Ordering::Acquire) == 1).then_some(()));
    pair.client.arm(&pair.cqs[0], uar::CQ_ARM_SOLICITED);
    assert_eq!(pair.client.next_notification(), None, "it was not a solicited one");
    pair.client.arm(&pair.cqs[0], uar::CQ_ARM);
    assert_eq!(eventually(|| pair.client.next_notification()), pair.cqs[0].handle);
}

#[test]
fn solicited_arming_waits_for_a_solicited_receive() {
    let process = process(1, |_| {});
    let mut pair = pair(&process);
    for wr_id in 0..3 {
        pair.recv(1, wr_id);
    }
    pair.client.arm(&pair.cqs[1], uar::CQ_ARM_SOLICITED);
    pair.send(0, 10, FLAG_SIGNALED);
    pair.completion(1);
    pair.completion(0);
    assert_eq!(pair.client.next_notification(), None);
    pair.send(0, 11, FLAG_SIGNALED | FLAG_SOLICITED);
    pair.completion(1);
    assert_eq!(eventually(|| pair.client.next_notification()), pair.cqs[1].handle);
}

#[test]
fn a_masked_device_raises_nothing() {
    let process = process(1, |_| {});
    let mut pair = pair(&process);
    let irqs = pair.client.bind_irqs();
    pair.client.write(holdfast_wire::regs::IMR, !0);
    assert_eq!(pair.client.read(holdfast_wire::regs::IMR), !0);
    pair.client.arm(&pair.cqs[0], uar::CQ_ARM);
    pair.post_write(0, 1, 0, 0x4000, 8);
    pair.ring(0);
    pair.completion(0);
    eventually(|| pair.client.next_notification());
    assert!(irqs.iter().all(|irq| irq.read().is_err()));
}

#[test]
fn an_overrun_completion_queue_raises_an_event() {
    let process = process(1, |_| {});
    let mut pair = pair(&process);
    for round in 0..ENTRIES as u64 + 8 {
        pair.post_write(0, round, 0, 0x4000, 8);
        pair.ring(0);
        let (tail, head) = (pair.qps[0].send_tail, pair.qps[0].pages.first + 4);
        if round < ENTRIES as u64 {
            let head = pair.client.memory.word(head);
            eventually(|| (head.load(Ordering::Acquire) == tail).then_some(()));
        }
    }
    let event = eventually(|| pair.client.next_event());
    assert_eq!(event, (0, pair.cqs[0].handle), "CQ_ERR");
}

/// Maps part of the client's file.
fn map(pair: &Pair<'_>, iova: u64, len: usize, offset: usize) {
    let fd = Some(pair.client.fd.try_clone().unwrap());
    let map = DmaMap { iova, len: len as u64, read: true, write: true, fd, offset: offset as u64 };
    pair.client.process.with_backend(0, |b| b.dma_map(map)).unwrap();
}

/// Leaves the page at `0x8000` of the region without translation, and gives its IOVA.
fn cut_out_a_page(pair: &Pair<'_>) -> u64 {
    let offset = pair.region.0 + 0x8000;
    let all = DmaUnmap::Range { iova: IOVA, len: front_rig::MEMORY as u64 };
    pair.client.process.with_backend(0, |b| b.dma_unmap(all)).unwrap();
    map(pair, IOVA, offset, 0);
    let after = offset + PAGE;
    map(pair, IOVA + after as u64, front_rig::MEMORY - after, after);
    IOVA + offset as u64
}

#[test]
fn a_stalled_write_goes_where_the_page_is_mapped_next() {
    let process = process(1, |options| {
        options.miss = MissPolicy::Stall { bound: Duration::from_secs(5) };
    });
    let mut pair = pair(&process);
    let iova = cut_out_a_page(&pair);
    pair.fill(0, &[0x77; 64]);
    pair.post_write(0, 1, 0, 0x8000, 64);
    pair.ring(0);
    eventually(|| (process.report().unwrap().nics[0].engine.stalls > 0).then_some(()));
    assert!(pair.client.try_poll(&mut pair.cqs[0], ENTRIES).is_none());
    let spare = front_rig::MEMORY - PAGE;
    map(&pair, iova, PAGE, spare);
    assert_eq!(pair.completion(0).status, Status::Success.wire());
    assert_eq!(pair.client.memory.bytes(spare, 64), [0x77; 64]);
    assert_eq!(pair.read(0x8000, 64), [0; 64], "the old page was not touched");
}

#[test]
fn without_a_translation_a_failing_device_fails_the_request() {
    let process = process(1, |options| options.miss = MissPolicy::Fail);
    let mut pair = pair(&process);
    cut_out_a_page(&pair);
    pair.post_write(0, 1, 0, 0x8000, 64);
    pair.ring(0);
    assert_eq!(pair.completion(0).status, Status::RemoteOperation.wire());
}

#[test]
fn a_truncated_file_does_not_end_the_process() {
    let process = process(1, |options| options.miss = MissPolicy::Fail);
    let pair = pair(&process);
    // Cut everything from the region's middle on; the rings lie after it and vanish too.
    let keep = (pair.region.0 + 0x8000) as i64;
    nix::unistd::ftruncate(&pair.client.fd, keep).unwrap();
    // The client's own view of its rings is gone as well, so only the doorbell is rung.
    pair.ring(0);
    let doorbell = pair.client.uar.as_ref().unwrap().word(uar::QP);
    eventually(|| (doorbell.load(Ordering::SeqCst) == 0).then_some(()));
    nix::unistd::ftruncate(&pair.client.fd, front_rig::MEMORY as i64).unwrap();
    pair.client.disconnect();
    // The same NIC serves the next client.
    let mut next = self::pair(&process);
    next.fill(0, &[9; 8]);
    next.post_write(0, 1, 0, 0x4000, 8);
    next.ring(0);
    assert_eq!(next.completion(0).status, Status::Success.wire());
    assert_eq!(next.read(0x4000, 8), [9; 8]);
}
