//! Moving data: posting requests and taking completions.

use holdfast_nic::engine::host::{Completion, RecvQueue};
use holdfast_wire::attr::QpState;
use holdfast_wire::completion::{self, CqeOpcode};
use holdfast_wire::wqe::{Atomic, Av, FLAG_INLINE, Opcode, Rdma, Sge, Ud};
use zerocopy::IntoBytes;

use super::State;
use super::objects::{Cq, Qp, Srq};
use crate::abi;
use crate::error::Error;
use crate::hca::{Recv, Send};

/// A send as it was read from C: the request, its entries, and the bytes of an inline payload.
pub(crate) struct PostedSend {
    pub(crate) wr: abi::SendWr,
    pub(crate) sges: Vec<Sge>,
    pub(crate) inline: Vec<u8>,
}

/// A receive as it was read from C.
pub(crate) struct PostedRecv {
    pub(crate) wr_id: u64,
    pub(crate) sges: Vec<Sge>,
}

/// Where posts go; found once for a list of requests.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Target {
    nic: holdfast_nic::engine::NicId,
    handle: u32,
    shared: bool,
    datagrams: bool,
    /// Most entries of a request.
    pub(crate) max_sge: u32,
    /// Most inline bytes.
    pub(crate) max_inline: u32,
}

impl State {
    /// A queue pair that sends may be posted to.
    pub(crate) fn send_target(&mut self, qp: usize) -> Result<Target, Error> {
        self.target(qp, QpState::ReadyToSend)
    }

    /// A queue pair that receives may be posted to.
    pub(crate) fn recv_target(&mut self, qp: usize) -> Result<Target, Error> {
        let target = self.target(qp, QpState::Init)?;
        let max_sge = self.qps.find(qp)?.cap.max_recv_sge;
        Ok(Target { max_sge, ..target })
    }

    pub(crate) fn srq_target(&self, srq: usize) -> Result<Target, Error> {
        let Srq { owner, handle, max_sge, .. } = self.srqs.find(srq)?;
        Ok(Target {
            nic: owner.nic,
            handle: *handle,
            shared: true,
            datagrams: false,
            max_sge: *max_sge,
            max_inline: 0,
        })
    }

    fn target(&mut self, qp: usize, least: QpState) -> Result<Target, Error> {
        let Qp { owner, handle, cap, qp_type, .. } = self.qps.find(qp)?;
        let state = self.engine.query_qp(owner.nic, *handle)?.qp_state;
        if state < least.wire() {
            return Err(Error::Invalid { what: "state of a queue pair", value: state.into() });
        }
        Ok(Target {
            nic: owner.nic,
            handle: *handle,
            shared: false,
            datagrams: *qp_type == abi::QPT_UD,
            max_sge: cap.max_send_sge,
            max_inline: cap.max_inline_data,
        })
    }

    /// Puts one send in its queue.
    pub(crate) fn post_send(&mut self, to: Target, posted: PostedSend) -> Result<(), Error> {
        let PostedSend { wr, sges, inline } = posted;
        let mut body = [0; 48];
        let mut put = |bytes: &[u8]| body[..bytes.len()].copy_from_slice(bytes);
        let opcode = match wr.opcode {
            abi::wr::SEND => Opcode::Send,
            abi::wr::SEND_WITH_IMM => Opcode::SendImm,
            abi::wr::RDMA_WRITE => Opcode::RdmaWrite,
            abi::wr::RDMA_WRITE_WITH_IMM => Opcode::RdmaWriteImm,
            abi::wr::RDMA_READ => Opcode::RdmaRead,
            abi::wr::ATOMIC_CMP_AND_SWP => Opcode::CompareSwap,
            abi::wr::ATOMIC_FETCH_AND_ADD => Opcode::FetchAdd,
            other => return Err(Error::Invalid { what: "opcode", value: other.into() }),
        };
        match opcode {
            Opcode::Send | Opcode::SendImm if to.datagrams => {
                put(self.datagram(to, &wr)?.as_bytes())
            }
            _ if to.datagrams => {
                let value = wr.opcode.into();
                return Err(Error::Invalid { what: "opcode of a datagram", value });
            }
            Opcode::Send | Opcode::SendImm => {}
            Opcode::CompareSwap | Opcode::FetchAdd => {
                let (remote_addr, compare_add, swap, rkey) = wr.atomic();
                put(Atomic { remote_addr, compare_add, swap, rkey, reserved: 0 }.as_bytes());
            }
            _ => {
                let (remote_addr, rkey) = wr.rdma();
                put(Rdma { remote_addr, rkey, reserved: 0 }.as_bytes());
            }
        }
        // The flags that verbs and the device's interface know have the same values.
        let flags = wr.send_flags & (FLAG_INLINE | 7);
        let (wr_id, ex) = (wr.wr_id, wr.imm_data);
        let send = Send { wr_id, opcode, flags, ex, sges, inline, body };
        self.engine.host(to.nic).post_send(to.handle, send)
    }

