//! The RDMA engine: queue pairs, memory regions, access checks, and the fabric between NICs.
//!
//! An [`Engine`] owns any number of NICs and knows neither PCI nor rings: what it is built into
//! implements [`host::Host`], one per NIC. The engine *pulls*. A doorbell tells it that a queue
//! pair has requests; it takes them one by one with `Host::next_send`, resolves both ends of the
//! transfer through `Host::translate`, moves the bytes, and hands completions to `Host::complete`.
//! Between two NICs of one engine a transfer is one copy from the source's memory to the
//! destination's, made inside the call that rang the doorbell. NICs of other processes are reached
//! over [links](Engine::add_link).
//!
//! # Threads and time
//! An engine belongs to one thread and blocks nowhere. It reads no clock: `now` is a count of
//! nanoseconds on any clock that never goes back. Every call does a bounded amount of work
//! ([`BUDGET_BYTES`], [`BUDGET_REQUESTS`]), and no translation is used after the call that made
//! it, so the time between two calls is a quiescent point.
//!
//! # What calls into the host and what does not
//! Commands (`create_*`, `destroy_*`, `modify_*`, `query_*`, `bind_gid`, `reset_nic`) never call
//! the host, with one exception: [`Engine::modify_qp`] raises `SendQueueDrained` when there is
//! nothing to drain. Flushing a queue pair that went to Error happens in later calls of
//! [`Engine::poll`]. Destroying a queue pair drops what it had under way without completions.
//! Doorbells and [`Engine::poll`] call all of the host.
//!
//! # Who keeps what
//! The front keeps rings and checks what is in them; the engine keeps states and handles. A queue
//! pair that goes to Reset forgets everything the engine held of it; emptying its rings is the
//! front's matter. Handles count from 0 (queue pairs' from 2, 1 being the general services one's)
//! and stay below 65536; queue pair numbers and memory keys carry a generation besides, so that
//! stale ones are refused.
//!
//! # Rooms
//! Commands: `nic`, `mr`, `qp`, `transition`, `table`. Sending: `requester`, `window`, `reply`,
//! `flush`, `local_ops`. Receiving: `responder`, `atomic`. Both: `datagram`, `completion`,
//! `gather`, `packet`. Between NICs: `fabric`, [`link`]. Turns and timers: `sched`.

mod atomic;
mod burst;
mod completion;
mod config;
pub mod counters;
mod datagram;
mod error;
mod fabric;
mod flush;
mod gather;
pub mod host;
pub mod link;
mod local_ops;
mod mr;
mod nic;
mod packet;
mod qp;
mod reply;
mod requester;
mod responder;
mod sched;
mod table;
mod transition;
mod vendor;
mod window;

use std::io;

use holdfast_wire::attr::{QpAttr, QpState, SrqAttr};
use holdfast_wire::event::EventKind;

pub use config::{Limits, LinkId, MissPolicy, NicConfig, NicId, Progress};
pub use counters::Counters;
pub use error::Error;
pub use link::{LinkStatus, Socket as LinkSocket};
pub use mr::{MrInfo, MrInit, MrKind};
pub use nic::SrqInit;
pub use packet::Gid;
pub use qp::QpInfo;

use fabric::Fabric;
use host::{Host, QpInit};
use link::Links;
use nic::Nic;
use requester::Scratch;
use sched::Sched;

/// Most payload bytes that one call moves, the last burst apart; [`Engine::poll`] moves as many
/// again that came over links.
pub const BUDGET_BYTES: u32 = packet::MAX_BURST;
/// Most work requests that one call carries out; [`Engine::poll`] takes as many frames of links
/// besides.
pub const BUDGET_REQUESTS: u32 = 32;

/// What is left of one call's work.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Budget {
    bytes: i64,
    requests: u32,
}

impl Budget {
    fn new() -> Self {
        Self { bytes: i64::from(BUDGET_BYTES), requests: BUDGET_REQUESTS }
    }

    #[inline]
    fn spend(&mut self, bytes: u32, requests: u32) {
        self.bytes -= i64::from(bytes);
        self.requests = self.requests.saturating_sub(requests);
    }

