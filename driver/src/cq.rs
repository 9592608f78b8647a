//! Completion queues.
//!
//! A completion names its request by the [tag](crate::account::Tag) the driver gave it, and that
//! tag finds the work queue's account in a table private to the queue's owner: no lock, no hash.
//! The table is refreshed when a work queue is attached or detached, which the registry's version
//! says.
//!
//! Looking at the ring costs one Acquire load; a batch costs one store of the consumer index.
//! Requests of one work queue that succeeded one after the other, all signalled, are taken as a
//! run ([`ConsumerRing::take_in_order`]): what must be the same for all is looked at once. Anything
//! else is decoded by itself ([`crate::decode`]).
//!
//! The POLL doorbell, which lets some devices make progress, has a [cadence](crate::cadence) of its
//! own.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use holdfast_wire::completion::CQE_SIZE;
use holdfast_wire::{PAGE_SIZE, cmd, uar};

use crate::account::Account;
use crate::cadence::Cadence;
use crate::completion::Completion;
use crate::completion_ring::{ConsumerRing, Entry};
use crate::cq_shared::{CqShared, Ledger};
use crate::cq_table::{Row, Table};
use crate::decode::{Decoded, decode};
use crate::device::Device;
use crate::error::{Error, Result};
use crate::pages::PageDirectory;
use crate::uar::{Doorbell, Uar, doorbell_word};

/// A completion queue. It has one owner, who polls it.
pub struct CompletionQueue {
    ring: ConsumerRing,
    head: u32,
    /// Empty polls until something else is to be done than looking.
    until_more: AtomicU32,
    /// Whether doorbells of work queues wait for polls of this one. Set when such a queue is made.
    rings_for_others: AtomicBool,
    cadence: Cadence,
    table: Table,
    doorbell: Doorbell,
    leftovers: u64,
    shared: Arc<CqShared>,
}

impl std::fmt::Debug for CompletionQueue {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "CompletionQueue(handle {}, depth {})", self.shared.handle, self.shared.depth())
    }
}

impl CompletionQueue {
    pub(crate) fn new(uar: &Arc<Uar>, depth: u32) -> Result<Self> {
        let device = uar.device();
        let limits = device.limits();
        Error::check_limit(
            "completion queue depth",
            u64::from(depth.max(1)),
            u64::from(limits.max_cqe),
        )?;
        let slots = depth.max(1).next_power_of_two().max((PAGE_SIZE / CQE_SIZE) as u32);
        let pages = 1 + slots as usize * CQE_SIZE / PAGE_SIZE;
        Error::check_limit(
            "pages of a completion queue",
            pages as u64,
            u64::from(device.quirks().max_ring_pages),
        )?;
        let permit = device.counts.completion_queues.take()?;
        let memory = Arc::new(device.dma.allocate(pages * PAGE_SIZE)?);
        let directory = PageDirectory::new(device.dma.as_ref(), &memory.pages()[..pages])?;
        let created = device.channel.execute(cmd::CreateCq {
            hdr: Default::default(),
            pdir_dma: directory.address(),
            ctx_handle: uar.context(),
            cqe: slots,
            nchunks: directory.count(),
            reserved: 0,
        });
        let response = match created {
            Ok(response) => response,
            Err(error) => {
                return Err(device.not_created("completion queue", error, (memory, directory)));
            }
        };
        // From here on `shared` destroys the queue.
        let ring = ConsumerRing::new(memory.clone(), slots);
        let shared = CqShared::new(uar, response.cq_handle, slots, (memory, directory), permit);
        doorbell_word("completion queue handle", response.cq_handle, 0)?;
        if response.cqe < slots {
            return Err(Error::nonsense("completion queue depth", u64::from(response.cqe)));
        }
        let interval = match device.rings_poll() {
            true => device.quirks().poll_doorbell_interval,
            false => u32::MAX,
        };
        let cadence = Cadence::new(interval);
        Ok(Self {
            ring,
            head: 0,
            until_more: AtomicU32::new(cadence.interval()),
            rings_for_others: AtomicBool::new(false),
            cadence,
            table: Table::default(),
            doorbell: uar.doorbell(uar::CQ),
            leftovers: 0,
            shared,
        })
    }

    /// The device's handle, as events and notifications name it.
    pub fn handle(&self) -> u32 {
        self.shared.handle
    }

    /// Entries; at least what was asked for.
    pub fn depth(&self) -> u32 {
        self.shared.depth()
    }

    /// Requests that are posted and will complete here, as far as the driver knows. Requests of
    /// shared receive queues are not counted.
    pub fn outstanding(&self) -> u64 {
        self.shared.outstanding()
    }

    /// Completions dropped because their queue pair was destroyed before they were polled.
    pub fn leftovers(&self) -> u64 {
        self.leftovers
    }

    pub(crate) fn shared(&self) -> &Arc<CqShared> {
        &self.shared
    }

    /// Takes up to `out.len()` completions and says how many. Never blocks and allocates nothing,
    /// but for the first call after a queue pair was made or destroyed.
    ///
    /// # Errors
    /// [`Error::DeviceNonsense`] when the next entry, or the ring's index, cannot be; the entry
    /// is skipped, so the next call goes on behind it. Completions before it have been returned
    /// by the call before.
    #[inline]
    pub fn poll(&mut self, out: &mut [Completion]) -> Result<usize> {
        let tail = self.ring.tail();
        if tail == self.head { self.poll_empty() } else { self.take(tail, out) }
    }

