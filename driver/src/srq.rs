//! Shared receive queues: one queue of receives for several queue pairs.
//!
//! Receives are taken by the device in order and complete in any order, into the completion queue
//! of whichever queue pair took them. Each outstanding receive therefore holds a
//! [ticket](crate::tickets::Tickets), which its completion gives back.

use std::sync::Arc;

use holdfast_wire::attr::{SRQ_MASK_LIMIT, SrqAttr};
use holdfast_wire::wqe::Sge;
use holdfast_wire::{PAGE_SIZE, cmd, uar};

use crate::account::{Key, MAX_DEPTH, Tag};
use crate::dma::DmaBuffer;
use crate::error::{Error, PostError, Result};
use crate::limits::Permit;
use crate::pages::PageDirectory;
use crate::pd::ProtectionDomain;
use crate::recv::{recv_pages, recv_ring, write_receive};
use crate::ring::ProducerRing;
use crate::send_slow::too_many;
use crate::tickets::Tickets;
use crate::uar::{Doorbell, Uar, doorbell_word};

/// The part of a shared receive queue that queue pairs keep alive; see
/// [`SharedReceiveQueue::share`].
#[derive(Clone)]
pub struct SrqHandle(pub(crate) Arc<SrqInner>);

impl std::fmt::Debug for SrqHandle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "SrqHandle({})", self.0.handle)
    }
}

pub(crate) struct SrqInner {
    pub(crate) pd: Arc<ProtectionDomain>,
    pub(crate) handle: u32,
    pub(crate) key: Key,
    pub(crate) tickets: Arc<Tickets>,
    memory: Option<(Arc<DmaBuffer>, PageDirectory)>,
    _permit: Permit,
}

impl Drop for SrqInner {
    fn drop(&mut self) {
        let device = self.pd.device();
        let request =
            cmd::DestroySrq { hdr: Default::default(), srq_handle: self.handle, reserved: 0 };
        let result = device.channel.execute(request);
        device.release_key(self.key);
        device.release_memory("shared receive queue", result.map(drop), self.memory.take());
    }
}

/// A shared receive queue. It has one owner, who posts to it.
pub struct SharedReceiveQueue {
    ring: ProducerRing,
    posted: u32,
    limit: u32,
    hint: u32,
    depth: u32,
    doorbell: Doorbell,
    doorbell_word: u32,
    inner: Arc<SrqInner>,
}

impl std::fmt::Debug for SharedReceiveQueue {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "SharedReceiveQueue(handle {}, depth {})", self.inner.handle, self.depth)
    }
}

impl SharedReceiveQueue {
    pub(crate) fn new(
        pd: &Arc<ProtectionDomain>,
        uar: &Arc<Uar>,
        depth: u32,
        max_sge: u32,
    ) -> Result<Self> {
        let device = pd.device();
        device.check_same(uar.device())?;
        let limits = device.limits();
        if limits.max_srq == 0 {
            return Err(Error::Unsupported {
                what: "share receive queues",
                why: "it reports none; give each queue pair its own receive queue",
            });
        }
        let (depth, max_sge) = (depth.max(1), max_sge.max(1));
        let most = limits.max_srq_wr.min(MAX_DEPTH);
        Error::check_limit("shared receive queue depth", u64::from(depth), u64::from(most))?;
        Error::check_limit("receive entries", u64::from(max_sge), u64::from(limits.max_srq_sge))?;
        let slots = depth.next_power_of_two();
        let pages = 1 + recv_pages(slots, max_sge);
        Error::check_limit(
            "pages of a shared receive queue",
            pages as u64,
            u64::from(device.quirks().max_ring_pages),
        )?;
        let permit = device.counts.shared_receive_queues.take()?;
        let memory = Arc::new(device.dma.allocate(pages * PAGE_SIZE)?);
        let directory = PageDirectory::new(device.dma.as_ref(), &memory.pages()[..pages])?;
        let key = device.issue_key()?;
        let created = device.channel.execute(cmd::CreateSrq {
            pdir_dma: directory.address(),
            pd_handle: pd.handle(),
            nchunks: directory.count(),
            max_wr: slots,
            max_sge,
            ..Default::default()
        });
        let response = match created {
            Ok(response) => response,
            Err(error) => {
                device.release_key(key);
                return Err(device.not_created("shared receive queue", error, (memory, directory)));
            }
        };
        let ring = recv_ring(memory.clone(), PAGE_SIZE, slots, max_sge);
        let inner = Arc::new(SrqInner {
            pd: pd.clone(),
            handle: response.srqn,
            key,
            tickets: Arc::new(Tickets::new(depth)),
            memory: Some((memory, directory)),
            _permit: permit,
        });
        let word = doorbell_word("shared receive queue number", inner.handle, uar::SRQ_RECV)?;
        Ok(Self {
            ring,
            posted: 0,
            limit: 0,
            hint: 0,
            depth,
            doorbell: uar.doorbell(uar::SRQ),
            doorbell_word: word,
            inner,
        })
    }

