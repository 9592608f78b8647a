//! The send queue: one method per operation, each with what that operation needs and no more.
//!
//! A post checks its limits, writes the request into the ring at a position only this side
//! knows, and notes the caller's id in the account. [`SendQueue::ring`] shows a whole batch to
//! the device with one store of the tail and one doorbell. Nothing here allocates, locks or
//! makes a system call.
//!
//! One comparison bounds posting: `limit` is the position at which the credit (depth minus requests
//! not completed) known so far ends. Only when it is reached is the account read again.
//!
//! Posting is safe in Rust's sense: the addresses in a scatter/gather entry are the device's, which
//! checks them against the region its key names. What the device writes to a region is outside
//! Rust's view, so regions must be raw memory; the library above gives them lifetimes.

use std::ops::BitOr;
use std::sync::Arc;

use holdfast_wire::attr::QpType;
use holdfast_wire::completion::CqeOpcode;
use holdfast_wire::wqe::{
    FLAG_FENCE, FLAG_SIGNALED, FLAG_SOLICITED, Opcode, SendHeader, Sge, send_stride,
};
use holdfast_wire::{PAGE_SIZE, uar};

use crate::account::{Account, KIND_MARKER, Key, Tag};
use crate::ah::AddressHandle;
use crate::error::PostError;
use crate::qp::QpInner;
use crate::ring::{Half, ProducerRing, SendWords};
use crate::uar::Doorbell;

/// What a send request asks for besides its operation. Combine with `|`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SendFlags(u32);

impl SendFlags {
    /// Nothing special: no completion unless it fails or the queue pair signals all.
    pub const NONE: Self = Self(0);
    /// Give a completion on success.
    pub const SIGNALED: Self = Self(FLAG_SIGNALED);
    /// Wait for earlier reads and atomics of this queue.
    pub const FENCE: Self = Self(FLAG_FENCE);
    /// Raise a solicited event at the receiver.
    pub const SOLICITED: Self = Self(FLAG_SOLICITED);

    /// Whether all of `other` is set.
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }
}

impl BitOr for SendFlags {
    type Output = Self;
    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

/// Memory of the peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Remote {
    /// Address in the peer's region.
    pub addr: u64,
    /// The region's remote key.
    pub rkey: u32,
}

/// Where a datagram goes.
#[derive(Debug, Clone, Copy)]
pub struct Datagram<'a> {
    /// The path.
    pub to: &'a AddressHandle,
    /// Queue pair number there.
    pub qpn: u32,
    /// Its queue key.
    pub qkey: u32,
}

/// What a send queue is made of.
pub(crate) struct SendParts {
    pub(crate) ring: ProducerRing,
    pub(crate) account: Arc<Account>,
    pub(crate) key: Key,
    pub(crate) depth: u32,
    pub(crate) allowed: u32,
    pub(crate) max_message: u32,
    pub(crate) signal_all: bool,
    pub(crate) doorbell: Doorbell,
    pub(crate) doorbell_word: u32,
    pub(crate) qp: Arc<QpInner>,
}

/// The send half of a queue pair. It has one owner.
pub struct SendQueue {
    ring: ProducerRing,
    posted: u32,
    limit: u32,
    tag_base: u64,
    allowed: u32,
    max_message: u32,
    always: u32,
    /// The word of a request's body that holds byte 65, the source GID index.
    gid_word: u64,
    account: Arc<Account>,
    doorbell: Doorbell,
    doorbell_word: u32,
    depth: u32,
    /// Position after the last signalled request.
    signalled: u32,
    qp: Arc<QpInner>,
}

impl std::fmt::Debug for SendQueue {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "SendQueue(qp {}, depth {})", self.qp.handle, self.depth)
    }
}

impl SendQueue {
    pub(crate) fn new(parts: SendParts) -> Self {
        Self {
            ring: parts.ring,
            posted: 0,
            limit: 0,
            tag_base: parts.key.base(),
            allowed: parts.allowed,
            max_message: parts.max_message,
            always: if parts.signal_all { FLAG_SIGNALED } else { 0 },
            gid_word: 0,
            account: parts.account,
            doorbell: parts.doorbell,
            doorbell_word: parts.doorbell_word,
            depth: parts.depth,
            signalled: 0,
            qp: parts.qp,
        }
    }

    /// RDMA WRITE of `sges` to `remote`.
    #[inline]
    pub fn write(
        &mut self,
        wr_id: u64,
        sges: &[Sge],
        remote: Remote,
        flags: SendFlags,
    ) -> Result<(), PostError> {
        self.post(wr_id, Opcode::RdmaWrite, CqeOpcode::RdmaWrite, 0, rdma(remote), sges, flags)
    }

