//! Making, changing, asking about and destroying objects.

use std::mem::offset_of;
use std::sync::Arc;

use holdfast_nic::engine::host::QpInit;
use holdfast_nic::engine::{MrInit, MrKind, NicId, SrqInit};
use holdfast_wire::attr::{ACCESS_LOCAL_WRITE, QpState, QpType, SrqAttr, mask};

use super::objects::{Ah, Chan, Context, Cq, Mr, Owner, Pd, Qp, RetiredCq, Srq};
use super::{Device, FIRST_QPN, State};
use crate::abi;
use crate::channel::Channel;
use crate::error::Error;
use crate::exports;
use crate::face::Face;
use crate::hca::Armed;
use crate::memory::PAGE;

/// The only port.
const PORT: u8 = 1;
/// Largest MTU code: 4096 bytes.
const MTU: u32 = 5;

/// A pointer of C as a number, and back when it is given back.
fn pointer<T>(address: usize) -> *mut T {
    std::ptr::with_exposed_provenance_mut(address)
}

fn same_device(what: &'static str, a: NicId, b: NicId) -> Result<(), Error> {
    if a == b { Ok(()) } else { Err(Error::Stranger { what }) }
}

fn check_port(port: u8) -> Result<(), Error> {
    if port == PORT { Ok(()) } else { Err(Error::Invalid { what: "port", value: port.into() }) }
}

fn at_least_one(what: &'static str, value: i32) -> Result<u32, Error> {
    match u32::try_from(value) {
        Ok(value @ 1..) => Ok(value),
        _ => Err(Error::Invalid { what, value: value as u64 }),
    }
}

/// Devices.
impl State {
    pub(crate) fn devices(&self) -> impl Iterator<Item = *mut abi::Device> {
        self.devices.iter().map(|device| device.face.as_ptr())
    }

    pub(crate) fn open(&mut self, device: usize) -> Result<*mut abi::Context, Error> {
        let Device { face, nic, guid } = self
            .devices
            .iter()
            .find(|d| d.face.address() == device)
            .ok_or(Error::NoSuch { what: "device", address: device })?;
        let face = exports::context_face(face.as_ptr());
        let context = Context { face, nic: *nic, guid: *guid };
        let (ptr, address) = (context.face.as_ptr(), context.face.address());
        self.contexts.insert(address, context);
        Ok(ptr)
    }

    /// Closes a device, and destroys what was made with this context and is left.
    pub(crate) fn close(&mut self, context: usize) -> Result<(), Error> {
        self.contexts.find(context)?;
        let ours = |owner: &Owner| owner.context == context;
        // What uses others goes before what is used.
        for qp in self.qps.pick(|o| ours(&o.owner)) {
            self.destroy_qp(qp)?;
        }
        for srq in self.srqs.pick(|o| ours(&o.owner)) {
            self.destroy_srq(srq)?;
        }
        for cq in self.cqs.pick(|o| ours(&o.owner)) {
            self.destroy_cq(cq)?;
        }
        for channel in self.channels.pick(|o| ours(&o.owner)) {
            self.destroy_channel(channel)?;
        }
        for ah in self.ahs.pick(|o| ours(&o.owner)) {
            self.destroy_ah(ah)?;
        }
        for mr in self.mrs.pick(|o| ours(&o.owner)) {
            self.deregister(mr)?;
        }
        for pd in self.pds.pick(|o| ours(&o.owner)) {
            self.dealloc_pd(pd)?;
        }
        self.contexts.remove(context).map(drop)
    }