    /// What queue pairs are made with ([`crate::QpConfig::srq`]).
    pub fn share(&self) -> SrqHandle {
        SrqHandle(self.inner.clone())
    }

    /// The device's handle, as events name it.
    pub fn handle(&self) -> u32 {
        self.inner.handle
    }

    /// Posts a receive into `sges`.
    #[inline]
    pub fn post(&mut self, wr_id: u64, sges: &[Sge]) -> Result<(), PostError> {
        if sges.len() > self.ring.max_sge() as usize {
            return Err(too_many(sges.len(), self.ring.max_sge()));
        }
        if self.posted == self.limit {
            self.refresh()?;
        }
        let Some(ticket) = self.inner.tickets.take(&mut self.hint, wr_id) else {
            return Err(PostError::QueueFull { depth: self.depth });
        };
        let slot = self.ring.slot(self.posted);
        slot.tag(Tag::new(self.inner.key, ticket));
        write_receive(&slot, sges);
        self.posted = self.posted.wrapping_add(1);
        Ok(())
    }

    /// Shows everything posted to the device.
    #[inline]
    pub fn ring(&mut self) {
        self.ring.publish(self.posted);
        self.doorbell.ring(self.doorbell_word);
    }

    /// How many receives may be outstanding.
    pub fn depth(&self) -> u32 {
        self.depth
    }

    /// Receives posted that have not completed.
    pub fn outstanding(&self) -> u32 {
        self.inner.tickets.outstanding()
    }

    /// Most scatter/gather entries of a receive.
    pub fn max_sge(&self) -> u32 {
        self.ring.max_sge()
    }

    /// Asks for one [`SrqLimitReached`](holdfast_wire::event::EventKind::SrqLimitReached) event
    /// when fewer than `limit` receives are left; 0 takes that back. Blocks for a command.
    pub fn set_limit(&self, limit: u32) -> Result<()> {
        Error::check_limit("shared receive queue limit", u64::from(limit), u64::from(self.depth))?;
        self.inner
            .pd
            .device()
            .channel
            .execute(cmd::ModifySrq {
                hdr: Default::default(),
                srq_handle: self.inner.handle,
                attr_mask: SRQ_MASK_LIMIT,
                attrs: SrqAttr { srq_limit: limit, ..Default::default() },
            })
            .map(drop)
    }

    /// Asks the device for its view. Blocks for a command.
    pub fn query(&self) -> Result<SrqAttr> {
        let request =
            cmd::QuerySrq { hdr: Default::default(), srq_handle: self.inner.handle, reserved: 0 };
        Ok(self.inner.pd.device().channel.execute(request)?.attrs)
    }

    #[cold]
    #[inline(never)]
    fn refresh(&mut self) -> Result<(), PostError> {
        self.inner.pd.device().forget_notifications();
        self.ring.check_head().map_err(|value| PostError::DeviceNonsense { value })?;
        // What has completed has been fetched; the device's index may lag behind that.
        let free = self.ring.slots() - self.inner.tickets.outstanding();
        if free == 0 {
            return Err(PostError::QueueFull { depth: self.depth });
        }
        self.limit = self.posted.wrapping_add(free);
        Ok(())
    }
}
