//! One NIC: its objects, and the commands that make, change and destroy them.

use holdfast_wire::attr::{
    QpAttr, QpState, QpType, SRQ_MASK_LIMIT, SRQ_MASK_MAX_WR, SrqAttr, mask,
};

use super::config::NicConfig;
use super::counters::Counters;
use super::error::Error;
use super::host::QpInit;
use super::mr::{Mr, MrInfo, MrInit, MrKind};
use super::packet::Gid;
use super::qp::{Qp, QpInfo};
use super::sched::{QpRef, Sched};
use super::table::Table;
use super::transition;

/// A protection domain.
#[derive(Debug, Default)]
pub(crate) struct Pd {
    users: u32,
}

/// A completion queue, as far as the engine knows it.
#[derive(Debug, Default)]
pub(crate) struct Cq {
    users: u32,
    /// It overran or its memory is gone: it takes no more completions.
    pub(crate) failed: bool,
}

/// How to make a shared receive queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SrqInit {
    /// Protection domain handle.
    pub pd: u32,
    /// Depth.
    pub max_wr: u32,
    /// Entries per receive.
    pub max_sge: u32,
    /// Raise an event when fewer receives than this are left; 0 for never.
    pub limit: u32,
}

/// A shared receive queue.
#[derive(Debug)]
pub(crate) struct Srq {
    init: SrqInit,
    /// 0 when not armed.
    pub(crate) limit: u32,
    users: u32,
}

/// Handle and number of the general services queue pair.
const GSI: u32 = 1;
/// Handles that no other queue pair has: those of the two special numbers, 0 and 1.
const RESERVED_QPS: u32 = 2;

/// A NIC.
pub(crate) struct Nic<H> {
    pub(crate) id: usize,
    pub(crate) host: H,
    pub(crate) config: NicConfig,
    pub(crate) pds: Table<Pd>,
    pub(crate) mrs: Table<Mr>,
    pub(crate) cqs: Table<Cq>,
    pub(crate) srqs: Table<Srq>,
    pub(crate) qps: Table<Box<Qp>>,
    pub(crate) gids: Vec<Option<u128>>,
    /// Pages that the regions' lists hold or may come to hold.
    pages_in_use: u32,
    /// Number of the queue pair with handle 0, if numbers carry no generation.
    pub(crate) first_qpn: Option<u32>,
    pub(crate) counters: Counters,
}

/// Takes a use off an object's count.
fn release(users: Option<&mut u32>) {
    if let Some(users) = users {
        *users = users.saturating_sub(1);
    }
}

fn within(what: &'static str, value: u32, limit: u32) -> Result<(), Error> {
    if value > limit {
        return Err(Error::Limit { what, value: value.into(), limit: limit.into() });
    }
    Ok(())
}

fn unused(what: &'static str, handle: u32, users: u32) -> Result<(), Error> {
    if users > 0 { Err(Error::Busy { what, handle, users }) } else { Ok(()) }
}

impl<H> Nic<H> {
    pub(crate) fn new(id: usize, host: H, config: NicConfig) -> Self {
        let limits = &config.limits;
        Self {
            id,
            host,
            pds: Table::new("protection domain", limits.max_pd),
            mrs: Table::new("memory region", limits.max_mr),
            cqs: Table::new("completion queue", limits.max_cq),
            srqs: Table::new("shared receive queue", limits.max_srq),
            qps: Table::with_reserved("queue pair", limits.max_qp, RESERVED_QPS),
            gids: vec![None; limits.max_gids as usize],
            pages_in_use: 0,
            first_qpn: None,
            counters: Counters::default(),
            config,
        }
    }

    pub(crate) fn create_pd(&mut self) -> Result<u32, Error> {
        self.pds.insert(|_, _| Pd::default())
    }

    pub(crate) fn destroy_pd(&mut self, pd: u32) -> Result<(), Error> {
        unused("protection domain", pd, self.pds.find(pd)?.users)?;
        self.pds.remove(pd).map(drop)
    }

