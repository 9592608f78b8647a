//! Frames of a link: what two engines write to each other, and the checks on what arrives.
//!
//! A frame is an 8-byte head (length of the body, kind) and a body: one of the structures below,
//! then payload. The first frame of each side is a hello with a magic number and the version.
//! All integers are little-endian; GIDs are 16 bytes in network order. Nothing is taken on trust:
//! [`decode`] accepts exactly what [`put_request`] and its like produce, and its results are
//! checked again where they are used.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::engine::packet::{Datagram, Ends, MAX_BURST, Nak, Op, Reply, Request};

const MAGIC: u32 = 0x4b4e_4c48;
const VERSION: u32 = 1;

/// Bytes of a frame's head.
pub(crate) const HEAD: usize = 8;
/// Most bytes of a frame's body.
pub(crate) const MAX_BODY: usize = MAX_BURST as usize + 256;

const HELLO: u32 = 1;
const GID_ADD: u32 = 2;
const GID_REMOVE: u32 = 3;
const REQUEST: u32 = 4;
const REPLY: u32 = 5;
const DATAGRAM: u32 = 6;

#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct Head {
    len: u32,
    kind: u32,
}

#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct Hello {
    magic: u32,
    version: u32,
}

#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct WireEnds {
    to: [u8; 16],
    from: [u8; 16],
    to_qpn: u32,
    from_qpn: u32,
}

#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct WireRequest {
    ends: WireEnds,
    op: u32,
    /// 1: solicited.
    flags: u32,
    psn: u32,
    packets: u32,
    offset: u32,
    len: u32,
    total: u32,
    rkey: u32,
    imm: u32,
    reserved: u32,
    addr: u64,
    args: [u64; 4],
}

#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct WireReply {
    ends: WireEnds,
    kind: u32,
    /// READ: packets. NAK: why. RNR: timer code.
    code: u32,
    psn: u32,
    reserved: u32,
    value: u64,
}

#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct WireDatagram {
    ends: WireEnds,
    qkey: u32,
    /// 1: solicited, 2: immediate data.
    flags: u32,
    imm: u32,
    class_flow: u32,
    hop_limit: u32,
    len: u32,
}

/// Bytes of a reply's frame before its payload.
pub(crate) const REPLY_HEAD: usize = HEAD + size_of::<WireReply>();

/// Why a peer's bytes were refused. The link is cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refused {
    #[error("a frame of {0} bytes is longer than any can be")]
    TooLong(u32),
    #[error("a frame of kind {0} is unknown")]
    Kind(u32),
    #[error("a frame of kind {0} has a body of {1} bytes, which does not fit it")]
    Length(u32, usize),
    #[error("a frame of kind {0} holds a value that is not defined")]
    Value(u32),
    #[error("the peer is no NIC, or one of another version")]
    Stranger,
}

/// Payload at the end of a body.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Body {
    bytes: Vec<u8>,
    start: usize,
}

impl Body {
    pub(crate) fn payload(&self) -> &[u8] {
        self.bytes.get(self.start..).unwrap_or(&[])
    }
}

/// A frame that was understood.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Frame {
    Hello,
    GidAdd(u128),
    GidRemove(u128),
    Request(Request, Body),
    Reply(Ends, Reply, Body),
    Datagram(Datagram, Body),
}

impl From<&Ends> for WireEnds {
    fn from(ends: &Ends) -> Self {
        Self {
            to: ends.to.to_be_bytes(),
            from: ends.from.to_be_bytes(),
            to_qpn: ends.to_qpn,
            from_qpn: ends.from_qpn,
        }
    }
}

impl From<&WireEnds> for Ends {
    fn from(ends: &WireEnds) -> Self {
        Self {
            to: u128::from_be_bytes(ends.to),
            from: u128::from_be_bytes(ends.from),
            to_qpn: ends.to_qpn,
            from_qpn: ends.from_qpn,
        }
    }
}

/// Appends a head for a body of `len` bytes.
fn put_head(out: &mut Vec<u8>, kind: u32, len: usize) {
    // Bodies are far shorter than 4 GiB.
    out.extend_from_slice(Head { len: len as u32, kind }.as_bytes());
}

pub(crate) fn put_hello(out: &mut Vec<u8>) {
    put_head(out, HELLO, size_of::<Hello>());
    out.extend_from_slice(Hello { magic: MAGIC, version: VERSION }.as_bytes());
}

pub(crate) fn put_gid(out: &mut Vec<u8>, gid: u128, add: bool) {
    put_head(out, if add { GID_ADD } else { GID_REMOVE }, 16);
    out.extend_from_slice(&gid.to_be_bytes());
}

