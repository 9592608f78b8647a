//! What an application is told: which region, which part of it, what happened to it, and why.

use std::fmt;
use std::ops::Range;
use std::time::{Duration, Instant};

use holdfast_dax::notify::{Cause, NotifierKind};
use serde::Serialize;

/// Names a region in events, for as long as the process lives: numbers are not given out again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct RegionId(pub(crate) u64);

impl fmt::Display for RegionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// The stages of losing coherence with a file, and of finding it again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum EventKind {
    /// An operation that changes the layout waits; the range is about to go to scrap. Until
    /// [`EventKind::Broken`], what the device writes still reaches the file.
    Breaking,
    /// The range is on scrap: the device goes on without an error, and what it writes there is not
    /// in the file.
    Broken,
    /// The range is on the file again, at the same addresses and keys. What was written to it
    /// between [`EventKind::Broken`] and this is lost.
    Restored,
    /// The range will not come back by itself: the file has no block there any more (it ends
    /// before it, or has a hole there), or the file is gone.
    Lost,
}

impl EventKind {
    /// How many there are.
    pub(crate) const COUNT: usize = 4;

    /// Its name in tables and JSON.
    pub fn name(self) -> &'static str {
        match self {
            Self::Breaking => "breaking",
            Self::Broken => "broken",
            Self::Restored => "restored",
            Self::Lost => "lost",
        }
    }
}

impl fmt::Display for EventKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// Bytes of a region, from `start` up to `end`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
pub struct Part {
    /// First byte, from the region's start.
    pub start: u64,
    /// The byte after the last.
    pub end: u64,
}

impl Part {
    /// Bytes.
    pub fn len(self) -> u64 {
        self.end - self.start
    }

    /// Whether there are none.
    pub fn is_empty(self) -> bool {
        self.start >= self.end
    }

    /// The smallest part that holds both.
    pub(crate) fn hull(self, other: Self) -> Self {
        Self { start: self.start.min(other.start), end: self.end.max(other.end) }
    }

    /// What of a file's range lies in a region of `len` bytes that starts at `offset` of the file.
    pub(crate) fn of_file(range: &Range<u64>, offset: u64, len: u64) -> Option<Self> {
        let start = range.start.max(offset);
        let end = range.end.min(offset.saturating_add(len));
        (start < end).then(|| Self { start: start - offset, end: end - offset })
    }
}

impl From<Range<u64>> for Part {
    fn from(range: Range<u64>) -> Self {
        Self { start: range.start, end: range.end }
    }
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}..{:#x}", self.start, self.end)
    }
}

/// How long a break took.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Timing {
    /// From the notice to the moment from which no access reached the file's blocks.
    pub to_fence: Duration,
    /// From the notice until the waiting operation was let go.
    pub to_release: Duration,
    /// The longest time in which nothing stood behind some address: an access then found no
    /// translation.
    pub window: Duration,
}

/// One region's loss, or return, of coherence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Event {
    /// Which region ([`MemoryRegion::id`](crate::MemoryRegion::id)).
    pub region: RegionId,
    /// What happened to it.
    pub kind: EventKind,
    /// Which part of it.
    pub part: Part,
    /// The part that the operation itself names, where a notifier told: a hole that was punched is
    /// smaller than what goes to scrap for it.
    pub named: Option<Part>,
    /// Why.
    pub cause: Cause,
    /// Who told us first.
    pub notifier: NotifierKind,
    /// The process behind it, where a notifier told.
    pub pid: Option<i32>,
    /// When the notifier told ([`EventKind::Breaking`], [`EventKind::Broken`]) or when it was done.
    pub at: Instant,
    /// How long it took, for [`EventKind::Broken`].
    pub timing: Option<Timing>,
    /// How many earlier events of the same region and kind this one stands for as well, because
    /// nobody read them in time: `part` then holds all of theirs, and what lies between. So what a
    /// merged [`EventKind::Restored`] spans need not all be back.
    pub merged: u32,
}

impl Event {
    /// The event that stands for both; `later` came after `self`.
    pub(crate) fn merge(self, later: Self) -> Self {
        let same = self.cause == later.cause;
        Self {
            part: self.part.hull(later.part),
            named: match (self.named, later.named) {
                (Some(a), Some(b)) => Some(a.hull(b)),
                _ => None,
            },
            cause: if same { later.cause } else { Cause::Several },
            merged: self.merged.saturating_add(later.merged).saturating_add(1),
            ..later
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_files_range_is_clipped_to_the_region() {
        let part = |range: Range<u64>| Part::of_file(&range, 4096, 8192).map(|p| (p.start, p.end));
        assert_eq!(part(0..4096), None);
        assert_eq!(part(0..4097), Some((0, 1)));
        assert_eq!(part(8192..u64::MAX), Some((4096, 8192)));
        assert_eq!(part(5000..6000), Some((904, 1904)));
        assert_eq!(part(12288..20000), None);
    }
}
