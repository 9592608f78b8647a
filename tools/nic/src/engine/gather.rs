//! Scatter/gather: from lists of entries to lists of spans, and copying between them.
//!
//! Both ends of a transfer are resolved completely before the first byte moves, so that a refused
//! key or a miss in the middle of a burst has no effect at all. The lists are the engine's own and
//! are reused; nothing is allocated. Spans never outlive the engine call that made them.

use arrayvec::ArrayVec;
use holdfast_wire::wqe::Sge;

use super::host::{Host, Miss};
use super::mr::{self, Mr, Refused};
use super::table::Table;
use crate::memory::{Fault, Span};

/// Most spans of one side of a burst: 16 pages of a full burst, a page boundary in each of 32
/// entries, and room for hosts whose mappings are finer.
pub(crate) const MAX_SPANS: usize = 192;

/// One side of a burst.
pub(crate) type SpanList = ArrayVec<Span, MAX_SPANS>;

/// Why a list could not be resolved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Obstacle {
    /// Key, range or rights are wrong: no use trying again.
    Refused,
    /// No translation now.
    Miss(Miss),
}

impl From<Refused> for Obstacle {
    fn from(_: Refused) -> Self {
        Obstacle::Refused
    }
}

impl From<Miss> for Obstacle {
    fn from(miss: Miss) -> Self {
        Obstacle::Miss(miss)
    }
}

/// Where local memory is looked up.
pub(crate) struct Memory<'a, H> {
    pub(crate) host: &'a mut H,
    pub(crate) mrs: &'a Table<Mr>,
    pub(crate) pd: u32,
}

impl<H: Host> Memory<'_, H> {
    /// Resolves `len` bytes from byte `skip` of a message that `sges` describe. `access` are the
    /// rights wanted; `out` is replaced. Says how many bytes were resolved: fewer than `len` when
    /// the entries end before, or `out` is full.
    #[inline]
    pub(crate) fn entries(
        &mut self,
        sges: &[Sge],
        mut skip: u64,
        len: usize,
        access: u32,
        out: &mut SpanList,
    ) -> Result<usize, Obstacle> {
        out.clear();
        if let [sge] = sges
            && skip == 0
            && len > 0
            && sge.length as usize == len
        {
            let mr = mr::lookup(self.mrs, sge.lkey, self.pd, sge.addr, len as u64, access)?;
            return Ok(mr.spans(self.host, sge.addr, len, access != 0, out)?);
        }
        let mut done = 0;
        for sge in sges {
            if done == len {
                break;
            }
            let length = u64::from(sge.length);
            if skip >= length {
                skip -= length;
                continue;
            }
            let take = ((length - skip) as usize).min(len - done);
            let mr = mr::lookup(self.mrs, sge.lkey, self.pd, sge.addr, length, access)?;
            let got = mr.spans(self.host, sge.addr + skip, take, access != 0, out)?;
            done += got;
            if got < take {
                break;
            }
            skip = 0;
        }
        Ok(done)
    }

    /// Resolves `[addr, addr + len)` of the region of `key`.
    #[inline]
    pub(crate) fn range(
        &mut self,
        key: u32,
        addr: u64,
        len: usize,
        access: u32,
        write: bool,
        out: &mut SpanList,
    ) -> Result<usize, Obstacle> {
        out.clear();
        if len == 0 {
            return Ok(0);
        }
        let mr = mr::lookup(self.mrs, key, self.pd, addr, len as u64, access)?;
        Ok(mr.spans(self.host, addr, len, write, out)?)
    }
}

/// Bytes that a list of entries describes.
pub(crate) fn total(sges: &[Sge]) -> u64 {
    sges.iter().map(|sge| u64::from(sge.length)).sum()
}

/// Which side of a copy was gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Gone {
    Source,
    Destination,
}

/// Where payload comes from.
#[derive(Clone, Copy)]
pub(crate) enum Payload<'a> {
    /// Memory of a NIC in this process.
    Spans(&'a [Span]),
    /// Inline data, or what a link brought.
    Bytes(&'a [u8]),
}

impl Payload<'_> {
    /// Copies the payload to `to`, which is at least as long as `len`.
    #[inline]
    pub(crate) fn copy_to(&self, to: &[Span]) -> Result<(), Gone> {
        match self {
            Payload::Spans(from) => copy(from, to),
            Payload::Bytes(bytes) => scatter(bytes, to).map_err(|Fault| Gone::Destination),
        }
    }
}

/// Copies one list over another until either ends.
#[inline]
pub(crate) fn copy(from: &[Span], to: &[Span]) -> Result<(), Gone> {
    if let ([from], [to]) = (from, to) {
        return match from.copy_to(to) {
            Ok(_) => Ok(()),
            Err(Fault) => Err(blame(&[*from])),
        };
    }
    let (mut a, mut b) = (from.iter(), to.iter());
    let (mut source, mut target) = (a.next().copied(), b.next().copied());
    while let (Some(s), Some(t)) = (source, target) {
        let Ok(n) = s.copy_to(&t) else { return Err(blame(from)) };
        source = if n < s.len() { Some(s.slice(n, s.len() - n)) } else { a.next().copied() };
        target = if n < t.len() { Some(t.slice(n, t.len() - n)) } else { b.next().copied() };
    }
    Ok(())
}

/// After a failed copy: reads the source alone to learn whose memory is gone.
#[cold]
fn blame(from: &[Span]) -> Gone {
    let mut buf = [0; 512];
    for span in from {
        for offset in (0..span.len()).step_by(buf.len()) {
            let piece = span.slice(offset, buf.len());
            if piece.read(&mut buf[..piece.len()]).is_err() {
                return Gone::Source;
            }
        }
    }
    Gone::Destination
}

/// Writes `bytes` over a list until either ends.
pub(crate) fn scatter(mut bytes: &[u8], to: &[Span]) -> Result<(), Fault> {
    for span in to {
        let (now, rest) = bytes.split_at(bytes.len().min(span.len()));
        span.write(now)?;
        bytes = rest;
    }
    Ok(())
}

/// Appends a list's bytes to `out`; on a fault `out` is as it was.
pub(crate) fn append(from: &[Span], out: &mut Vec<u8>) -> Result<(), Fault> {
    let start = out.len();
    for span in from {
        let at = out.len();
        out.resize(at + span.len(), 0);
        if let Err(fault) = span.read(&mut out[at..]) {
            out.truncate(start);
            return Err(fault);
        }
    }
    Ok(())
}