    pub(crate) fn query_device(&self, context: usize) -> Result<abi::DeviceAttr, Error> {
        let context = self.contexts.find(context)?;
        let limits = self.engine.limits(context.nic);
        let reads = i32::from(limits.max_rd_atomic);
        let mut fw_ver = [0; 64];
        fw_ver[0] = b'1' as _;
        Ok(abi::DeviceAttr {
            fw_ver,
            node_guid: context.guid.to_be(),
            sys_image_guid: context.guid.to_be(),
            max_mr_size: u64::from(limits.max_mr_pages) * PAGE,
            page_size_cap: PAGE,
            vendor_id: 0,
            vendor_part_id: 0,
            hw_ver: 1,
            max_qp: (limits.max_qp + FIRST_QPN) as i32,
            max_qp_wr: limits.max_qp_wr as i32,
            device_cap_flags: 0,
            max_sge: limits.max_sge as i32,
            max_sge_rd: limits.max_sge as i32,
            max_cq: limits.max_cq as i32,
            max_cqe: limits.max_cqe as i32,
            max_mr: limits.max_mr as i32,
            max_pd: limits.max_pd as i32,
            max_qp_rd_atom: reads,
            max_ee_rd_atom: 0,
            max_res_rd_atom: reads * limits.max_qp as i32,
            max_qp_init_rd_atom: reads,
            max_ee_init_rd_atom: 0,
            atomic_cap: abi::ATOMIC_HCA,
            max_ee: 0,
            max_rdd: 0,
            max_mw: 0,
            max_raw_ipv6_qp: 0,
            max_raw_ethy_qp: 0,
            max_mcast_grp: 0,
            max_mcast_qp_attach: 0,
            max_total_mcast_qp_attach: 0,
            max_ah: i32::from(u16::MAX),
            max_fmr: 0,
            max_map_per_fmr: 0,
            max_srq: limits.max_srq as i32,
            max_srq_wr: limits.max_srq_wr as i32,
            max_srq_sge: limits.max_sge as i32,
            max_pkeys: 1,
            local_ca_ack_delay: 0,
            phys_port_cnt: PORT,
        })
    }

    pub(crate) fn query_port(&self, context: usize, port: u8) -> Result<abi::PortAttr, Error> {
        let nic = self.contexts.find(context)?.nic;
        check_port(port)?;
        Ok(abi::PortAttr {
            state: holdfast_wire::attr::PORT_ACTIVE,
            max_mtu: MTU,
            active_mtu: MTU,
            gid_tbl_len: self.gid_table(nic).len() as i32,
            port_cap_flags: 0,
            max_msg_sz: self.engine.limits(nic).max_message,
            bad_pkey_cntr: 0,
            qkey_viol_cntr: 0,
            pkey_tbl_len: 1,
            lid: 0,
            sm_lid: 0,
            lmc: 0,
            max_vl_num: 1,
            sm_sl: 0,
            subnet_timeout: 0,
            init_type_reply: 0,
            // Four lanes of 25 Gbit/s, link up.
            active_width: 2,
            active_speed: 32,
            phys_state: 5,
            link_layer: abi::LINK_LAYER_ETHERNET,
            flags: 0,
        })
    }

    /// Index 0, which is nothing, and what follows without a gap.
    fn gid_table(&self, nic: NicId) -> Vec<abi::Gid> {
        let bound = (1..).map_while(|index| self.engine.gid(nic, index));
        std::iter::once([0; 16]).chain(bound).collect()
    }

    pub(crate) fn query_gid(
        &self,
        context: usize,
        port: u8,
        index: i32,
    ) -> Result<abi::Gid, Error> {
        let nic = self.contexts.find(context)?.nic;
        check_port(port)?;
        let table = self.gid_table(nic);
        let gid = usize::try_from(index).ok().and_then(|index| table.get(index));
        gid.copied().ok_or(Error::Invalid { what: "GID index", value: index as u64 })
    }
}

/// Protection domains, memory regions, address handles.
impl State {
    pub(crate) fn alloc_pd(&mut self, context: usize) -> Result<*mut abi::Pd, Error> {
        let Context { face, nic, .. } = self.contexts.find(context)?;
        let handle = self.engine.create_pd(*nic)?;
        let face = Face::new(abi::Pd { context: face.as_ptr(), handle });
        let (ptr, address) = (face.as_ptr(), face.address());
        self.pds.insert(address, Pd { face, owner: Owner { nic: *nic, context }, handle });
        Ok(ptr)
    }

    pub(crate) fn dealloc_pd(&mut self, pd: usize) -> Result<(), Error> {
        let found = self.pds.find(pd)?;
        self.engine.destroy_pd(found.owner.nic, found.handle)?;
        self.pds.remove(pd).map(drop)
    }