    /// Takes completions from a ring that has some.
    #[inline(never)]
    fn take(&mut self, tail: u32, out: &mut [Completion]) -> Result<usize> {
        if *self.rings_for_others.get_mut() {
            self.pass_on_doorbells();
        }
        let taken = self.take_run(tail, out);
        if taken == out.len() || self.head == tail {
            self.ring.set_head(self.head);
            return Ok(taken);
        }
        self.take_mixed(tail, taken, out)
    }

    /// Goes on where a run has ended, or was none: the next completion is something else. `count`
    /// have been taken.
    #[inline(never)]
    fn take_mixed(&mut self, tail: u32, mut count: usize, out: &mut [Completion]) -> Result<usize> {
        if self.ring.queued(tail, self.head).is_none() {
            if count > 0 {
                // The next call says so.
                self.ring.set_head(self.head);
                return Ok(count);
            }
            return Err(Error::nonsense("completion producer index", u64::from(tail)));
        }
        self.table.refresh(&self.shared);
        while count < out.len() && self.head != tail {
            let words = self.ring.entry(self.head).read();
            let decoded = decode(&words, &self.table, self.doorbell.uar().device());
            if matches!(decoded, Decoded::Nonsense(..)) && count > 0 {
                break;
            }
            self.head = self.ring.advance(self.head, 1);
            match decoded {
                Decoded::Report(completion) => {
                    out[count] = completion;
                    count += 1;
                }
                Decoded::Silent => {}
                Decoded::Leftover => self.leftovers += 1,
                Decoded::Nonsense(what, value) => {
                    self.ring.set_head(self.head);
                    return Err(Error::nonsense(what, value));
                }
            }
            if self.head != tail {
                count += self.take_run(tail, &mut out[count..]);
            }
        }
        self.ring.set_head(self.head);
        Ok(count)
    }

    /// Takes as many as belong to the same work queue as the next one and are what was to be
    /// expected. The device's index is not looked at closely, because each entry is; whoever finds
    /// the ring not at `tail` afterwards does so.
    #[inline(always)]
    fn take_run(&mut self, tail: u32, out: &mut [Completion]) -> usize {
        let queued = self.ring.claimed(tail, self.head);
        let entry = self.ring.entry(self.head);
        let most = out.len().min(queued as usize);
        let out = &mut out[..most];
        let taken = match self.table.find(entry.tag()) {
            Some(row) => match &row.ledger {
                Ledger::Send(account) => take_in_order::<false>(entry, account, row, out),
                Ledger::Recv(account) => take_in_order::<true>(entry, account, row, out),
                _ => return 0,
            },
            None => return 0,
        };
        self.head = self.ring.advance(self.head, taken as u32);
        taken
    }

    /// Lets the device make completions visible, where it needs that (QEMU, ESXi). [`Self::poll`]
    /// does it by itself every so many empty polls. Does nothing on a device where that could meet
    /// an interrupt and hang ([`crate::Quirks::poll_excludes_interrupts`]).
    pub fn poll_device(&mut self) {
        self.cadence.rung(self.head);
        if !*self.rings_for_others.get_mut() {
            *self.until_more.get_mut() = self.cadence.interval();
        }
        if self.device().rings_poll() {
            self.doorbell.ring(self.shared.handle | uar::CQ_POLL);
        }
    }

    /// Asks for one notification: when the next completion arrives, or the next solicited one (or
    /// error) only. Completions already in the ring do not count, so poll once more after arming
    /// and before waiting. See [`Device::notification_fd`].
    ///
    /// # Errors
    /// [`Error::Late`] when a device that polls its doorbells in memory has not taken the word
    /// within a second.
    pub fn arm(&mut self, solicited_only: bool) -> Result<()> {
        let bits = match solicited_only {
            _ if self.device().quirks().arm_needs_both_bits => uar::CQ_ARM | uar::CQ_ARM_SOLICITED,
            true => uar::CQ_ARM_SOLICITED,
            false => uar::CQ_ARM,
        };
        self.doorbell.ring_confirmed(self.shared.handle | bits)
    }

    /// The device this queue belongs to.
    pub fn device(&self) -> &Arc<Device> {
        self.doorbell.uar().device()
    }

    /// From now on work queues leave their doorbells to polls of this one.
    pub(crate) fn ring_for_others(&self) {
        self.rings_for_others.store(true, Ordering::Relaxed);
        self.until_more.store(1, Ordering::Relaxed);
    }

    #[inline(always)]
    fn poll_empty(&mut self) -> Result<usize> {
        let until_more = self.until_more.get_mut();
        *until_more -= 1;
        if *until_more == 0 { self.do_more() } else { Ok(0) }
    }

    /// What is not to be done on each empty poll; on each, if doorbells may wait for it.
    #[cold]
    #[inline(never)]
    fn do_more(&mut self) -> Result<usize> {
        if *self.rings_for_others.get_mut() {
            self.pass_on_doorbells();
            *self.until_more.get_mut() = 1;
            if !self.cadence.is_due() {
                return Ok(0);
            }
        }
        self.poll_device();
        self.device().forget_notifications();
        Ok(0)
    }

    #[cold]
    #[inline(never)]
    fn pass_on_doorbells(&mut self) {
        self.table.refresh(&self.shared);
        self.table.pass_on_doorbells();
    }
}

/// Takes a run of completions of one work queue.
#[inline(always)]
fn take_in_order<const RECEIVES: bool>(
    entry: Entry<'_>,
    account: &Account,
    row: &Row,
    out: &mut [Completion],
) -> usize {
    let (slot, posted) = account.in_order();
    let taken = entry.take_in_order::<RECEIVES>(row.first.of_slot(slot), row.qp, posted, out);
    account.retire_oldest(taken as u32);
    taken
}
