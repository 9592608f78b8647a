//! Shared receive queues and queue pairs.

use std::mem::offset_of;

use holdfast_nic::engine::SrqInit;
use holdfast_nic::engine::host::QpInit;
use holdfast_wire::attr::{QpState, QpType, SrqAttr, mask};

use super::attributes::{verbs_attr, wire_attr, wire_cap};
use super::objects::{Pd, Qp, Srq};
use super::{State, pointer, same_device};
use crate::abi;
use crate::error::Error;
use crate::face::Face;

impl State {
    pub(crate) fn create_srq(
        &mut self,
        pd: usize,
        context_value: usize,
        attr: abi::SrqAttr,
    ) -> Result<*mut abi::Srq, Error> {
        let Pd { face: pd_face, owner, handle: pd_handle } = self.pds.find(pd)?;
        let (pd_ptr, owner) = (pd_face.as_ptr(), *owner);
        let (max_wr, max_sge) = (attr.max_wr.max(1), attr.max_sge.max(1));
        // The limit is set by modifying it, as verbs have it.
        let init = SrqInit { pd: *pd_handle, max_wr, max_sge, limit: 0 };
        let handle = self.engine.create_srq(owner.nic, init)?;
        self.engine.host(owner.nic).add_srq(handle, max_wr);
        let face = Face::new(abi::Srq {
            context: pointer(owner.context),
            srq_context: pointer(context_value),
            pd: pd_ptr,
            handle,
            mutex: [0; 5],
            cond: [0; 6],
            events_completed: 0,
        });
        let (ptr, at) = (face.as_ptr(), face.address());
        self.srqs.insert(at, Srq { face, owner, handle, max_sge });
        Ok(ptr)
    }

    pub(crate) fn modify_srq(
        &mut self,
        srq: usize,
        attr: abi::SrqAttr,
        bits: u32,
    ) -> Result<(), Error> {
        let Srq { owner, handle, .. } = self.srqs.find(srq)?;
        let abi::SrqAttr { max_wr, max_sge, srq_limit } = attr;
        let attr = SrqAttr { max_wr, max_sge, srq_limit, reserved: 0 };
        Ok(self.engine.modify_srq(owner.nic, *handle, bits, &attr)?)
    }

    pub(crate) fn query_srq(&mut self, srq: usize) -> Result<abi::SrqAttr, Error> {
        let Srq { owner, handle, .. } = self.srqs.find(srq)?;
        let SrqAttr { max_wr, max_sge, srq_limit, .. } =
            self.engine.query_srq(owner.nic, *handle)?;
        Ok(abi::SrqAttr { max_wr, max_sge, srq_limit })
    }

    pub(crate) fn destroy_srq(&mut self, srq: usize) -> Result<(), Error> {
        let Srq { owner, handle, .. } = self.srqs.find(srq)?;
        self.engine.destroy_srq(owner.nic, *handle)?;
        self.engine.host(owner.nic).remove_srq(*handle);
        self.srqs.remove(srq).map(drop)
    }
}

