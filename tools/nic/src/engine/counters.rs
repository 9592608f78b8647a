//! What a NIC counts. All counts start at 0 with the NIC and never wrap in practice.

use serde::Serialize;

/// Counters of one NIC.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Counters {
    /// Send work requests taken from rings, by opcode.
    pub requests: Requests,
    /// Receive work requests taken from rings.
    pub receives: u64,
    /// Payload bytes sent by this NIC's queue pairs (SEND, WRITE).
    pub bytes_sent: u64,
    /// Payload bytes written to this NIC's memory by its own READs.
    pub bytes_read: u64,
    /// Payload bytes that reached this NIC's memory from others (SEND, WRITE).
    pub bytes_received: u64,
    /// Payload bytes read out of this NIC's memory by others (READ).
    pub bytes_served: u64,
    /// Completions with success.
    pub completions: u64,
    /// Completions with an error, flushed ones apart.
    pub error_completions: u64,
    /// Flushed work requests.
    pub flushed: u64,
    /// Completions that a failed completion queue lost.
    pub lost_completions: u64,
    /// RNR NAKs sent as responder.
    pub rnr_naks_sent: u64,
    /// RNR NAKs taken as requester.
    pub rnr_naks_received: u64,
    /// Other NAKs sent as responder.
    pub naks_sent: u64,
    /// Other NAKs taken as requester.
    pub naks_received: u64,
    /// Requests sent again after a timeout or sequence error.
    pub retries: u64,
    /// Requests seen twice as responder.
    pub duplicates: u64,
    /// Addresses without translation, and memory that vanished under an access.
    pub translation_misses: u64,
    /// Times a queue pair was parked for a miss.
    pub stalls: u64,
    /// Nanoseconds that queue pairs were parked for misses, over all finished stalls.
    pub stall_ns: u64,
    /// Request bursts and datagrams sent.
    pub packets_sent: u64,
    /// Request bursts and datagrams received.
    pub packets_received: u64,
    /// Datagrams dropped: no receive posted, wrong queue key, or nobody there.
    pub datagrams_dropped: u64,
    /// Asynchronous events raised.
    pub events: u64,
}

/// Send work requests by opcode.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[allow(missing_docs)]
pub struct Requests {
    pub rdma_write: u64,
    pub rdma_write_imm: u64,
    pub send: u64,
    pub send_imm: u64,
    pub send_inv: u64,
    pub rdma_read: u64,
    pub compare_swap: u64,
    pub fetch_add: u64,
    pub masked_compare_swap: u64,
    pub masked_fetch_add: u64,
    pub local_inv: u64,
    pub fast_reg: u64,
    /// Any other opcode, and malformed requests.
    pub other: u64,
}

impl Requests {
    pub(crate) fn count(&mut self, opcode: holdfast_wire::wqe::Opcode) {
        use holdfast_wire::wqe::Opcode as O;
        *match opcode {
            O::RdmaWrite => &mut self.rdma_write,
            O::RdmaWriteImm => &mut self.rdma_write_imm,
            O::Send => &mut self.send,
            O::SendImm => &mut self.send_imm,
            O::SendInv => &mut self.send_inv,
            O::RdmaRead => &mut self.rdma_read,
            O::CompareSwap => &mut self.compare_swap,
            O::FetchAdd => &mut self.fetch_add,
            O::MaskedCompareSwap => &mut self.masked_compare_swap,
            O::MaskedFetchAdd => &mut self.masked_fetch_add,
            O::LocalInv => &mut self.local_inv,
            O::FastReg => &mut self.fast_reg,
            _ => &mut self.other,
        } += 1;
    }
}
