//! Send and receive rings: taking work requests out of client memory.
//!
//! The NIC's own head is the truth; the copy in the state page is for the client to see how much
//! room it has. It is shown before each completion, so that whoever sees a completion also sees the
//! slot free: stock drivers go by the ring alone, and one that just got a completion from a full
//! ring posts again at once. Otherwise a send ring's is shown when no more is fetched for now: it
//! shares its cache line with the tail, so that to show it takes the line from the client, and
//! whatever the NIC stores next (a short message) would wait for that.

use holdfast_wire::ring::RingSize;
use holdfast_wire::wqe::{
    self, FLAG_INLINE, Opcode, RecvHeader, SendHeader, Sge, recv_stride, send_stride,
};

use super::pages::QueuePages;
use crate::engine::host::{Fetch, MAX_INLINE, MAX_SGE, Miss, RecvRequest, SendRequest};
use crate::memory::{Fault, Reader, Span};

/// The consumer's side of one ring of work requests.
#[derive(Debug)]
pub struct WorkRing {
    // Next index to take.
    head: u32,
    // What the client was shown of it.
    shown: u32,
    // The client's tail as last read; between head and it, slots can be taken without looking.
    tail: u32,
    size: RingSize,
    // State page offset of the tail; the head stands 4 bytes on.
    state: usize,
    first_page: usize,
    stride: usize,
    max_sge: u32,
    max_inline: u32,
}

/// Inline payload up to this is copied by way of so little memory that clearing that costs nothing.
const SHORT_INLINE: usize = 32;

/// Takes `len` bytes of inline payload, which are at most `N`.
#[inline]
fn take_inline<const N: usize>(
    payload: &Span,
    len: usize,
    request: &mut SendRequest,
) -> Result<(), Fault> {
    let mut bytes = [0; N];
    payload.read(&mut bytes[..len])?;
    // Fits: `N` is at most what there is room for.
    let _ = request.inline.try_extend_from_slice(&bytes[..len]);
    Ok(())
}

/// Why a slot could not be taken.
enum Stop {
    Empty,
    Miss(Miss),
    Corrupt,
}

impl From<Stop> for Fetch {
    fn from(stop: Stop) -> Fetch {
        match stop {
            Stop::Empty => Fetch::Empty,
            Stop::Miss(miss) => Fetch::Miss(miss),
            Stop::Corrupt => Fetch::Corrupt,
        }
    }
}

impl WorkRing {
    /// A send ring of `depth` slots whose slots begin at page 1.
    pub fn send(depth: RingSize, max_sge: u32, max_inline: u32) -> Self {
        let stride = send_stride(max_sge, max_inline);
        Self::new(depth, 0, 1, stride, max_sge, max_inline)
    }

    /// A receive ring of `depth` slots whose slots begin at page `first_page`.
    pub fn recv(depth: RingSize, max_sge: u32, first_page: usize) -> Self {
        Self::new(depth, 8, first_page, recv_stride(max_sge), max_sge, 0)
    }

    fn new(
        size: RingSize,
        state: usize,
        first_page: usize,
        stride: usize,
        max_sge: u32,
        max_inline: u32,
    ) -> Self {
        Self { head: 0, shown: 0, tail: 0, size, state, first_page, stride, max_sge, max_inline }
    }

    /// Number of pages that the slots take.
    pub fn pages(&self) -> usize {
        (self.size.slots() as usize * self.stride).div_ceil(holdfast_wire::PAGE_SIZE)
    }

    /// Starts over where the client's tail stands, dropping what is posted: what a queue pair does
    /// that leaves RESET. Drivers put both indices to 0 meanwhile, but need not.
    pub fn restart(&mut self, pages: &mut QueuePages, reader: &mut Reader) -> Result<(), Miss> {
        let gone = Miss { iova: pages.iova(0) };
        let state = pages.page(reader, 0)?;
        let tail = state.load_u32(self.state).map_err(|_| gone)?;
        let at = if self.size.is_valid(tail) { tail } else { 0 };
        state.store_u32(self.state + 4, at).map_err(|_| gone)?;
        (self.head, self.shown, self.tail) = (at, at, at);
        Ok(())
    }

    /// Asks the cache for the line of the tail and for the next slot.
    #[inline]
    pub fn prefetch(&self, pages: &mut QueuePages, reader: &mut Reader) {
        if let Ok(state) = pages.page(reader, 0) {
            state.prefetch(self.state);
        }
        self.prefetch_slot(pages, reader);
    }

    /// Asks the cache for the next slot, as much of it as a short request takes.
    #[inline]
    fn prefetch_slot(&self, pages: &mut QueuePages, reader: &mut Reader) {
        let slot = self.size.slot(self.head);
        if let Ok(span) = pages.slot(reader, self.first_page, self.stride, slot) {
            span.prefetch(0);
            span.prefetch(span.len().min(65) - 1);
        }
    }

    /// Whether the client posted something that was not taken yet.
    #[inline(always)]
    pub fn has_work(&mut self, pages: &mut QueuePages, reader: &mut Reader) -> bool {
        if self.tail != self.head {
            return true;
        }
        let Ok(state) = pages.page(reader, 0) else { return false };
        state.load_u32(self.state).is_ok_and(|tail| tail != self.head)
    }

    /// The client's tail, when it is one that this ring can have and can be read.
    pub fn posted_tail(&self, pages: &mut QueuePages, reader: &mut Reader) -> Option<u32> {
        let tail = pages.page(reader, 0).ok()?.load_u32(self.state).ok()?;
        self.size.queued(tail, self.head).filter(|&queued| queued > 0).map(|_| tail)
    }