/// Appends a request's frame up to its payload of `payload` bytes.
pub(crate) fn put_request(out: &mut Vec<u8>, req: &Request, payload: usize) {
    put_head(out, REQUEST, size_of::<WireRequest>() + payload);
    let wire = WireRequest {
        ends: (&req.ends).into(),
        op: req.op as u32,
        flags: req.solicited.into(),
        psn: req.psn,
        packets: req.packets,
        offset: req.offset,
        len: req.len,
        total: req.total,
        rkey: req.rkey,
        imm: req.imm,
        reserved: 0,
        addr: req.addr,
        args: req.args,
    };
    out.extend_from_slice(wire.as_bytes());
}

/// Appends a datagram's frame up to its payload.
pub(crate) fn put_datagram(out: &mut Vec<u8>, datagram: &Datagram) {
    put_head(out, DATAGRAM, size_of::<WireDatagram>() + datagram.len as usize);
    let imm = if datagram.imm.is_some() { 2 } else { 0 };
    let wire = WireDatagram {
        ends: (&datagram.ends).into(),
        qkey: datagram.qkey,
        flags: u32::from(datagram.solicited) | imm,
        imm: datagram.imm.unwrap_or(0),
        class_flow: datagram.class_flow,
        hop_limit: datagram.hop_limit.into(),
        len: datagram.len,
    };
    out.extend_from_slice(wire.as_bytes());
}

/// A reply's frame up to its payload of `payload` bytes; `None` for what is not said on a link.
pub(crate) fn reply_head(ends: &Ends, reply: Reply, payload: usize) -> Option<[u8; REPLY_HEAD]> {
    let (kind, code, psn, value) = match reply {
        Reply::Ack { psn } => (0, 0, psn, 0),
        Reply::Read { psn, packets } => (1, packets, psn, 0),
        Reply::Atomic { psn, value } => (2, 0, psn, value),
        Reply::Nak { psn, why } => (3, why as u32, psn, 0),
        Reply::Rnr { psn, timer } => (4, timer.into(), psn, 0),
        Reply::Busy { psn } => (5, 0, psn, 0),
        Reply::RequesterGone | Reply::Silence => return None,
    };
    let body = WireReply { ends: ends.into(), kind, code, psn, reserved: 0, value };
    let mut out = [0; REPLY_HEAD];
    let len = (size_of::<WireReply>() + payload) as u32;
    out[..HEAD].copy_from_slice(Head { len, kind: REPLY }.as_bytes());
    out[HEAD..].copy_from_slice(body.as_bytes());
    Some(out)
}

/// Checks a frame's head; gives the kind and the length of the body.
pub(crate) fn decode_head(head: [u8; HEAD]) -> Result<(u32, usize), Refused> {
    let Head { len, kind } = zerocopy::transmute!(head);
    if len as usize > MAX_BODY {
        return Err(Refused::TooLong(len));
    }
    if !(HELLO..=DATAGRAM).contains(&kind) {
        return Err(Refused::Kind(kind));
    }
    Ok((kind, len as usize))
}

/// The structure at the start of a body, and how long it is.
fn split<T: FromBytes + KnownLayout + Immutable>(
    kind: u32,
    bytes: &[u8],
) -> Result<(T, usize), Refused> {
    let (value, rest) =
        T::read_from_prefix(bytes).map_err(|_| Refused::Length(kind, bytes.len()))?;
    Ok((value, rest.len()))
}