    #[inline]
    fn is_spent(&self) -> bool {
        self.bytes <= 0 || self.requests == 0
    }
}

/// NICs and what connects them. See the [module](self).
///
/// Methods that take a [`NicId`] panic when it came from another engine.
pub struct Engine<H> {
    nics: Vec<Nic<H>>,
    fabric: Fabric,
    links: Links,
    sched: Sched,
    scratch: Box<Scratch>,
}

impl<H: Host> Default for Engine<H> {
    fn default() -> Self {
        Self::new()
    }
}

impl<H: Host> Engine<H> {
    /// An engine without NICs.
    pub fn new() -> Self {
        Self {
            nics: Vec::new(),
            fabric: Fabric::new(),
            links: Links::default(),
            sched: Sched::default(),
            scratch: Box::default(),
        }
    }

    /// Adds a NIC. It stays for the engine's life.
    pub fn add_nic(&mut self, host: H, config: NicConfig) -> NicId {
        let id = self.nics.len();
        self.nics.push(Nic::new(id, host, config));
        NicId(id)
    }

    /// Numbers a NIC's queue pairs by handle alone, `first` (at most 65536) being the number of
    /// handle 0, for users that cannot hold larger numbers; with 0 every number is the handle. A
    /// number that is used again then means the new queue pair. The general services queue pair
    /// is number 1 and handle 1 in any case. Call it before the NIC has queue pairs.
    pub fn number_from(&mut self, nic: NicId, first: u32) {
        self.nics[nic.0].first_qpn = Some(first.min(1 << 16));
    }

    /// A NIC's host.
    pub fn host(&mut self, nic: NicId) -> &mut H {
        &mut self.nics[nic.0].host
    }

    /// A NIC's limits, as they were given.
    pub fn limits(&self, nic: NicId) -> &Limits {
        &self.nics[nic.0].config.limits
    }

    /// A NIC's counters.
    pub fn counters(&self, nic: NicId) -> &Counters {
        &self.nics[nic.0].counters
    }

    /// Destroys all of a NIC's objects and empties its GID table. Peers hear nothing from it any
    /// more, and their requests end with RetryExceeded. Counters stay.
    pub fn reset_nic(&mut self, nic: NicId) {
        for handle in self.nics[nic.0].qps.handles().collect::<Vec<_>>() {
            let _ = self.destroy_qp(nic, handle);
        }
        self.nics[nic.0].clear();
        for index in 0..self.nics[nic.0].gids.len() as u32 {
            let _ = self.unbind_gid(nic, index);
        }
    }

    /// Makes a protection domain and gives its handle.
    pub fn create_pd(&mut self, nic: NicId) -> Result<u32, Error> {
        self.nics[nic.0].create_pd()
    }

    /// Destroys a protection domain; EBUSY while regions, queue pairs or shared receive queues are
    /// in it.
    pub fn destroy_pd(&mut self, nic: NicId, pd: u32) -> Result<(), Error> {
        self.nics[nic.0].destroy_pd(pd)
    }

    /// Makes a memory region.
    pub fn create_mr(&mut self, nic: NicId, init: MrInit) -> Result<MrInfo, Error> {
        self.nics[nic.0].create_mr(init)
    }

    /// Destroys a memory region; requests that name it afterwards are refused.
    pub fn destroy_mr(&mut self, nic: NicId, mr: u32) -> Result<(), Error> {
        self.nics[nic.0].destroy_mr(mr)
    }

    /// Makes a completion queue of `entries` entries and gives its handle.
    pub fn create_cq(&mut self, nic: NicId, entries: u32) -> Result<u32, Error> {
        self.nics[nic.0].create_cq(entries)
    }

    /// Destroys a completion queue; EBUSY while queue pairs use it.
    pub fn destroy_cq(&mut self, nic: NicId, cq: u32) -> Result<(), Error> {
        self.nics[nic.0].destroy_cq(cq)
    }

    /// Makes a shared receive queue and gives its handle.
    pub fn create_srq(&mut self, nic: NicId, init: SrqInit) -> Result<u32, Error> {
        self.nics[nic.0].create_srq(init)
    }

