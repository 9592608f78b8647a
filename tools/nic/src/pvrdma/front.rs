//! The queues of one NIC as the engine sees them.

use std::collections::BTreeSet;
use std::sync::Arc;

use holdfast_wire::completion::{Cqe, WC_GRH, WC_WITH_NETWORK_HDR_TYPE};
use holdfast_wire::event::{EventEntry, EventKind, NotifyEntry};
use holdfast_wire::regs::{VECTOR_COMPLETION, VECTOR_EVENT, VERSION_ROCE_V2};
use serde::Serialize;

use super::cq::CompletionRing;
use super::device_ring::DeviceRing;
use super::irq::Irqs;
use super::pages::{PageBudget, QueuePages};
use super::work::WorkRing;
use crate::engine::host::{
    Completion, CqRefusal, Fetch, Host, Miss, RecvQueue, RecvRequest, SendRequest,
};
use crate::memory::{Reader, Span};

/// What a front counts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct FrontCounters {
    /// Commands executed.
    pub commands: u64,
    /// Commands refused or malformed.
    pub failed_commands: u64,
    /// Doorbells seen.
    pub doorbells: u64,
    /// Queue pairs whose doorbell was lost and that a scan found.
    pub scanned_doorbells: u64,
    /// Completion notifications raised.
    pub notifications: u64,
    /// Of these, how many had to wait because their ring was full or out of reach.
    pub delayed_notifications: u64,
    /// Asynchronous events raised.
    pub events: u64,
    /// Of these, how many were lost because their ring was full or out of reach.
    pub lost_events: u64,
}

/// What `network_hdr_type` calls IPv6, which a GRH is laid out as (IPv4 addresses are mapped).
const NETWORK_IPV6: u8 = 2;

/// The rings of a queue pair.
#[derive(Debug)]
pub(super) struct QpRings {
    pub(super) pages: QueuePages,
    pub(super) send: Option<WorkRing>,
    pub(super) recv: Option<WorkRing>,
    /// The receive ring's tail that a scan saw last.
    pub(super) seen_recvs: Option<u32>,
}

/// The ring of a shared receive queue.
#[derive(Debug)]
pub(super) struct SrqRings {
    pub(super) pages: QueuePages,
    pub(super) recv: WorkRing,
}

/// One NIC's queues; the engine's host.
#[derive(Debug)]
pub struct Front {
    pub(super) reader: Reader,
    pub(super) qps: Vec<Option<Box<QpRings>>>,
    pub(super) cqs: Vec<Option<Box<CompletionRing>>>,
    pub(super) srqs: Vec<Option<Box<SrqRings>>>,
    pub(super) events: Option<DeviceRing>,
    pub(super) notify: Option<DeviceRing>,
    /// Completion queues whose notification waits for room in its ring.
    pub(super) unsent: BTreeSet<u32>,
    pub(super) budget: PageBudget,
    // Sends taken off their rings.
    taken: u64,
    pub(super) irqs: Arc<Irqs>,
    pub(super) counters: FrontCounters,
    pub(super) live_qps: u32,
    version: u32,
}

/// Puts `value` at `handle`, which the engine gave (below 65536).
pub(super) fn put<T>(table: &mut Vec<Option<T>>, handle: u32, value: T) {
    let index = handle as usize;
    if table.len() <= index {
        table.resize_with(index + 1, || None);
    }
    table[index] = Some(value);
}

pub(super) fn take<T>(table: &mut [Option<T>], handle: u32) -> Option<T> {
    table.get_mut(handle as usize).and_then(Option::take)
}

#[inline]
fn get<T>(table: &mut [Option<Box<T>>], handle: u32) -> Option<&mut T> {
    table.get_mut(handle as usize)?.as_deref_mut()
}

impl Front {
    /// A NIC without queues, of interface version `version`.
    pub fn new(reader: Reader, irqs: Arc<Irqs>, version: u32) -> Self {
        Self {
            reader,
            qps: Vec::new(),
            cqs: Vec::new(),
            srqs: Vec::new(),
            events: None,
            notify: None,
            unsent: BTreeSet::new(),
            budget: PageBudget::default(),
            taken: 0,
            irqs,
            counters: FrontCounters::default(),
            live_qps: 0,
            version,
        }
    }

    /// The reader of the NIC's IOVA space.
    #[inline]
    pub fn reader(&mut self) -> &mut Reader {
        &mut self.reader
    }

    /// What was counted so far.
    pub fn counters(&self) -> FrontCounters {
        self.counters
    }

    /// Number of queue pairs.
    pub fn live_qps(&self) -> u32 {
        self.live_qps
    }

    /// Handles that may be in use are below this.
    pub fn qp_limit(&self) -> u32 {
        self.qps.len() as u32
    }

    /// Forgets every queue and both device rings; the engine was reset before.
    pub(super) fn clear(&mut self) {
        self.qps = Vec::new();
        self.cqs = Vec::new();
        self.srqs = Vec::new();
        self.events = None;
        self.notify = None;
        self.unsent.clear();
        self.live_qps = 0;
    }

    /// Asks the cache for what the next send of that queue pair needs.
    #[inline]
    pub fn prefetch_send(&mut self, handle: u32) {
        if let Some(QpRings { pages, send: Some(send), .. }) = get(&mut self.qps, handle) {
            send.prefetch(pages, &mut self.reader);
        }
    }

    /// Whether that queue pair has sends that were not taken yet.
    #[inline(always)]
    pub fn has_sends(&mut self, handle: u32) -> bool {
        match get(&mut self.qps, handle) {
            Some(QpRings { pages, send: Some(send), .. }) => send.has_work(pages, &mut self.reader),
            _ => false,
        }
    }

