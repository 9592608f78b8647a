//! The structures of libibverbs's C interface, to the byte, for x86-64 Linux: for `holdfast-verbs`,
//! which stands in for that library, and for `lab-peer`, which calls it.
//!
//! Names, order and sizes are those of rdma-core's `infiniband/verbs.h`, whose interface has kept
//! them since version 1.1; where that header has locks, there are words that nobody here touches.
//! `tests/layout.rs` compares them with the header of an installed libibverbs-dev.
#![allow(missing_docs)] // What the fields mean is verbs.h's to say.

use std::ffi::{c_char, c_int, c_void};

/// Asserts a structure's size and the offsets of its fields, and lists them for the tests.
macro_rules! layout {
    ($($name:ident = $c:literal, $size:literal $(, $field:ident @ $offset:literal)*;)+) => {
        $(const _: () = {
            assert!(size_of::<$name>() == $size);
            $(assert!(std::mem::offset_of!($name, $field) == $offset);)*
        };)+

        /// C name, size, and fields with their offsets, of every structure.
        pub const LAYOUT: &[(&str, usize, &[(&str, usize)])] =
            &[$(($c, $size, &[$((stringify!($field), $offset)),*])),+];
    };
}

/// A GID in network order.
pub type Gid = [u8; 16];

#[repr(C)]
pub struct Device {
    pub ops: [usize; 2],
    pub node_type: u32,
    pub transport_type: u32,
    pub name: [c_char; 64],
    pub dev_name: [c_char; 64],
    pub dev_path: [c_char; 256],
    pub ibdev_path: [c_char; 256],
}

pub const NODE_CA: u32 = 1;
pub const TRANSPORT_IB: u32 = 0;

pub type Unused = Option<unsafe extern "C" fn()>;

/// What verbs.h's inline functions call.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct ContextOps {
    pub compat: [Unused; 7],
    pub alloc_mw: Option<unsafe extern "C" fn(*mut Pd, u32) -> *mut c_void>,
    pub bind_mw: Option<unsafe extern "C" fn(*mut Qp, *mut c_void, *mut c_void) -> c_int>,
    pub dealloc_mw: Option<unsafe extern "C" fn(*mut c_void) -> c_int>,
    pub compat_create_cq: Unused,
    pub poll_cq: Option<unsafe extern "C" fn(*mut Cq, c_int, *mut Wc) -> c_int>,
    pub req_notify_cq: Option<unsafe extern "C" fn(*mut Cq, c_int) -> c_int>,
    pub compat_cq: [Unused; 7],
    pub post_srq_recv:
        Option<unsafe extern "C" fn(*mut Srq, *mut RecvWr, *mut *mut RecvWr) -> c_int>,
    pub compat_qp: [Unused; 4],
    pub post_send: Option<unsafe extern "C" fn(*mut Qp, *mut SendWr, *mut *mut SendWr) -> c_int>,
    pub post_recv: Option<unsafe extern "C" fn(*mut Qp, *mut RecvWr, *mut *mut RecvWr) -> c_int>,
    pub compat_ah: [Unused; 5],
}

#[repr(C)]
pub struct Context {
    pub device: *mut Device,
    pub ops: ContextOps,
    pub cmd_fd: c_int,
    pub async_fd: c_int,
    pub num_comp_vectors: c_int,
    pub mutex: [u64; 5],
    /// Not all ones: then `ibv_query_port` and others are called by their exported names.
    pub abi_compat: usize,
}

#[repr(C)]
#[derive(Clone, Copy)]
pub struct DeviceAttr {
    pub fw_ver: [c_char; 64],
    pub node_guid: u64,
    pub sys_image_guid: u64,
    pub max_mr_size: u64,
    pub page_size_cap: u64,
    pub vendor_id: u32,
    pub vendor_part_id: u32,
    pub hw_ver: u32,
    pub max_qp: c_int,
    pub max_qp_wr: c_int,
    pub device_cap_flags: u32,
    pub max_sge: c_int,
    pub max_sge_rd: c_int,
    pub max_cq: c_int,
    pub max_cqe: c_int,
    pub max_mr: c_int,
    pub max_pd: c_int,
    pub max_qp_rd_atom: c_int,
    pub max_ee_rd_atom: c_int,
    pub max_res_rd_atom: c_int,
    pub max_qp_init_rd_atom: c_int,
    pub max_ee_init_rd_atom: c_int,
    pub atomic_cap: u32,
    pub max_ee: c_int,
    pub max_rdd: c_int,
    pub max_mw: c_int,
    pub max_raw_ipv6_qp: c_int,
    pub max_raw_ethy_qp: c_int,
    pub max_mcast_grp: c_int,
    pub max_mcast_qp_attach: c_int,
    pub max_total_mcast_qp_attach: c_int,
    pub max_ah: c_int,
    pub max_fmr: c_int,
    pub max_map_per_fmr: c_int,
    pub max_srq: c_int,
    pub max_srq_wr: c_int,
    pub max_srq_sge: c_int,
    pub max_pkeys: u16,
    pub local_ca_ack_delay: u8,
    pub phys_port_cnt: u8,
}