    fn datagram(&self, to: Target, wr: &abi::SendWr) -> Result<Ud, Error> {
        let (ah, remote_qpn, remote_qkey) = wr.ud();
        let ah = self.ahs.find(ah)?;
        let grh = &ah.attr.grh;
        // Of a handle of another device only the destination counts.
        let gid_index = if ah.owner.nic == to.nic { grh.sgid_index } else { 1 };
        let av = Av {
            port_pd: u32::from(ah.attr.port_num) << 24,
            sl_tclass_flowlabel: u32::from(grh.traffic_class) << 20 | grh.flow_label & 0xf_ffff,
            dgid: grh.dgid,
            gid_index,
            hop_limit: grh.hop_limit,
            ..Av::default()
        };
        Ok(Ud { remote_qpn, remote_qkey, av })
    }

    /// Puts one receive in its queue.
    pub(crate) fn post_recv(&mut self, to: Target, posted: PostedRecv) -> Result<(), Error> {
        let queue = match to.shared {
            true => RecvQueue::Shared(to.handle),
            false => RecvQueue::Own(to.handle),
        };
        let PostedRecv { wr_id, sges } = posted;
        self.engine.host(to.nic).post_recv(queue, Recv { wr_id, sges })
    }

    /// Sends were posted: carries them out.
    pub(crate) fn ring_send(&mut self, to: Target) {
        let now = self.now();
        self.engine.send_doorbell(to.nic, to.handle, now);
        self.settle();
    }

    /// Receives were posted.
    pub(crate) fn ring_recv(&mut self, to: Target) {
        match to.shared {
            true => self.engine.srq_doorbell(to.nic, to.handle),
            false => {
                if self.engine.recv_doorbell(to.nic, to.handle) {
                    self.settle();
                }
            }
        }
    }

    /// Takes the oldest completion of a queue.
    pub(crate) fn poll_cq(&mut self, cq: usize) -> Result<Option<abi::Wc>, Error> {
        let Cq { owner, handle, .. } = self.cqs.find(cq)?;
        Ok(self.engine.host(owner.nic).poll(*handle).map(|entry| wc(&entry)))
    }
}

/// A completion as verbs have it.
fn wc(entry: &Completion) -> abi::Wc {
    let opcode = match CqeOpcode::try_from(entry.opcode) {
        Ok(CqeOpcode::Lso) => 7,
        Ok(CqeOpcode::LocalInv) => 6,
        // The others have the same values.
        _ => entry.opcode,
    };
    let flags = [
        (completion::WC_GRH, abi::WC_GRH),
        (completion::WC_WITH_IMM, abi::WC_WITH_IMM),
        (completion::WC_WITH_INVALIDATE, abi::WC_WITH_INV),
    ];
    let wc_flags =
        flags.iter().filter(|(bit, _)| entry.wc_flags & bit != 0).map(|(_, flag)| flag).sum();
    abi::Wc {
        wr_id: entry.wr_id,
        status: entry.status.wire(),
        opcode,
        vendor_err: entry.vendor_err,
        byte_len: entry.byte_len,
        imm_data: entry.imm_data,
        // The engine numbers queue pairs by handle here.
        qp_num: entry.qp_handle,
        src_qp: entry.src_qp,
        wc_flags,
        pkey_index: 0,
        slid: 0,
        sl: 0,
        dlid_path_bits: 0,
    }
}
