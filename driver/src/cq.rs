//! Completion queues.
//!
//! A completion names its request by the [tag](crate::account) the driver gave it, and that tag
//! finds the work queue's account in a table private to the queue's owner: no lock, no hash. The
//! table is refreshed when a work queue is attached or detached, which the registry's version
//! says. Every value is checked before it means anything: a completion that names no work queue
//! of this completion queue, or a request that is not outstanding, or an unknown status or
//! opcode, is an error of the device's. A completion of a work queue that has been destroyed is
//! left over, and dropped.
//!
//! Looking at the ring costs one Acquire load; a batch costs one store of the consumer index. The
//! POLL doorbell, which lets some devices make progress, has a cadence of its own.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use holdfast_wire::completion::{CQE_SIZE, Cqe, CqeOpcode, Status, WC_GRH, WC_WITH_IMM};
use holdfast_wire::{PAGE_SIZE, cmd, uar};

use crate::account::{Account, KIND_MARKER, Key, Tag, Tickets};
use crate::device::Device;
use crate::dma::DmaBuffer;
use crate::error::{Error, Result};
use crate::limits::Permit;
use crate::pages::PageDirectory;
use crate::ring::{ConsumerRing, CqeWords};
use crate::uar::{Doorbell, Uar, doorbell_word};

/// A finished work request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Completion {
    /// The id it was posted with.
    pub wr_id: u64,
    /// Handle of its queue pair ([`crate::QpControl::handle`]).
    pub qp: u32,
    /// How it ended. After anything but success, only `wr_id`, `qp`, `status` and `vendor_err`
    /// mean something, and the queue pair is in error.
    pub status: Status,
    /// What it was. For a receive, what the sender did: RECV, or RECV by RDMA WRITE with
    /// immediate.
    pub opcode: CqeOpcode,
    /// Bytes received or read; a UD receive counts the 40-byte GRH in front.
    pub byte_len: u32,
    /// `holdfast_wire::completion::WC_*` bits.
    pub flags: u32,
    /// Sender's queue pair number (UD receives).
    pub src_qp: u32,
    /// The device's own error code.
    pub vendor_err: u32,
    /// Immediate data in host order; see [`Completion::imm`].
    pub imm_data: u32,
}

impl Default for Completion {
    fn default() -> Self {
        Self {
            wr_id: 0,
            qp: 0,
            status: Status::Success,
            opcode: CqeOpcode::Send,
            byte_len: 0,
            flags: 0,
            src_qp: 0,
            vendor_err: 0,
            imm_data: 0,
        }
    }
}

impl Completion {
    /// Whether the request was carried out.
    #[inline]
    pub fn is_success(&self) -> bool {
        self.status == Status::Success
    }

    /// Whether it was a receive.
    #[inline]
    pub fn is_receive(&self) -> bool {
        self.opcode.wire() >= CqeOpcode::Recv.wire()
    }

    /// Immediate data, if the message carried any.
    pub fn imm(&self) -> Option<u32> {
        (self.flags & WC_WITH_IMM != 0).then_some(self.imm_data)
    }

    /// Whether the receive buffer starts with a GRH.
    pub fn has_grh(&self) -> bool {
        self.flags & WC_GRH != 0
    }
}

/// The account a work queue completes into.
#[derive(Debug, Clone)]
pub(crate) enum Ledger {
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
}

/// The part of a completion queue that its queue pairs keep alive.
pub(crate) struct CqShared {
    pub(crate) uar: Arc<Uar>,
    pub(crate) handle: u32,
    depth: u32,
    attached: Mutex<Registry>,
    version: AtomicU32,
    memory: Option<(Arc<DmaBuffer>, PageDirectory)>,
    _permit: Permit,
}

#[derive(Default)]
struct Registry {
    work_queues: Vec<Attachment>,
    /// Entries set aside, those of `leaving` included.
    reserved: u32,
    /// Entries of destroyed queue pairs, whose last completions may still be in the ring.
    leaving: u32,
}

/// Stands for no queue pair in [`Attachment::qp`]; handles are 24 bits.
const NOBODY: u32 = u32::MAX;