    /// Sets a shared receive queue's limit (`SRQ_MASK_LIMIT`); the depth cannot be changed.
    pub fn modify_srq(
        &mut self,
        nic: NicId,
        srq: u32,
        mask: u32,
        attr: &SrqAttr,
    ) -> Result<(), Error> {
        let nic = &mut self.nics[nic.0];
        nic.modify_srq(srq, mask, attr)
    }

    /// A shared receive queue's attributes; the limit is 0 once its event was raised.
    pub fn query_srq(&mut self, nic: NicId, srq: u32) -> Result<SrqAttr, Error> {
        self.nics[nic.0].query_srq(srq)
    }

    /// Destroys a shared receive queue; EBUSY while queue pairs use it.
    pub fn destroy_srq(&mut self, nic: NicId, srq: u32) -> Result<(), Error> {
        self.nics[nic.0].destroy_srq(srq)
    }

    /// Makes a queue pair in state Reset.
    pub fn create_qp(&mut self, nic: NicId, init: &QpInit) -> Result<QpInfo, Error> {
        self.nics[nic.0].create_qp(&mut self.sched, init)
    }

    /// Changes a queue pair's attributes and state. `mask` are `holdfast_wire::attr::mask` bits.
    /// Going to Error starts a flush, which later calls of [`Engine::poll`] carry out.
    pub fn modify_qp(
        &mut self,
        nic: NicId,
        qp: u32,
        mask: u32,
        attr: &QpAttr,
    ) -> Result<(), Error> {
        let at = nic.0;
        let nic = &mut self.nics[at];
        let before = nic.qps.find(qp)?;
        // A reset forgets both.
        let (route, held) = (before.route, before.sender.read_credit);
        let (from, to) = nic.modify_qp(qp, mask, attr)?;
        if to == QpState::Reset {
            self.links.return_credit(route, held);
        }
        match (from, to) {
            (_, QpState::Error) => nic.enter_error(&mut self.sched, qp),
            (QpState::ReadyToSend, QpState::SendQueueDrained) => nic.tell_drained(qp),
            (_, QpState::ReadyToSend) => self.sched.ready(nic.qps.find(qp)?),
            _ => {}
        }
        Ok(())
    }

    /// A queue pair's attributes.
    pub fn query_qp(&mut self, nic: NicId, qp: u32) -> Result<QpAttr, Error> {
        Ok(self.nics[nic.0].qps.find(qp)?.query())
    }

    /// Destroys a queue pair; what it had under way completes no more.
    pub fn destroy_qp(&mut self, nic: NicId, qp: u32) -> Result<(), Error> {
        let gone = self.nics[nic.0].destroy_qp(&mut self.sched, qp)?;
        self.links.return_credit(gone.route, gone.sender.read_credit);
        Ok(())
    }

    /// Puts a GID in a NIC's table, in place of what was at that index. A GID that another NIC has,
    /// of this engine or behind a link, is refused.
    pub fn bind_gid(&mut self, nic: NicId, index: u32, gid: Gid) -> Result<(), Error> {
        let wide = u128::from_be_bytes(gid);
        if wide == 0 {
            return Err(Error::Invalid { what: "GID", value: 0 });
        }
        self.fabric.bind(wide, nic.0)?;
        match self.nics[nic.0].bind_gid(index, gid) {
            Ok(old) => {
                self.links.announce(wide);
                if let Some(old) = old {
                    self.withdraw(nic, old);
                }
                Ok(())
            }
            Err(error) => {
                self.withdraw(nic, wide);
                Err(error)
            }
        }
    }

    /// Empties an entry of a NIC's GID table.
    pub fn unbind_gid(&mut self, nic: NicId, index: u32) -> Result<(), Error> {
        let gid = self.nics[nic.0].unbind_gid(index)?;
        self.withdraw(nic, gid);
        Ok(())
    }

    /// An entry of a NIC's GID table.
    pub fn gid(&self, nic: NicId, index: u32) -> Option<Gid> {
        let gid = self.nics[nic.0].gids.get(index as usize).copied().flatten()?;
        Some(gid.to_be_bytes())
    }

