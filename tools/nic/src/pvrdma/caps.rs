//! What the NIC says of itself: capabilities and port attributes.

use holdfast_wire::PAGE_SIZE;
use holdfast_wire::attr::{PORT_ACTIVE, PortAttr};
use holdfast_wire::dsr::{
    ATOMIC_OP_COMP_SWAP, ATOMIC_OP_FETCH_ADD, ATOMIC_OP_MASK_COMP_SWAP, ATOMIC_OP_MASK_FETCH_ADD,
    BMME_FAST_REG, BMME_LOCAL_INV, BMME_REMOTE_INV, Caps, GID_TYPE_ROCE_V1, GID_TYPE_ROCE_V2,
    MODE_ROCE,
};
use holdfast_wire::regs::{BAR_UAR_SIZE, VERSION_ROCE_V2};
use holdfast_wire::{PCI_DEVICE_ID, PCI_VENDOR_ID};

use crate::engine::Limits;

/// Most scatter/gather entries per request that the front grants.
pub const MAX_SGE: u32 = 16;
/// Number of doorbell pages, a power of two.
pub const UAR_PAGES: u32 = (BAR_UAR_SIZE / PAGE_SIZE as u64) as u32;
/// InfiniBand's width code for four lanes, and speed code for 25 Gb/s per lane (EDR).
const WIDTH_4X: u8 = 2;
const SPEED_EDR: u8 = 32;
/// InfiniBand's physical port state "link up".
const PHYS_LINK_UP: u8 = 5;
/// Port capability bit: communication management is supported.
const PORT_CM_SUPPORTED: u32 = 1 << 16;

/// The limits that a front gives its NIC: the engine's, narrowed to what the interface can carry.
pub fn limits() -> Limits {
    Limits { max_sge: MAX_SGE, ..Limits::default() }
}

/// The capabilities of a NIC of `version` with `limits`.
pub fn caps(version: u32, limits: &Limits, guid: u64) -> Caps {
    let reads = u32::from(limits.max_rd_atomic);
    Caps {
        fw_ver: 1,
        node_guid: guid.to_be(),
        sys_image_guid: guid.to_be(),
        max_mr_size: u64::from(limits.max_mr_pages) * PAGE_SIZE as u64,
        page_size_cap: PAGE_SIZE as u64,
        atomic_arg_sizes: 1 << 3,
        vendor_id: PCI_VENDOR_ID.into(),
        vendor_part_id: PCI_DEVICE_ID.into(),
        hw_ver: version,
        max_qp: limits.max_qp,
        max_qp_wr: limits.max_qp_wr,
        max_sge: limits.max_sge,
        max_sge_rd: limits.max_sge,
        max_cq: limits.max_cq,
        max_cqe: limits.max_cqe,
        max_mr: limits.max_mr,
        max_pd: limits.max_pd,
        max_qp_rd_atom: reads,
        max_res_rd_atom: reads.saturating_mul(limits.max_qp),
        max_qp_init_rd_atom: reads,
        max_ah: 65536,
        max_srq: limits.max_srq,
        max_srq_wr: limits.max_srq_wr,
        max_srq_sge: limits.max_sge,
        max_uar: UAR_PAGES,
        gid_tbl_len: limits.max_gids,
        max_pkeys: 1,
        local_ca_ack_delay: 15,
        phys_port_cnt: 1,
        mode: MODE_ROCE,
        atomic_ops: ATOMIC_OP_COMP_SWAP
            | ATOMIC_OP_FETCH_ADD
            | ATOMIC_OP_MASK_COMP_SWAP
            | ATOMIC_OP_MASK_FETCH_ADD,
        bmme_flags: BMME_LOCAL_INV | BMME_REMOTE_INV | BMME_FAST_REG,
        gid_types: if version < VERSION_ROCE_V2 { GID_TYPE_ROCE_V1 } else { GID_TYPE_ROCE_V2 },
        max_fast_reg_page_list_len: limits.max_fast_reg_pages,
        ..Caps::default()
    }
}

/// The attributes of the only port.
pub fn port(limits: &Limits) -> PortAttr {
    PortAttr {
        state: PORT_ACTIVE,
        max_mtu: limits.max_mtu,
        active_mtu: limits.max_mtu,
        gid_tbl_len: limits.max_gids,
        port_cap_flags: PORT_CM_SUPPORTED,
        max_msg_sz: limits.max_message,
        pkey_tbl_len: 1,
        max_vl_num: 1,
        active_width: WIDTH_4X,
        active_speed: SPEED_EDR,
        phys_state: PHYS_LINK_UP,
        ..PortAttr::default()
    }
}
