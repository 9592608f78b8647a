//! Devices and contexts: opening, closing, asking.

use holdfast_nic::engine::NicId;

use super::objects::{Context, Owner};
use super::{Device, PORT, State, check_port};
use crate::abi;
use crate::error::Error;
use crate::exports;
use crate::memory::PAGE;

/// Largest MTU code: 4096 bytes.
const MTU: u32 = 5;

impl State {
    pub(crate) fn devices(&self) -> impl Iterator<Item = *mut abi::Device> {
        self.devices.iter().map(|device| device.face.as_ptr())
    }

    pub(crate) fn open(&mut self, device: usize) -> Result<*mut abi::Context, Error> {
        let Device { face, nic, guid } =
            self.devices
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
            max_qp: limits.max_qp as i32,
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