    /// RDMA WRITE with immediate data (host order), which uses up a receive at the peer.
    #[inline]
    pub fn write_imm(
        &mut self,
        wr_id: u64,
        sges: &[Sge],
        remote: Remote,
        imm: u32,
        flags: SendFlags,
    ) -> Result<(), PostError> {
        self.post(wr_id, Opcode::RdmaWriteImm, CqeOpcode::RdmaWrite, imm, rdma(remote), sges, flags)
    }

    /// RDMA WRITE of `payload`, copied into the ring now.
    #[inline]
    pub fn write_inline(
        &mut self,
        wr_id: u64,
        payload: &[u8],
        remote: Remote,
        flags: SendFlags,
    ) -> Result<(), PostError> {
        self.post_inline(
            wr_id,
            Opcode::RdmaWrite,
            CqeOpcode::RdmaWrite,
            0,
            rdma(remote),
            payload,
            flags,
        )
    }

    /// RDMA READ of `remote` into `sges`.
    #[inline]
    pub fn read(
        &mut self,
        wr_id: u64,
        sges: &[Sge],
        remote: Remote,
        flags: SendFlags,
    ) -> Result<(), PostError> {
        self.post(wr_id, Opcode::RdmaRead, CqeOpcode::RdmaRead, 0, rdma(remote), sges, flags)
    }

    /// SEND of `sges` to a receive of the peer.
    #[inline]
    pub fn send(&mut self, wr_id: u64, sges: &[Sge], flags: SendFlags) -> Result<(), PostError> {
        self.connected()?;
        self.post(wr_id, Opcode::Send, CqeOpcode::Send, 0, NO_BODY, sges, flags)
    }

    /// SEND with immediate data (host order).
    #[inline]
    pub fn send_imm(
        &mut self,
        wr_id: u64,
        sges: &[Sge],
        imm: u32,
        flags: SendFlags,
    ) -> Result<(), PostError> {
        self.connected()?;
        self.post(wr_id, Opcode::SendImm, CqeOpcode::Send, imm, NO_BODY, sges, flags)
    }

    /// SEND of `payload`, copied into the ring now.
    #[inline]
    pub fn send_inline(
        &mut self,
        wr_id: u64,
        payload: &[u8],
        flags: SendFlags,
    ) -> Result<(), PostError> {
        self.connected()?;
        self.post_inline(wr_id, Opcode::Send, CqeOpcode::Send, 0, NO_BODY, payload, flags)
    }

    /// Atomic compare and swap on 8 bytes at `remote`; the old value lands in `result`.
    #[inline]
    pub fn compare_swap(
        &mut self,
        wr_id: u64,
        result: Sge,
        remote: Remote,
        compare: u64,
        swap: u64,
        flags: SendFlags,
    ) -> Result<(), PostError> {
        let body = Self::atomic(&result, remote, compare, swap)?;
        let kind = CqeOpcode::CompareSwap;
        self.post(wr_id, Opcode::CompareSwap, kind, 0, body, &[result], flags)
    }

    /// Atomic fetch and add on 8 bytes at `remote`; the old value lands in `result`.
    #[inline]
    pub fn fetch_add(
        &mut self,
        wr_id: u64,
        result: Sge,
        remote: Remote,
        add: u64,
        flags: SendFlags,
    ) -> Result<(), PostError> {
        let body = Self::atomic(&result, remote, add, 0)?;
        let kind = CqeOpcode::FetchAdd;
        self.post(wr_id, Opcode::FetchAdd, kind, 0, body, &[result], flags)
    }

    /// SEND of a datagram, of at most the path MTU (UD queue pairs only).
    #[inline]
    pub fn ud_send(
        &mut self,
        wr_id: u64,
        sges: &[Sge],
        to: Datagram<'_>,
        flags: SendFlags,
    ) -> Result<(), PostError> {
        self.datagram()?;
        self.post(wr_id, Opcode::Send, CqeOpcode::Send, 0, to.to.body(&to), sges, flags)
    }

    /// SEND of a datagram with immediate data (host order).
    #[inline]
    pub fn ud_send_imm(
        &mut self,
        wr_id: u64,
        sges: &[Sge],
        to: Datagram<'_>,
        imm: u32,
        flags: SendFlags,
    ) -> Result<(), PostError> {
        self.datagram()?;
        self.post(wr_id, Opcode::SendImm, CqeOpcode::Send, imm, to.to.body(&to), sges, flags)
    }

