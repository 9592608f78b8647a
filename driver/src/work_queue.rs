//! What a send queue and a receive queue have in common: a ring, the account of what is
//! outstanding, and a doorbell.
//!
//! One comparison bounds posting: `limit` is the position at which the credit (depth minus requests
//! not completed) known so far ends. Only when it is reached is the account read again.

use std::sync::Arc;
use std::sync::atomic::{Ordering, compiler_fence};

use crate::account::{Account, Key, Posted, Recorder};
use crate::doorbell_policy::DoorbellPolicy;
use crate::error::PostError;
use crate::qp_inner::QpInner;
use crate::relay::Relay;
use crate::ring::{ProducerRing, Slot};
use crate::uar::Doorbell;

/// What a work queue shares with its completion queue.
#[derive(Debug, Clone)]
pub(crate) struct Book {
    pub(crate) key: Key,
    pub(crate) account: Arc<Account>,
    /// Its doorbells, if they wait for the next poll.
    pub(crate) relay: Option<Arc<Relay>>,
}

impl Book {
    /// The same for a queue that starts over under another key.
    pub(crate) fn afresh(&self, key: Key) -> Self {
        let account = Arc::new(Account::new(self.account.slots()));
        Self { key, account, relay: self.relay.as_deref().map(Relay::afresh) }
    }
}

/// What a work queue is made of.
pub(crate) struct Parts {
    ring: ProducerRing,
    doorbell: Doorbell,
    doorbell_word: u32,
    policy: DoorbellPolicy,
    pub(crate) book: Book,
}

impl Parts {
    pub(crate) fn new(
        ring: ProducerRing,
        key: Key,
        (doorbell, doorbell_word): (Doorbell, u32),
        policy: DoorbellPolicy,
    ) -> Self {
        let relay = match policy {
            DoorbellPolicy::Batched | DoorbellPolicy::Immediate => None,
            DoorbellPolicy::Coalesced => {
                Some(Relay::new(ring.tail().clone(), doorbell.clone(), doorbell_word))
            }
        };
        let account = Arc::new(Account::new(ring.slots()));
        Self { ring, doorbell, doorbell_word, policy, book: Book { key, account, relay } }
    }
}

/// A work queue, with one owner.
pub(crate) struct WorkQueue {
    ring: ProducerRing,
    recorder: Recorder,
    posted: u32,
    limit: u32,
    doorbell_word: u32,
    depth: u32,
    doorbell: Doorbell,
    key: Key,
    policy: DoorbellPolicy,
    qp: Arc<QpInner>,
}

/// What is left of a work queue that gets several owners.
pub(crate) struct SharedParts {
    pub(crate) ring: ProducerRing,
    pub(crate) recorder: Recorder,
    pub(crate) posted: u32,
    pub(crate) depth: u32,
    pub(crate) doorbell: Doorbell,
    pub(crate) doorbell_word: u32,
    pub(crate) qp: Arc<QpInner>,
}

impl WorkQueue {
    /// The device has the queue: its ring is written from here on.
    pub(crate) fn new(parts: Parts, depth: u32, qp: Arc<QpInner>) -> Self {
        let Parts { ring, doorbell, doorbell_word, policy, book } = parts;
        let recorder = Recorder::new(book.account.clone());
        let (posted, limit, key) = (0, 0, book.key);
        let mut queue =
            Self { ring, recorder, posted, limit, doorbell_word, depth, doorbell, key, policy, qp };
        queue.start(&book);
        queue
    }

    /// Starts with empty ring and account, or starts over after the queue pair went to RESET.
    ///
    /// # Panics
    /// When the account has not as many places as the ring: the caller computed it wrongly.
    pub(crate) fn start(&mut self, book: &Book) {
        assert_eq!(self.ring.slots(), book.account.slots());
        self.recorder = Recorder::new(book.account.clone());
        (self.posted, self.limit, self.key) = (0, 0, book.key);
        if let Some(relay) = &book.relay {
            self.ring.show_in(relay.offered());
            self.doorbell = relay.unheard();
        }
        self.ring.prepare(self.key, None);
    }

