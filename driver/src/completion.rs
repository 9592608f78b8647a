//! What a finished work request looks like to whoever polls.

use holdfast_wire::completion::{CqeOpcode, Status, WC_GRH, WC_WITH_IMM};

/// A finished work request.
// The order of the fields is that of the device's entry where it can be, so that a run of
// completions is copied in few pieces; see `completion_ring`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub struct Completion {
    /// The id it was posted with.
    pub wr_id: u64,
    /// What it was. For a receive, what the sender did: RECV, or RECV by RDMA WRITE with
    /// immediate.
    pub opcode: CqeOpcode,
    /// How it ended. After anything but success, only `wr_id`, `qp`, `status` and `vendor_err`
    /// mean something, and the queue pair is in error.
    pub status: Status,
    /// Bytes received or read; a UD receive counts the 40-byte GRH in front.
    pub byte_len: u32,
    /// Immediate data in network order.
    pub(crate) imm: u32,
    /// Sender's queue pair number (UD receives).
    pub src_qp: u32,
    /// `holdfast_wire::completion::WC_*` bits.
    pub flags: u32,
    /// Handle of its queue pair ([`crate::QpControl::handle`]).
    pub qp: u32,
    /// The device's own error code.
    pub vendor_err: u32,
}

impl Default for Completion {
    fn default() -> Self {
        Self {
            wr_id: 0,
            opcode: CqeOpcode::Send,
            status: Status::Success,
            byte_len: 0,
            imm: 0,
            src_qp: 0,
            flags: 0,
            qp: 0,
            vendor_err: 0,
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

    /// Immediate data in host order, if the message carried any.
    #[inline]
    pub fn imm(&self) -> Option<u32> {
        (self.flags & WC_WITH_IMM != 0).then_some(u32::from_be(self.imm))
    }

    /// Whether the receive buffer starts with a GRH.
    #[inline]
    pub fn has_grh(&self) -> bool {
        self.flags & WC_GRH != 0
    }
}