pub const ATOMIC_HCA: u32 = 1;

/// What the exported `ibv_query_port` fills in: the head of `struct ibv_port_attr`.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct PortAttr {
    pub state: u32,
    pub max_mtu: u32,
    pub active_mtu: u32,
    pub gid_tbl_len: c_int,
    pub port_cap_flags: u32,
    pub max_msg_sz: u32,
    pub bad_pkey_cntr: u32,
    pub qkey_viol_cntr: u32,
    pub pkey_tbl_len: u16,
    pub lid: u16,
    pub sm_lid: u16,
    pub lmc: u8,
    pub max_vl_num: u8,
    pub sm_sl: u8,
    pub subnet_timeout: u8,
    pub init_type_reply: u8,
    pub active_width: u8,
    pub active_speed: u8,
    pub phys_state: u8,
    pub link_layer: u8,
    pub flags: u8,
}

const _: () = {
    assert!(size_of::<PortAttr>() == 48);
    assert!(std::mem::offset_of!(PortAttr, link_layer) == 46);
};

pub const LINK_LAYER_ETHERNET: u8 = 2;

#[repr(C)]
pub struct Pd {
    pub context: *mut Context,
    pub handle: u32,
}

#[repr(C)]
pub struct Mr {
    pub context: *mut Context,
    pub pd: *mut Pd,
    pub addr: *mut c_void,
    pub length: usize,
    pub handle: u32,
    pub lkey: u32,
    pub rkey: u32,
}

#[repr(C)]
pub struct CompChannel {
    pub context: *mut Context,
    pub fd: c_int,
    pub refcnt: c_int,
}

#[repr(C)]
pub struct Cq {
    pub context: *mut Context,
    pub channel: *mut CompChannel,
    pub cq_context: *mut c_void,
    pub handle: u32,
    pub cqe: c_int,
    pub mutex: [u64; 5],
    pub cond: [u64; 6],
    pub comp_events_completed: u32,
    pub async_events_completed: u32,
}

#[repr(C)]
pub struct Srq {
    pub context: *mut Context,
    pub srq_context: *mut c_void,
    pub pd: *mut Pd,
    pub handle: u32,
    pub mutex: [u64; 5],
    pub cond: [u64; 6],
    pub events_completed: u32,
}

#[repr(C)]
pub struct Qp {
    pub context: *mut Context,
    pub qp_context: *mut c_void,
    pub pd: *mut Pd,
    pub send_cq: *mut Cq,
    pub recv_cq: *mut Cq,
    pub srq: *mut Srq,
    pub handle: u32,
    pub qp_num: u32,
    pub state: u32,
    pub qp_type: u32,
    pub mutex: [u64; 5],
    pub cond: [u64; 6],
    pub events_completed: u32,
}

pub const QPT_RC: u32 = 2;
pub const QPT_UD: u32 = 4;

pub const QPS_INIT: u32 = 1;
pub const QPS_RTR: u32 = 2;
pub const QPS_RTS: u32 = 3;

/// Local write, remote write, remote read and remote atomics of `enum ibv_access_flags`.
pub const ACCESS_ALL: u32 = 15;