    /// Sends taken off all rings so far: unlike a doorbell, this is progress.
    #[inline]
    pub fn sends_taken(&self) -> u64 {
        self.taken
    }

    /// Whether receives were posted to that queue pair since the last time this was asked.
    #[inline]
    pub fn has_new_receives(&mut self, handle: u32) -> bool {
        match get(&mut self.qps, handle) {
            Some(QpRings { pages, recv: Some(recv), seen_recvs, .. }) => {
                let tail = recv.posted_tail(pages, &mut self.reader);
                tail.is_some() && std::mem::replace(seen_recvs, tail) != tail
            }
            _ => false,
        }
    }

    /// Counts a queue pair whose work was found by a scan.
    pub fn count_scanned(&mut self) {
        self.counters.scanned_doorbells += 1;
    }

    /// Arms a completion queue.
    pub fn arm(&mut self, cq: u32, solicited_only: bool) {
        if let Some(ring) = get(&mut self.cqs, cq)
            && ring.arm(&mut self.reader, solicited_only)
        {
            self.notify(cq);
        }
    }

    #[cold]
    fn notify(&mut self, cq: u32) {
        self.counters.notifications += 1;
        // An armed queue is told once, so a notification that is dropped would silence it for good.
        if let Some(ring) = &mut self.notify
            && !ring.push(&mut self.reader, &NotifyEntry { cq })
            && self.unsent.insert(cq)
        {
            self.counters.delayed_notifications += 1;
        }
        self.irqs.fire(VECTOR_COMPLETION);
    }

    /// Whether notifications wait for room in their ring.
    #[inline]
    pub fn has_unsent(&self) -> bool {
        !self.unsent.is_empty()
    }

    /// Delivers notifications that waited, as many as there is room for now. True for any.
    #[cold]
    pub fn send_unsent(&mut self) -> bool {
        let mut sent = false;
        while let (Some(ring), Some(&cq)) = (&mut self.notify, self.unsent.first()) {
            if !ring.push(&mut self.reader, &NotifyEntry { cq }) {
                break;
            }
            self.unsent.pop_first();
            sent = true;
        }
        if sent {
            self.irqs.fire(VECTOR_COMPLETION);
        }
        sent
    }

    fn recv_ring(
        &mut self,
        queue: RecvQueue,
    ) -> Option<(&mut WorkRing, &mut QueuePages, &mut Reader)> {
        match queue {
            RecvQueue::Own(qp) => {
                let QpRings { pages, recv, .. } = get(&mut self.qps, qp)?;
                Some((recv.as_mut()?, pages, &mut self.reader))
            }
            RecvQueue::Shared(srq) => {
                let SrqRings { pages, recv } = get(&mut self.srqs, srq)?;
                Some((recv, pages, &mut self.reader))
            }
        }
    }
}

impl Host for Front {
    #[inline]
    fn translate(&mut self, iova: u64, len: usize, write: bool) -> Result<Span, Miss> {
        self.reader.translate(iova, len, write)
    }

    #[inline]
    fn next_send(&mut self, qp_handle: u32, request: &mut SendRequest) -> Fetch {
        let Some(QpRings { pages, send: Some(send), .. }) = get(&mut self.qps, qp_handle) else {
            return Fetch::Empty;
        };
        let fetch = send.next_send(pages, &mut self.reader, request);
        self.taken += u64::from(matches!(fetch, Fetch::Got | Fetch::Malformed));
        fetch
    }

    #[inline]
    fn sends_fetched(&mut self, qp_handle: u32) {
        if let Some(QpRings { pages, send: Some(send), .. }) = get(&mut self.qps, qp_handle) {
            send.show_head(pages, &mut self.reader);
        }
    }

    #[inline]
    fn next_recv(&mut self, queue: RecvQueue, request: &mut RecvRequest) -> Fetch {
        match self.recv_ring(queue) {
            Some((ring, pages, reader)) => ring.next_recv(pages, reader, request),
            None => Fetch::Empty,
        }
    }

    fn recv_available(&mut self, queue: RecvQueue) -> u32 {
        self.recv_ring(queue).map_or(0, |(ring, pages, reader)| ring.available(pages, reader))
    }

    #[inline]
    fn complete(&mut self, cq_handle: u32, completion: &Completion) -> Result<(), CqRefusal> {
        self.sends_fetched(completion.qp_handle);
        // With RoCE v2, Linux looks the sender's GID up by what kind of packet it came in.
        let routed = completion.wc_flags & WC_GRH != 0 && self.version >= VERSION_ROCE_V2;
        let (more_flags, network_hdr_type) =
            if routed { (WC_WITH_NETWORK_HDR_TYPE, NETWORK_IPV6) } else { (0, 0) };
        let cqe = Cqe {
            wr_id: completion.wr_id,
            qp: completion.qp_handle.into(),
            opcode: completion.opcode,
            status: completion.status.wire(),
            byte_len: completion.byte_len,
            imm_data: completion.imm_data,
            src_qp: completion.src_qp,
            wc_flags: completion.wc_flags | more_flags,
            network_hdr_type,
            vendor_err: completion.vendor_err,
            port_num: 1,
            ..Cqe::default()
        };
        let Some(ring) = get(&mut self.cqs, cq_handle) else { return Err(CqRefusal::Dead) };
        if ring.push(&mut self.reader, &cqe, completion.solicited)? {
            self.notify(cq_handle);
        }
        Ok(())
    }

    #[cold]
    fn event(&mut self, kind: EventKind, info: u32) {
        self.counters.events += 1;
        if let Some(ring) = &mut self.events
            && !ring.push(&mut self.reader, &EventEntry { kind: kind.wire(), info })
        {
            self.counters.lost_events += 1;
        }
        self.irqs.fire(VECTOR_EVENT);
    }
}
