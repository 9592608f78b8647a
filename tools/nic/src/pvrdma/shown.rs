//! When the client is shown that its sends were fetched: tests of the front without an engine.

use std::os::fd::AsFd;
use std::sync::Arc;

use holdfast_wire::PAGE_SIZE;
use holdfast_wire::completion::Status;
use holdfast_wire::ring::RingSize;
use holdfast_wire::wqe::{Opcode, SendHeader, send_stride};

use super::client;
use super::cq::CompletionRing;
use super::front::{Front, QpRings, put};
use super::irq::Irqs;
use super::pages::QueuePages;
use super::work::WorkRing;
use crate::engine::host::{Completion, Fetch, Host, SendRequest};
use crate::memory::{FileRange, Prot, Space};

const PAGE: u64 = PAGE_SIZE as u64;
const STATE: u64 = 0x10_0000;
const SENDS: u64 = STATE + PAGE;
const CQ_STATE: u64 = STATE + 2 * PAGE;
const CQ_ENTRIES: u64 = STATE + 3 * PAGE;

/// A front with queue pair 0 and completion queue 0, and two sends posted.
fn front() -> (Arc<Space>, Front) {
    let file =
        nix::sys::memfd::memfd_create(c"queues", nix::sys::memfd::MFdFlags::empty()).unwrap();
    nix::unistd::ftruncate(&file, 4 * PAGE as i64).unwrap();
    let (space, reader) = Space::new();
    let range = FileRange { fd: file.as_fd(), offset: 0 };
    space.map(STATE, 4 * PAGE, Prot::READ_WRITE, Some(range)).unwrap();
    let mut front = Front::new(reader, Arc::new(Irqs::default()), 20);
    front.reader.online();
    let lease = || front.budget.take(2).unwrap();
    let pages = QueuePages::new(Box::new([STATE, SENDS]), lease());
    let entries = QueuePages::new(Box::new([CQ_STATE, CQ_ENTRIES]), lease());
    let size = RingSize::new(4).unwrap();
    let send = Some(WorkRing::send(size, 1, 0));
    put(&mut front.qps, 0, Box::new(QpRings { pages, send, recv: None, seen_recvs: None }));
    put(&mut front.cqs, 0, Box::new(CompletionRing::new(size, entries)));
    for slot in 0..2 {
        let request = SendHeader { opcode: Opcode::RdmaWrite.wire(), ..Default::default() };
        let at = SENDS + slot * send_stride(1, 0) as u64;
        client::write(&mut front.reader, at, &request).unwrap();
    }
    client::write(&mut front.reader, STATE, &2u32).unwrap();
    (space, front)
}

fn word(front: &mut Front, at: u64) -> u32 {
    client::read(&mut front.reader, at).unwrap()
}

#[test]
fn whoever_sees_a_completion_sees_the_slots_free() {
    let (_space, mut front) = front();
    let mut request = SendRequest::default();
    assert_eq!(front.next_send(0, &mut request), Fetch::Got);
    let done = Completion {
        wr_id: 0,
        qp_handle: 0,
        opcode: 0,
        status: Status::Success,
        byte_len: 0,
        imm_data: 0,
        src_qp: 0,
        wc_flags: 0,
        vendor_err: 0,
        solicited: false,
    };
    front.complete(0, &done).unwrap();
    assert_eq!(word(&mut front, CQ_STATE + 8), 1, "the completion is there");
    assert_eq!(word(&mut front, STATE + 4), 1, "and so is the head");
}

#[test]
fn slots_of_sends_without_completion_are_shown_when_no_more_are_fetched() {
    let (_space, mut front) = front();
    let mut request = SendRequest::default();
    for _ in 0..2 {
        assert_eq!(front.next_send(0, &mut request), Fetch::Got);
    }
    assert_eq!(word(&mut front, STATE + 4), 0, "its cache line is left to the client meanwhile");
    front.sends_fetched(0);
    assert_eq!(word(&mut front, STATE + 4), 2);
}