    /// Registers memory of the process. Its users count its addresses from `iova` on.
    pub(crate) fn register(
        &mut self,
        pd: usize,
        address: usize,
        length: usize,
        iova: u64,
        access: u32,
    ) -> Result<*mut abi::Mr, Error> {
        let Pd { face: pd_face, owner, handle: pd_handle } = self.pds.find(pd)?;
        let (owner, pd_handle) = (*owner, *pd_handle);
        let (start, bytes) = (address as u64, length as u64);
        if start % PAGE != iova % PAGE {
            // As the kernel has it: the first page's offset is the same in both.
            return Err(Error::Invalid { what: "offset of the region's address", value: iova });
        }
        let limit = u64::from(self.engine.limits(owner.nic).max_mr_pages) * PAGE;
        if bytes > limit - PAGE {
            return Err(Error::Invalid { what: "length of a region", value: bytes });
        }
        let write = access & ACCESS_LOCAL_WRITE != 0;
        let memory = &mut self.engine.host(owner.nic).memory;
        let pages = memory.register(start, bytes, write)?;
        let list = pages.clone().step_by(PAGE as usize).collect();
        let kind = MrKind::Pages(list);
        let init = MrInit { pd: pd_handle, start: iova, length: bytes, access, kind };
        let info = match self.engine.create_mr(owner.nic, init) {
            Ok(info) => info,
            Err(error) => {
                self.engine.host(owner.nic).memory.release(pages);
                return Err(error.into());
            }
        };
        let face = Face::new(abi::Mr {
            context: pointer(owner.context),
            pd: pd_face.as_ptr(),
            addr: pointer(address),
            length,
            handle: info.handle,
            lkey: info.lkey,
            rkey: info.rkey,
        });
        let (ptr, at) = (face.as_ptr(), face.address());
        self.mrs.insert(at, Mr { _face: face, owner, handle: info.handle, pages });
        Ok(ptr)
    }

    pub(crate) fn deregister(&mut self, mr: usize) -> Result<(), Error> {
        let Mr { owner, handle, pages, .. } = self.mrs.remove(mr)?;
        self.engine.destroy_mr(owner.nic, handle)?;
        self.engine.host(owner.nic).memory.release(pages);
        Ok(())
    }

    pub(crate) fn create_ah(
        &mut self,
        pd: usize,
        attr: abi::AhAttr,
    ) -> Result<*mut abi::Ah, Error> {
        let Pd { face: pd_face, owner, .. } = self.pds.find(pd)?;
        check_port(attr.port_num)?;
        if attr.is_global == 0 {
            return Err(Error::Invalid { what: "is_global", value: 0 });
        }
        let index = attr.grh.sgid_index;
        if self.engine.gid(owner.nic, index.into()).is_none() {
            return Err(Error::Invalid { what: "source GID index", value: index.into() });
        }
        let context = pointer(owner.context);
        let face = Face::new(abi::Ah { context, pd: pd_face.as_ptr(), handle: 0 });
        let (ptr, at) = (face.as_ptr(), face.address());
        self.ahs.insert(at, Ah { _face: face, owner: *owner, attr });
        Ok(ptr)
    }

    pub(crate) fn destroy_ah(&mut self, ah: usize) -> Result<(), Error> {
        self.ahs.remove(ah).map(drop)
    }
}

/// Completion channels and queues.
impl State {
    pub(crate) fn create_channel(
        &mut self,
        context: usize,
    ) -> Result<*mut abi::CompChannel, Error> {
        let Context { face, nic, .. } = self.contexts.find(context)?;
        let channel = Arc::new(Channel::new()?);
        let (context_ptr, fd) = (face.as_ptr(), channel.fd());
        let face = Face::new(abi::CompChannel { context: context_ptr, fd, refcnt: 0 });
        let (ptr, at) = (face.as_ptr(), face.address());
        let owner = Owner { nic: *nic, context };
        self.channels.insert(at, Chan { face, owner, channel, users: 0 });
        Ok(ptr)
    }

