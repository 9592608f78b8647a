//! The part of libibverbs' binary interface that is used here (`infiniband/verbs.h` of rdma-core;
//! stable since libibverbs 1.1). Posting and polling are inline functions there, which jump
//! through a table in the device context.

use std::ffi::{c_char, c_int, c_void};

/// `struct ibv_context`, up to the last entry used.
#[repr(C)]
pub struct Context {
    pub device: *mut c_void,
    /// `struct ibv_context_ops`.
    pub ops: [*const c_void; 27],
}

/// Index of `poll_cq` in [`Context::ops`].
pub const OP_POLL_CQ: usize = 11;
/// Index of `post_send`.
pub const OP_POST_SEND: usize = 25;
/// Index of `post_recv`.
pub const OP_POST_RECV: usize = 26;

pub type PollCq = unsafe extern "C" fn(*mut Cq, c_int, *mut Wc) -> c_int;
pub type PostSend = unsafe extern "C" fn(*mut Qp, *mut SendWr, *mut *mut SendWr) -> c_int;
pub type PostRecv = unsafe extern "C" fn(*mut Qp, *mut RecvWr, *mut *mut RecvWr) -> c_int;

/// `struct ibv_cq`; libibverbs makes them, and more follows.
#[repr(C)]
pub struct Cq {
    pub context: *mut Context,
}

/// `struct ibv_qp`, up to the last member used.
#[repr(C)]
pub struct Qp {
    pub context: *mut Context,
    pub pointers: [*mut c_void; 5],
    pub handle: u32,
    pub qp_num: u32,
}

/// `struct ibv_mr`.
#[repr(C)]
pub struct Mr {
    pub context: *mut Context,
    pub pd: *mut c_void,
    pub addr: *mut c_void,
    pub length: usize,
    pub handle: u32,
    pub lkey: u32,
    pub rkey: u32,
}

/// `struct ibv_sge`.
#[repr(C)]
pub struct Sge {
    pub addr: u64,
    pub length: u32,
    pub lkey: u32,
}

/// `struct ibv_send_wr`; the union holds an RDMA or an atomic request.
#[repr(C)]
pub struct SendWr {
    pub wr_id: u64,
    pub next: *mut SendWr,
    pub sg_list: *mut Sge,
    pub num_sge: c_int,
    pub opcode: u32,
    pub send_flags: u32,
    /// Immediate data in network order.
    pub imm_data: u32,
    pub remote_addr: u64,
    /// RDMA: the key in the low half. Atomics: what to compare with or to add.
    pub rkey_or_compare_add: u64,
    pub swap: u64,
    pub atomic_rkey: u32,
    pub rest: [u32; 15],
}

/// `struct ibv_recv_wr`.
#[repr(C)]
pub struct RecvWr {
    pub wr_id: u64,
    pub next: *mut RecvWr,
    pub sg_list: *mut Sge,
    pub num_sge: c_int,
}

/// `struct ibv_wc`.
#[repr(C)]
#[derive(Default)]
pub struct Wc {
    pub wr_id: u64,
    pub status: u32,
    pub opcode: u32,
    pub vendor_err: u32,
    pub byte_len: u32,
    /// Immediate data in network order.
    pub imm_data: u32,
    pub qp_num: u32,
    pub src_qp: u32,
    pub wc_flags: u32,
    pub rest: [u32; 2],
}

/// `IBV_WC_WITH_IMM`.
pub const WC_WITH_IMM: u32 = 2;

/// `struct ibv_qp_cap`.
#[repr(C)]
#[derive(Default)]
pub struct QpCap {
    pub max_send_wr: u32,
    pub max_recv_wr: u32,
    pub max_send_sge: u32,
    pub max_recv_sge: u32,
    pub max_inline_data: u32,
}

/// `struct ibv_qp_init_attr`.
#[repr(C)]
pub struct QpInitAttr {
    pub qp_context: *mut c_void,
    pub send_cq: *mut Cq,
    pub recv_cq: *mut Cq,
    pub srq: *mut c_void,
    pub cap: QpCap,
    pub qp_type: u32,
    pub sq_sig_all: c_int,
}

/// `struct ibv_ah_attr`.
#[repr(C)]
#[derive(Default)]
pub struct AhAttr {
    pub dgid: [u64; 2],
    pub flow_label: u32,
    pub sgid_index: u8,
    pub hop_limit: u8,
    pub traffic_class: u8,
    pub dlid: u16,
    pub sl: u8,
    pub src_path_bits: u8,
    pub static_rate: u8,
    pub is_global: u8,
    pub port_num: u8,
}

/// `struct ibv_qp_attr`.
#[repr(C)]
#[derive(Default)]
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

/// `enum ibv_qp_attr_mask`.
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

