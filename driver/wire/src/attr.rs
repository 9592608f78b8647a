//! Attributes: queue pair, address handle, port and shared receive queue, and their bit masks.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Memory region and queue pair access: local writes.
pub const ACCESS_LOCAL_WRITE: u32 = 1;
/// Remote writes (needs local write).
pub const ACCESS_REMOTE_WRITE: u32 = 2;
/// Remote reads.
pub const ACCESS_REMOTE_READ: u32 = 4;
/// Remote atomics (needs local write).
pub const ACCESS_REMOTE_ATOMIC: u32 = 8;
/// Memory window binds.
pub const ACCESS_MW_BIND: u32 = 16;
/// Addresses count from zero.
pub const ACCESS_ZERO_BASED: u32 = 32;
/// On-demand paging.
pub const ACCESS_ON_DEMAND: u32 = 64;

/// Address handle.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct AhAttr {
    /// Destination GID.
    pub dgid: [u8; 16],
    /// Flow label.
    pub flow_label: u32,
    /// Index of the source GID in the local table.
    pub sgid_index: u8,
    /// Hop limit.
    pub hop_limit: u8,
    /// Traffic class.
    pub traffic_class: u8,
    /// Reserved.
    pub reserved: u8,
    /// Destination LID (unused on RoCE).
    pub dlid: u16,
    /// VLAN id, 0xffff for none.
    pub vlan_id: u16,
    /// Service level.
    pub sl: u8,
    /// Source path bits.
    pub src_path_bits: u8,
    /// Static rate.
    pub static_rate: u8,
    /// 1: a GRH is used.
    pub ah_flags: u8,
    /// Port.
    pub port_num: u8,
    /// Destination MAC address.
    pub dmac: [u8; 6],
    /// Reserved.
    pub reserved2: u8,
}
assert_layout!(AhAttr, 40, dgid @ 0, flow_label @ 16, sgid_index @ 20, hop_limit @ 21,
    traffic_class @ 22, dlid @ 24, vlan_id @ 26, sl @ 28, src_path_bits @ 29, static_rate @ 30,
    ah_flags @ 31, port_num @ 32, dmac @ 33);

/// Queue pair capacities inside [`QpAttr`].
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct QpCap {
    /// Send queue depth.
    pub max_send_wr: u32,
    /// Receive queue depth.
    pub max_recv_wr: u32,
    /// Entries per send.
    pub max_send_sge: u32,
    /// Entries per receive.
    pub max_recv_sge: u32,
    /// Inline payload bytes per send.
    pub max_inline_data: u32,
    /// Reserved.
    pub reserved: u32,
}
assert_layout!(QpCap, 24);

