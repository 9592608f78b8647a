//! A range of I/O virtual addresses: never empty, never past the end of the address space.

use std::fmt;

/// `len` bytes of I/O virtual address space from `start`. Its end fits in 64 bits, so the very
/// last byte of the address space belongs to no range.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct IovaRange {
    start: u64,
    len: u64,
}

impl IovaRange {
    /// `len` bytes from `start`; `None` when that is empty or wraps.
    pub fn new(start: u64, len: u64) -> Option<Self> {
        (len > 0 && start.checked_add(len).is_some()).then_some(Self { start, len })
    }

    /// From `start` up to and without `end`; `None` when that is empty.
    pub fn between(start: u64, end: u64) -> Option<Self> {
        (end > start).then(|| Self { start, len: end - start })
    }

    /// First address.
    pub fn start(&self) -> u64 {
        self.start
    }

    /// Bytes; never 0.
    #[expect(clippy::len_without_is_empty, reason = "a range is never empty")]
    pub fn len(&self) -> u64 {
        self.len
    }

    /// First address after the range.
    pub fn end(&self) -> u64 {
        self.start + self.len
    }

    /// Whether `address` lies inside.
    pub fn contains(&self, address: u64) -> bool {
        address >= self.start && address < self.end()
    }

    /// Whether all of `other` lies inside.
    pub fn covers(&self, other: &Self) -> bool {
        other.start >= self.start && other.end() <= self.end()
    }

    /// Whether the two share an address.
    pub fn overlaps(&self, other: &Self) -> bool {
        self.start < other.end() && other.start < self.end()
    }

    /// The range cut into pieces of at most `step` bytes, in order.
    ///
    /// # Panics
    /// When `step` is 0.
    pub fn steps(&self, step: u64) -> impl ExactSizeIterator<Item = IovaRange> + use<> {
        assert!(step > 0, "a range cannot be cut into steps of no bytes");
        let whole = *self;
        let count = usize::try_from(whole.len.div_ceil(step)).unwrap_or(usize::MAX);
        (0..count).map(move |i| {
            let offset = i as u64 * step;
            Self { start: whole.start + offset, len: step.min(whole.len - offset) }
        })
    }
}

impl fmt::Display for IovaRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "[{:#x}, {:#x})", self.start, self.end())
    }
}

impl fmt::Debug for IovaRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
