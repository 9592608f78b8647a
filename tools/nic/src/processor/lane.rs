//! One NIC on the processor: its doorbell pages, and the search for doorbells that got lost.
//!
//! In mapped mode a doorbell is a store to memory, and a second store to the same word may come
//! before the processor has looked at the first. A doorbell is therefore a hint: the queue pair it
//! names is served at once, and after it every queue pair of the NIC is looked at once, a few per
//! round. The most recent ones are looked at in every round, which usually finds new work before
//! its doorbell arrives: the tail is stored first.
//!
//! A doorbell word is cleared after it was served, not before: clearing takes the cache line from
//! the client, and the client waits for its completion, not for the word. A doorbell that arrived
//! in between is found by the scan or, for the other words, in the value that clearing gives back.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use holdfast_wire::{regs, uar};

use super::quiesce;
use crate::engine::{Engine, NicId};
use crate::memory::Space;
use crate::pvrdma::irq::Irqs;
use crate::pvrdma::{Device, DeviceConfig, Front, UarPages};

/// Queue pairs that are looked at in every round.
const HOT: usize = 4;
/// Queue pairs that a scan looks at per round.
const SCAN_STEP: u32 = 16;
/// Doorbell pages that are looked at per round.
const PAGE_STEP: usize = 16;
/// No queue pair.
const NONE: u32 = u32::MAX;

/// One NIC.
#[derive(Debug)]
pub(super) struct Lane {
    hot: [u32; HOT],
    // Next queue pair to scan, and how many are left of this pass.
    scan_at: u32,
    scan_left: u32,
    next_page: usize,
    mapped: bool,
    pages: Option<Arc<UarPages>>,
    pub(super) device: Device,
    pub(super) space: Arc<Space>,
    pub(super) irqs: Arc<Irqs>,
}

impl Lane {
    pub(super) fn new(
        nic: NicId,
        config: DeviceConfig,
        space: Arc<Space>,
        irqs: Arc<Irqs>,
    ) -> Self {
        Self {
            hot: [NONE; HOT],
            scan_at: 0,
            scan_left: 0,
            next_page: 0,
            mapped: config.mapped_doorbells,
            pages: None,
            device: Device::new(config, nic),
            space,
            irqs,
        }
    }

    #[inline]
    pub(super) fn nic(&self) -> NicId {
        self.device.nic()
    }

    pub(super) fn is_connected(&self) -> bool {
        self.pages.is_some()
    }

    pub(super) fn connect(&mut self, pages: Arc<UarPages>) {
        self.pages = Some(pages);
    }

    pub(super) fn reset(&mut self, engine: &mut Engine<Front>, gone: bool) {
        self.device.reset(engine);
        self.hot = [NONE; HOT];
        self.scan_left = 0;
        if gone {
            self.pages = None;
        }
    }

    /// Whether this write is a command of an asynchronous device, which is answered first.
    pub(super) fn accepts_early(&self, offset: u64, value: u32) -> bool {
        self.device.config().async_commands && offset == regs::REQUEST && value == 0
    }

    /// Looks at the NIC's doorbells and serves what it finds.
    #[inline]
    pub(super) fn poll(
        lanes: &mut [Lane],
        index: usize,
        engine: &mut Engine<Front>,
        now: u64,
    ) -> bool {
        let lane = &mut lanes[index];
        if !lane.mapped {
            return false;
        }
        let nic = lane.nic();
        let mut busy = false;
        for n in 0..HOT {
            let qp = lanes[index].hot[n];
            if qp != NONE && engine.host(nic).has_sends(qp) {
                if Self::serve(lanes, index, engine, qp, now) {
                    busy = true;
                } else {
                    // It waits for something (a timer, its peer, its owner), or its ring is
                    // nonsense: the engine knows when to look again.
                    lanes[index].hot[n] = NONE;
                }
            }
        }
        let pages = lanes[index].device.pages().len();
        for _ in 0..pages.min(PAGE_STEP) {
            busy |= Self::poll_page(lanes, index, engine, now);
        }
        if lanes[index].scan_left > 0 {
            busy = true;
            Self::scan(lanes, index, engine, now, SCAN_STEP);
        }
        busy
    }

    /// Runs a queue pair that has sends. True when it took some.
    #[inline]
    fn serve(lanes: &[Lane], index: usize, engine: &mut Engine<Front>, qp: u32, now: u64) -> bool {
        let nic = lanes[index].nic();
        let before = engine.host(nic).sends_taken();
        engine.send_doorbell(nic, qp, now);
        quiesce(engine, lanes);
        engine.host(nic).sends_taken() != before
    }