/// `IBV_QPT_RC`.
pub const QPT_RC: u32 = 2;
/// `enum ibv_qp_state`.
pub const QPS_INIT: u32 = 1;
pub const QPS_RTR: u32 = 2;
pub const QPS_RTS: u32 = 3;
/// `IBV_SEND_SIGNALED`.
pub const SEND_SIGNALED: u32 = 2;
/// Local write, remote write, remote read and remote atomics of `enum ibv_access_flags`.
pub const ACCESS_ALL: u32 = 15;

/// Functions of the library, by name.
pub type GetDeviceList = unsafe extern "C" fn(*mut c_int) -> *mut *mut c_void;
pub type FreeDeviceList = unsafe extern "C" fn(*mut *mut c_void);
pub type GetDeviceName = unsafe extern "C" fn(*mut c_void) -> *const c_char;
pub type OpenDevice = unsafe extern "C" fn(*mut c_void) -> *mut Context;
pub type QueryGid = unsafe extern "C" fn(*mut Context, u8, c_int, *mut [u64; 2]) -> c_int;
pub type AllocPd = unsafe extern "C" fn(*mut Context) -> *mut c_void;
pub type RegMr = unsafe extern "C" fn(*mut c_void, *mut c_void, usize, c_int) -> *mut Mr;
pub type CreateCq =
    unsafe extern "C" fn(*mut Context, c_int, *mut c_void, *mut c_void, c_int) -> *mut Cq;
pub type CreateQp = unsafe extern "C" fn(*mut c_void, *mut QpInitAttr) -> *mut Qp;
pub type ModifyQp = unsafe extern "C" fn(*mut Qp, *mut QpAttr, c_int) -> c_int;
/// `ibv_close_device`, `ibv_dealloc_pd`, `ibv_dereg_mr`, `ibv_destroy_cq`, `ibv_destroy_qp`.
pub type Destroy = unsafe extern "C" fn(*mut c_void) -> c_int;

#[cfg(test)]
mod tests {
    use std::mem::{offset_of, size_of};

    use super::*;

    /// What the C compiler says of rdma-core 44's header on x86-64.
    #[test]
    fn structures_lie_in_memory_as_in_c() {
        for (name, here, there) in [
            ("context.ops", offset_of!(Context, ops), 8),
            ("context.ops.poll_cq", offset_of!(Context, ops) + 8 * OP_POLL_CQ, 96),
            ("context.ops.post_send", offset_of!(Context, ops) + 8 * OP_POST_SEND, 208),
            ("context.ops.post_recv", offset_of!(Context, ops) + 8 * OP_POST_RECV, 216),
            ("qp.qp_num", offset_of!(Qp, qp_num), 52),
            ("mr.lkey", offset_of!(Mr, lkey), 36),
            ("mr.rkey", offset_of!(Mr, rkey), 40),
            ("sge", size_of::<Sge>(), 16),
            ("send_wr", size_of::<SendWr>(), 128),
            ("send_wr.opcode", offset_of!(SendWr, opcode), 28),
            ("send_wr.imm_data", offset_of!(SendWr, imm_data), 36),
            ("send_wr.wr", offset_of!(SendWr, remote_addr), 40),
            ("send_wr.wr.rdma.rkey", offset_of!(SendWr, rkey_or_compare_add), 48),
            ("send_wr.wr.atomic.swap", offset_of!(SendWr, swap), 56),
            ("send_wr.wr.atomic.rkey", offset_of!(SendWr, atomic_rkey), 64),
            ("recv_wr", size_of::<RecvWr>(), 32),
            ("wc", size_of::<Wc>(), 48),
            ("wc.imm_data", offset_of!(Wc, imm_data), 24),
            ("wc.wc_flags", offset_of!(Wc, wc_flags), 36),
            ("qp_init_attr", size_of::<QpInitAttr>(), 64),
            ("qp_init_attr.qp_type", offset_of!(QpInitAttr, qp_type), 52),
            ("ah_attr", size_of::<AhAttr>(), 32),
            ("ah_attr.is_global", offset_of!(AhAttr, is_global), 29),
            ("qp_attr", size_of::<QpAttr>(), 144),
            ("qp_attr.cap", offset_of!(QpAttr, cap), 36),
            ("qp_attr.ah_attr", offset_of!(QpAttr, ah_attr), 56),
            ("qp_attr.pkey_index", offset_of!(QpAttr, pkey_index), 120),
            ("qp_attr.max_rd_atomic", offset_of!(QpAttr, max_rd_atomic), 126),
            ("qp_attr.port_num", offset_of!(QpAttr, port_num), 129),
            ("qp_attr.rnr_retry", offset_of!(QpAttr, rnr_retry), 132),
        ] {
            assert_eq!(here, there, "{name}");
        }
    }
}
