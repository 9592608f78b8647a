//! Taking memory away from a device that goes on running.
//!
//! There are two orders to do it in, and the caller knows which one matters.
//! [`AddressSpace::retarget`] exchanges chunk by chunk: an access fails for the time of two calls
//! to the domain, however large the range is, but the last chunk is out of reach only at the end.
//! [`AddressSpace::fence`] takes everything away first, in one call where the domain can, so that
//! whoever waits for the memory waits shortly; [`AddressSpace::cover`] then puts scrap into the
//! holes, the last of which has been one for the whole time.
//!
//! Safety comes before continuity: when scrap cannot be mapped in a chunk's place, the chunk stays
//! a hole and the next one is taken. Only a chunk whose old memory could not be taken away makes a
//! call fail, and even then all others are taken first. A chunk whose mapping somebody else took
//! away before (a keeper that gave up on this process) is out of reach like the others, and is
//! counted apart, because its device has met faults.

use std::time::{Duration, Instant};

use crate::books::State;
use crate::chunk::On;
use crate::scrap::Use;
use crate::{
    AddressSpace, Error, IovaRange, Prot, ReplaceError, Replaced, Result, Scrap, Unmapped,
};

/// What a retarget did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Retargeted {
    /// Chunks taken away from their memory by this call.
    pub chunks: usize,
    /// Those of them that somebody else had taken away before. (Of a run that was unmapped by one
    /// call and was not whole, all count: which of them were there, the call does not tell.)
    pub vanished: usize,
    /// Chunks of the range with nothing behind them now, because scrap could not be mapped.
    pub holes: usize,
    /// The longest time any one chunk had nothing behind it, holes aside.
    pub window: Duration,
    /// Time from the call until the last chunk was out of reach.
    pub fenced: Duration,
    /// Time of the whole call.
    pub total: Duration,
}

/// What a fence did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Fenced {
    /// Chunks taken away from their memory by this call. They have nothing behind them now.
    pub chunks: usize,
    /// Those of them that somebody else had taken away before. (Of a run that was unmapped by one
    /// call and was not whole, all count: which of them were there, the call does not tell.)
    pub vanished: usize,
    /// Time of the call: at its end, the last chunk was out of reach.
    pub total: Duration,
}

/// What a cover did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Covered {
    /// Holes that have scrap behind them now.
    pub chunks: usize,
    /// Holes that stay, because scrap could not be mapped.
    pub holes: usize,
    /// The longest time any chunk covered by this call had nothing behind it, since its fence.
    pub window: Duration,
    /// Time of the call.
    pub total: Duration,
}

/// The chunks that may still reach their memory.
#[derive(Debug, Default)]
struct Failed {
    count: usize,
    first: Option<(IovaRange, Error)>,
}

impl AddressSpace {
    /// Takes `range` away from its memory and puts scrap behind it, chunk by chunk. When this
    /// returns without an error, no DMA through `range` reaches the old memory, and whatever held
    /// that memory in place may be let go. Chunks on scrap already stay there; holes are filled.
    /// Permits for any of it end.
    ///
    /// Blocks for two calls to the domain per chunk. It touches no file and no memory but its own.
    ///
    /// # Errors
    /// [`Error::RetargetIncomplete`] when some chunk may still reach its memory: all others were
    /// taken away, and the call may be repeated. [`Error::NotMapped`], [`Error::Bisects`] and
    /// [`Error::ForeignScrap`] before anything was done.
    pub fn retarget(&self, range: IovaRange, scrap: &Scrap) -> Result<Retargeted> {
        let start = Instant::now();
        let mut state = self.lock_at_once();
        self.check_scrap(&state, range, scrap)?;
        let tiles = state.take_tiles(range)?;
        state.permits.revoke(range);
        let mut done = Retargeted::default();
        let mut failed = Failed::default();
        for &tile in &tiles {
            match self.chunk_to_scrap(&mut state, tile, scrap) {
                Ok(None) => {}
                Ok(Some(replaced)) => {
                    done.chunks += 1;
                    done.vanished += usize::from(replaced.found == Unmapped::Nothing);
                    done.window = done.window.max(replaced.window);
                }
                Err(ReplaceError::Hole(error)) => {
                    tracing::warn!(chunk = %tile, %error, "no scrap behind a revoked chunk");
                    done.chunks += 1;
                    done.holes += 1;
                }
                Err(ReplaceError::StillMapped(error)) => failed.add(tile, error),
            }
        }
        state.put_away(tiles);
        done.total = start.elapsed();
        done.fenced = done.total;
        failed.or(range, done)
    }

    /// Takes `range` away from its memory, in as few calls to the domain as possible, and leaves
    /// holes: until [`AddressSpace::cover`] has filled them, accesses fail. When this returns
    /// without an error, no DMA through `range` reaches the old memory, and whatever held that
    /// memory in place may be let go. Chunks on scrap stay there. Permits for any of it end.
    ///
    /// Blocks for one call to the domain per run of chunks on memory where an unmap may take
    /// several mappings, for one per chunk where it may not.
    ///
    /// # Errors
    /// As for [`AddressSpace::retarget`].
    pub fn fence(&self, range: IovaRange) -> Result<Fenced> {
        let start = Instant::now();
        let mut state = self.lock_at_once();
        let mut tiles = state.take_tiles(range)?;
        state.permits.revoke(range);
        tiles.retain(|tile| state.is_on_memory(*tile));
        let mut done = Fenced::default();
        let mut failed = Failed::default();
        self.unmap_runs(&mut state, &tiles, |state, tile, result| match result {
            Ok(found) => {
                // The hole opened somewhere inside the call: counting from its start overstates it.
                state.set(tile, On::Nothing(start));
                done.chunks += 1;
                done.vanished += usize::from(found == Unmapped::Nothing);
            }
            Err(error) => failed.add(tile, error),
        });
        state.put_away(tiles);
        done.total = start.elapsed();
        failed.or(range, done)
    }

