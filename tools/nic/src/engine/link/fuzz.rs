//! Entry point for fuzzing what arrives on a link.

use super::frame::{self, Frame, HEAD};
use crate::engine::packet::Reply;

/// Takes `bytes` apart as a link's reader does. A frame that is accepted is understood the same
/// way when it is written as the sending side does, and read again.
#[doc(hidden)]
pub fn fuzz_link_frames(mut bytes: &[u8]) {
    while let Some((head, rest)) = bytes.split_first_chunk::<HEAD>() {
        let Ok((kind, len)) = frame::decode_head(*head) else { return };
        let Some((body, rest)) = rest.split_at_checked(len) else { return };
        let Ok(decoded) = frame::decode(kind, body.to_vec()) else { return };
        let written = encode(&decoded);
        let (head, body) = written.split_first_chunk::<HEAD>().expect("a head");
        let (kind, len) = frame::decode_head(*head).expect("a head that is accepted");
        assert_eq!(len, body.len());
        let again = frame::decode(kind, body.to_vec()).expect("a body that is accepted");
        assert_eq!(encode(&again), written);
        bytes = rest;
    }
}

/// Writes a frame as the sending side does.
fn encode(frame: &Frame) -> Vec<u8> {
    let mut out = Vec::new();
    let payload = match frame {
        Frame::Hello => {
            frame::put_hello(&mut out);
            return out;
        }
        Frame::GidAdd(gid) | Frame::GidRemove(gid) => {
            frame::put_gid(&mut out, *gid, matches!(frame, Frame::GidAdd(_)));
            return out;
        }
        Frame::Request(request, body) => {
            frame::put_request(&mut out, request, body.payload().len());
            body.payload()
        }
        Frame::Reply(ends, reply, body) => {
            // Only the answer to a READ has a payload.
            let payload = if matches!(reply, Reply::Read { .. }) { body.payload() } else { &[] };
            let head = frame::reply_head(ends, *reply, payload.len()).expect("said on links");
            out.extend_from_slice(&head);
            payload
        }
        Frame::Datagram(datagram, body) => {
            frame::put_datagram(&mut out, datagram);
            body.payload()
        }
    };
    out.extend_from_slice(payload);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hello_and_what_follows_it_are_read() {
        let mut bytes = Vec::new();
        frame::put_hello(&mut bytes);
        frame::put_gid(&mut bytes, 9, true);
        let half = bytes.len() - 1;
        fuzz_link_frames(&bytes);
        fuzz_link_frames(&bytes[..half]);
    }
}