    /// Requests posted and not yet taken; 0 when that cannot be read.
    pub fn available(&mut self, pages: &mut QueuePages, reader: &mut Reader) -> u32 {
        let Ok(state) = pages.page(reader, 0) else { return 0 };
        let tail = state.load_u32(self.state).unwrap_or(self.head);
        self.size.queued(tail, self.head).unwrap_or(0)
    }

    #[inline(always)]
    fn next_slot(&mut self, pages: &mut QueuePages, reader: &mut Reader) -> Result<Span, Stop> {
        if self.tail == self.head {
            let state = pages.page(reader, 0).map_err(Stop::Miss)?;
            let gone = |_: Fault| Stop::Miss(Miss { iova: pages.iova(0) });
            let tail = state.load_u32(self.state).map_err(gone)?;
            match self.size.queued(tail, self.head) {
                None => return Err(Stop::Corrupt),
                Some(0) => return Err(Stop::Empty),
                Some(_) => self.tail = tail,
            }
        }
        let slot = self.size.slot(self.head);
        pages.slot(reader, self.first_page, self.stride, slot).map_err(Stop::Miss)
    }

    /// Shows the client which slots were taken, unless it was shown.
    #[inline]
    pub fn show_head(&mut self, pages: &mut QueuePages, reader: &mut Reader) {
        // A vanished page is found by the next look at the tail.
        if self.shown != self.head
            && let Ok(state) = pages.page(reader, 0)
            && state.store_u32(self.state + 4, self.head).is_ok()
        {
            self.shown = self.head;
        }
    }

    fn slot_miss(&self, pages: &QueuePages) -> Miss {
        let byte = self.size.slot(self.head) as usize * self.stride;
        let page = self.first_page + byte / holdfast_wire::PAGE_SIZE;
        Miss { iova: pages.iova(page) + (byte % holdfast_wire::PAGE_SIZE) as u64 }
    }

    /// Takes the next request, parsed by `parse`; it stays where it is if its memory vanished.
    #[inline]
    fn take(
        &mut self,
        pages: &mut QueuePages,
        reader: &mut Reader,
        parse: impl FnOnce(&Self, &Span) -> Result<Fetch, Fault>,
    ) -> Fetch {
        let slot = match self.next_slot(pages, reader) {
            Ok(slot) => slot,
            Err(stop) => return stop.into(),
        };
        let Ok(fetch) = parse(self, &slot) else {
            return Fetch::Miss(self.slot_miss(pages));
        };
        self.head = self.size.next(self.head);
        fetch
    }

    /// Takes the next send request. [`WorkRing::show_head`] is to be called later.
    #[inline]
    pub fn next_send(
        &mut self,
        pages: &mut QueuePages,
        reader: &mut Reader,
        request: &mut SendRequest,
    ) -> Fetch {
        let fetch = self.take(pages, reader, |ring, slot| ring.parse_send(slot, request));
        if self.tail != self.head {
            // The client has written it, and this side has a payload to copy meanwhile.
            self.prefetch_slot(pages, reader);
        }
        fetch
    }

    #[inline]
    fn parse_send(&self, slot: &Span, request: &mut SendRequest) -> Result<Fetch, Fault> {
        let header: SendHeader = slot.read_at(0)?;
        request.wr_id = header.wr_id;
        request.flags = header.send_flags;
        request.ex = header.ex;
        request.body = header.wr;
        request.sges.clear();
        request.inline.clear();
        let Ok(opcode) = Opcode::try_from(header.opcode) else { return Ok(Fetch::Malformed) };
        request.opcode = opcode;
        let payload = slot.slice(size_of::<SendHeader>(), slot.len());
        if header.send_flags & FLAG_INLINE != 0 {
            let len = header.total_len as usize;
            if header.total_len > self.max_inline || len > MAX_INLINE || len > payload.len() {
                return Ok(Fetch::Malformed);
            }
            if len <= SHORT_INLINE {
                take_inline::<SHORT_INLINE>(&payload, len, request)?;
            } else {
                take_inline::<MAX_INLINE>(&payload, len, request)?;
            }
            return Ok(Fetch::Got);
        }
        if header.num_sge > self.max_sge {
            return Ok(Fetch::Malformed);
        }
        for index in 0..header.num_sge as usize {
            let sge: Sge = payload.read_at(index * size_of::<Sge>())?;
            if request.sges.try_push(sge).is_err() {
                return Ok(Fetch::Malformed);
            }
        }
        Ok(Fetch::Got)
    }

    /// Takes the next receive.
    #[inline]
    pub fn next_recv(
        &mut self,
        pages: &mut QueuePages,
        reader: &mut Reader,
        request: &mut RecvRequest,
    ) -> Fetch {
        let fetch = self.take(pages, reader, |ring, slot| ring.parse_recv(slot, request));
        self.show_head(pages, reader);
        fetch
    }

    #[inline]
    fn parse_recv(&self, slot: &Span, request: &mut RecvRequest) -> Result<Fetch, Fault> {
        let header: RecvHeader = slot.read_at(0)?;
        request.wr_id = header.wr_id;
        request.sges.clear();
        if header.num_sge > self.max_sge {
            return Ok(Fetch::Malformed);
        }
        for index in 0..header.num_sge as usize {
            let sge: Sge = slot.read_at(size_of::<RecvHeader>() + index * size_of::<Sge>())?;
            if request.sges.try_push(sge).is_err() {
                return Ok(Fetch::Malformed);
            }
        }
        Ok(Fetch::Got)
    }
}

// Every granted number of entries fits its slot, and every slot fits a page.
const _: () = assert!(
    wqe::send_stride(MAX_SGE as u32, MAX_INLINE as u32) <= holdfast_wire::PAGE_SIZE
        && wqe::recv_stride(MAX_SGE as u32) <= holdfast_wire::PAGE_SIZE
);