    /// Puts scrap behind whatever chunks of `range` have nothing behind them. Where that fails, a
    /// hole stays, and the next one is taken.
    ///
    /// Blocks for one call to the domain per hole (more, where the scrap is shorter than the
    /// chunk); the lock is given up between them.
    ///
    /// # Errors
    /// [`Error::ForeignScrap`], and nothing done.
    pub fn cover(&self, range: IovaRange, scrap: &Scrap) -> Result<Covered> {
        let start = Instant::now();
        self.check_scrap(&self.lock(), range, scrap)?;
        let mut done = Covered::default();
        let mut rest = Some(range);
        while let Some(at) = rest {
            let mut state = self.lock();
            // Looked up anew each time: another thread may have given the addresses away.
            let Some((tile, chunk)) = state.chunks.overlapping(at).next() else { break };
            rest = IovaRange::between(tile.end(), range.end());
            let (On::Nothing(since), prot) = (&chunk.on, chunk.prot) else { continue };
            if !range.covers(&tile) || chunk.tenant != scrap.tenant() {
                continue;
            }
            let since = *since;
            match self.fill_with_scrap(&mut state, tile, prot, scrap.lend()) {
                Ok(()) => {
                    done.chunks += 1;
                    done.window = done.window.max(since.elapsed());
                }
                Err(error) => {
                    tracing::warn!(chunk = %tile, %error, "no scrap behind a revoked chunk");
                    done.holes += 1;
                }
            }
        }
        done.total = start.elapsed();
        Ok(done)
    }

    /// Whether `scrap` may stand behind every chunk that shares an address with `range`.
    pub(crate) fn check_scrap(&self, state: &State, range: IovaRange, scrap: &Scrap) -> Result<()> {
        let mut chunks = state.chunks.overlapping(range);
        let fits =
            scrap.space == self.id && chunks.all(|(_, chunk)| chunk.tenant == scrap.tenant());
        if fits { Ok(()) } else { Err(Error::ForeignScrap) }
    }

    /// `None` when the chunk stands on scrap already.
    fn chunk_to_scrap(
        &self,
        state: &mut State,
        tile: IovaRange,
        scrap: &Scrap,
    ) -> Result<Option<Replaced>, ReplaceError> {
        let Some((_, chunk)) = state.chunks.get(tile.start()) else { return Ok(None) };
        let prot = chunk.prot;
        let start = Instant::now();
        let lent = match chunk.on {
            On::Scrap(_) => return Ok(None),
            On::Memory if scrap.len() >= tile.len() => {
                let lent = scrap.lend();
                let result = self.domain.replace(tile, &lent.memory().backing(), prot);
                match &result {
                    Ok(_) => drop(state.set(tile, On::Scrap(lent))),
                    Err(ReplaceError::Hole(_)) => drop(state.set(tile, On::Nothing(start))),
                    Err(ReplaceError::StillMapped(_)) => {}
                }
                return result.map(Some);
            }
            On::Memory | On::Nothing(_) => scrap.lend(),
        };
        let found = self.unmap_chunk(state, tile).map_err(ReplaceError::StillMapped)?;
        if state.is_on_memory(tile) {
            state.set(tile, On::Nothing(start));
        }
        self.fill_with_scrap(state, tile, prot, lent).map_err(ReplaceError::Hole)?;
        Ok(Some(Replaced { window: start.elapsed(), found }))
    }

    /// Covers a chunk that has nothing behind it with scrap, as many times as it takes.
    pub(crate) fn fill_with_scrap(
        &self,
        state: &mut State,
        tile: IovaRange,
        prot: Prot,
        lent: Use,
    ) -> Result<()> {
        let step = lent.memory().len().min(tile.len());
        state.check_room(&self.limits, tile.len().div_ceil(step))?;
        let backing = lent.memory().backing();
        for part in tile.steps(step) {
            let Err(error) = self.domain.map(part, &backing, prot) else { continue };
            let done = IovaRange::between(tile.start(), part.start());
            let undone = done.is_none_or(|done| {
                done.steps(step).all(|part| self.domain.unmap_exact(part).is_ok())
            });
            if !undone {
                // Some of the scrap stays mapped: the chunk keeps it alive, and its unmap will
                // report that the bytes do not add up.
                tracing::error!(chunk = %tile, "scrap stays behind part of a chunk");
                state.set(tile, On::Scrap(lent));
            }
            return Err(error);
        }
        state.set(tile, On::Scrap(lent));
        Ok(())
    }
}

impl State {
    pub(crate) fn is_on_memory(&self, tile: IovaRange) -> bool {
        self.chunks.get(tile.start()).is_some_and(|(_, chunk)| matches!(chunk.on, On::Memory))
    }
}

impl Failed {
    fn add(&mut self, tile: IovaRange, error: Error) {
        self.count += 1;
        self.first.get_or_insert((tile, error));
    }

    fn or<T>(self, range: IovaRange, done: T) -> Result<T> {
        let count = self.count;
        self.first.map_or(Ok(done), |(first, error)| {
            Err(Error::RetargetIncomplete { range, count, first, source: Box::new(error) })
        })
    }
}