/// Queue pair attributes, as in MODIFY_QP and QUERY_QP.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct QpAttr {
    /// One of [`QpState`]'s values.
    pub qp_state: u32,
    /// State the caller believes the queue pair is in.
    pub cur_qp_state: u32,
    /// 1..5 for 256..4096 bytes; see [`mtu_bytes`].
    pub path_mtu: u32,
    /// Path migration state.
    pub path_mig_state: u32,
    /// Queue key (UD).
    pub qkey: u32,
    /// First packet sequence number expected.
    pub rq_psn: u32,
    /// First packet sequence number sent.
    pub sq_psn: u32,
    /// Remote queue pair number.
    pub dest_qp_num: u32,
    /// `ACCESS_*` bits that the remote side gets.
    pub qp_access_flags: u32,
    /// Partition key index.
    pub pkey_index: u16,
    /// Alternate partition key index.
    pub alt_pkey_index: u16,
    /// Raise an event when drained.
    pub en_sqd_async_notify: u8,
    /// Query: still draining.
    pub sq_draining: u8,
    /// Reads and atomics outstanding as requester.
    pub max_rd_atomic: u8,
    /// Reads and atomics outstanding as responder.
    pub max_dest_rd_atomic: u8,
    /// RNR NAK timer code (IBTA table 45); see [`rnr_timer_ns`].
    pub min_rnr_timer: u8,
    /// Port.
    pub port_num: u8,
    /// ACK timeout code: 4.096 µs · 2^timeout, 0 for never.
    pub timeout: u8,
    /// Retries after a timeout or a sequence error.
    pub retry_cnt: u8,
    /// Retries after RNR; 7 for ever.
    pub rnr_retry: u8,
    /// Alternate port.
    pub alt_port_num: u8,
    /// Alternate timeout.
    pub alt_timeout: u8,
    /// Reserved.
    pub reserved: [u8; 5],
    /// Capacities.
    pub cap: QpCap,
    /// Path to the peer.
    pub ah_attr: AhAttr,
    /// Alternate path.
    pub alt_ah_attr: AhAttr,
}
assert_layout!(QpAttr, 160, qp_state @ 0, cur_qp_state @ 4, path_mtu @ 8, path_mig_state @ 12,
    qkey @ 16, rq_psn @ 20, sq_psn @ 24, dest_qp_num @ 28, qp_access_flags @ 32, pkey_index @ 36,
    alt_pkey_index @ 38, en_sqd_async_notify @ 40, sq_draining @ 41, max_rd_atomic @ 42,
    max_dest_rd_atomic @ 43, min_rnr_timer @ 44, port_num @ 45, timeout @ 46, retry_cnt @ 47,
    rnr_retry @ 48, alt_port_num @ 49, alt_timeout @ 50, cap @ 56, ah_attr @ 80, alt_ah_attr @ 120);

/// Port attributes.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct PortAttr {
    /// 1 down, 4 active.
    pub state: u32,
    /// Largest MTU code.
    pub max_mtu: u32,
    /// MTU code in force.
    pub active_mtu: u32,
    /// Entries of the GID table.
    pub gid_tbl_len: u32,
    /// Port capability bits.
    pub port_cap_flags: u32,
    /// Largest message in bytes.
    pub max_msg_sz: u32,
    /// Bad partition key counter.
    pub bad_pkey_cntr: u32,
    /// Queue key violation counter.
    pub qkey_viol_cntr: u32,
    /// Entries of the partition key table.
    pub pkey_tbl_len: u16,
    /// LID.
    pub lid: u16,
    /// Subnet manager's LID.
    pub sm_lid: u16,
    /// LID mask count.
    pub lmc: u8,
    /// Virtual lanes.
    pub max_vl_num: u8,
    /// Subnet manager's service level.
    pub sm_sl: u8,
    /// Subnet timeout.
    pub subnet_timeout: u8,
    /// Init type reply.
    pub init_type_reply: u8,
    /// Width code.
    pub active_width: u8,
    /// Speed code.
    pub active_speed: u8,
    /// Physical state code.
    pub phys_state: u8,
    /// Reserved.
    pub reserved: [u8; 2],
}
assert_layout!(PortAttr, 48, state @ 0, max_mtu @ 4, active_mtu @ 8, gid_tbl_len @ 12,
    port_cap_flags @ 16, max_msg_sz @ 20, bad_pkey_cntr @ 24, qkey_viol_cntr @ 28,
    pkey_tbl_len @ 32, lid @ 34, sm_lid @ 36, lmc @ 38, max_vl_num @ 39, sm_sl @ 40,
    subnet_timeout @ 41, init_type_reply @ 42, active_width @ 43, active_speed @ 44,
    phys_state @ 45);

/// Port is down.
pub const PORT_DOWN: u32 = 1;
/// Port is active.
pub const PORT_ACTIVE: u32 = 4;

/// Shared receive queue attributes.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct SrqAttr {
    /// Depth.
    pub max_wr: u32,
    /// Entries per receive.
    pub max_sge: u32,
    /// Event when fewer receives than this are left; 0 for none.
    pub srq_limit: u32,
    /// Reserved.
    pub reserved: u32,
}
assert_layout!(SrqAttr, 16);

/// MODIFY_SRQ mask: the depth.
pub const SRQ_MASK_MAX_WR: u32 = 1;
/// MODIFY_SRQ mask: the limit.
pub const SRQ_MASK_LIMIT: u32 = 2;