    /// Takes a GID off the fabric unless the NIC still has it at another index.
    fn withdraw(&mut self, nic: NicId, gid: u128) {
        if !self.nics[nic.0].gids.contains(&Some(gid)) {
            self.fabric.unbind(gid);
            self.links.withdraw(gid);
        }
    }

    /// A queue pair has send requests: carries them out, within the budget of a call. Says whether
    /// more is left for [`Engine::poll`]. Unknown handles are ignored.
    #[inline]
    pub fn send_doorbell(&mut self, nic: NicId, qp: u32, now: u64) -> bool {
        let Some(found) = self.nics[nic.0].qps.get(qp) else { return false };
        let at = found.me;
        self.run(at, now, &mut Budget::new());
        if !self.links.is_empty() {
            self.links.flush(now);
        }
        self.sched.ready_len() > 0
    }

    /// A queue pair has receives. Says whether there is work for [`Engine::poll`]: only a queue
    /// pair in state Error, whose receives are flushed, has some.
    pub fn recv_doorbell(&mut self, nic: NicId, qp: u32) -> bool {
        if let Some(qp) = self.nics[nic.0].qps.get_mut(qp)
            && qp.state == QpState::Error
        {
            self.sched.ready(qp);
        }
        self.sched.ready_len() > 0
    }

    /// A shared receive queue has receives. Nothing waits for them but peers' RNR timers.
    pub fn srq_doorbell(&mut self, _nic: NicId, _srq: u32) {}

    /// Whether some queue pair waits for a time.
    pub fn has_timers(&self) -> bool {
        self.sched.next_deadline().is_some()
    }

    /// Runs expired timers, links, and queue pairs that have work: links in turn within the budget
    /// of a call, then NICs in turn within another.
    pub fn poll(&mut self, now: u64) -> Progress {
        if self.sched.is_idle() && self.links.is_empty() {
            return Progress::default();
        }
        let mut did_work = false;
        while let Some(at) = self.sched.pop_expired(now) {
            did_work = true;
            if let Some(qp) = self.nics[at.nic].qps.get_mut(at.handle)
                && qp.me == at
            {
                qp.timer_at = None;
                self.sched.ready(qp);
            }
        }
        // A budget of its own: what peers send must not keep the NICs' own work from its turn.
        if !self.links.is_empty() {
            did_work |= self.run_links(now, &mut Budget::new());
        }
        let mut budget = Budget::new();
        for _ in 0..self.sched.ready_len() {
            if budget.is_spent() {
                break;
            }
            let Some(at) = self.sched.pop_ready() else { break };
            if let Some(qp) = self.nics[at.nic].qps.get_mut(at.handle)
                && qp.me == at
            {
                qp.queued = false;
                self.run(at, now, &mut budget);
                did_work = true;
            }
        }
        let links = self.links.flush(now);
        let more = self.sched.ready_len() > 0 || self.links.has_input();
        let next_deadline = match (self.sched.next_deadline(), links) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        };
        Progress { did_work, more_to_do: more, next_deadline }
    }

    /// Joins another process's engine over a stream socket; refused while 64 links are up.
    /// `waker` is called from the link's own reader thread after something arrived, so that a
    /// sleeping owner calls [`Engine::poll`]. A peer that says nothing for seconds is cut off.
    pub fn add_link(
        &mut self,
        stream: impl Into<LinkSocket>,
        waker: Box<dyn Fn() + Send>,
    ) -> io::Result<LinkId> {
        self.links.add(stream.into(), waker, &self.fabric)
    }

    /// Cuts a link; requests under way over it end with RetryExceeded.
    pub fn remove_link(&mut self, link: LinkId) {
        self.links.close(link.0, "closed by its owner");
        self.fabric.forget_link(link.0);
    }

    /// Every link, and how it is; those that are down as long as no other took their place.
    pub fn links(&self) -> Vec<LinkStatus> {
        self.links.status(&self.fabric)
    }
}

impl<H: Host> Nic<H> {
    /// Raises an event.
    pub(crate) fn event(&mut self, kind: EventKind, info: u32) {
        self.counters.events += 1;
        self.host.event(kind, info);
    }
}