    /// Shows everything posted to the device: one store of the tail and one doorbell, however
    /// many requests there are. Never blocks on a device whose doorbell pages are mapped and that
    /// is awake; else it makes one register write.
    #[inline]
    pub fn ring(&mut self) {
        self.account.publish(self.posted);
        self.ring.publish(self.posted);
        self.doorbell.ring(self.doorbell_word);
    }

    /// How many requests may be outstanding.
    pub fn depth(&self) -> u32 {
        self.depth
    }

    /// Requests posted, rung for or not, that have not been retired. An unsignalled request is
    /// retired by the completion of a later one.
    pub fn outstanding(&self) -> u32 {
        self.posted.wrapping_sub(self.account.completed())
    }

    /// Requests that may still be posted before completions must be polled.
    pub fn available(&self) -> u32 {
        self.depth - self.outstanding().min(self.depth)
    }

    /// Most scatter/gather entries of a request.
    pub fn max_sge(&self) -> u32 {
        self.ring.max_sge()
    }

    /// Most inline bytes of a request.
    pub fn max_inline(&self) -> u32 {
        self.ring.max_inline()
    }

    #[inline(always)]
    fn atomic(
        result: &Sge,
        remote: Remote,
        compare_add: u64,
        swap: u64,
    ) -> Result<[u64; 6], PostError> {
        if !remote.addr.is_multiple_of(8) || result.length != 8 {
            return Err(PostError::AtomicOperand { address: remote.addr });
        }
        Ok([remote.addr, compare_add, swap, u64::from(remote.rkey), 0, 0])
    }

    /// A datagram needs an address: plain sends are for connections.
    #[inline(always)]
    fn connected(&self) -> Result<(), PostError> {
        if self.qp.qp_type == QpType::Ud { Err(unsupported(Opcode::Send)) } else { Ok(()) }
    }

    #[inline(always)]
    fn datagram(&self) -> Result<(), PostError> {
        if self.qp.qp_type == QpType::Ud { Ok(()) } else { Err(unsupported(Opcode::Send)) }
    }

    #[inline(always)]
    #[allow(clippy::too_many_arguments)] // the fields of a request
    fn post(
        &mut self,
        wr_id: u64,
        opcode: Opcode,
        kind: CqeOpcode,
        imm: u32,
        body: [u64; 6],
        sges: &[Sge],
        flags: SendFlags,
    ) -> Result<(), PostError> {
        if sges.len() > self.ring.max_sge() as usize {
            return Err(too_many(sges.len(), self.ring.max_sge()));
        }
        let length: u64 = sges.iter().map(|sge| u64::from(sge.length)).sum();
        self.admit(opcode, length)?;
        let head = self.head(wr_id, opcode, kind.wire(), imm, body, flags);
        self.ring.write_send(self.posted, &head, sges);
        self.posted = self.posted.wrapping_add(1);
        Ok(())
    }

    #[inline(always)]
    #[allow(clippy::too_many_arguments)] // the fields of a request
    fn post_inline(
        &mut self,
        wr_id: u64,
        opcode: Opcode,
        kind: CqeOpcode,
        imm: u32,
        body: [u64; 6],
        payload: &[u8],
        flags: SendFlags,
    ) -> Result<(), PostError> {
        if payload.len() > self.ring.max_inline() as usize {
            let given = u32::try_from(payload.len()).unwrap_or(u32::MAX);
            return Err(PostError::InlineTooLong { given, limit: self.ring.max_inline() });
        }
        self.admit(opcode, payload.len() as u64)?;
        let head = self.head(wr_id, opcode, kind.wire(), imm, body, flags);
        self.ring.write_inline(self.posted, &head, payload);
        self.posted = self.posted.wrapping_add(1);
        Ok(())
    }

    /// Checks what all operations have in common.
    #[inline(always)]
    fn admit(&mut self, opcode: Opcode, length: u64) -> Result<(), PostError> {
        if self.allowed & 1 << opcode.wire() == 0 {
            return Err(unsupported(opcode));
        }
        if length > u64::from(self.max_message) {
            return Err(PostError::MessageTooLong { given: length, limit: self.max_message });
        }
        if self.posted == self.limit { self.refresh() } else { Ok(()) }
    }

