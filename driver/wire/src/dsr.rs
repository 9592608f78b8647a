//! The device shared region (DSR): what the driver tells the device at start-up, and the
//! capabilities the device writes back.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// One of the device's own rings, as named in the shared region.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct RingPages {
    /// Pages, the state page included.
    pub num_pages: u32,
    /// Reserved.
    pub reserved: u32,
    /// Bus address of the page directory.
    pub pdir_dma: u64,
}
assert_layout!(RingPages, 16, num_pages @ 0, pdir_dma @ 8);

/// The device shared region.
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct SharedRegion {
    /// Version the driver speaks.
    pub driver_version: u32,
    /// Reserved.
    pub reserved: u32,
    /// Guest OS word: see [`gos_linux`].
    pub gos: u32,
    /// Reserved.
    pub gos_reserved: u32,
    /// Bus address of the command slot (one page).
    pub cmd_slot_dma: u64,
    /// Bus address of the response slot (one page).
    pub resp_slot_dma: u64,
    /// Asynchronous event ring.
    pub async_ring: RingPages,
    /// Completion notification ring.
    pub cq_ring: RingPages,
    /// UAR page frame number; only the low half counts below version 19.
    pub uar_pfn: u64,
    /// Written by the device.
    pub caps: Caps,
}
assert_layout!(SharedRegion, 280, driver_version @ 0, gos @ 8, cmd_slot_dma @ 16,
    resp_slot_dma @ 24, async_ring @ 32, cq_ring @ 48, uar_pfn @ 64, caps @ 72);

/// Device capabilities.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
#[allow(missing_docs)] // the names are those of ibv_device_attr; what is special has its comment
pub struct Caps {
    pub fw_ver: u64,
    /// Big-endian.
    pub node_guid: u64,
    /// Big-endian.
    pub sys_image_guid: u64,
    /// Bytes.
    pub max_mr_size: u64,
    /// Bit n: pages of 2^n bytes can be registered.
    pub page_size_cap: u64,
    /// Bit n: atomics on 2^n-byte operands.
    pub atomic_arg_sizes: u64,
    pub ex_comp_mask: u32,
    pub device_cap_flags2: u32,
    pub max_fa_bit_boundary: u32,
    pub log_max_atomic_inline_arg: u32,
    pub vendor_id: u32,
    pub vendor_part_id: u32,
    pub hw_ver: u32,
    pub max_qp: u32,
    pub max_qp_wr: u32,
    pub device_cap_flags: u32,
    pub max_sge: u32,
    pub max_sge_rd: u32,
    pub max_cq: u32,
    pub max_cqe: u32,
    pub max_mr: u32,
    pub max_pd: u32,
    pub max_qp_rd_atom: u32,
    pub max_ee_rd_atom: u32,
    pub max_res_rd_atom: u32,
    pub max_qp_init_rd_atom: u32,
    pub max_ee_init_rd_atom: u32,
    pub max_ee: u32,
    pub max_rdd: u32,
    pub max_mw: u32,
    pub max_raw_ipv6_qp: u32,
    pub max_raw_ethy_qp: u32,
    pub max_mcast_grp: u32,
    pub max_mcast_qp_attach: u32,
    pub max_total_mcast_qp_attach: u32,
    pub max_ah: u32,
    pub max_fmr: u32,
    pub max_map_per_fmr: u32,
    pub max_srq: u32,
    pub max_srq_wr: u32,
    pub max_srq_sge: u32,
    /// UAR pages; QEMU 7.2 reports bytes here.
    pub max_uar: u32,
    pub gid_tbl_len: u32,
    pub max_pkeys: u16,
    pub local_ca_ack_delay: u8,
    pub phys_port_cnt: u8,
    /// 0: RoCE.
    pub mode: u8,
    /// `ATOMIC_OP_*` bits.
    pub atomic_ops: u8,
    /// `BMME_*` bits.
    pub bmme_flags: u8,
    /// `GID_TYPE_*` bits; exactly one is set.
    pub gid_types: u8,
    pub max_fast_reg_page_list_len: u32,
}
assert_layout!(Caps, 208, fw_ver @ 0, node_guid @ 8, sys_image_guid @ 16, max_mr_size @ 24,
    page_size_cap @ 32, atomic_arg_sizes @ 40, ex_comp_mask @ 48, device_cap_flags2 @ 52,
    max_fa_bit_boundary @ 56, log_max_atomic_inline_arg @ 60, vendor_id @ 64, vendor_part_id @ 68,
    hw_ver @ 72, max_qp @ 76, max_qp_wr @ 80, device_cap_flags @ 84, max_sge @ 88, max_sge_rd @ 92,
    max_cq @ 96, max_cqe @ 100, max_mr @ 104, max_pd @ 108, max_qp_rd_atom @ 112,
    max_qp_init_rd_atom @ 124, max_mw @ 140, max_ah @ 164, max_srq @ 176, max_srq_wr @ 180,
    max_srq_sge @ 184, max_uar @ 188, gid_tbl_len @ 192, max_pkeys @ 196, local_ca_ack_delay @ 198,
    phys_port_cnt @ 199, mode @ 200, atomic_ops @ 201, bmme_flags @ 202, gid_types @ 203,
    max_fast_reg_page_list_len @ 204);

/// [`Caps::mode`]: RoCE.
pub const MODE_ROCE: u8 = 0;
/// [`Caps::atomic_ops`]: compare and swap.
pub const ATOMIC_OP_COMP_SWAP: u8 = 1;
/// [`Caps::atomic_ops`]: fetch and add.
pub const ATOMIC_OP_FETCH_ADD: u8 = 2;
/// [`Caps::atomic_ops`]: masked compare and swap.
pub const ATOMIC_OP_MASK_COMP_SWAP: u8 = 4;
/// [`Caps::atomic_ops`]: masked fetch and add.
pub const ATOMIC_OP_MASK_FETCH_ADD: u8 = 8;
/// [`Caps::bmme_flags`]: local invalidate.
pub const BMME_LOCAL_INV: u8 = 1;
/// [`Caps::bmme_flags`]: remote invalidate.
pub const BMME_REMOTE_INV: u8 = 2;
/// [`Caps::bmme_flags`]: fast registration.
pub const BMME_FAST_REG: u8 = 4;
/// [`Caps::gid_types`] and CREATE_BIND: RoCE v1.
pub const GID_TYPE_ROCE_V1: u8 = 1;
/// [`Caps::gid_types`] and CREATE_BIND: RoCE v2.
pub const GID_TYPE_ROCE_V2: u8 = 2;

/// [`SharedRegion::gos`] for a 64-bit Linux driver: bitness 2 in bits 0-1, type 1 in bits 2-5.
pub const fn gos_linux() -> u32 {
    2 | 1 << 2
}
