//! Completion queues: writing entries, and telling the client when it asked to be told.
//!
//! ARM asks for an event on the next completion, ARM_SOL on the next solicited one. A doorbell
//! reaches the NIC later than the store was made, and completions written in between were not
//! seen by a client that polled before its store. So arming a queue that holds completions the
//! client has not consumed fires at once; a queue it has emptied waits for the next one.

use holdfast_wire::completion::{CQE_SIZE, Cqe};
use holdfast_wire::ring::RingSize;

use super::pages::QueuePages;
use crate::engine::host::{CqRefusal, Miss};
use crate::memory::Reader;

const TAIL: usize = 8;
const HEAD: usize = 12;

/// What the client wants to be told of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Armed {
    No,
    Solicited,
    Any,
}

/// One completion queue, seen from its producer.
#[derive(Debug)]
pub struct CompletionRing {
    tail: u32,
    // The client's head as last read; re-read only when the ring looks full.
    head: u32,
    armed: Armed,
    size: RingSize,
    // Completions written so far, and how many there were with the last solicited one.
    written: u64,
    last_solicited: u64,
    pages: QueuePages,
}

impl CompletionRing {
    /// A ring of `size` entries (a power of two) in `pages`, state page first.
    pub fn new(size: RingSize, pages: QueuePages) -> Self {
        Self { tail: 0, head: 0, armed: Armed::No, size, written: 0, last_solicited: 0, pages }
    }

    /// Writes an entry and makes it visible. True when the client asked to be told of it.
    #[inline]
    pub fn push(
        &mut self,
        reader: &mut Reader,
        cqe: &Cqe,
        solicited: bool,
    ) -> Result<bool, CqRefusal> {
        let state = self.pages.page(reader, 0).map_err(CqRefusal::Miss)?;
        let state_gone = CqRefusal::Miss(Miss { iova: self.pages.iova(0) });
        if self.size.is_full(self.tail, self.head) {
            self.head = state.load_u32(HEAD).map_err(|_| state_gone)?;
            match self.size.queued(self.tail, self.head) {
                None => return Err(CqRefusal::Dead),
                Some(queued) if queued == self.size.slots() => return Err(CqRefusal::Overrun),
                Some(_) => {}
            }
        }
        let index = self.size.slot(self.tail);
        let slot = self.pages.slot(reader, 1, CQE_SIZE, index).map_err(CqRefusal::Miss)?;
        if slot.write_at(0, cqe).is_err() {
            let page = 1 + index as usize * CQE_SIZE / holdfast_wire::PAGE_SIZE;
            return Err(CqRefusal::Miss(Miss { iova: self.pages.iova(page) }));
        }
        let tail = self.size.next(self.tail);
        // Release: the entry is there before the tail says so.
        state.store_u32(TAIL, tail).map_err(|_| state_gone)?;
        self.tail = tail;
        self.written += 1;
        if solicited {
            self.last_solicited = self.written;
        }
        let fires = match self.armed {
            Armed::No => false,
            Armed::Solicited => solicited,
            Armed::Any => true,
        };
        if fires {
            self.armed = Armed::No;
        }
        Ok(fires)
    }

    /// Arms the queue. True when the event is due at once.
    pub fn arm(&mut self, reader: &mut Reader, solicited_only: bool) -> bool {
        let wanted = if solicited_only { Armed::Solicited } else { Armed::Any };
        // Arming for all completions outlasts a later one for solicited ones, as in verbs.
        self.armed = self.armed.max(wanted);
        let unread = self.unread(reader);
        let seen = self.written - u64::from(unread);
        let due = match self.armed {
            Armed::No => false,
            Armed::Solicited => self.last_solicited > seen,
            Armed::Any => unread > 0,
        };
        if due {
            self.armed = Armed::No;
        }
        due
    }

    fn unread(&mut self, reader: &mut Reader) -> u32 {
        let head = self.pages.page(reader, 0).ok().and_then(|state| state.load_u32(HEAD).ok());
        let unread = head.and_then(|head| self.size.queued(self.tail, head)).unwrap_or(0);
        // A client that wrote nonsense cannot have more unread than were written.
        u64::from(unread).min(self.written) as u32
    }
}
