//! The command channel: requests the driver puts in the command slot, responses it reads back.
//!
//! A request starts with [`RequestHeader`], a response with [`ResponseHeader`]. The slots are one
//! page each, the largest request is [`MAX_REQUEST`] bytes and the largest response
//! [`MAX_RESPONSE`]. A response acknowledges opcode `n` with [`ack`]`(n)`.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::attr::{PortAttr, QpAttr, SrqAttr};

/// Size of the request union.
pub const MAX_REQUEST: usize = 184;
/// Size of the response union.
pub const MAX_RESPONSE: usize = 176;

wire_enum! {
    /// Command opcodes.
    #[allow(missing_docs)] // each is described by its request structure
    pub enum Command: u32 {
        QueryPort = 0,
        QueryPkey = 1,
        CreatePd = 2,
        DestroyPd = 3,
        CreateMr = 4,
        DestroyMr = 5,
        CreateCq = 6,
        ResizeCq = 7,
        DestroyCq = 8,
        CreateQp = 9,
        ModifyQp = 10,
        QueryQp = 11,
        DestroyQp = 12,
        CreateUc = 13,
        DestroyUc = 14,
        CreateBind = 15,
        DestroyBind = 16,
        CreateSrq = 17,
        ModifySrq = 18,
        QuerySrq = 19,
        DestroySrq = 20,
    }
}

/// The acknowledgement word of opcode `command`.
pub const fn ack(command: u32) -> u32 {
    0x8000_0000 | command
}

