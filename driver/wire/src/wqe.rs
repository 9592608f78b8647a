//! Work requests as they lie in the send and receive rings.
//!
//! A send work request is an 80-byte header followed by scatter/gather entries; a receive is a
//! 16-byte header followed by entries. Each ring has one stride, a power of two
//! ([`send_stride`], [`recv_stride`]). The header's 48-byte union is kept as the last member of
//! the header and is read and written through the types of this module.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Scatter/gather entry.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct Sge {
    /// Address in the region's own address space (what was given as its start, plus an offset).
    pub addr: u64,
    /// Bytes.
    pub length: u32,
    /// Local key of the region.
    pub lkey: u32,
}
assert_layout!(Sge, 16, addr @ 0, length @ 8, lkey @ 12);

/// Header of a send work request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct SendHeader {
    /// Comes back in the completion.
    pub wr_id: u64,
    /// Number of scatter/gather entries; with [`FLAG_INLINE`], zero.
    pub num_sge: u32,
    /// Reserved; with [`FLAG_INLINE`], the number of payload bytes that follow the header.
    pub total_len: u32,
    /// One of [`Opcode`]'s values.
    pub opcode: u32,
    /// `FLAG_*` bits.
    pub send_flags: u32,
    /// Immediate data in network order, or the remote key to invalidate.
    pub ex: u32,
    /// Reserved.
    pub reserved: u32,
    /// Opcode-specific: [`Rdma`], [`Atomic`], [`MaskedAtomic`], [`FastReg`] or [`Ud`].
    pub wr: [u8; 48],
}
assert_layout!(SendHeader, 80, wr_id @ 0, num_sge @ 8, total_len @ 12, opcode @ 16, send_flags @ 20,
    ex @ 24, wr @ 32);

impl Default for SendHeader {
    fn default() -> Self {
        zerocopy::FromZeros::new_zeroed()
    }
}

/// Header of a receive work request.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct RecvHeader {
    /// Comes back in the completion.
    pub wr_id: u64,
    /// Number of scatter/gather entries.
    pub num_sge: u32,
    /// Reserved.
    pub total_len: u32,
}
assert_layout!(RecvHeader, 16, wr_id @ 0, num_sge @ 8, total_len @ 12);

/// [`SendHeader::wr`] of RDMA WRITE and READ.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct Rdma {
    /// Address in the remote region's address space.
    pub remote_addr: u64,
    /// Remote key.
    pub rkey: u32,
    /// Reserved.
    pub reserved: u32,
}
assert_layout!(Rdma, 16, remote_addr @ 0, rkey @ 8);

/// [`SendHeader::wr`] of compare-and-swap and fetch-and-add.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct Atomic {
    /// Remote address; the interface requires 8-byte alignment.
    pub remote_addr: u64,
    /// What to compare with, or what to add.
    pub compare_add: u64,
    /// What to store when the comparison holds.
    pub swap: u64,
    /// Remote key.
    pub rkey: u32,
    /// Reserved.
    pub reserved: u32,
}
assert_layout!(Atomic, 32, remote_addr @ 0, compare_add @ 8, swap @ 16, rkey @ 24);

/// [`SendHeader::wr`] of the masked atomics.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct MaskedAtomic {
    /// Remote address.
    pub remote_addr: u64,
    /// Log2 of the argument size.
    pub log_arg_sz: u32,
    /// Remote key.
    pub rkey: u32,
    /// CAS: swap value. FAA: value to add.
    pub swap_add: u64,
    /// CAS: compare value. FAA: field boundary.
    pub compare_boundary: u64,
    /// CAS: which bits to swap.
    pub swap_mask: u64,
    /// CAS: which bits to compare.
    pub compare_mask: u64,
}
assert_layout!(MaskedAtomic, 48, remote_addr @ 0, log_arg_sz @ 8, rkey @ 12, swap_add @ 16,
    compare_boundary @ 24, swap_mask @ 32, compare_mask @ 40);

/// [`SendHeader::wr`] of a fast registration.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct FastReg {
    /// Start of the region's address space.
    pub iova_start: u64,
    /// Bus address of the page directory.
    pub pl_pdir_dma: u64,
    /// Log2 of the page size.
    pub page_shift: u32,
    /// Number of pages in the list.
    pub page_list_len: u32,
    /// Bytes.
    pub length: u32,
    /// `ACCESS_*` bits.
    pub access_flags: u32,
    /// Key to give to the region.
    pub rkey: u32,
    /// Reserved.
    pub reserved: u32,
}
assert_layout!(FastReg, 40, iova_start @ 0, pl_pdir_dma @ 8, page_shift @ 16, page_list_len @ 20,
    length @ 24, access_flags @ 28, rkey @ 32);