    pub(crate) fn create_mr(&mut self, init: MrInit) -> Result<MrInfo, Error> {
        self.pds.find(init.pd)?;
        let limits = &self.config.limits;
        match &init.kind {
            MrKind::Pages(pages) => {
                let pages = u32::try_from(pages.len()).unwrap_or(u32::MAX);
                within("pages of a memory region", pages, limits.max_mr_pages)?;
            }
            MrKind::FastReg { max_pages } => {
                within("pages of a fast registration", *max_pages, limits.max_fast_reg_pages)?;
            }
            MrKind::Dma => {}
        }
        let pd = init.pd;
        let mut region = Mr::new(init)?;
        let limit = limits.max_registered_pages;
        let pages = self.pages_in_use.saturating_add(region.room());
        if pages > limit {
            return Err(Error::Exhausted { what: "registered pages", limit });
        }
        let handle = self.mrs.insert(|index, generation| {
            region.set_key(index << 8 | u32::from(generation));
            region
        })?;
        self.pds.find(pd)?.users += 1;
        self.pages_in_use = pages;
        let key = self.mrs.find(handle)?.key();
        Ok(MrInfo { handle, lkey: key, rkey: key })
    }

    pub(crate) fn destroy_mr(&mut self, mr: u32) -> Result<(), Error> {
        let gone = self.mrs.remove(mr)?;
        self.pages_in_use = self.pages_in_use.saturating_sub(gone.room());
        release(self.pds.get_mut(gone.pd).map(|p| &mut p.users));
        Ok(())
    }

    pub(crate) fn create_cq(&mut self, entries: u32) -> Result<u32, Error> {
        within("entries of a completion queue", entries, self.config.limits.max_cqe)?;
        self.cqs.insert(|_, _| Cq::default())
    }

    pub(crate) fn destroy_cq(&mut self, cq: u32) -> Result<(), Error> {
        unused("completion queue", cq, self.cqs.find(cq)?.users)?;
        self.cqs.remove(cq).map(drop)
    }

    pub(crate) fn create_srq(&mut self, init: SrqInit) -> Result<u32, Error> {
        let limits = &self.config.limits;
        within("receives of a shared receive queue", init.max_wr, limits.max_srq_wr)?;
        within("entries per receive", init.max_sge, limits.max_sge)?;
        within("limit of a shared receive queue", init.limit, init.max_wr)?;
        self.pds.find(init.pd)?.users += 1;
        let made = self.srqs.insert(|_, _| Srq { init, limit: init.limit, users: 0 });
        if made.is_err() {
            release(self.pds.get_mut(init.pd).map(|p| &mut p.users));
        }
        made
    }

    pub(crate) fn modify_srq(&mut self, srq: u32, bits: u32, new: &SrqAttr) -> Result<(), Error> {
        let srq = self.srqs.find(srq)?;
        if bits & !SRQ_MASK_LIMIT != 0 {
            let what = if bits & SRQ_MASK_MAX_WR != 0 { "depth" } else { "attribute mask" };
            return Err(Error::Invalid { what, value: bits.into() });
        }
        if bits & SRQ_MASK_LIMIT != 0 {
            within("limit of a shared receive queue", new.srq_limit, srq.init.max_wr)?;
            srq.limit = new.srq_limit;
        }
        Ok(())
    }

    pub(crate) fn query_srq(&mut self, srq: u32) -> Result<SrqAttr, Error> {
        let srq = self.srqs.find(srq)?;
        let SrqInit { max_wr, max_sge, .. } = srq.init;
        Ok(SrqAttr { max_wr, max_sge, srq_limit: srq.limit, reserved: 0 })
    }

    pub(crate) fn destroy_srq(&mut self, srq: u32) -> Result<(), Error> {
        unused("shared receive queue", srq, self.srqs.find(srq)?.users)?;
        let gone = self.srqs.remove(srq)?;
        release(self.pds.get_mut(gone.init.pd).map(|p| &mut p.users));
        Ok(())
    }

