//! A permit: the right to put memory behind a range, until somebody takes the range away.
//!
//! Between the moment a program looks at where a file's blocks are and the moment it maps them, the
//! file may be taken away again by another thread. A permit that was got *before* looking makes
//! that visible where it matters, under the lock of the books: whatever takes the range away
//! ([`AddressSpace::retarget`], [`AddressSpace::fence`], an unmap) ends the permit, and
//! [`AddressSpace::retile`] maps nothing under a permit that has ended.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};

use crate::{AddressSpace, IovaRange, Result};

/// The right to put memory behind a range; made by [`AddressSpace::permit`].
#[derive(Debug)]
pub struct Permit {
    range: IovaRange,
    pub(crate) space: u64,
    ended: Arc<AtomicBool>,
}

/// The permits that are in force.
#[derive(Debug, Default)]
pub(crate) struct Permits(Vec<(IovaRange, Weak<AtomicBool>)>);

impl Permit {
    /// What it is for.
    pub fn range(&self) -> IovaRange {
        self.range
    }

    /// Whether the range has been taken away since. Once true, always true.
    pub fn has_ended(&self) -> bool {
        self.ended.load(Ordering::Acquire)
    }
}

impl Permits {
    /// Ends all permits that share an address with `range`.
    pub(crate) fn revoke(&mut self, range: IovaRange) {
        self.0.retain(|(permitted, ended)| match ended.upgrade() {
            Some(ended) if permitted.overlaps(&range) => {
                ended.store(true, Ordering::Release);
                false
            }
            Some(_) => true,
            None => false,
        });
    }
}

impl AddressSpace {
    /// Asks for the right to lay out `range` anew. Get it before you look at what is to be mapped;
    /// it ends when the range, or part of it, is taken away.
    ///
    /// # Errors
    /// [`Error::NotMapped`](crate::Error::NotMapped) and [`Error::Bisects`](crate::Error::Bisects)
    /// when the range is not made up of whole chunks.
    pub fn permit(&self, range: IovaRange) -> Result<Permit> {
        let mut state = self.lock();
        state.tiles(range)?;
        let ended = Arc::new(AtomicBool::new(false));
        state.permits.0.retain(|(_, ended)| ended.strong_count() > 0);
        state.permits.0.push((range, Arc::downgrade(&ended)));
        Ok(Permit { range, space: self.id, ended })
    }
}