    /// The slot of the next request, whose completion will say what `posted` says; `None` if
    /// there is no room as far as is known ([`WorkQueue::make_room`] looks again).
    #[inline(always)]
    #[allow(unsafe_code)]
    pub(crate) fn next(&mut self, posted: Posted) -> Option<Slot<'_>> {
        let position = self.posted;
        if position == self.limit {
            return None;
        }
        self.posted = position.wrapping_add(1);
        let place = self.ring.place(position);
        // SAFETY: the account has as many places as the ring has slots. The position is below the
        // limit, so fewer requests are outstanding than there are slots; it is published by `ring`,
        // later, and `&mut self` makes it this thread's.
        unsafe { self.recorder.record(place.offset(), posted) };
        // What follows is not mixed with this: there are not registers enough for both (bench
        // `instructions`, `write_one`).
        compiler_fence(Ordering::SeqCst);
        if posted.status != holdfast_wire::completion::Status::Success {
            self.recorder.account().keep_quiet(position);
        }
        // SAFETY: `&mut self` makes this the only claim.
        Some(unsafe { self.ring.claim(place) })
    }

    /// Finds out how far posting may go now, if the end of what was known is reached.
    pub(crate) fn make_room(&mut self) -> Result<(), PostError> {
        if self.posted != self.limit {
            return Ok(());
        }
        self.qp.device().forget_notifications();
        // What has completed has been fetched, so credit (at most the depth, which is at most the
        // ring) never runs past ring space. The device's index may lag behind and is only checked.
        self.ring.check_head().map_err(|value| PostError::DeviceNonsense { value })?;
        let credit = self.available();
        if credit == 0 {
            return Err(PostError::QueueFull { depth: self.depth });
        }
        self.recorder.account().age(self.posted);
        self.limit = self.posted.wrapping_add(credit);
        Ok(())
    }

    /// A request has been posted for which room had to be made: all are, in a queue that rings by
    /// itself, because there is never more room than for one.
    pub(crate) fn made(&mut self) {
        if self.policy == DoorbellPolicy::Immediate {
            self.limit = self.posted;
            self.ring();
        }
    }

    /// Shows everything posted to the device.
    #[inline(always)]
    pub(crate) fn ring(&mut self) {
        self.recorder.account().publish(self.posted);
        self.ring.publish(self.posted);
        self.doorbell.ring(self.doorbell_word);
    }

    pub(crate) fn posted(&self) -> u32 {
        self.posted
    }

    pub(crate) fn depth(&self) -> u32 {
        self.depth
    }

    pub(crate) fn outstanding(&self) -> u32 {
        self.posted.wrapping_sub(self.recorder.account().completed())
    }

    pub(crate) fn available(&self) -> u32 {
        self.depth - self.outstanding().min(self.depth)
    }

    #[inline(always)]
    pub(crate) fn max_sge(&self) -> u32 {
        self.ring.max_sge()
    }

    #[inline(always)]
    pub(crate) fn max_inline(&self) -> u32 {
        self.ring.max_inline()
    }

    /// Writes a word of all requests that will ever be posted. Only before the first is.
    pub(crate) fn fix(&mut self, offset: usize, word: u64) {
        debug_assert_eq!(self.posted, 0);
        self.ring.prepare(self.key, Some((offset, word)));
    }

    /// Its parts, for a queue of several owners.
    pub(crate) fn into_shared(self) -> SharedParts {
        let Self { ring, recorder, posted, depth, doorbell, doorbell_word, qp, .. } = self;
        SharedParts { ring, recorder, posted, depth, doorbell, doorbell_word, qp }
    }

    pub(crate) fn qp(&self) -> &Arc<QpInner> {
        &self.qp
    }
}