    pub(crate) fn create_qp(&mut self, sched: &mut Sched, init: &QpInit) -> Result<QpInfo, Error> {
        let limits = &self.config.limits;
        let gsi = init.qp_type == QpType::Gsi;
        match init.qp_type {
            QpType::Rc | QpType::Ud => {}
            QpType::Gsi if self.qps.get(GSI).is_none() => {}
            QpType::Gsi => return Err(Error::Exhausted { what: "general services", limit: 1 }),
            other => return Err(Error::Invalid { what: "queue pair type", value: other as u64 }),
        }
        within("sends of a queue pair", init.cap.max_send_wr, limits.max_qp_wr)?;
        within("receives of a queue pair", init.cap.max_recv_wr, limits.max_qp_wr)?;
        within("entries per send", init.cap.max_send_sge, limits.max_sge)?;
        within("entries per receive", init.cap.max_recv_sge, limits.max_sge)?;
        within("inline bytes", init.cap.max_inline_data, limits.max_inline)?;
        self.pds.find(init.pd)?;
        self.cqs.find(init.send_cq)?;
        self.cqs.find(init.recv_cq)?;
        if let Some(srq) = init.srq {
            self.srqs.find(srq)?;
        }
        let (nic, serial) = (self.id, sched.next_serial());
        let first = self.first_qpn;
        let make = |handle, generation| {
            let qpn = match first {
                _ if gsi => GSI,
                Some(first) => first + handle,
                None => u32::from(generation) << 16 | handle,
            };
            Box::new(Qp::new(QpRef { nic, handle, serial }, qpn, *init))
        };
        let handle = if gsi { self.qps.insert_at(GSI, make)? } else { self.qps.insert(make)? };
        self.pds.find(init.pd)?.users += 1;
        self.cqs.find(init.send_cq)?.users += 1;
        self.cqs.find(init.recv_cq)?.users += 1;
        if let Some(srq) = init.srq {
            self.srqs.find(srq)?.users += 1;
        }
        Ok(QpInfo { handle, qpn: self.qps.find(handle)?.qpn })
    }

    /// Checks and carries out a MODIFY_QP, except for what going to Error or to RTS sets going.
    pub(crate) fn modify_qp(
        &mut self,
        handle: u32,
        bits: u32,
        new: &QpAttr,
    ) -> Result<(QpState, QpState), Error> {
        let qp = self.qps.find(handle)?;
        let from = qp.state;
        let to = transition::check(qp.init.qp_type, from, bits, new, &self.config.limits)?;
        let index = new.ah_attr.sgid_index;
        if bits & mask::AV != 0 && !matches!(to, QpState::Reset | QpState::Error) {
            let bound = self.gids.get(usize::from(index)).copied().flatten();
            bound.ok_or(Error::Invalid { what: "source GID index", value: index.into() })?;
        }
        match to {
            QpState::Reset => qp.reset(),
            QpState::Error => {}
            _ => {
                qp.apply(bits, new);
                qp.state = to;
            }
        }
        Ok((from, to))
    }

    pub(crate) fn destroy_qp(&mut self, sched: &mut Sched, handle: u32) -> Result<Qp, Error> {
        let mut qp = *self.qps.remove(handle)?;
        sched.disarm(&mut qp);
        release(self.pds.get_mut(qp.init.pd).map(|p| &mut p.users));
        release(self.cqs.get_mut(qp.init.send_cq).map(|c| &mut c.users));
        release(self.cqs.get_mut(qp.init.recv_cq).map(|c| &mut c.users));
        if let Some(srq) = qp.init.srq {
            release(self.srqs.get_mut(srq).map(|s| &mut s.users));
        }
        Ok(qp)
    }

    /// Puts a GID in the table and gives the one it replaces.
    pub(crate) fn bind_gid(&mut self, index: u32, gid: Gid) -> Result<Option<u128>, Error> {
        let slot = self
            .gids
            .get_mut(index as usize)
            .ok_or(Error::Invalid { what: "GID index", value: index.into() })?;
        Ok(slot.replace(u128::from_be_bytes(gid)))
    }

    /// Empties an entry of the GID table and gives what was there.
    pub(crate) fn unbind_gid(&mut self, index: u32) -> Result<u128, Error> {
        self.gids
            .get_mut(index as usize)
            .and_then(Option::take)
            .ok_or(Error::Invalid { what: "GID index", value: index.into() })
    }

    /// The queue pair of a number.
    #[inline]
    pub(crate) fn handle_of(&self, qpn: u32) -> Option<u32> {
        let handle = self.handle_in(qpn)?;
        self.qps.get(handle).filter(|qp| qp.qpn == qpn).map(|_| handle)
    }

    /// The handle that a queue pair of this number would have, if there is one.
    #[inline]
    pub(crate) fn handle_in(&self, qpn: u32) -> Option<u32> {
        match self.first_qpn {
            _ if qpn == GSI => Some(GSI),
            Some(first) => qpn.checked_sub(first),
            None => Some(qpn & 0xffff),
        }
    }

    /// Destroys every object; the queue pairs were destroyed before.
    pub(crate) fn clear(&mut self) {
        self.pages_in_use = 0;
        self.mrs.clear();
        self.srqs.clear();
        self.cqs.clear();
        self.pds.clear();
    }
}