wire_enum! {
    /// State of a queue pair.
    pub enum QpState: u32 {
        /// Created.
        Reset = 0,
        /// May post receives.
        Init = 1,
        /// May receive.
        ReadyToReceive = 2,
        /// May send.
        ReadyToSend = 3,
        /// Send queue drained.
        SendQueueDrained = 4,
        /// Send queue in error.
        SendQueueError = 5,
        /// In error; everything is flushed.
        Error = 6,
    }
}

wire_enum! {
    /// Type of a queue pair.
    pub enum QpType: u8 {
        /// Subnet management.
        Smi = 0,
        /// General services.
        Gsi = 1,
        /// Reliable connection.
        Rc = 2,
        /// Unreliable connection.
        Uc = 3,
        /// Unreliable datagram.
        Ud = 4,
    }
}

/// Which attributes a MODIFY_QP or QUERY_QP means; the bits of `enum ibv_qp_attr_mask`.
pub mod mask {
    /// `qp_state`.
    pub const STATE: u32 = 1 << 0;
    /// `cur_qp_state`.
    pub const CUR_STATE: u32 = 1 << 1;
    /// `en_sqd_async_notify`.
    pub const EN_SQD_ASYNC_NOTIFY: u32 = 1 << 2;
    /// `qp_access_flags`.
    pub const ACCESS_FLAGS: u32 = 1 << 3;
    /// `pkey_index`.
    pub const PKEY_INDEX: u32 = 1 << 4;
    /// `port_num`.
    pub const PORT: u32 = 1 << 5;
    /// `qkey`.
    pub const QKEY: u32 = 1 << 6;
    /// `ah_attr`.
    pub const AV: u32 = 1 << 7;
    /// `path_mtu`.
    pub const PATH_MTU: u32 = 1 << 8;
    /// `timeout`.
    pub const TIMEOUT: u32 = 1 << 9;
    /// `retry_cnt`.
    pub const RETRY_CNT: u32 = 1 << 10;
    /// `rnr_retry`.
    pub const RNR_RETRY: u32 = 1 << 11;
    /// `rq_psn`.
    pub const RQ_PSN: u32 = 1 << 12;
    /// `max_rd_atomic`.
    pub const MAX_QP_RD_ATOMIC: u32 = 1 << 13;
    /// `alt_ah_attr` and what belongs to it.
    pub const ALT_PATH: u32 = 1 << 14;
    /// `min_rnr_timer`.
    pub const MIN_RNR_TIMER: u32 = 1 << 15;
    /// `sq_psn`.
    pub const SQ_PSN: u32 = 1 << 16;
    /// `max_dest_rd_atomic`.
    pub const MAX_DEST_RD_ATOMIC: u32 = 1 << 17;
    /// `path_mig_state`.
    pub const PATH_MIG_STATE: u32 = 1 << 18;
    /// `cap`.
    pub const CAP: u32 = 1 << 19;
    /// `dest_qp_num`.
    pub const DEST_QPN: u32 = 1 << 20;
}

/// Bytes of an MTU code (1..=5), `None` for any other code.
pub const fn mtu_bytes(code: u32) -> Option<u32> {
    match code {
        1..=5 => Some(128 << code),
        _ => None,
    }
}

/// Nanoseconds of an RNR NAK timer code (IBTA 1.4, table 45); only the low five bits count.
pub const fn rnr_timer_ns(code: u8) -> u64 {
    const HUNDREDTHS_OF_MS: [u64; 32] = [
        65536, 1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024,
        1536, 2048, 3072, 4096, 6144, 8192, 12288, 16384, 24576, 32768, 49152,
    ];
    HUNDREDTHS_OF_MS[(code & 31) as usize] * 10_000
}

/// Nanoseconds of an ACK timeout code (only the low five bits count); `None` for 0, which is never.
pub const fn ack_timeout_ns(code: u8) -> Option<u64> {
    match code & 31 {
        0 => None,
        c => Some(4096u64 << c),
    }
}