#[repr(C)]
pub struct Ah {
    pub context: *mut Context,
    pub pd: *mut Pd,
    pub handle: u32,
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
pub struct QpCap {
    pub max_send_wr: u32,
    pub max_recv_wr: u32,
    pub max_send_sge: u32,
    pub max_recv_sge: u32,
    pub max_inline_data: u32,
}

#[repr(C)]
#[derive(Clone, Copy)]
pub struct QpInitAttr {
    pub qp_context: *mut c_void,
    pub send_cq: *mut Cq,
    pub recv_cq: *mut Cq,
    pub srq: *mut Srq,
    pub cap: QpCap,
    pub qp_type: u32,
    pub sq_sig_all: c_int,
}

#[repr(C, align(8))]
#[derive(Clone, Copy, Default)]
pub struct GlobalRoute {
    pub dgid: Gid,
    pub flow_label: u32,
    pub sgid_index: u8,
    pub hop_limit: u8,
    pub traffic_class: u8,
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
pub struct AhAttr {
    pub grh: GlobalRoute,
    pub dlid: u16,
    pub sl: u8,
    pub src_path_bits: u8,
    pub static_rate: u8,
    pub is_global: u8,
    pub port_num: u8,
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
pub struct QpAttr {
    pub qp_state: u32,
    pub cur_qp_state: u32,
    pub path_mtu: u32,
    pub path_mig_state: u32,
    pub qkey: u32,
    pub rq_psn: u32,
    pub sq_psn: u32,
    pub dest_qp_num: u32,
    pub qp_access_flags: u32,
    pub cap: QpCap,
    pub ah_attr: AhAttr,
    pub alt_ah_attr: AhAttr,
    pub pkey_index: u16,
    pub alt_pkey_index: u16,
    pub en_sqd_async_notify: u8,
    pub sq_draining: u8,
    pub max_rd_atomic: u8,
    pub max_dest_rd_atomic: u8,
    pub min_rnr_timer: u8,
    pub port_num: u8,
    pub timeout: u8,
    pub retry_cnt: u8,
    pub rnr_retry: u8,
    pub alt_port_num: u8,
    pub alt_timeout: u8,
    pub rate_limit: u32,
}

/// Which of [`QpAttr`] count (`enum ibv_qp_attr_mask`).
pub mod mask {
    pub const STATE: u32 = 1;
    pub const ACCESS_FLAGS: u32 = 1 << 3;
    pub const PKEY_INDEX: u32 = 1 << 4;
    pub const PORT: u32 = 1 << 5;
    pub const AV: u32 = 1 << 7;
    pub const PATH_MTU: u32 = 1 << 8;
    pub const TIMEOUT: u32 = 1 << 9;
    pub const RETRY_CNT: u32 = 1 << 10;
    pub const RNR_RETRY: u32 = 1 << 11;
    pub const RQ_PSN: u32 = 1 << 12;
    pub const MAX_QP_RD_ATOMIC: u32 = 1 << 13;
    pub const MIN_RNR_TIMER: u32 = 1 << 15;
    pub const SQ_PSN: u32 = 1 << 16;
    pub const MAX_DEST_RD_ATOMIC: u32 = 1 << 17;
    pub const DEST_QPN: u32 = 1 << 20;
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
pub struct SrqAttr {
    pub max_wr: u32,
    pub max_sge: u32,
    pub srq_limit: u32,
}

#[repr(C)]
#[derive(Clone, Copy)]
pub struct SrqInitAttr {
    pub srq_context: *mut c_void,
    pub attr: SrqAttr,
}

#[repr(C)]
#[derive(Clone, Copy)]
pub struct Sge {
    pub addr: u64,
    pub length: u32,
    pub lkey: u32,
}

#[repr(C)]
#[derive(Clone, Copy)]
pub struct RecvWr {
    pub wr_id: u64,
    pub next: *mut RecvWr,
    pub sg_list: *mut Sge,
    pub num_sge: c_int,
}

#[repr(C)]
#[derive(Clone, Copy)]
pub struct SendWr {
    pub wr_id: u64,
    pub next: *mut SendWr,
    pub sg_list: *mut Sge,
    pub num_sge: c_int,
    pub opcode: u32,
    pub send_flags: u32,
    /// Immediate data in network order, or the key to invalidate.
    pub imm_data: u32,
    /// A union: see [`SendWr::rdma`], [`SendWr::atomic`] and [`SendWr::ud`].
    pub wr: [u64; 4],
    pub xrc: u64,
    pub bind_mw: [u64; 6],
}

impl SendWr {
    /// Remote address and key of RDMA WRITE and READ.
    pub fn rdma(&self) -> (u64, u32) {
        (self.wr[0], self.wr[1] as u32)
    }

    /// Remote address, comparand or addend, new value, and key of atomics.
    pub fn atomic(&self) -> (u64, u64, u64, u32) {
        (self.wr[0], self.wr[1], self.wr[2], self.wr[3] as u32)
    }