impl CqShared {
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
            queues.swap_remove(at);
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
                    tickets.retire(tag.position());
                }
            }
        }
    }

    /// Requests outstanding in all attached work queues (a shared one counts once).
    fn outstanding(&self) -> u64 {
        let registry = self.attached.lock().unwrap_or_else(PoisonError::into_inner);
        registry
            .work_queues
            .iter()
            .map(|one| match &one.ledger {
                Ledger::Send(account) | Ledger::Recv(account) => u64::from(account.outstanding()),
                Ledger::Shared(_) => 0,
            })
            .sum()
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

/// A private table row: 24 bytes.
#[derive(Clone)]
struct Row {
    key: Key,
    /// `u64::MAX` for a shared receive queue, which no completion's handle equals.
    qp: u64,
    ledger: Ledger,
}

/// A completion queue. It has one owner, who polls it.
pub struct CompletionQueue {
    ring: ConsumerRing,
    head: u32,
    rows: Vec<Option<Row>>,
    /// By the low 16 bits of a handle: handles of queue pairs with a shared receive queue.
    sharers: Vec<Vec<u32>>,
    version: u32,
    until_poll: u32,
    poll_interval: u32,
    doorbell: Doorbell,
    leftovers: u64,
    shared: Arc<CqShared>,
}

impl std::fmt::Debug for CompletionQueue {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "CompletionQueue(handle {}, depth {})", self.shared.handle, self.shared.depth)
    }
}

/// What a completion turned out to be.
enum Decoded {
    Report(Completion),
    /// Nothing for the caller: an unsignalled send, a drain marker, or a leftover.
    Silent,
    Nonsense(&'static str, u64),
}

impl CompletionQueue {
    pub(crate) fn new(uar: &Arc<Uar>, depth: u32) -> Result<Self> {
        let device = uar.device();
        let limits = device.limits();
        Error::check_limit(
            "completion queue depth",
            u64::from(depth.max(1)),
            u64::from(limits.max_cqe),
        )?;
        let slots = depth.max(1).next_power_of_two().max((PAGE_SIZE / CQE_SIZE) as u32);
        let pages = 1 + slots as usize * CQE_SIZE / PAGE_SIZE;
        Error::check_limit(
            "pages of a completion queue",
            pages as u64,
            u64::from(device.quirks().max_ring_pages),
        )?;
        let permit = device.counts.completion_queues.take()?;
        let memory = Arc::new(device.dma.allocate(pages * PAGE_SIZE)?);
        let directory = PageDirectory::new(device.dma.as_ref(), &memory.pages()[..pages])?;
        let created = device.channel.execute(cmd::CreateCq {
            hdr: Default::default(),
            pdir_dma: directory.address(),
            ctx_handle: uar.context(),
            cqe: slots,
            nchunks: directory.count(),
            reserved: 0,
        });
        let response = match created {
            Ok(response) => response,
            Err(error) => {
                return Err(device.not_created("completion queue", error, (memory, directory)));
            }
        };
        // From here on `shared` destroys the queue.
        let ring = ConsumerRing::new(memory.clone(), slots);
        let shared = Arc::new(CqShared {
            uar: uar.clone(),
            handle: response.cq_handle,
            depth: slots,
            attached: Mutex::default(),
            version: AtomicU32::new(0),
            memory: Some((memory, directory)),
            _permit: permit,
        });
        doorbell_word("completion queue handle", response.cq_handle, 0)?;
        if response.cqe < slots {
            return Err(Error::nonsense("completion queue depth", u64::from(response.cqe)));
        }
        let poll_interval = match device.rings_poll() {
            true => device.quirks().poll_doorbell_interval,
            false => u32::MAX,
        };
        Ok(Self {
            ring,
            head: 0,
            rows: Vec::new(),
            sharers: Vec::new(),
            version: 0,
            until_poll: poll_interval,
            poll_interval,
            doorbell: uar.doorbell(uar::CQ),
            leftovers: 0,
            shared,
        })
    }

    /// The device's handle, as events and notifications name it.
    pub fn handle(&self) -> u32 {
        self.shared.handle
    }

    /// Entries; at least what was asked for.
    pub fn depth(&self) -> u32 {
        self.shared.depth
    }

    /// Requests that are posted and will complete here, as far as the driver knows. Requests of
    /// shared receive queues are not counted.
    pub fn outstanding(&self) -> u64 {
        self.shared.outstanding()
    }

    /// Completions dropped because their queue pair was destroyed before they were polled.
    pub fn leftovers(&self) -> u64 {
        self.leftovers
    }

    pub(crate) fn shared(&self) -> &Arc<CqShared> {
        &self.shared
    }

    /// Takes up to `out.len()` completions and says how many. Never blocks and allocates nothing,
    /// but for the first call after a queue pair was made or destroyed.
    ///
    /// # Errors
    /// [`Error::DeviceNonsense`] when the next entry, or the ring's index, cannot be; the entry
    /// is skipped, so the next call goes on behind it. Completions before it have been returned
    /// by the call before.
    #[inline]
    pub fn poll(&mut self, out: &mut [Completion]) -> Result<usize> {
        let tail = self.ring.tail();
        if tail == self.head {
            return self.poll_empty();
        }
        if self.ring.size().queued(tail, self.head).is_none() {
            return Err(Error::nonsense("completion producer index", u64::from(tail)));
        }
        if self.shared.version.load(Ordering::Acquire) != self.version {
            self.refresh();
        }
        self.until_poll = self.poll_interval;
        let mut head = self.head;
        let mut count = 0;
        while count < out.len() && head != tail {
            match self.decode(head) {
                Decoded::Report(completion) => {
                    out[count] = completion;
                    count += 1;
                }
                Decoded::Silent => {}
                Decoded::Nonsense(..) if count > 0 => break,
                Decoded::Nonsense(what, value) => {
                    self.advance_to(self.ring.size().next(head));
                    return Err(Error::nonsense(what, value));
                }
            }
            head = self.ring.size().next(head);
        }
        self.advance_to(head);
        Ok(count)
    }