    pub(crate) fn destroy_channel(&mut self, channel: usize) -> Result<(), Error> {
        if self.channels.find(channel)?.users > 0 {
            return Err(Error::Busy { what: "completion channel" });
        }
        self.channels.remove(channel)?.channel.close();
        Ok(())
    }

    pub(crate) fn channel(&self, channel: usize) -> Result<Arc<Channel>, Error> {
        Ok(self.channels.find(channel)?.channel.clone())
    }

    /// Takes an event of a channel: the queue and what its owner wants back with it.
    pub(crate) fn take_event(
        &mut self,
        channel: usize,
    ) -> Result<Option<(*mut abi::Cq, usize)>, Error> {
        let Some(address) = self.channels.find(channel)?.channel.pop() else { return Ok(None) };
        let cq = self.cqs.find_mut(address)?;
        cq.unacknowledged = cq.unacknowledged.saturating_add(1);
        Ok(Some((cq.face.as_ptr(), cq.context_value)))
    }

    /// Acknowledges events; the last one lets a destroyed queue's structure go.
    pub(crate) fn acknowledge(&mut self, cq: usize, events: u32) -> Result<(), Error> {
        if let Ok(cq) = self.cqs.find_mut(cq) {
            cq.unacknowledged = cq.unacknowledged.saturating_sub(events);
            return Ok(());
        }
        let retired = self.retired.find_mut(cq)?;
        retired.unacknowledged = retired.unacknowledged.saturating_sub(events);
        if retired.unacknowledged == 0 {
            self.retired.remove(cq)?;
        }
        Ok(())
    }

    /// Makes a completion queue of at least `entries` entries. Vectors are all the same one.
    pub(crate) fn create_cq(
        &mut self,
        context: usize,
        entries: i32,
        context_value: usize,
        channel: Option<usize>,
    ) -> Result<*mut abi::Cq, Error> {
        let Context { face, nic, .. } = self.contexts.find(context)?;
        let (context_ptr, owner) = (face.as_ptr(), Owner { nic: *nic, context });
        let entries = at_least_one("entries of a completion queue", entries)?;
        let most = self.engine.limits(owner.nic).max_cqe;
        let depth = if entries > most { entries } else { entries.next_power_of_two().min(most) };
        let events = match channel {
            Some(address) => {
                let chan = self.channels.find_mut(address)?;
                same_device("completion channel", chan.owner.nic, owner.nic)?;
                Some(chan)
            }
            None => None,
        };
        let handle = self.engine.create_cq(owner.nic, depth)?;
        let face = Face::new(abi::Cq {
            context: context_ptr,
            channel: events.as_ref().map_or(std::ptr::null_mut(), |chan| chan.face.as_ptr()),
            cq_context: pointer(context_value),
            handle,
            cqe: depth as i32,
            mutex: [0; 5],
            cond: [0; 6],
            comp_events_completed: 0,
            async_events_completed: 0,
        });
        let (ptr, at) = (face.as_ptr(), face.address());
        let target = events.map(|chan| {
            chan.users += 1;
            chan.face.set(offset_of!(abi::CompChannel, refcnt), chan.users as i32);
            (chan.channel.clone(), at)
        });
        self.engine.host(owner.nic).add_cq(handle, depth, target);
        let cq = Cq { face, owner, handle, channel, context_value, unacknowledged: 0 };
        self.cqs.insert(at, cq);
        Ok(ptr)
    }

    pub(crate) fn destroy_cq(&mut self, cq: usize) -> Result<(), Error> {
        let found = self.cqs.find(cq)?;
        self.engine.destroy_cq(found.owner.nic, found.handle)?;
        self.engine.host(found.owner.nic).remove_cq(found.handle);
        let gone = self.cqs.remove(cq)?;
        if let Some(chan) = gone.channel.and_then(|at| self.channels.find_mut(at).ok()) {
            chan.users = chan.users.saturating_sub(1);
            chan.face.set(offset_of!(abi::CompChannel, refcnt), chan.users as i32);
        }
        if gone.unacknowledged > 0 {
            let Cq { face, unacknowledged, .. } = gone;
            self.retired.insert(cq, RetiredCq { _face: face, unacknowledged });
        }
        Ok(())
    }