    #[inline]
    fn poll_page(lanes: &mut [Lane], index: usize, engine: &mut Engine<Front>, now: u64) -> bool {
        let lane = &mut lanes[index];
        let pages = lane.device.pages();
        lane.next_page = if lane.next_page + 1 < pages.len() { lane.next_page + 1 } else { 0 };
        let (Some(&page), Some(uar)) = (pages.get(lane.next_page), &lane.pages) else {
            return false;
        };
        let (qp, cq, srq) = uar.peek(page);
        if (qp | cq | srq) == 0 {
            return false;
        }
        let uar = uar.clone();
        if qp != 0 {
            engine.host(lane.nic()).prefetch_send(uar::handle(qp));
            lane.device.doorbell(engine, uar::QP as u64, qp, now);
            quiesce(engine, lanes);
            let lane = &mut lanes[index];
            let later = uar.word(page, uar::QP).swap(0, Ordering::AcqRel);
            if later & !qp & uar::QP_RECV != 0 || later & uar::HANDLE_MASK != qp & uar::HANDLE_MASK
            {
                lane.device.doorbell(engine, uar::QP as u64, later, now);
                quiesce(engine, lanes);
            }
            lanes[index].hint(engine, qp);
        }
        for (offset, seen) in [(uar::CQ, cq), (uar::SRQ, srq)] {
            // Cleared first: an ARM that reads back as zero has to be in force when the next
            // completion is written, which this same thread does later.
            if seen != 0 {
                let word = uar.word(page, offset).swap(0, Ordering::AcqRel);
                lanes[index].device.doorbell(engine, offset as u64, word, now);
                quiesce(engine, lanes);
            }
        }
        true
    }

    /// A doorbell of a queue pair was seen: remembers it, and starts a scan for lost ones.
    fn hint(&mut self, engine: &mut Engine<Front>, word: u32) {
        let front = engine.host(self.nic());
        if word & uar::QP_SEND != 0 {
            let qp = uar::handle(word);
            if let Some(at) = self.hot.iter().position(|&hot| hot == qp) {
                self.hot.swap(0, at);
            } else if qp < front.qp_limit() {
                self.hot.rotate_right(1);
                self.hot[0] = qp;
            }
        }
        self.scan_left = front.qp_limit();
    }

    /// Looks at the next few queue pairs of the pass and serves those that have work.
    fn scan(
        lanes: &mut [Lane],
        index: usize,
        engine: &mut Engine<Front>,
        now: u64,
        steps: u32,
    ) -> bool {
        let mut found = false;
        for _ in 0..steps {
            let lane = &mut lanes[index];
            if lane.scan_left == 0 {
                break;
            }
            let nic = lane.nic();
            let front = engine.host(nic);
            lane.scan_left -= 1;
            lane.scan_at = if lane.scan_at + 1 < front.qp_limit() { lane.scan_at + 1 } else { 0 };
            let qp = lane.scan_at;
            if front.has_sends(qp) && Self::serve(lanes, index, engine, qp, now) {
                engine.host(nic).count_scanned();
                found = true;
            }
            // Receives wait for their messages; only those of a queue pair in Error are flushed.
            if engine.host(nic).has_new_receives(qp) {
                found |= engine.recv_doorbell(nic, qp);
                quiesce(engine, lanes);
            }
        }
        found
    }

    /// Looks at every queue pair and every doorbell page once, for use before sleeping.
    pub(super) fn sweep(
        lanes: &mut [Lane],
        index: usize,
        engine: &mut Engine<Front>,
        now: u64,
    ) -> bool {
        let nic = lanes[index].nic();
        let mut found = engine.host(nic).has_unsent() && engine.host(nic).send_unsent();
        if !lanes[index].mapped {
            return found;
        }
        for _ in 0..lanes[index].device.pages().len() {
            found |= Self::poll_page(lanes, index, engine, now);
        }
        let all = engine.host(nic).qp_limit();
        lanes[index].scan_left = all;
        found | Self::scan(lanes, index, engine, now, all)
    }

    /// Tells the client's threads whether the NIC sleeps.
    pub(super) fn set_asleep(&self, asleep: bool) {
        if let Some(uar) = self.pages.as_ref().filter(|_| self.mapped) {
            for &page in self.device.pages() {
                uar.set_asleep(page, asleep);
            }
        }
    }

    /// Whether a client may leave something to do without a message: a doorbell, or room for
    /// notifications that wait.
    pub(super) fn may_ring(&self, engine: &mut Engine<Front>) -> bool {
        let front = engine.host(self.nic());
        front.has_unsent() || self.mapped && self.pages.is_some() && front.live_qps() > 0
    }
}