/// Checks and takes apart a body.
pub(crate) fn decode(kind: u32, bytes: Vec<u8>) -> Result<Frame, Refused> {
    let expect = |rest: usize, len: usize| {
        if rest == len { Ok(()) } else { Err(Refused::Length(kind, bytes.len())) }
    };
    match kind {
        HELLO => {
            let (hello, rest) = split::<Hello>(kind, &bytes)?;
            expect(rest, 0)?;
            let ours = hello.magic == MAGIC && hello.version == VERSION;
            if ours { Ok(Frame::Hello) } else { Err(Refused::Stranger) }
        }
        GID_ADD | GID_REMOVE => {
            let (gid, rest) = split::<[u8; 16]>(kind, &bytes)?;
            expect(rest, 0)?;
            let gid = u128::from_be_bytes(gid);
            Ok(if kind == GID_ADD { Frame::GidAdd(gid) } else { Frame::GidRemove(gid) })
        }
        REQUEST => {
            let (wire, rest) = split::<WireRequest>(kind, &bytes)?;
            let op = Op::ALL.get(wire.op as usize).ok_or(Refused::Value(kind))?;
            let brings = if op.is_answered() { 0 } else { wire.len as usize };
            expect(rest, brings)?;
            let request = Request {
                ends: (&wire.ends).into(),
                op: *op,
                solicited: wire.flags & 1 != 0,
                psn: wire.psn & 0xff_ffff,
                packets: wire.packets,
                offset: wire.offset,
                len: wire.len,
                total: wire.total,
                addr: wire.addr,
                rkey: wire.rkey,
                imm: wire.imm,
                args: wire.args,
            };
            let start = bytes.len() - rest;
            Ok(Frame::Request(request, Body { bytes, start }))
        }
        REPLY => {
            let (wire, rest) = split::<WireReply>(kind, &bytes)?;
            let psn = wire.psn & 0xff_ffff;
            let reply = match wire.kind {
                0 => Reply::Ack { psn },
                1 => Reply::Read { psn, packets: wire.code },
                2 => Reply::Atomic { psn, value: wire.value },
                3 => {
                    let why = Nak::ALL.get(wire.code as usize).ok_or(Refused::Value(kind))?;
                    Reply::Nak { psn, why: *why }
                }
                4 => Reply::Rnr { psn, timer: (wire.code & 31) as u8 },
                5 => Reply::Busy { psn },
                _ => return Err(Refused::Value(kind)),
            };
            if wire.kind != 1 {
                expect(rest, 0)?;
            }
            let start = bytes.len() - rest;
            Ok(Frame::Reply((&wire.ends).into(), reply, Body { bytes, start }))
        }
        DATAGRAM => {
            let (wire, rest) = split::<WireDatagram>(kind, &bytes)?;
            expect(rest, wire.len as usize)?;
            let datagram = Datagram {
                ends: (&wire.ends).into(),
                qkey: wire.qkey,
                solicited: wire.flags & 1 != 0,
                imm: (wire.flags & 2 != 0).then_some(wire.imm),
                class_flow: wire.class_flow & 0x0fff_ffff,
                hop_limit: wire.hop_limit as u8,
                len: wire.len,
            };
            let start = bytes.len() - rest;
            Ok(Frame::Datagram(datagram, Body { bytes, start }))
        }
        other => Err(Refused::Kind(other)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn ends() -> Ends {
        Ends { to: 1, to_qpn: 2, from: 3, from_qpn: 4 }
    }

    /// Takes the one frame in `bytes` apart.
    fn read_back(bytes: &[u8]) -> Frame {
        let (head, body) = bytes.split_first_chunk::<HEAD>().expect("a head");
        let (kind, len) = decode_head(*head).expect("a sound head");
        assert_eq!(len, body.len());
        decode(kind, body.to_vec()).expect("a sound body")
    }

    #[test]
    fn a_request_comes_back_as_it_went() {
        let payload = [7u8; 100];
        let req = Request {
            ends: ends(),
            op: Op::WriteImm,
            solicited: true,
            psn: 0xff_ffff,
            packets: 1,
            offset: 4096,
            len: 100,
            total: 4196,
            addr: u64::MAX,
            rkey: 9,
            imm: 10,
            args: [1, 2, 3, 4],
        };
        let mut out = Vec::new();
        put_request(&mut out, &req, payload.len());
        out.extend_from_slice(&payload);
        let Frame::Request(back, body) = read_back(&out) else { panic!("another kind") };
        assert_eq!((back, body.payload()), (req, &payload[..]));
    }

    #[test]
    fn every_reply_comes_back_as_it_went() {
        let replies = [
            Reply::Ack { psn: 1 },
            Reply::Read { psn: 2, packets: 3 },
            Reply::Atomic { psn: 4, value: u64::MAX },
            Reply::Nak { psn: 5, why: Nak::Operation },
            Reply::Rnr { psn: 6, timer: 31 },
            Reply::Busy { psn: 7 },
        ];
        for reply in replies {
            let head = reply_head(&ends(), reply, 0).expect("said on links");
            let Frame::Reply(back_ends, back, _) = read_back(&head) else { panic!("another kind") };
            assert_eq!((back_ends, back), (ends(), reply));
        }
    }

    #[test]
    fn a_stranger_is_recognised() {
        let mut out = Vec::new();
        put_hello(&mut out);
        assert_eq!(read_back(&out), Frame::Hello);
        out[HEAD] ^= 1;
        assert_eq!(decode(HELLO, out[HEAD..].to_vec()), Err(Refused::Stranger));
    }

    #[test]
    fn a_request_whose_length_lies_is_refused() {
        let bytes = vec![0; size_of::<WireRequest>() + 1];
        assert!(matches!(decode(REQUEST, bytes), Err(Refused::Length(REQUEST, _))));
        let head = Head { len: MAX_BODY as u32 + 1, kind: REQUEST };
        assert!(matches!(decode_head(zerocopy::transmute!(head)), Err(Refused::TooLong(_))));
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(kind in 0u32..9, bytes in prop::collection::vec(any::<u8>(), 0..400)) {
            let _ = decode(kind, bytes);
        }

        #[test]
        fn no_head_makes_it_panic(head: [u8; HEAD]) {
            let _ = decode_head(head);
        }
    }
}
