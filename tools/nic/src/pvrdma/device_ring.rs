//! The device's own rings: asynchronous events and completion notifications.
//!
//! Their slot count need not be a power of two (Linux gives three data pages to each), and the
//! index arithmetic of `holdfast_wire::ring` is then used as it is, as both other sides do. With it
//! an index never has the bits above the size's lowest one but one, so such a ring has fewer slots
//! than fit its pages (1024 notifications of 3072), and "full" has to be told by counting.

use holdfast_wire::ring::RingSize;
use zerocopy::{Immutable, IntoBytes};

use super::pages::QueuePages;
use crate::memory::Reader;

const TAIL: usize = 8;
const HEAD: usize = 12;

/// One of the device's rings, seen from its producer.
#[derive(Debug)]
pub struct DeviceRing {
    tail: u32,
    size: RingSize,
    pages: QueuePages,
}

impl DeviceRing {
    /// A ring in `pages` (state page first) of entries of `entry` bytes; `None` when the number of
    /// pages is not possible.
    pub fn new(mut pages: QueuePages, entry: usize, reader: &mut Reader) -> Option<Self> {
        let size = RingSize::of_device_ring(u32::try_from(pages.len()).ok()?, entry)?;
        let state = pages.page(reader, 0).ok()?;
        let tail = state.load_u32(TAIL).ok().filter(|&tail| size.is_valid(tail)).unwrap_or(0);
        Some(Self { tail, size, pages })
    }

    /// Appends an entry. False when the ring is full or out of reach now.
    pub fn push<T: IntoBytes + Immutable>(&mut self, reader: &mut Reader, entry: &T) -> bool {
        self.try_push(reader, entry).is_some()
    }

    /// Slots that are really used: an index runs modulo twice this, whatever else the size says.
    fn capacity(&self) -> u32 {
        1 << self.size.slots().trailing_zeros()
    }

    fn is_full(&self, head: u32) -> bool {
        let capacity = self.capacity();
        self.tail.wrapping_sub(head) & (2 * capacity - 1) >= capacity
    }

    fn try_push<T: IntoBytes + Immutable>(&mut self, reader: &mut Reader, entry: &T) -> Option<()> {
        let state = self.pages.page(reader, 0).ok()?;
        let head = state.load_u32(HEAD).ok()?;
        if self.is_full(head) {
            return None;
        }
        let slot = self.size.slot(self.tail);
        self.pages.slot(reader, 1, size_of::<T>(), slot).ok()?.write_at(0, entry).ok()?;
        let tail = self.size.next(self.tail);
        state.store_u32(TAIL, tail).ok()?;
        self.tail = tail;
        Some(())
    }
}