/// Address vector of a UD send.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct Av {
    /// Protection domain in the low 24 bits, port in the top 8.
    pub port_pd: u32,
    /// Traffic class << 20 | flow label.
    pub sl_tclass_flowlabel: u32,
    /// Destination GID.
    pub dgid: [u8; 16],
    /// Path bits; drivers or 0x80 in.
    pub src_path_bits: u8,
    /// Index of the source GID in the local table.
    pub gid_index: u8,
    /// Static rate.
    pub stat_rate: u8,
    /// Hop limit.
    pub hop_limit: u8,
    /// Destination MAC address.
    pub dmac: [u8; 6],
    /// Reserved.
    pub reserved: [u8; 6],
}
assert_layout!(Av, 40, port_pd @ 0, sl_tclass_flowlabel @ 4, dgid @ 8, src_path_bits @ 24,
    gid_index @ 25, stat_rate @ 26, hop_limit @ 27, dmac @ 28);

/// [`SendHeader::wr`] of a UD send; RC sends too must name a bound GID at [`GID_INDEX_BYTE`].
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct Ud {
    /// Destination queue pair number.
    pub remote_qpn: u32,
    /// Destination queue key.
    pub remote_qkey: u32,
    /// Where to.
    pub av: Av,
}
assert_layout!(Ud, 48, remote_qpn @ 0, remote_qkey @ 4, av @ 8);

/// Byte of a send work request that QEMU 7.2's model reads as the source GID index on any QP type.
pub const GID_INDEX_BYTE: usize = 65;

const _: () = assert!(
    core::mem::offset_of!(SendHeader, wr)
        + core::mem::offset_of!(Ud, av)
        + core::mem::offset_of!(Av, gid_index)
        == GID_INDEX_BYTE
);

/// Do not start before earlier reads and atomics have completed.
pub const FLAG_FENCE: u32 = 1;
/// Give a completion on success.
pub const FLAG_SIGNALED: u32 = 2;
/// Raise a solicited event at the responder.
pub const FLAG_SOLICITED: u32 = 4;
/// The payload follows the header in the ring, in place of scatter/gather entries.
pub const FLAG_INLINE: u32 = 8;
/// Checksum offload (raw packets).
pub const FLAG_IP_CSUM: u32 = 16;

wire_enum! {
    /// What a send work request asks for.
    pub enum Opcode: u32 {
        /// RDMA WRITE.
        RdmaWrite = 0,
        /// RDMA WRITE with immediate.
        RdmaWriteImm = 1,
        /// SEND.
        Send = 2,
        /// SEND with immediate.
        SendImm = 3,
        /// RDMA READ.
        RdmaRead = 4,
        /// Atomic compare and swap.
        CompareSwap = 5,
        /// Atomic fetch and add.
        FetchAdd = 6,
        /// Large send offload.
        Lso = 7,
        /// SEND with invalidate.
        SendInv = 8,
        /// RDMA READ with invalidate.
        RdmaReadInv = 9,
        /// Local invalidate.
        LocalInv = 10,
        /// Fast registration.
        FastReg = 11,
        /// Masked compare and swap.
        MaskedCompareSwap = 12,
        /// Masked fetch and add.
        MaskedFetchAdd = 13,
        /// Bind a memory window.
        BindMw = 14,
    }
}

/// Most inline bytes of a send that this project's NIC takes, and its driver asks for.
pub const MAX_INLINE: usize = 432;

/// Bytes of a send ring slot for up to `max_sge` entries and `max_inline` payload bytes.
pub const fn send_stride(max_sge: u32, max_inline: u32) -> usize {
    let sges = max_sge as usize * size_of::<Sge>();
    let tail = if sges > max_inline as usize { sges } else { max_inline as usize };
    (size_of::<SendHeader>() + tail).next_power_of_two()
}

/// Bytes of a receive ring slot for up to `max_sge` entries.
pub const fn recv_stride(max_sge: u32) -> usize {
    (size_of::<RecvHeader>() + max_sge as usize * size_of::<Sge>()).next_power_of_two()
}
