//! Completions: the 64-byte entry of a completion queue.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Entry of a completion queue. The device writes all of it, then advances the tail.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct Cqe {
    /// The work request's id, as posted.
    pub wr_id: u64,
    /// Queue pair: its handle from version 20 on, else its number.
    pub qp: u64,
    /// One of [`CqeOpcode`]'s values.
    pub opcode: u32,
    /// One of [`Status`]'s values.
    pub status: u32,
    /// Bytes received, or read; for UD receives this includes the 40-byte GRH.
    pub byte_len: u32,
    /// Immediate data in network order, or the invalidated key.
    pub imm_data: u32,
    /// Number of the sending queue pair (UD).
    pub src_qp: u32,
    /// `WC_*` bits.
    pub wc_flags: u32,
    /// What the vendor has to say about an error.
    pub vendor_err: u32,
    /// Partition key index.
    pub pkey_index: u16,
    /// Source LID (unused on RoCE).
    pub slid: u16,
    /// Service level.
    pub sl: u8,
    /// Destination LID path bits.
    pub dlid_path_bits: u8,
    /// Port number.
    pub port_num: u8,
    /// Source MAC address, when [`WC_WITH_SMAC`] is set.
    pub smac: [u8; 6],
    /// 0 RoCE v1, 1 IPv4, 2 IPv6.
    pub network_hdr_type: u8,
    /// Reserved.
    pub reserved2: [u8; 6],
}
assert_layout!(Cqe, 64, wr_id @ 0, qp @ 8, opcode @ 16, status @ 20, byte_len @ 24, imm_data @ 28,
    src_qp @ 32, wc_flags @ 36, vendor_err @ 40, pkey_index @ 44, slid @ 46, sl @ 48,
    dlid_path_bits @ 49, port_num @ 50, smac @ 51, network_hdr_type @ 57);

/// Size of a completion queue entry.
pub const CQE_SIZE: usize = 64;

/// A GRH precedes the payload.
pub const WC_GRH: u32 = 1;
/// `imm_data` holds immediate data.
pub const WC_WITH_IMM: u32 = 2;
/// `imm_data` holds an invalidated remote key.
pub const WC_WITH_INVALIDATE: u32 = 4;
/// `smac` is valid.
pub const WC_WITH_SMAC: u32 = 16;
/// A VLAN tag is present.
pub const WC_WITH_VLAN: u32 = 32;
/// `network_hdr_type` is valid.
pub const WC_WITH_NETWORK_HDR_TYPE: u32 = 64;

wire_enum! {
    /// What kind of work completed.
    pub enum CqeOpcode: u32 {
        /// SEND and its variants.
        Send = 0,
        /// RDMA WRITE and its variants.
        RdmaWrite = 1,
        /// RDMA READ.
        RdmaRead = 2,
        /// Compare and swap.
        CompareSwap = 3,
        /// Fetch and add.
        FetchAdd = 4,
        /// Memory window bind.
        BindMw = 5,
        /// Large send offload.
        Lso = 6,
        /// Local invalidate.
        LocalInv = 7,
        /// Fast registration.
        FastReg = 8,
        /// Masked compare and swap.
        MaskedCompareSwap = 9,
        /// Masked fetch and add.
        MaskedFetchAdd = 10,
        /// A receive.
        Recv = 128,
        /// A receive consumed by RDMA WRITE with immediate.
        RecvRdmaWithImm = 129,
    }
}

wire_enum! {
    /// How a work request ended; the numbers are `enum ibv_wc_status`.
    pub enum Status: u32 {
        /// It was carried out.
        Success = 0,
        /// The local buffer is too short for the message.
        LocalLength = 1,
        /// An internal queue pair inconsistency, such as a malformed work request.
        LocalQpOperation = 2,
        /// An internal end-to-end context inconsistency.
        LocalEecOperation = 3,
        /// A local scatter/gather entry is outside its region or lacks access.
        LocalProtection = 4,
        /// The queue pair is in error and the request was not carried out.
        WorkRequestFlushed = 5,
        /// A memory window could not be bound.
        MemoryWindowBind = 6,
        /// The responder answered with something unexpected.
        BadResponse = 7,
        /// Local access to a region failed (receive side of RDMA WRITE with immediate).
        LocalAccess = 8,
        /// The responder found the request invalid.
        RemoteInvalidRequest = 9,
        /// The responder refused access: bad key, range or rights.
        RemoteAccess = 10,
        /// The responder could not carry out the operation.
        RemoteOperation = 11,
        /// Nobody answered, for all the retries allowed.
        RetryExceeded = 12,
        /// The responder had no receive posted, for all the retries allowed.
        RnrRetryExceeded = 13,
        /// RDD violation.
        LocalRddViolation = 14,
        /// Invalid RD request.
        RemoteInvalidRdRequest = 15,
        /// The operation was aborted by the responder.
        RemoteAborted = 16,
        /// Invalid end-to-end context number.
        InvalidEecNumber = 17,
        /// Invalid end-to-end context state.
        InvalidEecState = 18,
        /// A fatal transport error.
        Fatal = 19,
        /// The response timed out.
        ResponseTimeout = 20,
        /// Any other error.
        General = 21,
    }
}