macro_rules! wire_struct {
    ($(#[$meta:meta])* $name:ident, $size:expr, {
        $($(#[$fmeta:meta])* $field:ident : $ty:ty $(, @ $offset:expr)?;)*
    }) => {
        $(#[$meta])*
        #[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
        #[derive(FromBytes, IntoBytes, Immutable, KnownLayout)]
        #[repr(C)]
        #[allow(missing_docs)] // field names are the interface's; what is special has its comment
        pub struct $name { $($(#[$fmeta])* pub $field: $ty,)* }
        const _: () = {
            assert!(size_of::<$name>() == $size);
            $($(assert!(core::mem::offset_of!($name, $field) == $offset);)?)*
        };
    };
}

wire_struct!(/// Start of every request.
    RequestHeader, 16, {
    /// Echoed in the response.
    response: u64, @ 0;
    /// One of [`Command`]'s values.
    cmd: u32, @ 8;
    reserved: u32;
});
wire_struct!(/// Start of every response.
    ResponseHeader, 16, {
    /// The request's key.
    response: u64, @ 0;
    /// [`ack`] of the opcode.
    ack: u32, @ 8;
    /// 0, or a positive errno.
    err: u8, @ 12;
    reserved: [u8; 3];
});
wire_struct!(/// QUERY_PORT.
    QueryPort, 24, { hdr: RequestHeader; port_num: u8, @ 16; reserved: [u8; 7]; });
wire_struct!(/// QUERY_PORT's answer.
    QueryPortResp, 64, { hdr: ResponseHeader; attrs: PortAttr, @ 16; });
wire_struct!(/// QUERY_PKEY.
    QueryPkey, 24, { hdr: RequestHeader; port_num: u8, @ 16; index: u8, @ 17; reserved: [u8; 6]; });
wire_struct!(/// QUERY_PKEY's answer.
    QueryPkeyResp, 24, { hdr: ResponseHeader; pkey: u16, @ 16; reserved: [u8; 6]; });
wire_struct!(/// CREATE_UC: give the process behind a doorbell page a context.
    CreateUc, 24, { hdr: RequestHeader; /// 32 bits count below version 19.
    pfn: u64, @ 16; });
wire_struct!(/// CREATE_UC's answer.
    CreateUcResp, 24, { hdr: ResponseHeader; ctx_handle: u32, @ 16; reserved: u32; });
wire_struct!(/// DESTROY_UC.
    DestroyUc, 24, { hdr: RequestHeader; ctx_handle: u32, @ 16; reserved: u32; });
wire_struct!(/// CREATE_PD.
    CreatePd, 24, { hdr: RequestHeader; ctx_handle: u32, @ 16; reserved: u32; });
wire_struct!(/// CREATE_PD's answer.
    CreatePdResp, 24, { hdr: ResponseHeader; pd_handle: u32, @ 16; reserved: u32; });
wire_struct!(/// DESTROY_PD.
    DestroyPd, 24, { hdr: RequestHeader; pd_handle: u32, @ 16; reserved: u32; });
wire_struct!(/// CREATE_MR.
    CreateMr, 56, {
    hdr: RequestHeader;
    /// Where the region starts in its own address space.
    start: u64, @ 16;
    /// Bytes.
    length: u64, @ 24;
    /// Bus address of the page directory.
    pdir_dma: u64, @ 32;
    pd_handle: u32, @ 40;
    access_flags: u32, @ 44;
    /// `MR_FLAG_*`.
    flags: u32, @ 48;
    /// Pages in the directory.
    nchunks: u32, @ 52;
});
/// [`CreateMr::flags`]: keys for bus addresses, no pages.
pub const MR_FLAG_DMA: u32 = 1;
/// [`CreateMr::flags`]: pages come by a fast registration later.
pub const MR_FLAG_FRMR: u32 = 2;
wire_struct!(/// CREATE_MR's answer.
    CreateMrResp, 32, { hdr: ResponseHeader; mr_handle: u32, @ 16; lkey: u32, @ 20;
    rkey: u32, @ 24; reserved: u32; });
wire_struct!(/// DESTROY_MR.
    DestroyMr, 24, { hdr: RequestHeader; mr_handle: u32, @ 16; reserved: u32; });
wire_struct!(/// CREATE_CQ.
    CreateCq, 40, {
    hdr: RequestHeader;
    pdir_dma: u64, @ 16;
    ctx_handle: u32, @ 24;
    /// Entries, a power of two.
    cqe: u32, @ 28;
    /// Pages in the directory, the state page included.
    nchunks: u32, @ 32;
    reserved: u32;
});
wire_struct!(/// CREATE_CQ's answer.
    CreateCqResp, 24, { hdr: ResponseHeader; cq_handle: u32, @ 16; cqe: u32, @ 20; });
wire_struct!(/// RESIZE_CQ.
    ResizeCq, 24, { hdr: RequestHeader; cq_handle: u32, @ 16; cqe: u32, @ 20; });
wire_struct!(/// RESIZE_CQ's answer.
    ResizeCqResp, 24, { hdr: ResponseHeader; cqe: u32, @ 16; reserved: u32; });
wire_struct!(/// DESTROY_CQ.
    DestroyCq, 24, { hdr: RequestHeader; cq_handle: u32, @ 16; reserved: u32; });
wire_struct!(/// CREATE_SRQ.
    CreateSrq, 56, {
    hdr: RequestHeader;
    pdir_dma: u64, @ 16;
    pd_handle: u32, @ 24;
    nchunks: u32, @ 28;
    max_wr: u32, @ 32;
    max_sge: u32, @ 36;
    srq_limit: u32, @ 40;
    reserved: u32, @ 44;
    srq_type: u8, @ 48;
    reserved2: [u8; 7];
});
wire_struct!(/// CREATE_SRQ's answer.
    CreateSrqResp, 24, { hdr: ResponseHeader; srqn: u32, @ 16; reserved: u32; });
wire_struct!(/// MODIFY_SRQ.
    ModifySrq, 40, { hdr: RequestHeader; srq_handle: u32, @ 16; attr_mask: u32, @ 20;
    attrs: SrqAttr, @ 24; });
wire_struct!(/// QUERY_SRQ.
    QuerySrq, 24, { hdr: RequestHeader; srq_handle: u32, @ 16; reserved: u32; });
wire_struct!(/// QUERY_SRQ's answer.
    QuerySrqResp, 32, { hdr: ResponseHeader; attrs: SrqAttr, @ 16; });
wire_struct!(/// DESTROY_SRQ.
    DestroySrq, 24, { hdr: RequestHeader; srq_handle: u32, @ 16; reserved: u32; });
wire_struct!(/// CREATE_QP.
    CreateQp, 80, {
    hdr: RequestHeader;
    pdir_dma: u64, @ 16;
    pd_handle: u32, @ 24;
    send_cq_handle: u32, @ 28;
    recv_cq_handle: u32, @ 32;
    srq_handle: u32, @ 36;
    max_send_wr: u32, @ 40;
    max_recv_wr: u32, @ 44;
    max_send_sge: u32, @ 48;
    max_recv_sge: u32, @ 52;
    max_inline_data: u32, @ 56;
    lkey: u32, @ 60;
    access_flags: u32, @ 64;
    /// Pages in the directory: state page, then send pages, then receive pages.
    total_chunks: u16, @ 68;
    /// Send pages, without the state page.
    send_chunks: u16, @ 70;
    max_atomic_arg: u16, @ 72;
    sq_sig_all: u8, @ 74;
    /// One of [`crate::attr::QpType`]'s values.
    qp_type: u8, @ 75;
    is_srq: u8, @ 76;
    reserved: [u8; 3];
});
wire_struct!(/// CREATE_QP's answer below version 20: the handle is the number.
    CreateQpResp, 40, { hdr: ResponseHeader; qpn: u32, @ 16; max_send_wr: u32; max_recv_wr: u32;
    max_send_sge: u32; max_recv_sge: u32; max_inline_data: u32, @ 36; });
wire_struct!(/// CREATE_QP's answer from version 20 on.
    CreateQpRespV2, 48, { hdr: ResponseHeader; qpn: u32, @ 16; qp_handle: u32, @ 20;
    max_send_wr: u32, @ 24; max_recv_wr: u32; max_send_sge: u32; max_recv_sge: u32;
    max_inline_data: u32, @ 40; reserved: u32; });
wire_struct!(/// MODIFY_QP.
    ModifyQp, 184, { hdr: RequestHeader; qp_handle: u32, @ 16; attr_mask: u32, @ 20;
    attrs: QpAttr, @ 24; });
wire_struct!(/// QUERY_QP.
    QueryQp, 24, { hdr: RequestHeader; qp_handle: u32, @ 16; attr_mask: u32, @ 20; });
wire_struct!(/// QUERY_QP's answer.
    QueryQpResp, 176, { hdr: ResponseHeader; attrs: QpAttr, @ 16; });
wire_struct!(/// DESTROY_QP.
    DestroyQp, 24, { hdr: RequestHeader; qp_handle: u32, @ 16; reserved: u32; });
wire_struct!(/// DESTROY_QP's answer.
    DestroyQpResp, 24, { hdr: ResponseHeader; events_reported: u32, @ 16; reserved: u32; });
wire_struct!(/// CREATE_BIND: put a GID in the table.
    CreateBind, 48, {
    hdr: RequestHeader;
    /// Bytes.
    mtu: u32, @ 16;
    /// 0xfff for none.
    vlan: u32, @ 20;
    index: u32, @ 24;
    new_gid: [u8; 16], @ 28;
    /// `GID_TYPE_*`.
    gid_type: u8, @ 44;
    reserved: [u8; 3];
});
wire_struct!(/// DESTROY_BIND: take a GID out of the table.
    DestroyBind, 40, { hdr: RequestHeader; index: u32, @ 16; dest_gid: [u8; 16], @ 20;
    reserved: [u8; 4]; });