    #[inline(always)]
    fn advance_to(&mut self, head: u32) {
        self.head = head;
        self.ring.set_head(head);
    }

    /// Lets the device make completions visible, where it needs that (QEMU, ESXi). [`Self::poll`]
    /// does it by itself every so many empty polls. Does nothing on a device where that could meet
    /// an interrupt and hang ([`crate::Quirks::poll_excludes_interrupts`]).
    pub fn poll_device(&mut self) {
        self.until_poll = self.poll_interval;
        if self.device().rings_poll() {
            self.doorbell.ring(self.shared.handle | uar::CQ_POLL);
        }
    }

    /// Asks for one notification: when the next completion arrives, or the next solicited one (or
    /// error) only. Completions already in the ring do not count, so poll once more after arming
    /// and before waiting. See [`Device::notification_fd`].
    ///
    /// # Errors
    /// [`Error::Late`] when a device that polls its doorbells in memory has not taken the word
    /// within a second.
    pub fn arm(&mut self, solicited_only: bool) -> Result<()> {
        let bits = match solicited_only {
            _ if self.device().quirks().arm_needs_both_bits => uar::CQ_ARM | uar::CQ_ARM_SOLICITED,
            true => uar::CQ_ARM_SOLICITED,
            false => uar::CQ_ARM,
        };
        self.doorbell.ring_confirmed(self.shared.handle | bits)
    }

    /// The device this queue belongs to.
    pub fn device(&self) -> &Arc<Device> {
        self.doorbell.uar().device()
    }

    #[inline]
    fn poll_empty(&mut self) -> Result<usize> {
        self.until_poll -= 1;
        if self.until_poll == 0 { self.ring_and_look() } else { Ok(0) }
    }

    #[cold]
    fn ring_and_look(&mut self) -> Result<usize> {
        self.poll_device();
        self.device().forget_notifications();
        Ok(0)
    }

    /// Brings the private table up to date with the attached work queues.
    #[cold]
    #[inline(never)]
    fn refresh(&mut self) {
        let registry = self.shared.attached.lock().unwrap_or_else(PoisonError::into_inner);
        self.version = self.shared.version.load(Ordering::Acquire);
        self.rows.iter_mut().for_each(|row| *row = None);
        self.sharers.iter_mut().for_each(Vec::clear);
        for one in &registry.work_queues {
            let shared = matches!(one.ledger, Ledger::Shared(_));
            let index = one.key.index();
            if self.rows.len() <= index {
                self.rows.resize(index + 1, None);
            }
            let qp = if shared { u64::MAX } else { u64::from(one.qp) };
            self.rows[index] = Some(Row { key: one.key, qp, ledger: one.ledger.clone() });
            if shared {
                let bucket = (one.qp & 0xffff) as usize;
                if one.qp == NOBODY {
                    continue;
                }
                if self.sharers.len() <= bucket {
                    self.sharers.resize(bucket + 1, Vec::new());
                }
                self.sharers[bucket].push(one.qp);
            }
        }
    }

    #[inline(always)]
    fn decode(&mut self, index: u32) -> Decoded {
        let words = self.ring.read(index);
        let tag = Tag(words[0]);
        let Some(Some(row)) = self.rows.get(tag.key().index()) else {
            return self.stranger(&words);
        };
        if row.key != tag.key() || row.qp != words[1] {
            return self.stranger(&words);
        }
        let (account, receive) = match &row.ledger {
            Ledger::Send(account) => (account, false),
            Ledger::Recv(account) => (account, true),
            Ledger::Shared(_) => return self.stranger(&words),
        };
        let opcode = match Self::opcode(&words, tag, receive) {
            Ok(opcode) => opcode,
            Err(nonsense) => return nonsense,
        };
        let Some(wr_id) = account.retire(tag.position()) else {
            return Decoded::Nonsense("completion of a request that is not outstanding", tag.0);
        };
        Self::report(&words, tag, wr_id, opcode)
    }

