//! What the engine needs from whatever it is built into, and the requests they exchange.
//!
//! The engine runs queue pairs; it knows neither PCI nor rings. A front (the PVRDMA front, or a
//! verbs library) implements [`Host`]: it translates addresses, hands over work requests when the
//! engine asks for the next one, and takes completions and events. The engine pulls: a request is
//! fetched when the engine can start it, so it holds no second queue.
//!
//! Everything here is called on the engine's thread only.

use arrayvec::ArrayVec;
use holdfast_wire::completion::Status;
use holdfast_wire::event::EventKind;
use holdfast_wire::wqe::{Opcode, Sge};

use crate::memory::Span;

/// Most scatter/gather entries of a request.
pub const MAX_SGE: usize = 32;
pub use holdfast_wire::wqe::MAX_INLINE;

/// No translation for an address, now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Miss {
    /// The address that could not be translated.
    pub iova: u64,
}

/// What came of asking for the next work request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fetch {
    /// It was filled in and taken off its ring.
    Got,
    /// There is none.
    Empty,
    /// The ring itself cannot be read now; ask again later.
    Miss(Miss),
    /// It is malformed (too many entries, unknown opcode, ...): only `wr_id` (and `opcode`, where
    /// it is a valid one) were filled in, and it was taken off its ring.
    Malformed,
    /// The ring's state is nonsense; the queue cannot go on.
    Corrupt,
}

/// Where a queue pair's receives come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum RecvQueue {
    /// Its own receive queue, by queue pair handle.
    Own(u32),
    /// A shared receive queue, by handle.
    Shared(u32),
}

/// A send work request, parsed.
#[derive(Debug, Clone)]
pub struct SendRequest {
    /// Comes back in the completion.
    pub wr_id: u64,
    /// What to do.
    pub opcode: Opcode,
    /// `holdfast_wire::wqe::FLAG_*`.
    pub flags: u32,
    /// Immediate data as it lay in the request, or the key to invalidate.
    pub ex: u32,
    /// Payload, unless inline.
    pub sges: ArrayVec<Sge, MAX_SGE>,
    /// Inline payload, when `flags` says so.
    pub inline: ArrayVec<u8, MAX_INLINE>,
    /// The opcode's own 48 bytes (`Rdma`, `Atomic`, `MaskedAtomic`, `FastReg` or `Ud`).
    pub body: [u8; 48],
}

impl Default for SendRequest {
    fn default() -> Self {
        Self {
            wr_id: 0,
            opcode: Opcode::Send,
            flags: 0,
            ex: 0,
            sges: ArrayVec::new(),
            inline: ArrayVec::new(),
            body: [0; 48],
        }
    }
}

/// A receive work request, parsed.
#[derive(Debug, Clone, Default)]
pub struct RecvRequest {
    /// Comes back in the completion.
    pub wr_id: u64,
    /// Where the message goes.
    pub sges: ArrayVec<Sge, MAX_SGE>,
}

/// A completion, before a front gives it its wire form.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Completion {
    /// The work request's id.
    pub wr_id: u64,
    /// Handle of the queue pair.
    pub qp_handle: u32,
    /// `holdfast_wire::completion::CqeOpcode` value.
    pub opcode: u32,
    /// How it ended.
    pub status: Status,
    /// Bytes received or read.
    pub byte_len: u32,
    /// Immediate data or invalidated key.
    pub imm_data: u32,
    /// Sender's queue pair number (UD).
    pub src_qp: u32,
    /// `holdfast_wire::completion::WC_*`.
    pub wc_flags: u32,
    /// Why, for errors: a code of the engine's own.
    pub vendor_err: u32,
    /// Whether a solicited-only arming is satisfied by it (solicited receives, and all errors).
    pub solicited: bool,
}

/// The completion queue cannot take an entry: full, destroyed, or unreachable for good.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CqRefusal {
    /// Every slot is taken: the queue overran.
    Overrun,
    /// Its memory cannot be translated now; try again later.
    Miss(Miss),
    /// There is no such queue, or its state is nonsense.
    Dead,
}

/// What the engine is built into. One per NIC.
pub trait Host {
    /// Translates the start of `[iova, iova + len)` for reading or writing: a span of 1 to `len`
    /// bytes that starts at `iova`. The span is good until this call into the engine returns.
    fn translate(&mut self, iova: u64, len: usize, write: bool) -> Result<Span, Miss>;

    /// Takes the next send request of a queue pair.
    fn next_send(&mut self, qp_handle: u32, request: &mut SendRequest) -> Fetch;

    /// No more of that queue pair's sends are fetched for now: the client may be told how many
    /// were. It was told before each completion as well.
    fn sends_fetched(&mut self, _qp_handle: u32) {}

    /// Takes the next receive.
    fn next_recv(&mut self, queue: RecvQueue, request: &mut RecvRequest) -> Fetch;

    /// Receives posted and not yet taken (for SRQ limits and for deciding on RNR).
    fn recv_available(&mut self, queue: RecvQueue) -> u32;

    /// Puts a completion in a completion queue, by handle.
    fn complete(&mut self, cq_handle: u32, completion: &Completion) -> Result<(), CqRefusal>;

    /// Raises an asynchronous event; `info` is the handle or port it is about.
    fn event(&mut self, kind: EventKind, info: u32);
}

/// What a queue pair is made of.
#[derive(Debug, Clone, Copy)]
pub struct QpInit {
    /// `holdfast_wire::attr::QpType` is RC, UD or GSI.
    pub qp_type: holdfast_wire::attr::QpType,
    /// Protection domain handle.
    pub pd: u32,
    /// Completion queue of sends.
    pub send_cq: u32,
    /// Completion queue of receives.
    pub recv_cq: u32,
    /// Shared receive queue, if it has one.
    pub srq: Option<u32>,
    /// Complete every send, whatever its flags say.
    pub signal_all: bool,
    /// Depths and sizes granted.
    pub cap: holdfast_wire::attr::QpCap,
}
