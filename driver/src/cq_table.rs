//! Which work queue a completion belongs to: a table private to the completion queue's owner, found
//! by the key in a request's [tag](crate::account::Tag), without a lock and without hashing.
//!
//! The table may be out of date. What has come is not found then, and of what has gone the account
//! is closed: either makes who looks for it refresh the table and look again.

use std::sync::{Arc, PoisonError};

use crate::account::Tag;
use crate::cq_shared::{CqShared, Ledger, NOBODY};
use crate::relay::Relay;

/// A work queue that completes here; one with key 0, which nobody has, stands for none.
#[derive(Debug, Clone)]
pub(crate) struct Row {
    /// The tag of its slot 0.
    pub(crate) first: Tag,
    /// Handle of its queue pair; nobody's for a shared receive queue.
    pub(crate) qp: u32,
    pub(crate) ledger: Ledger,
}

const EMPTY: Row = Row { first: Tag(0), qp: NOBODY, ledger: Ledger::Nobody };

/// What is known of the work queues that complete here.
#[derive(Debug, Default)]
pub(crate) struct Table {
    rows: Vec<Row>,
    /// By the low 16 bits of a handle: handles of queue pairs with a shared receive queue.
    sharers: Vec<Vec<u32>>,
    relays: Vec<Arc<Relay>>,
    version: u32,
}

impl Table {
    /// Brings the table up to date with the attached work queues, if any has come or gone. Then it
    /// takes a lock, and allocates when the table grows.
    pub(crate) fn refresh(&mut self, shared: &CqShared) {
        if self.version != shared.version() {
            self.rebuild(shared);
        }
    }

    #[cold]
    #[inline(never)]
    fn rebuild(&mut self, shared: &CqShared) {
        let registry = shared.attached.lock().unwrap_or_else(PoisonError::into_inner);
        self.version = shared.version();
        self.rows.fill(EMPTY);
        self.sharers.iter_mut().for_each(Vec::clear);
        self.relays.clear();
        for one in &registry.work_queues {
            self.relays.extend(one.relay.clone());
            let shared = matches!(one.ledger, Ledger::Shared(_));
            let index = one.key.index();
            if self.rows.len() <= index {
                self.rows.resize(index + 1, EMPTY);
            }
            let qp = if shared { NOBODY } else { one.qp };
            self.rows[index] = Row { first: Tag::new(one.key, 0), qp, ledger: one.ledger.clone() };
            if shared && one.qp != NOBODY {
                let bucket = (one.qp & 0xffff) as usize;
                if self.sharers.len() <= bucket {
                    self.sharers.resize(bucket + 1, Vec::new());
                }
                self.sharers[bucket].push(one.qp);
            }
        }
    }

    /// The work queue that gave this tag.
    #[inline(always)]
    pub(crate) fn find(&self, tag: Tag) -> Option<&Row> {
        let row = self.rows.get(tag.key().index())?;
        (row.first.key() == tag.key()).then_some(row)
    }

    /// Rings for the work queues whose doorbells wait for a poll.
    pub(crate) fn pass_on_doorbells(&self) {
        self.relays.iter().for_each(|relay| relay.pass_on());
    }

    /// Whether a queue pair with that handle takes its receives from a shared queue.
    pub(crate) fn shares(&self, handle: u64) -> bool {
        let bucket = self.sharers.get((handle & 0xffff) as usize);
        bucket.is_some_and(|all| all.iter().any(|qp| u64::from(*qp) == handle))
    }
}
