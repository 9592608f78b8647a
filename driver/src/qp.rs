//! Queue pairs: making one, splitting it, and taking it apart safely.
//!
//! A [`QueuePair`] is three things that may live on different threads: a [`SendQueue`], a
//! [`RecvQueue`] (unless it uses a shared one), and a [`QpControl`] for commands. The device's
//! queue pair is destroyed when the last of them is dropped; it keeps its completion queues,
//! protection domain and doorbell page alive, so the order in which the device sees objects go is
//! always a safe one: queue pairs, then completion and shared receive queues, regions and
//! protection domains, then contexts.
//!
//! Destroying a queue pair moves it to ERR first, where that means something, so that nothing of
//! it is in flight when its rings go. Its completions that were not polled are dropped by the
//! completion queue.

use std::sync::atomic::{AtomicU8, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use holdfast_wire::attr::{ACCESS_LOCAL_WRITE, QpState, QpType};
use holdfast_wire::wqe::Opcode;
use holdfast_wire::{PAGE_SIZE, cmd, regs, uar};

use crate::account::{Account, Key};
use crate::command::{CreateQpV1, CreateQpV2};
use crate::cq::{Attachment, Completion, CompletionQueue, CqShared, Ledger};
use crate::device::Device;
use crate::dma::DmaBuffer;
use crate::error::{Error, Result};
use crate::limits::{Limits, Permit};
use crate::pages::PageDirectory;
use crate::pd::ProtectionDomain;
use crate::qp_state::QpControl;
use crate::recv::{RecvParts, RecvQueue, recv_pages, recv_ring};
use crate::send::{SEND_BITS, SendParts, SendQueue, send_pages, send_ring};
use crate::srq::{SrqHandle, SrqInner};
use crate::uar::{Uar, doorbell_word};

/// Most inline bytes that a send may be made for.
const MAX_INLINE: u32 = 432;

/// What a queue pair is to be.
#[derive(Debug, Clone)]
pub struct QpConfig {
    /// [`QpType::Rc`] or [`QpType::Ud`].
    pub qp_type: QpType,
    /// Sends that may be outstanding.
    pub send_depth: u32,
    /// Receives that may be outstanding; ignored with a shared receive queue.
    pub recv_depth: u32,
    /// Scatter/gather entries of a send.
    pub send_sges: u32,
    /// Scatter/gather entries of a receive; ignored with a shared receive queue.
    pub recv_sges: u32,
    /// Inline bytes of a send.
    pub max_inline: u32,
    /// Every send gives a completion, whatever its flags.
    pub signal_all: bool,
    /// Take receives from here.
    pub srq: Option<SrqHandle>,
    /// Do not insist that the completion queues have room for everything that may be outstanding
    /// (they may then overrun, which some devices do not report).
    pub overcommit: bool,
}

impl QpConfig {
    /// A queue pair of that type and depth, one entry per request, no inline data.
    pub fn new(qp_type: QpType, depth: u32) -> Self {
        Self {
            qp_type,
            send_depth: depth,
            recv_depth: depth,
            send_sges: 1,
            recv_sges: 1,
            max_inline: 0,
            signal_all: false,
            srq: None,
            overcommit: false,
        }
    }

    fn check(&self, device: &Device) -> Result<()> {
        let limits = device.limits();
        if !matches!(self.qp_type, QpType::Rc | QpType::Ud) {
            return Err(Error::Unsupported {
                what: "make a queue pair of that type",
                why: "the interface serves RC and UD",
            });
        }
        if self.max_inline > 0 && !device.quirks().inline_sends {
            return Err(Error::Unsupported {
                what: "send inline data",
                why: "it would read the payload as scatter/gather entries; use max_inline 0",
            });
        }
        let depth = u64::from(limits.max_qp_wr);
        let sges = u64::from(limits.max_sge);
        Error::check_limit("send queue depth", u64::from(self.send_depth.max(1)), depth)?;
        Error::check_limit("send entries", u64::from(self.send_sges), sges)?;
        Error::check_limit("inline bytes", u64::from(self.max_inline), u64::from(MAX_INLINE))?;
        if self.srq.is_none() {
            Error::check_limit("receive queue depth", u64::from(self.recv_depth.max(1)), depth)?;
            Error::check_limit("receive entries", u64::from(self.recv_sges), sges)?;
        }
        Ok(())
    }

    /// Bit n: opcode n may be posted.
    fn allowed(&self, limits: &Limits, sends_only: bool, drops_immediate: bool) -> u32 {
        let bit = |opcode: Opcode, on: bool| u32::from(on) << opcode.wire();
        let rc = self.qp_type == QpType::Rc;
        let one_sided = rc && !sends_only;
        bit(Opcode::Send, true)
            | bit(Opcode::SendImm, !drops_immediate)
            | bit(Opcode::RdmaWrite, one_sided)
            | bit(Opcode::RdmaWriteImm, one_sided)
            | bit(Opcode::RdmaRead, one_sided)
            | bit(Opcode::CompareSwap, one_sided && limits.compare_swap)
            | bit(Opcode::FetchAdd, one_sided && limits.fetch_add)
    }
}

/// Depths as rings and pages.
struct Shape {
    send_slots: u32,
    recv_slots: u32,
    send_pages: usize,
    recv_pages: usize,
}

impl Shape {
    fn new(config: &QpConfig, max_ring_pages: u32) -> Result<Self> {
        let send_slots = config.send_depth.max(1).next_power_of_two();
        let own = config.srq.is_none();
        let recv_slots = if own { config.recv_depth.max(1).next_power_of_two() } else { 0 };
        let shape = Self {
            send_slots,
            recv_slots,
            send_pages: send_pages(send_slots, config.send_sges, config.max_inline),
            recv_pages: if own { recv_pages(recv_slots, config.recv_sges) } else { 0 },
        };
        let most = u64::from(max_ring_pages);
        Error::check_limit("pages of a send queue", shape.send_pages as u64, most)?;
        Error::check_limit("pages of a receive queue", shape.recv_pages as u64, most)?;
        Error::check_limit("pages of a queue pair", shape.pages() as u64, u64::from(u16::MAX))?;
        Ok(shape)
    }

    fn pages(&self) -> usize {
        1 + self.send_pages + self.recv_pages
    }

    fn recv_offset(&self) -> usize {
        (1 + self.send_pages) * PAGE_SIZE
    }
}

/// The keys and accounts that its work queues have now; RESET gives new ones.
struct Books {
    send: (Key, Arc<Account>),
    recv: Option<(Key, Arc<Account>)>,
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

impl QpInner {
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
        let books = self.books.lock().unwrap_or_else(PoisonError::into_inner);
        let receives = books.recv.as_ref().map_or(0, |(_, account)| account.outstanding());
        books.send.1.outstanding().saturating_add(receives)
    }

    fn attach(&self, books: &Books) {
        let (key, account) = &books.send;
        let ledger = Ledger::Send(account.clone());
        self.send_cq.attach(Attachment { key: *key, qp: self.handle, ledger });
        let (key, ledger) = match (&books.recv, &self.srq) {
            (Some((key, account)), _) => (*key, Ledger::Recv(account.clone())),
            (None, Some(srq)) => (srq.key, Ledger::Shared(srq.tickets.clone())),
            (None, None) => return,
        };
        self.recv_cq.attach(Attachment { key, qp: self.handle, ledger });
    }

    fn detach(&self, books: &Books) {
        self.device().retire_key(books.send.0);
        self.send_cq.detach(books.send.0, self.handle);
        self.device().release_key(books.send.0);
        if let Some((key, _)) = &books.recv {
            self.device().retire_key(*key);
            self.recv_cq.detach(*key, self.handle);
            self.device().release_key(*key);
        } else if let Some(srq) = &self.srq {
            self.recv_cq.detach(srq.key, self.handle);
        }
    }

    /// After RESET: empty rings, new keys (completions from before are leftovers), new accounts.
    pub(crate) fn restart(&self, send: &mut SendQueue, recv: Option<&mut RecvQueue>) -> Result<()> {
        let device = self.device();
        let fresh = Books {
            send: (device.issue_key()?, Arc::new(Account::new(send.slots()))),
            recv: match &recv {
                Some(queue) => Some((device.issue_key()?, Arc::new(Account::new(queue.slots())))),
                None => None,
            },
        };
        if let Some((memory, _)) = &self.memory {
            memory.write(0, &[0u8; size_of::<holdfast_wire::ring::QueueState>()]);
        }
        let mut books = self.books.lock().unwrap_or_else(PoisonError::into_inner);
        self.detach(&books);
        self.attach(&fresh);
        send.restart(fresh.send.0, fresh.send.1.clone());
        if let (Some(queue), Some((key, account))) = (recv, &fresh.recv) {
            queue.restart(*key, account.clone());
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
        let books = self.books.lock().unwrap_or_else(PoisonError::into_inner);
        self.detach(&books);
        drop(books);
        self.send_cq.leave(self.reserved.0);
        self.recv_cq.leave(self.reserved.1);
        device.release_memory("queue pair", result.map(drop), self.memory.take());
    }
}

/// A queue pair with its queues, before they are taken apart.
#[derive(Debug)]
pub struct QueuePair {
    /// Commands.
    pub control: QpControl,
    /// Sends.
    pub send: SendQueue,
    /// Receives, unless they come from a shared receive queue.
    pub recv: Option<RecvQueue>,
}

/// What the device granted.
struct Granted {
    qpn: u32,
    handle: u32,
    send_depth: u32,
    recv_depth: u32,
    inline: u32,
}

impl QueuePair {
    pub(crate) fn new(
        pd: &Arc<ProtectionDomain>,
        uar: &Arc<Uar>,
        config: &QpConfig,
        send_cq: &CompletionQueue,
        recv_cq: &CompletionQueue,
    ) -> Result<Self> {
        let device = pd.device();
        device.check_same(uar.device())?;
        device.check_same(send_cq.device())?;
        device.check_same(recv_cq.device())?;
        config.check(device)?;
        let srq = config.srq.as_ref().map(|srq| srq.0.clone());
        if let Some(srq) = &srq {
            device.check_same(srq.pd.device())?;
        }
        let shape = Shape::new(config, device.quirks().max_ring_pages)?;
        let permit = device.counts.queue_pairs.take()?;
        let pages = shape.pages();
        let memory = Arc::new(device.dma.allocate(pages * PAGE_SIZE)?);
        let directory = PageDirectory::new(device.dma.as_ref(), &memory.pages()[..pages])?;

        let recv_depth = if srq.is_some() { 0 } else { config.recv_depth.max(1) };
        let reserved = Reservation::new(
            [(send_cq.shared(), config.send_depth.max(1)), (recv_cq.shared(), recv_depth)],
            config.overcommit,
        )?;
        let keys = Keys::new(device, srq.is_none())?;
        let request = Self::request(pd, config, &shape, &directory, send_cq, recv_cq);
        let granted = match Self::execute(device, request) {
            Ok(granted) => granted,
            Err(error) => {
                return Err(device.not_created("queue pair", error, (memory, directory)));
            }
        };

        // From here on the device has the queue pair, and `inner` destroys it.
        let (send_key, recv_key) = keys.keep();
        let books = Books {
            send: (send_key, Arc::new(Account::new(shape.send_slots))),
            recv: recv_key.map(|key| (key, Arc::new(Account::new(shape.recv_slots)))),
        };
        let send_account = books.send.clone();
        let recv_account = books.recv.clone();
        let inner = Arc::new(QpInner {
            pd: pd.clone(),
            handle: granted.handle,
            qpn: granted.qpn,
            qp_type: config.qp_type,
            transition: Mutex::new(()),
            state: AtomicU32::new(QpState::Reset.wire()),
            gid_index: AtomicU8::new(0),
            send_cq: send_cq.shared().clone(),
            recv_cq: recv_cq.shared().clone(),
            srq,
            reserved: reserved.keep(),
            books: Mutex::new(Books { send: send_account.clone(), recv: recv_account.clone() }),
            memory: Some((memory.clone(), directory)),
            _permit: permit,
        });
        inner.attach(&books);
        let send_word = doorbell_word("queue pair handle", granted.handle, SEND_BITS)?;
        if granted.inline < config.max_inline {
            return Err(Error::Limit {
                what: "inline bytes granted",
                asked: u64::from(config.max_inline),
                limit: u64::from(granted.inline),
            });
        }

        let quirks = device.quirks();
        let limits = device.limits();
        let rc = config.qp_type == QpType::Rc;
        let (sges, inline) = (config.send_sges, config.max_inline);
        let send = SendQueue::new(SendParts {
            ring: send_ring(memory.clone(), PAGE_SIZE, shape.send_slots, sges, inline),
            account: send_account.1,
            key: send_account.0,
            depth: config.send_depth.max(1).min(granted.send_depth),
            allowed: config.allowed(&limits, quirks.sends_only, quirks.drops_immediate),
            max_message: if rc { limits.max_message } else { limits.max_datagram },
            signal_all: config.signal_all,
            doorbell: uar.doorbell(uar::QP),
            doorbell_word: send_word,
            qp: inner.clone(),
        });
        let recv = recv_account.map(|(key, account)| {
            let (offset, slots) = (shape.recv_offset(), shape.recv_slots);
            RecvQueue::new(RecvParts {
                ring: recv_ring(memory, offset, slots, config.recv_sges),
                account,
                key,
                depth: recv_depth.min(granted.recv_depth),
                doorbell: uar.doorbell(uar::QP),
                doorbell_word: granted.handle | uar::QP_RECV,
                qp: inner.clone(),
            })
        });
        Ok(Self { control: QpControl::new(inner), send, recv })
    }

    fn request(
        pd: &ProtectionDomain,
        config: &QpConfig,
        shape: &Shape,
        directory: &PageDirectory,
        send_cq: &CompletionQueue,
        recv_cq: &CompletionQueue,
    ) -> cmd::CreateQp {
        cmd::CreateQp {
            pdir_dma: directory.address(),
            pd_handle: pd.handle(),
            send_cq_handle: send_cq.handle(),
            recv_cq_handle: recv_cq.handle(),
            srq_handle: config.srq.as_ref().map_or(0, |srq| srq.0.handle),
            max_send_wr: shape.send_slots,
            max_recv_wr: shape.recv_slots,
            max_send_sge: config.send_sges,
            max_recv_sge: if config.srq.is_some() { 0 } else { config.recv_sges },
            max_inline_data: config.max_inline,
            access_flags: ACCESS_LOCAL_WRITE,
            total_chunks: shape.pages() as u16,
            send_chunks: shape.send_pages as u16,
            sq_sig_all: u8::from(config.signal_all),
            qp_type: config.qp_type.wire(),
            is_srq: u8::from(config.srq.is_some()),
            ..Default::default()
        }
    }

    /// Sends CREATE_QP; the answer's layout depends on the version.
    fn execute(device: &Device, request: cmd::CreateQp) -> Result<Granted> {
        // A device that does not say what it granted granted what was asked.
        let depth = |granted: u32| if granted == 0 { u32::MAX } else { granted };
        if device.version() >= regs::VERSION_QP_HANDLE {
            let response = device.channel.execute(CreateQpV2(request))?;
            Ok(Granted {
                qpn: response.qpn,
                handle: response.qp_handle,
                send_depth: depth(response.max_send_wr),
                recv_depth: depth(response.max_recv_wr),
                inline: response.max_inline_data,
            })
        } else {
            let response = device.channel.execute(CreateQpV1(request))?;
            Ok(Granted {
                qpn: response.qpn,
                handle: response.qpn,
                send_depth: depth(response.max_send_wr),
                recv_depth: depth(response.max_recv_wr),
                inline: response.max_inline_data,
            })
        }
    }

    /// Queue pair number, to give to peers.
    pub fn qpn(&self) -> u32 {
        self.control.qpn()
    }

    /// Handle, as completions and events name it.
    pub fn handle(&self) -> u32 {
        self.control.handle()
    }

    /// Its parts, for different threads. The device's queue pair lives until all are dropped.
    pub fn into_parts(self) -> (QpControl, SendQueue, Option<RecvQueue>) {
        (self.control, self.send, self.recv)
    }

    /// Requests the device has and has not completed.
    pub fn outstanding(&self) -> u32 {
        self.control.outstanding()
    }

    /// Moves to ERR, so that the device completes everything outstanding as flushed.
    pub fn to_error(&self) -> Result<()> {
        self.control.to_error()
    }

    /// Back to RESET with empty queues. Completions not polled yet are dropped.
    ///
    /// # Errors
    /// [`Error::Unsupported`] on devices where RESET does nothing; destroy it and make a new one.
    pub fn reset(&mut self) -> Result<()> {
        self.control.reset(&mut self.send, self.recv.as_mut())
    }

    /// Moves to ERR and polls `queues`, which must be its completion queues, until nothing is
    /// outstanding. Every completion met, of this or of another queue pair, goes to `sink`.
    ///
    /// # Errors
    /// [`Error::Drain`] when something is still outstanding after `deadline`;
    /// [`Error::Unsupported`] on a device that never flushes.
    pub fn drain(
        &mut self,
        queues: &mut [&mut CompletionQueue],
        deadline: Duration,
        sink: &mut dyn FnMut(Completion),
    ) -> Result<()> {
        self.control.to_error()?;
        let started = Instant::now();
        let mut batch = [Completion::default(); 16];
        loop {
            if self.send.needs_marker() {
                match self.send.post_marker() {
                    Ok(()) | Err(crate::PostError::QueueFull { .. }) => {}
                    Err(error) => return Err(error.into()),
                }
            }
            for queue in queues.iter_mut() {
                let count = queue.poll(&mut batch)?;
                batch[..count].iter().for_each(|completion| sink(*completion));
            }
            let left = self.outstanding();
            if left == 0 {
                return Ok(());
            }
            let waited = started.elapsed();
            if waited >= deadline {
                return Err(Error::Drain { left, waited });
            }
            std::thread::yield_now();
        }
    }
}

/// Room set aside in completion queues, given back unless kept.
struct Reservation<'a> {
    entries: [(&'a Arc<CqShared>, u32); 2],
    made: usize,
}

impl<'a> Reservation<'a> {
    fn new(entries: [(&'a Arc<CqShared>, u32); 2], overcommit: bool) -> Result<Self> {
        let mut all = Self { entries, made: 0 };
        for (queue, depth) in entries {
            queue.reserve(depth, overcommit)?;
            all.made += 1;
        }
        Ok(all)
    }

    fn keep(mut self) -> (u32, u32) {
        self.made = 0;
        (self.entries[0].1, self.entries[1].1)
    }
}

impl Drop for Reservation<'_> {
    fn drop(&mut self) {
        self.entries[..self.made].iter().for_each(|(queue, depth)| queue.release(*depth));
    }
}

/// Keys for the work queues, given back unless kept.
struct Keys<'a> {
    device: &'a Device,
    keys: Vec<Key>,
}

impl<'a> Keys<'a> {
    fn new(device: &'a Device, with_recv: bool) -> Result<Self> {
        let mut all = Self { device, keys: Vec::with_capacity(2) };
        for _ in 0..1 + usize::from(with_recv) {
            all.keys.push(device.issue_key()?);
        }
        Ok(all)
    }

    fn keep(mut self) -> (Key, Option<Key>) {
        let keys = std::mem::take(&mut self.keys);
        (keys[0], keys.get(1).copied())
    }
}

impl Drop for Keys<'_> {
    fn drop(&mut self) {
        self.keys.iter().for_each(|key| self.device.release_key(*key));
    }
}