impl State {
    /// Makes a queue pair, and gives what it was granted besides.
    pub(crate) fn create_qp(
        &mut self,
        pd: usize,
        init: &abi::QpInitAttr,
    ) -> Result<(*mut abi::Qp, abi::QpCap), Error> {
        let Pd { face: pd_face, owner, handle: pd_handle } = self.pds.find(pd)?;
        let (pd_ptr, owner, pd_handle) = (pd_face.as_ptr(), *owner, *pd_handle);
        let qp_type = match init.qp_type {
            abi::QPT_RC => QpType::Rc,
            abi::QPT_UD => QpType::Ud,
            other => return Err(Error::Invalid { what: "queue pair type", value: other.into() }),
        };
        let send_cq = self.cqs.find(init.send_cq.addr())?;
        let recv_cq = self.cqs.find(init.recv_cq.addr())?;
        same_device("send completion queue", send_cq.owner.nic, owner.nic)?;
        same_device("receive completion queue", recv_cq.owner.nic, owner.nic)?;
        let srq = match init.srq.is_null() {
            true => None,
            false => Some(self.srqs.find(init.srq.addr())?),
        };
        if let Some(srq) = srq {
            same_device("shared receive queue", srq.owner.nic, owner.nic)?;
        }
        let mut cap = init.cap;
        if srq.is_some() {
            (cap.max_recv_wr, cap.max_recv_sge) = (0, 0);
        }
        let granted = QpInit {
            qp_type,
            pd: pd_handle,
            send_cq: send_cq.handle,
            recv_cq: recv_cq.handle,
            srq: srq.map(|srq| srq.handle),
            signal_all: init.sq_sig_all != 0,
            cap: wire_cap(cap),
        };
        let info = self.engine.create_qp(owner.nic, &granted)?;
        let own = srq.is_none().then_some(cap.max_recv_wr);
        self.engine.host(owner.nic).add_qp(info.handle, cap.max_send_wr, own);
        let face = Face::new(abi::Qp {
            context: pointer(owner.context),
            qp_context: init.qp_context,
            pd: pd_ptr,
            send_cq: send_cq.face.as_ptr(),
            recv_cq: recv_cq.face.as_ptr(),
            srq: srq.map_or(std::ptr::null_mut(), |srq| srq.face.as_ptr()),
            handle: info.handle,
            qp_num: info.qpn,
            state: QpState::Reset.wire(),
            qp_type: init.qp_type,
            mutex: [0; 5],
            cond: [0; 6],
            events_completed: 0,
        });
        let (ptr, at) = (face.as_ptr(), face.address());
        let qp = Qp {
            face,
            owner,
            handle: info.handle,
            send_cq: init.send_cq.expose_provenance(),
            recv_cq: init.recv_cq.expose_provenance(),
            srq: srq.map(|_| init.srq.expose_provenance()),
            context_value: init.qp_context.expose_provenance(),
            cap,
            qp_type: init.qp_type,
            signal_all: init.sq_sig_all != 0,
        };
        self.qps.insert(at, qp);
        Ok((ptr, cap))
    }

    pub(crate) fn modify_qp(
        &mut self,
        qp: usize,
        attr: &abi::QpAttr,
        bits: u32,
    ) -> Result<(), Error> {
        let Qp { owner, handle, face, .. } = self.qps.find(qp)?;
        // Capacities cannot be changed, and rates are not limited.
        let unknown = bits & !(mask::DEST_QPN << 1).wrapping_sub(1);
        if unknown != 0 || bits & mask::CAP != 0 {
            return Err(Error::Unsupported { what: "an attribute of the queue pair" });
        }
        self.engine.modify_qp(owner.nic, *handle, bits, &wire_attr(attr))?;
        if bits & mask::STATE != 0 {
            if attr.qp_state == QpState::Reset.wire() {
                self.engine.host(owner.nic).empty_qp(*handle);
            }
            face.set(offset_of!(abi::Qp, state), attr.qp_state);
        }
        self.settle();
        Ok(())
    }

    pub(crate) fn query_qp(&mut self, qp: usize) -> Result<(abi::QpAttr, abi::QpInitAttr), Error> {
        let qp = self.qps.find(qp)?;
        let wire = self.engine.query_qp(qp.owner.nic, qp.handle)?;
        qp.face.set(offset_of!(abi::Qp, state), wire.qp_state);
        let mut attr = verbs_attr(&wire);
        attr.cap = qp.cap;
        let init = abi::QpInitAttr {
            qp_context: pointer(qp.context_value),
            send_cq: pointer(qp.send_cq),
            recv_cq: pointer(qp.recv_cq),
            srq: qp.srq.map_or(std::ptr::null_mut(), pointer),
            cap: qp.cap,
            qp_type: qp.qp_type,
            sq_sig_all: qp.signal_all.into(),
        };
        Ok((attr, init))
    }

    /// Destroys a queue pair; its completions leave the queues with it.
    pub(crate) fn destroy_qp(&mut self, qp: usize) -> Result<(), Error> {
        let Qp { owner, handle, .. } = self.qps.find(qp)?;
        self.engine.destroy_qp(owner.nic, *handle)?;
        self.engine.host(owner.nic).remove_qp(*handle);
        self.qps.remove(qp).map(drop)
    }
}
