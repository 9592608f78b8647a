//! Taking memory away from several ranges at once: everything that stands on one file.
//!
//! What holds a file's layout in place can only be let go as a whole, so every range on the file,
//! in whatever address space, must be out of reach first.

use std::time::{Duration, Instant};

use crate::{AddressSpace, Covered, Error, IovaRange, Result, Retargeted, Scrap};

/// In which order chunks are fenced and covered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Order {
    /// Fence everything, say so, then cover everything: whoever waits for the memory waits for as
    /// few calls as possible. The chunk covered last has nothing behind it meanwhile.
    #[default]
    FenceFirst,
    /// Exchange one chunk after the other: each has nothing behind it for two calls only, and who
    /// waits for the memory waits for all of them.
    ChunkByChunk,
}

/// A range and what is to stand behind it.
#[derive(Debug, Clone, Copy)]
pub struct Target<'a> {
    /// The address space.
    pub space: &'a AddressSpace,
    /// The range, made up of whole chunks.
    pub range: IovaRange,
    /// Scrap of that address space and of the range's tenant.
    pub scrap: &'a Scrap,
}

/// Takes every target away from its memory and puts scrap behind it. `on_fence` is called once, as
/// soon as no DMA through any of them reaches the old memory, with the time that took: now whatever
/// held the memory in place may be let go. It is not called when this fails.
///
/// # Errors
/// [`Error::RetargetIncomplete`] when some chunk may still reach its memory: everything else was
/// taken away and covered. [`Error::NotMapped`], [`Error::Bisects`] and [`Error::ForeignScrap`] of
/// any target; all others were taken away and covered.
pub fn retarget_all<'a>(
    targets: impl IntoIterator<Item = Target<'a>, IntoIter: Clone>,
    order: Order,
    on_fence: impl FnOnce(Duration),
) -> Result<Retargeted> {
    let start = Instant::now();
    let mut done = Retargeted::default();
    let mut failed = None;
    let targets = targets.into_iter();
    for target in targets.clone() {
        let result = match order {
            Order::ChunkByChunk => target.space.retarget(target.range, target.scrap),
            Order::FenceFirst => target.fence(),
        };
        match result {
            Ok(one) => done.add(&one),
            Err(error) => failed = failed.or(Some(error)),
        }
    }
    done.fenced = start.elapsed();
    if failed.is_none() {
        on_fence(done.fenced);
    }
    if order == Order::FenceFirst {
        for target in targets {
            match target.space.cover(target.range, target.scrap) {
                Ok(Covered { holes, window, .. }) => {
                    done.holes += holes;
                    done.window = done.window.max(window);
                }
                Err(error) => failed = failed.or(Some(error)),
            }
        }
    }
    done.total = start.elapsed();
    failed.map_or(Ok(done), Err)
}

impl Target<'_> {
    fn fence(&self) -> Result<Retargeted, Error> {
        let fenced = self.space.fence(self.range)?;
        Ok(Retargeted { chunks: fenced.chunks, vanished: fenced.vanished, ..Default::default() })
    }
}

impl Retargeted {
    fn add(&mut self, other: &Self) {
        self.chunks += other.chunks;
        self.vanished += other.vanished;
        self.holes += other.holes;
        self.window = self.window.max(other.window);
    }
}