    /// The header of the request at `posted`, whose id is noted.
    #[inline(always)]
    fn head(
        &mut self,
        wr_id: u64,
        opcode: Opcode,
        kind: u32,
        imm: u32,
        mut body: [u64; 6],
        flags: SendFlags,
    ) -> SendWords {
        // Every request names the source GID there, whatever its operation; a datagram's address
        // has done so already, and the word is zero then. It is known once `admit` has looked.
        body[4] |= self.gid_word;
        let flags = flags.0 | self.always;
        let unsignalled = flags & FLAG_SIGNALED == 0;
        if !unsignalled {
            self.signalled = self.posted.wrapping_add(1);
        }
        self.account.record(self.posted, wr_id);
        let tag = Tag::new(self.tag_base, self.posted, kind, u32::from(unsignalled));
        SendWords { tag: tag.0, opcode: opcode.wire(), flags, ex: imm.swap_bytes(), body }
    }

    /// Finds out how far posting may go now.
    #[cold]
    #[inline(never)]
    fn refresh(&mut self) -> Result<(), PostError> {
        let state = self.qp.state();
        if !QpInner::may_send(state) {
            return Err(PostError::QpState { state });
        }
        self.qp.device().forget_notifications();
        self.gid_word = u64::from(self.qp.gid_index()) << GID_SHIFT;
        // What has completed has been fetched, so credit (at most the depth, which is at most the
        // ring) never runs past ring space. The device's index may lag behind and is only checked.
        self.ring.check_head().map_err(|value| PostError::DeviceNonsense { value })?;
        let credit = self.available();
        if credit == 0 {
            return Err(PostError::QueueFull { depth: self.depth });
        }
        self.limit = self.posted.wrapping_add(credit);
        Ok(())
    }

    /// Whether the queue ends in unsignalled requests, which nothing will retire.
    pub(crate) fn needs_marker(&self) -> bool {
        self.signalled != self.posted && self.outstanding() > 0
    }

    /// Posts a signalled request of no bytes whose completion the completion queue keeps to
    /// itself; on a queue pair in error it is flushed and so retires everything before it.
    pub(crate) fn post_marker(&mut self) -> Result<(), PostError> {
        if self.posted == self.limit {
            self.refresh()?;
        }
        let flags = SendFlags::SIGNALED;
        let head = self.head(0, Opcode::Send, KIND_MARKER, 0, NO_BODY, flags);
        self.ring.write_send(self.posted, &head, &[]);
        self.posted = self.posted.wrapping_add(1);
        self.ring();
        Ok(())
    }

    /// Starts over after the queue pair went to RESET.
    pub(crate) fn restart(&mut self, key: Key, account: Arc<Account>) {
        self.tag_base = key.base();
        self.account = account;
        (self.posted, self.limit, self.signalled, self.gid_word) = (0, 0, 0, 0);
    }

    pub(crate) fn qp(&self) -> &Arc<QpInner> {
        &self.qp
    }

    pub(crate) fn slots(&self) -> u32 {
        self.ring.slots()
    }
}

/// Where byte 65 of a request lies in the word of its body that starts at byte 64.
const GID_SHIFT: u32 = {
    let word_start = std::mem::offset_of!(SendHeader, wr) + 4 * 8;
    8 * (holdfast_wire::wqe::GID_INDEX_BYTE - word_start) as u32
};

/// The body of a request that is told everything by its header.
const NO_BODY: [u64; 6] = [0; 6];

/// The body of RDMA WRITE and READ.
#[inline(always)]
fn rdma(remote: Remote) -> [u64; 6] {
    [remote.addr, u64::from(remote.rkey), 0, 0, 0, 0]
}

#[cold]
fn unsupported(opcode: Opcode) -> PostError {
    PostError::OpcodeUnsupported { opcode }
}

#[cold]
pub(crate) fn too_many(given: usize, limit: u32) -> PostError {
    PostError::TooManySges { given: u32::try_from(given).unwrap_or(u32::MAX), limit }
}

/// Bytes of ring slots that `slots` send requests need, in whole pages.
pub(crate) fn send_pages(slots: u32, max_sge: u32, max_inline: u32) -> usize {
    (slots as usize * send_stride(max_sge, max_inline)).div_ceil(PAGE_SIZE)
}

/// A ring for send requests from byte `offset` of `memory` on.
pub(crate) fn send_ring(
    memory: Arc<crate::dma::DmaBuffer>,
    offset: usize,
    slots: u32,
    max_sge: u32,
    max_inline: u32,
) -> ProducerRing {
    ProducerRing::new(
        memory,
        Half::Tx,
        offset,
        slots,
        send_stride(max_sge, max_inline),
        size_of::<SendHeader>(),
        max_sge,
        max_inline,
    )
}

/// The doorbell bits of a send queue.
pub(crate) const SEND_BITS: u32 = uar::QP_SEND;