    /// What completed. The device's opcode is checked but, for a send, what was posted is
    /// reported: some devices call everything a SEND.
    #[inline(always)]
    fn opcode(words: &CqeWords, tag: Tag, receive: bool) -> Result<CqeOpcode, Decoded> {
        let (opcode, status) = (words[2] as u32, (words[2] >> 32) as u32);
        if status > Status::General.wire() {
            return Err(Decoded::Nonsense("completion status", u64::from(status)));
        }
        let known = if receive {
            opcode.wrapping_sub(CqeOpcode::Recv.wire()) < 2
        } else {
            opcode <= CqeOpcode::MaskedFetchAdd.wire()
        };
        if !known && status == 0 {
            return Err(Decoded::Nonsense("completion opcode", u64::from(opcode)));
        }
        Ok(if !receive {
            POSTED[tag.kind() as usize]
        } else if opcode == CqeOpcode::RecvRdmaWithImm.wire() {
            CqeOpcode::RecvRdmaWithImm
        } else {
            CqeOpcode::Recv
        })
    }

    #[inline(always)]
    fn report(words: &CqeWords, tag: Tag, wr_id: u64, opcode: CqeOpcode) -> Decoded {
        let status = (words[2] >> 32) as u32;
        // An unsignalled request that succeeded is not reported, even where the device does
        // (QEMU's completes every send).
        let silent = tag.unsignalled() && status == 0;
        if silent || tag.kind() == KIND_MARKER {
            return Decoded::Silent;
        }
        Decoded::Report(Completion {
            wr_id,
            qp: words[1] as u32,
            status: if status == 0 { Status::Success } else { failure(status) },
            opcode,
            byte_len: words[3] as u32,
            flags: (words[4] >> 32) as u32,
            src_qp: words[4] as u32,
            vendor_err: words[5] as u32,
            imm_data: ((words[3] >> 32) as u32).swap_bytes(),
        })
    }

    /// A completion that no row of the table answers for at once: of a shared receive queue, of a
    /// destroyed work queue, or nonsense.
    #[inline(never)]
    fn stranger(&mut self, words: &CqeWords) -> Decoded {
        let tag = Tag(words[0]);
        let row = self.rows.get(tag.key().index()).and_then(Option::as_ref);
        let Some(row) = row.filter(|row| row.key == tag.key()) else {
            if self.device().was_issued(tag.key()) {
                self.leftovers += 1;
                return Decoded::Silent;
            }
            return Decoded::Nonsense("work request id in a completion", tag.0);
        };
        let Ledger::Shared(tickets) = &row.ledger else {
            return Decoded::Nonsense("queue pair in a completion", words[1]);
        };
        let failed = words[2] >> 32 != 0;
        let nobody = failed && words[1] == 0 && self.device().quirks().srq_errors_name_qp_zero;
        let bucket = self.sharers.get((words[1] & 0xffff) as usize);
        let known = bucket.is_some_and(|all| all.iter().any(|qp| u64::from(*qp) == words[1]));
        if !known && !nobody {
            // A queue pair that left its shared receive queue behind: the receive is used up.
            if words[1] <= u64::from(uar::HANDLE_MASK) && tickets.retire(tag.position()).is_some() {
                self.leftovers += 1;
                return Decoded::Silent;
            }
            return Decoded::Nonsense("queue pair in a completion", words[1]);
        }
        let opcode = match Self::opcode(words, tag, true) {
            Ok(opcode) => opcode,
            Err(nonsense) => return nonsense,
        };
        match tickets.retire(tag.position()) {
            Some(wr_id) => Self::report(words, tag, wr_id, opcode),
            None => Decoded::Nonsense("completion of a request that is not outstanding", tag.0),
        }
    }
}

#[cold]
fn failure(status: u32) -> Status {
    Status::try_from(status).unwrap_or(Status::General)
}

/// What a send's kind in its tag stands for.
static POSTED: [CqeOpcode; 16] = {
    let mut table = [CqeOpcode::Send; 16];
    let mut i = 0;
    while i <= CqeOpcode::MaskedFetchAdd as usize {
        table[i] = CqeOpcode::ALL[i];
        i += 1;
    }
    table
};

// The words read are those the fields lie in.
const _: () = {
    assert!(std::mem::offset_of!(Cqe, wr_id) == 0 && std::mem::offset_of!(Cqe, qp) == 8);
    assert!(std::mem::offset_of!(Cqe, opcode) == 16 && std::mem::offset_of!(Cqe, status) == 20);
    assert!(std::mem::offset_of!(Cqe, byte_len) == 24 && std::mem::offset_of!(Cqe, imm_data) == 28);
    assert!(std::mem::offset_of!(Cqe, src_qp) == 32 && std::mem::offset_of!(Cqe, wc_flags) == 36);
    assert!(std::mem::offset_of!(Cqe, vendor_err) == 40);
};
