//! What a completion queue shares with the work queues that complete into it: who they are, and
//! how many entries are set aside for them.
//!
//! The queue's owner keeps a private copy of the list ([`crate::cq`]); the version says when that
//! is out of date.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use holdfast_wire::cmd;

use crate::account::{Account, Key, Tag};
use crate::completion_ring::ConsumerRing;
use crate::dma::DmaBuffer;
use crate::error::{Error, Result};
use crate::limits::Permit;
use crate::pages::PageDirectory;
use crate::relay::Relay;
use crate::tickets::Tickets;
use crate::uar::Uar;

/// The account a work queue completes into.
#[derive(Debug, Clone)]
pub(crate) enum Ledger {
    Nobody,
    Send(Arc<Account>),
    Recv(Arc<Account>),
    Shared(Arc<Tickets>),
}

/// A work queue attached to a completion queue.
#[derive(Debug, Clone)]
pub(crate) struct Attachment {
    pub(crate) key: Key,
    /// Queue pair handle, as completions name it.
    pub(crate) qp: u32,
    pub(crate) ledger: Ledger,
    /// Where its doorbells wait for the next poll, if they do.
    pub(crate) relay: Option<Arc<Relay>>,
}

/// The part of a completion queue that its queue pairs keep alive.
pub(crate) struct CqShared {
    pub(crate) uar: Arc<Uar>,
    pub(crate) handle: u32,
    depth: u32,
    pub(crate) attached: Mutex<Registry>,
    version: AtomicU32,
    memory: Option<(Arc<DmaBuffer>, PageDirectory)>,
    _permit: Permit,
}

#[derive(Default)]
pub(crate) struct Registry {
    pub(crate) work_queues: Vec<Attachment>,
    /// Entries set aside, those of `leaving` included.
    reserved: u32,
    /// Entries of destroyed queue pairs, whose last completions may still be in the ring.
    leaving: u32,
}

/// Stands for no queue pair in [`Attachment::qp`]; handles are 24 bits.
pub(crate) const NOBODY: u32 = u32::MAX;

impl CqShared {
    /// The device has made the queue, which is destroyed when this is dropped.
    pub(crate) fn new(
        uar: &Arc<Uar>,
        handle: u32,
        depth: u32,
        memory: (Arc<DmaBuffer>, PageDirectory),
        permit: Permit,
    ) -> Arc<Self> {
        Arc::new(Self {
            uar: uar.clone(),
            handle,
            depth,
            attached: Mutex::default(),
            version: AtomicU32::new(0),
            memory: Some(memory),
            _permit: permit,
        })
    }

    /// Entries.
    pub(crate) fn depth(&self) -> u32 {
        self.depth
    }

    /// Changes whenever a work queue is attached or detached.
    #[inline(always)]
    pub(crate) fn version(&self) -> u32 {
        self.version.load(Ordering::Acquire)
    }

    /// Requests outstanding in all attached work queues (a shared one counts once).
    pub(crate) fn outstanding(&self) -> u64 {
        let registry = self.attached.lock().unwrap_or_else(PoisonError::into_inner);
        registry
            .work_queues
            .iter()
            .map(|one| match &one.ledger {
                Ledger::Send(account) | Ledger::Recv(account) => u64::from(account.outstanding()),
                Ledger::Shared(_) | Ledger::Nobody => 0,
            })
            .sum()
    }

    /// Sets entries aside for a work queue of that depth.
    pub(crate) fn reserve(&self, depth: u32, overcommit: bool) -> Result<()> {
        let mut registry = self.attached.lock().unwrap_or_else(PoisonError::into_inner);
        if registry.leaving > 0 && self.ring().is_some_and(|ring| ring.is_drained()) {
            registry.reserved -= std::mem::take(&mut registry.leaving);
        }
        let needed = registry.reserved.saturating_add(depth);
        if needed > self.depth && !overcommit {
            return Err(Error::CqTooSmall { depth: self.depth, needed });
        }
        registry.reserved = needed;
        Ok(())
    }

    pub(crate) fn release(&self, depth: u32) {
        let mut registry = self.attached.lock().unwrap_or_else(PoisonError::into_inner);
        registry.reserved = registry.reserved.saturating_sub(depth);
    }

    /// [`CqShared::release`] once the ring has been polled empty.
    pub(crate) fn leave(&self, depth: u32) {
        let mut registry = self.attached.lock().unwrap_or_else(PoisonError::into_inner);
        registry.leaving = registry.leaving.saturating_add(depth).min(registry.reserved);
    }

    fn ring(&self) -> Option<ConsumerRing> {
        let (memory, _) = self.memory.as_ref()?;
        Some(ConsumerRing::new(memory.clone(), self.depth))
    }

    pub(crate) fn attach(&self, attachment: Attachment) {
        let mut registry = self.attached.lock().unwrap_or_else(PoisonError::into_inner);
        let device = self.uar.device();
        registry.work_queues.retain(|one| one.qp != NOBODY || !device.was_issued(one.key));
        registry.work_queues.push(attachment);
        self.version.fetch_add(1, Ordering::Release);
    }

    /// Forgets a work queue (of a queue pair, as a shared one can be attached several times). The
    /// tickets of a shared one are kept after its last queue pair here has gone: completions that
    /// it left still give them back.
    pub(crate) fn detach(&self, key: Key, qp: u32) {
        let mut registry = self.attached.lock().unwrap_or_else(PoisonError::into_inner);
        let queues = &mut registry.work_queues;
        let Some(at) = queues.iter().position(|one| one.key == key && one.qp == qp) else { return };
        let shared = matches!(queues[at].ledger, Ledger::Shared(_));
        if shared && queues.iter().filter(|one| one.key == key).count() == 1 {
            queues[at].qp = NOBODY;
        } else {
            if let Ledger::Send(account) | Ledger::Recv(account) = queues.swap_remove(at).ledger {
                account.close();
            }
        }
        self.version.fetch_add(1, Ordering::Release);
    }

    /// Gives back the tickets of completions that nobody will poll any more.
    fn retire_leftovers(&self) {
        let registry = self.attached.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(ring) = self.ring() else { return };
        for words in ring.unread() {
            let tag = Tag(words[0]);
            for one in registry.work_queues.iter().filter(|one| one.key == tag.key()) {
                if let Ledger::Shared(tickets) = &one.ledger {
                    tickets.retire(tag.slot());
                }
            }
        }
    }
}

impl Drop for CqShared {
    fn drop(&mut self) {
        let device = self.uar.device();
        let request =
            cmd::DestroyCq { hdr: Default::default(), cq_handle: self.handle, reserved: 0 };
        let result = device.channel.execute(request);
        self.retire_leftovers();
        device.release_memory("completion queue", result.map(drop), self.memory.take());
    }
}
