//! The device's queue pair, which lives as long as any part of it: what its parts share, how it
//! starts over, and how it goes.
//!
//! Destroying a queue pair moves it to ERR first, where that means something, so that nothing of
//! it is in flight when its rings go. Its completions that were not polled are dropped by the
//! completion queue.

use std::sync::atomic::{AtomicU8, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use holdfast_wire::attr::{QpState, QpType};
use holdfast_wire::cmd;

use crate::cq_shared::{Attachment, CqShared, Ledger};
use crate::device::Device;
use crate::dma::DmaBuffer;
use crate::error::Result;
use crate::limits::Permit;
use crate::pages::PageDirectory;
use crate::pd::ProtectionDomain;
use crate::recv::RecvQueue;
use crate::send::SendQueue;
use crate::srq::SrqInner;
use crate::work_queue::Book;

/// The keys and accounts that its work queues have now; RESET gives new ones.
pub(crate) struct Books {
    pub(crate) send: Book,
    pub(crate) recv: Option<Book>,
}

/// The device's queue pair, which lives as long as any part of it.
pub(crate) struct QpInner {
    pub(crate) pd: Arc<ProtectionDomain>,
    pub(crate) handle: u32,
    pub(crate) qpn: u32,
    pub(crate) qp_type: QpType,
    pub(crate) transition: Mutex<()>,
    state: AtomicU32,
    gid_index: AtomicU8,
    send_cq: Arc<CqShared>,
    recv_cq: Arc<CqShared>,
    srq: Option<Arc<SrqInner>>,
    reserved: (u32, u32),
    books: Mutex<Books>,
    memory: Option<(Arc<DmaBuffer>, PageDirectory)>,
    _permit: Permit,
}

/// What the device's queue pair is made of.
pub(crate) struct InnerParts {
    pub(crate) pd: Arc<ProtectionDomain>,
    pub(crate) handle: u32,
    pub(crate) qpn: u32,
    pub(crate) qp_type: QpType,
    pub(crate) send_cq: Arc<CqShared>,
    pub(crate) recv_cq: Arc<CqShared>,
    pub(crate) srq: Option<Arc<SrqInner>>,
    /// Entries set aside in the two completion queues.
    pub(crate) reserved: (u32, u32),
    pub(crate) books: Books,
    pub(crate) memory: (Arc<DmaBuffer>, PageDirectory),
    pub(crate) permit: Permit,
}

impl QpInner {
    /// The device has made the queue pair, which is destroyed when this is dropped.
    pub(crate) fn new(parts: InnerParts) -> Arc<Self> {
        let inner = Arc::new(Self {
            pd: parts.pd,
            handle: parts.handle,
            qpn: parts.qpn,
            qp_type: parts.qp_type,
            transition: Mutex::new(()),
            state: AtomicU32::new(QpState::Reset.wire()),
            gid_index: AtomicU8::new(0),
            send_cq: parts.send_cq,
            recv_cq: parts.recv_cq,
            srq: parts.srq,
            reserved: parts.reserved,
            books: Mutex::new(parts.books),
            memory: Some(parts.memory),
            _permit: parts.permit,
        });
        inner.attach(&inner.books());
        inner
    }

    fn books(&self) -> MutexGuard<'_, Books> {
        self.books.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn device(&self) -> &Arc<Device> {
        self.pd.device()
    }

    pub(crate) fn has_own_receives(&self) -> bool {
        self.srq.is_none()
    }

    pub(crate) fn state(&self) -> QpState {
        QpState::try_from(self.state.load(Ordering::Acquire)).unwrap_or(QpState::Error)
    }

    pub(crate) fn set_state(&self, state: QpState) {
        self.state.store(state.wire(), Ordering::Release);
    }

    pub(crate) fn gid_index(&self) -> u8 {
        self.gid_index.load(Ordering::Relaxed)
    }

    pub(crate) fn set_gid_index(&self, index: u8) {
        self.gid_index.store(index, Ordering::Relaxed);
    }

    /// Whether sends may be posted: from RTS on, and in the error states, which flush them.
    pub(crate) fn may_send(state: QpState) -> bool {
        !matches!(state, QpState::Reset | QpState::Init | QpState::ReadyToReceive)
    }

    /// Whether receives may be posted: in every state but RESET.
    pub(crate) fn may_receive(state: QpState) -> bool {
        state != QpState::Reset
    }

    /// Requests the device has and has not completed (not those of a shared receive queue).
    pub(crate) fn outstanding(&self) -> u32 {
        let books = self.books();
        let receives = books.recv.as_ref().map_or(0, |book| book.account.outstanding());
        books.send.account.outstanding().saturating_add(receives)
    }

    fn attach(&self, books: &Books) {
        let Book { key, account, relay } = books.send.clone();
        let ledger = Ledger::Send(account);
        self.send_cq.attach(Attachment { key, qp: self.handle, ledger, relay });
        let (key, ledger, relay) = match (&books.recv, &self.srq) {
            (Some(recv), _) => (recv.key, Ledger::Recv(recv.account.clone()), recv.relay.clone()),
            (None, Some(srq)) => (srq.key, Ledger::Shared(srq.tickets.clone()), None),
            (None, None) => return,
        };
        self.recv_cq.attach(Attachment { key, qp: self.handle, ledger, relay });
    }

    fn detach(&self, books: &Books) {
        let device = self.device();
        device.retire_key(books.send.key);
        self.send_cq.detach(books.send.key, self.handle);
        device.release_key(books.send.key);
        if let Some(recv) = &books.recv {
            device.retire_key(recv.key);
            self.recv_cq.detach(recv.key, self.handle);
            device.release_key(recv.key);
        } else if let Some(srq) = &self.srq {
            self.recv_cq.detach(srq.key, self.handle);
        }
    }

    /// After RESET: empty rings, new keys (completions from before are leftovers), new accounts.
    pub(crate) fn restart(&self, send: &mut SendQueue, recv: Option<&mut RecvQueue>) -> Result<()> {
        let mut books = self.books();
        let fresh = Books {
            send: books.send.afresh(self.device().issue_key()?),
            recv: match &books.recv {
                Some(book) => Some(book.afresh(self.device().issue_key()?)),
                None => None,
            },
        };
        if let Some((memory, _)) = &self.memory {
            memory.write(0, &[0u8; size_of::<holdfast_wire::ring::QueueState>()]);
        }
        self.detach(&books);
        self.attach(&fresh);
        send.restart(&fresh.send);
        if let (Some(queue), Some(book)) = (recv, &fresh.recv) {
            queue.restart(book);
        }
        *books = fresh;
        Ok(())
    }
}

impl Drop for QpInner {
    fn drop(&mut self) {
        let device = self.device().clone();
        let idle = matches!(self.state(), QpState::Reset | QpState::Error);
        if !idle
            && !device.quirks().never_flushes
            && let Err(error) = crate::qp_state::modify_to_error(self)
            && !error.is_gone()
        {
            tracing::warn!(%error, qp = self.handle, "a queue pair did not go to ERR");
        }
        let request =
            cmd::DestroyQp { hdr: Default::default(), qp_handle: self.handle, reserved: 0 };
        let result = device.channel.execute(request);
        let books = self.books();
        self.detach(&books);
        drop(books);
        self.send_cq.leave(self.reserved.0);
        self.recv_cq.leave(self.reserved.1);
        device.release_memory("queue pair", result.map(drop), self.memory.take());
    }
}
