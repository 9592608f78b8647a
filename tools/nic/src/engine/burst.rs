//! How a work request travels: what it needs, and the bursts that it is cut into.

use holdfast_wire::completion::Status;
use holdfast_wire::wqe::{Atomic, FLAG_INLINE, FLAG_SOLICITED, MaskedAtomic, Opcode, Rdma};
use zerocopy::FromBytes;

use super::gather;
use super::host::SendRequest;
use super::packet::{Ends, MAX_BURST, Op, Request, packets, psn_add};
use super::vendor;
use super::window::Wqe;

impl Op {
    /// Whether the answer brings data.
    pub(crate) fn is_answered(self) -> bool {
        self == Op::Read || self.is_atomic()
    }
}

impl Wqe {
    /// Works out what a request that was just fetched needs.
    #[inline(always)]
    pub(super) fn prepare(&mut self, psn: u32, mtu: u32, max_message: u32, max_reads: u8) {
        let request = &self.request;
        let is_inline = request.flags & FLAG_INLINE != 0;
        let bytes = match is_inline {
            true => request.inline.len() as u64,
            false => gather::total(&request.sges),
        };
        (self.sent, self.acked, self.done, self.failed) = (0, 0, false, None);
        self.psn = psn;
        self.answered = false;
        self.total = bytes.min(u64::from(u32::MAX)) as u32;
        self.packets = packets(self.total, mtu);
        match request.opcode {
            Opcode::Send
            | Opcode::SendImm
            | Opcode::SendInv
            | Opcode::RdmaWrite
            | Opcode::RdmaWriteImm => {}
            Opcode::RdmaRead if !is_inline => self.answered = true,
            Opcode::CompareSwap
            | Opcode::FetchAdd
            | Opcode::MaskedCompareSwap
            | Opcode::MaskedFetchAdd
                if !is_inline =>
            {
                self.answered = true;
                self.packets = 1;
                if bytes < 8 {
                    self.failed = Some((Status::LocalLength, vendor::LENGTH));
                }
                self.total = 8;
            }
            Opcode::LocalInv | Opcode::FastReg => (self.packets, self.total) = (0, 0),
            _ => self.failed = Some((Status::LocalQpOperation, vendor::OPCODE)),
        }
        if self.answered && max_reads == 0 {
            self.failed = Some((Status::LocalQpOperation, vendor::NO_READS));
        }
        if bytes > u64::from(max_message) {
            self.failed = Some((Status::LocalLength, vendor::LENGTH));
        }
        if self.failed.is_some() {
            self.packets = 0;
        }
    }

    /// The next burst of a request that travels.
    #[inline(always)]
    pub(super) fn burst(&self, ends: Ends, mtu: u32) -> Request {
        // Messages are at most 1 GiB, so that offsets fit.
        let offset = self.sent.saturating_mul(mtu).min(self.total);
        let len = (self.total - offset).min(MAX_BURST);
        let request = &self.request;
        let mut burst = Request {
            ends,
            op: Op::Send,
            solicited: request.flags & FLAG_SOLICITED != 0,
            psn: psn_add(self.psn, self.sent),
            packets: packets(len, mtu),
            offset,
            len,
            total: self.total,
            addr: 0,
            rkey: 0,
            imm: request.ex,
            args: [0; 4],
        };
        burst.fill(request);
        burst
    }
}

impl Request {
    /// Fills in the operation and what belongs to it.
    #[inline(always)]
    fn fill(&mut self, request: &SendRequest) {
        self.op = match request.opcode {
            Opcode::SendImm => Op::SendImm,
            Opcode::SendInv => Op::SendInv,
            Opcode::RdmaWrite => Op::Write,
            Opcode::RdmaWriteImm => Op::WriteImm,
            Opcode::RdmaRead => Op::Read,
            Opcode::CompareSwap => Op::CompareSwap,
            Opcode::FetchAdd => Op::FetchAdd,
            Opcode::MaskedCompareSwap => Op::MaskedCompareSwap,
            Opcode::MaskedFetchAdd => Op::MaskedFetchAdd,
            // Requests of other opcodes failed before.
            _ => Op::Send,
        };
        // The body is 48 bytes and holds the largest of these, so that the reads cannot fail.
        match self.op {
            Op::Write | Op::WriteImm | Op::Read => {
                if let Ok((rdma, _)) = Rdma::read_from_prefix(&request.body) {
                    (self.addr, self.rkey) = (rdma.remote_addr, rdma.rkey);
                }
            }
            Op::CompareSwap | Op::FetchAdd => {
                if let Ok((atomic, _)) = Atomic::read_from_prefix(&request.body) {
                    (self.addr, self.rkey) = (atomic.remote_addr, atomic.rkey);
                    self.args = [atomic.compare_add, atomic.swap, 0, 0];
                }
            }
            Op::MaskedCompareSwap | Op::MaskedFetchAdd => {
                if let Ok((m, _)) = MaskedAtomic::read_from_prefix(&request.body) {
                    (self.addr, self.rkey) = (m.remote_addr, m.rkey);
                    self.args = match self.op {
                        Op::MaskedFetchAdd => [m.swap_add, 0, m.compare_boundary, 0],
                        _ => [m.compare_boundary, m.swap_add, m.compare_mask, m.swap_mask],
                    };
                }
            }
            Op::Send | Op::SendImm | Op::SendInv => {}
        }
    }
}
