//! The device's own rings: asynchronous events and completion notifications.
//!
//! The device writes both and the driver only reads; every index and entry is checked. Their
//! arithmetic mirrors the interface's for ring sizes that are not a power of two, though this
//! driver gives them sizes that are.

use std::marker::PhantomData;
use std::mem::offset_of;
use std::sync::Arc;

use holdfast_wire::PAGE_SIZE;
use holdfast_wire::event::{EventEntry, EventKind, NotifyEntry};
use holdfast_wire::ring::{QueueState, RingSize, RingState};
use zerocopy::FromBytes;

use crate::barrier;
use crate::dma::DmaBuffer;
use crate::error::{Error, Result};
use crate::shared_region::RingMemory;

/// Something happened that no completion reports.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Event {
    /// What.
    pub kind: EventKind,
    /// The handle of the object it is about (queue pair, completion queue, shared receive queue),
    /// or the port number.
    pub info: u32,
}

const TAIL: usize = offset_of!(QueueState, rx) + offset_of!(RingState, prod_tail);
const HEAD: usize = offset_of!(QueueState, rx) + offset_of!(RingState, cons_head);

/// Reads entries of type `E`.
pub(crate) struct DeviceRing<E> {
    memory: Arc<DmaBuffer>,
    size: RingSize,
    head: u32,
    name: &'static str,
    entry: PhantomData<E>,
}

impl<E: FromBytes> DeviceRing<E> {
    fn new(ring: &RingMemory, name: &'static str) -> Result<Self> {
        let size = RingSize::of_device_ring(ring.pages(), size_of::<E>())
            .ok_or(Error::Invalid("a device ring of that many pages"))?;
        Ok(Self { memory: ring.memory.clone(), size, head: 0, name, entry: PhantomData })
    }

    /// The next entry, if there is one.
    fn next(&mut self) -> Result<Option<E>> {
        let tail = barrier::observe(self.memory.atomic_u32(TAIL));
        if tail == self.head {
            return Ok(None);
        }
        if !self.size.is_valid(tail) || self.size.is_exact() && self.overrun(tail) {
            return Err(Error::nonsense(self.name, u64::from(tail)));
        }
        let slot = self.size.slot(self.head) as usize;
        let entry = self.memory.read(PAGE_SIZE + slot * size_of::<E>());
        self.head = self.size.next(self.head);
        barrier::publish(self.memory.atomic_u32(HEAD), self.head);
        Ok(Some(entry))
    }

    /// Drops whatever is queued.
    fn skip(&mut self) {
        let tail = barrier::observe(self.memory.atomic_u32(TAIL));
        if self.size.is_valid(tail) {
            self.head = tail;
            barrier::publish(self.memory.atomic_u32(HEAD), tail);
        }
    }

    fn overrun(&self, tail: u32) -> bool {
        self.size.queued(tail, self.head).is_none()
    }
}

/// Both rings.
pub(crate) struct EventRings {
    pub(crate) events: std::sync::Mutex<DeviceRing<EventEntry>>,
    pub(crate) notifications: std::sync::Mutex<DeviceRing<NotifyEntry>>,
}

impl EventRings {
    pub(crate) fn new(events: &RingMemory, notifications: &RingMemory) -> Result<Self> {
        let events = DeviceRing::new(events, "event ring index")?;
        let notifications = DeviceRing::new(notifications, "notification ring index")?;
        Ok(Self { events: events.into(), notifications: notifications.into() })
    }

    pub(crate) fn next_event(&self) -> Result<Option<Event>> {
        let mut ring = self.events.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let Some(EventEntry { kind, info }) = ring.next()? else { return Ok(None) };
        match EventKind::try_from(kind) {
            Ok(kind) => Ok(Some(Event { kind, info })),
            Err(kind) => Err(Error::nonsense("event type", u64::from(kind))),
        }
    }

    pub(crate) fn next_notification(&self) -> Result<Option<u32>> {
        let mut ring = self.notifications.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        Ok(ring.next()?.map(|entry| entry.cq))
    }

    pub(crate) fn skip_notifications(&self) {
        // Whoever holds the lock is draining the ring already.
        if let Ok(mut ring) = self.notifications.try_lock() {
            ring.skip();
        }
    }
}