    /// Address of the address handle, remote queue pair number and queue key of a UD send.
    pub fn ud(&self) -> (usize, u32, u32) {
        (self.wr[0] as usize, self.wr[1] as u32, (self.wr[1] >> 32) as u32)
    }
}

/// Values of `SendWr::opcode` (`enum ibv_wr_opcode`).
pub mod wr {
    pub const RDMA_WRITE: u32 = 0;
    pub const RDMA_WRITE_WITH_IMM: u32 = 1;
    pub const SEND: u32 = 2;
    pub const SEND_WITH_IMM: u32 = 3;
    pub const RDMA_READ: u32 = 4;
    pub const ATOMIC_CMP_AND_SWP: u32 = 5;
    pub const ATOMIC_FETCH_AND_ADD: u32 = 6;
}

pub const SEND_SIGNALED: u32 = 2;
pub const SEND_SOLICITED: u32 = 4;
pub const SEND_INLINE: u32 = 8;

#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Wc {
    pub wr_id: u64,
    pub status: u32,
    pub opcode: u32,
    pub vendor_err: u32,
    pub byte_len: u32,
    pub imm_data: u32,
    pub qp_num: u32,
    pub src_qp: u32,
    pub wc_flags: u32,
    pub pkey_index: u16,
    pub slid: u16,
    pub sl: u8,
    pub dlid_path_bits: u8,
}

pub const WC_RECV: u32 = 1 << 7;
pub const WC_GRH: u32 = 1;
pub const WC_WITH_IMM: u32 = 2;
pub const WC_WITH_INV: u32 = 8;

layout! {
    Device = "ibv_device", 664, node_type @ 16, transport_type @ 20, name @ 24, dev_name @ 88,
        dev_path @ 152, ibdev_path @ 408;
    ContextOps = "ibv_context_ops", 256, alloc_mw @ 56, bind_mw @ 64, dealloc_mw @ 72,
        poll_cq @ 88, req_notify_cq @ 96, post_srq_recv @ 160, post_send @ 200, post_recv @ 208;
    Context = "ibv_context", 328, device @ 0, ops @ 8, cmd_fd @ 264, async_fd @ 268,
        num_comp_vectors @ 272, mutex @ 280, abi_compat @ 320;
    DeviceAttr = "ibv_device_attr", 232, node_guid @ 64, max_mr_size @ 80, vendor_id @ 96,
        max_qp @ 108, max_sge @ 120, atomic_cap @ 164, max_ah @ 200, max_srq @ 212,
        max_pkeys @ 224, phys_port_cnt @ 227;
    Pd = "ibv_pd", 16, context @ 0, handle @ 8;
    Mr = "ibv_mr", 48, pd @ 8, addr @ 16, length @ 24, handle @ 32, lkey @ 36, rkey @ 40;
    CompChannel = "ibv_comp_channel", 16, context @ 0, fd @ 8, refcnt @ 12;
    Cq = "ibv_cq", 128, channel @ 8, cq_context @ 16, handle @ 24, cqe @ 28, mutex @ 32, cond @ 72,
        comp_events_completed @ 120;
    Srq = "ibv_srq", 128, srq_context @ 8, pd @ 16, handle @ 24, mutex @ 32, cond @ 72,
        events_completed @ 120;
    Qp = "ibv_qp", 160, qp_context @ 8, pd @ 16, send_cq @ 24, recv_cq @ 32, srq @ 40, handle @ 48,
        qp_num @ 52, state @ 56, qp_type @ 60, mutex @ 64, cond @ 104, events_completed @ 152;
    Ah = "ibv_ah", 24, pd @ 8, handle @ 16;
    QpCap = "ibv_qp_cap", 20, max_inline_data @ 16;
    QpInitAttr = "ibv_qp_init_attr", 64, send_cq @ 8, srq @ 24, cap @ 32, qp_type @ 52,
        sq_sig_all @ 56;
    GlobalRoute = "ibv_global_route", 24, flow_label @ 16, sgid_index @ 20, hop_limit @ 21,
        traffic_class @ 22;
    AhAttr = "ibv_ah_attr", 32, dlid @ 24, sl @ 26, src_path_bits @ 27, static_rate @ 28,
        is_global @ 29, port_num @ 30;
    QpAttr = "ibv_qp_attr", 144, path_mtu @ 8, qkey @ 16, dest_qp_num @ 28, cap @ 36, ah_attr @ 56,
        alt_ah_attr @ 88, pkey_index @ 120, sq_draining @ 125, max_rd_atomic @ 126,
        min_rnr_timer @ 128, port_num @ 129, timeout @ 130, retry_cnt @ 131, rnr_retry @ 132,
        alt_timeout @ 134, rate_limit @ 136;
    SrqAttr = "ibv_srq_attr", 12, max_sge @ 4, srq_limit @ 8;
    SrqInitAttr = "ibv_srq_init_attr", 24, attr @ 8;
    Sge = "ibv_sge", 16, length @ 8, lkey @ 12;
    RecvWr = "ibv_recv_wr", 32, next @ 8, sg_list @ 16, num_sge @ 24;
    SendWr = "ibv_send_wr", 128, next @ 8, sg_list @ 16, num_sge @ 24, opcode @ 28,
        send_flags @ 32, imm_data @ 36, wr @ 40, bind_mw @ 80;
    Wc = "ibv_wc", 48, status @ 8, opcode @ 12, vendor_err @ 16, byte_len @ 20, imm_data @ 24,
        qp_num @ 28, src_qp @ 32, wc_flags @ 36, pkey_index @ 40, slid @ 42, sl @ 44,
        dlid_path_bits @ 45;
}