    pub(crate) fn arm(&mut self, cq: usize, solicited_only: bool) -> Result<(), Error> {
        let Cq { owner, handle, .. } = self.cqs.find(cq)?;
        let armed = if solicited_only { Armed::Solicited } else { Armed::Any };
        self.engine.host(owner.nic).arm(*handle, armed);
        Ok(())
    }
}

/// Shared receive queues.
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

/// Queue pairs.
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

    pub(crate) fn query_qp(
        &mut self,
        qp: usize,
    ) -> Result<(abi::QpAttr, abi::QpInitAttr), Error> {
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

fn wire_cap(cap: abi::QpCap) -> holdfast_wire::attr::QpCap {
    holdfast_wire::attr::QpCap {
        max_send_wr: cap.max_send_wr,
        max_recv_wr: cap.max_recv_wr,
        max_send_sge: cap.max_send_sge,
        max_recv_sge: cap.max_recv_sge,
        max_inline_data: cap.max_inline_data,
        reserved: 0,
    }
}

fn wire_path(path: &abi::AhAttr) -> holdfast_wire::attr::AhAttr {
    holdfast_wire::attr::AhAttr {
        dgid: path.grh.dgid,
        flow_label: path.grh.flow_label,
        sgid_index: path.grh.sgid_index,
        hop_limit: path.grh.hop_limit,
        traffic_class: path.grh.traffic_class,
        sl: path.sl,
        ah_flags: path.is_global,
        port_num: path.port_num,
        ..Default::default()
    }
}

fn verbs_path(path: &holdfast_wire::attr::AhAttr) -> abi::AhAttr {
    abi::AhAttr {
        grh: abi::GlobalRoute {
            dgid: path.dgid,
            flow_label: path.flow_label,
            sgid_index: path.sgid_index,
            hop_limit: path.hop_limit,
            traffic_class: path.traffic_class,
        },
        sl: path.sl,
        is_global: path.ah_flags,
        port_num: path.port_num,
        ..Default::default()
    }
}

/// A structure of attributes from one of the other kind, most of whose fields have the same names.
macro_rules! shared_attributes {
    ($make:path, $a:expr, $($own:tt)*) => {
        $make {
            qp_state: $a.qp_state,
            cur_qp_state: $a.cur_qp_state,
            path_mtu: $a.path_mtu,
            path_mig_state: $a.path_mig_state,
            qkey: $a.qkey,
            rq_psn: $a.rq_psn,
            sq_psn: $a.sq_psn,
            dest_qp_num: $a.dest_qp_num,
            qp_access_flags: $a.qp_access_flags,
            pkey_index: $a.pkey_index,
            alt_pkey_index: $a.alt_pkey_index,
            en_sqd_async_notify: $a.en_sqd_async_notify,
            sq_draining: $a.sq_draining,
            max_rd_atomic: $a.max_rd_atomic,
            max_dest_rd_atomic: $a.max_dest_rd_atomic,
            min_rnr_timer: $a.min_rnr_timer,
            port_num: $a.port_num,
            timeout: $a.timeout,
            retry_cnt: $a.retry_cnt,
            rnr_retry: $a.rnr_retry,
            alt_port_num: $a.alt_port_num,
            alt_timeout: $a.alt_timeout,
            $($own)*
        }
    };
}

fn wire_attr(a: &abi::QpAttr) -> holdfast_wire::attr::QpAttr {
    shared_attributes!(holdfast_wire::attr::QpAttr, a,
        ah_attr: wire_path(&a.ah_attr), alt_ah_attr: wire_path(&a.alt_ah_attr),
        ..Default::default())
}

fn verbs_attr(a: &holdfast_wire::attr::QpAttr) -> abi::QpAttr {
    shared_attributes!(abi::QpAttr, a,
        ah_attr: verbs_path(&a.ah_attr), alt_ah_attr: verbs_path(&a.alt_ah_attr),
        ..Default::default())
}
