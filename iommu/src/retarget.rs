//! Taking memory away from a device that goes on running, and giving it back.
//!
//! A chunk is exchanged on its own, so the time in which an access to it fails is two calls to the
//! domain, however large the range is. Safety comes before continuity: when scrap cannot be mapped
//! in a chunk's place, the chunk stays a hole and the next one is taken. Only a chunk whose old
//! memory could not be taken away makes [`AddressSpace::retarget`] fail, and even then all others
//! are taken first.

use std::time::{Duration, Instant};

use crate::chunk::{Chunk, On};
use crate::scrap::Use;
use crate::space::State;
use crate::{
    AddressSpace, Backing, Error, IovaRange, Piece, Prot, ReplaceError, Replaced, Result, Scrap,
};

/// What a retarget did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Retargeted {
    /// Chunks taken away from their memory by this call.
    pub chunks: usize,
    /// Chunks of the range with nothing behind them now, because scrap could not be mapped.
    pub holes: usize,
    /// The longest time any one chunk had nothing behind it, holes aside.
    pub window: Duration,
    /// Time from the call until the last chunk was out of reach.
    pub total: Duration,
}

/// What a restore did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Restored {
    /// Chunks that stand on memory now.
    pub chunks: usize,
    /// The longest time any one chunk had nothing behind it.
    pub window: Duration,
}

impl AddressSpace {
    /// Takes `range` away from its memory and puts scrap behind it. When this returns without an
    /// error, no DMA through `range` reaches the old memory, and whatever held that memory in
    /// place may be let go. Chunks on scrap already stay there; holes are filled.
    ///
    /// Blocks for two calls to the domain per chunk. It touches no file and no memory but its own.
    ///
    /// # Errors
    /// [`Error::RetargetIncomplete`] when some chunk may still reach its memory: all others were
    /// taken away, and the call may be repeated. [`Error::NotMapped`], [`Error::Bisects`] and
    /// [`Error::ForeignScrap`] before anything was done.
    pub fn retarget(&self, range: IovaRange, scrap: &Scrap) -> Result<Retargeted> {
        self.check_scrap(scrap)?;
        let start = Instant::now();
        let mut state = self.lock();
        let tiles = state.tiles(range)?;
        let mut done = Retargeted::default();
        let mut failed: Vec<(IovaRange, Error)> = Vec::new();
        for tile in tiles {
            match self.chunk_to_scrap(&mut state, tile, scrap) {
                Ok(None) => {}
                Ok(Some(replaced)) => {
                    done.chunks += 1;
                    done.window = done.window.max(replaced.window);
                }
                Err(ReplaceError::Hole(error)) => {
                    tracing::warn!(chunk = %tile, %error, "no scrap behind a revoked chunk");
                    done.chunks += 1;
                    done.holes += 1;
                }
                Err(ReplaceError::StillMapped(error)) => failed.push((tile, error)),
            }
        }
        done.total = start.elapsed();
        let count = failed.len();
        match failed.into_iter().next() {
            None => Ok(done),
            Some((first, error)) => {
                Err(Error::RetargetIncomplete { range, count, first, source: Box::new(error) })
            }
        }
    }

    /// Puts memory behind `range` again, in the chunks it was mapped with. The pieces, end to end,
    /// must be as long as the range, and no chunk may need two of them.
    ///
    /// # Errors
    /// [`Error::RestoreIncomplete`]: chunks before the named one stand on memory, that one and
    /// those after it on scrap (or on nothing). [`Error::Usage`], [`Error::NotMapped`] and
    /// [`Error::Bisects`] before anything was done.
    pub fn restore(&self, range: IovaRange, pieces: &[Piece<'_>]) -> Result<Restored> {
        if self.check_pieces(pieces, None)? != range.len() {
            return Err(Error::usage(format!("the memory given is not as long as {range}")));
        }
        let mut state = self.lock();
        let tiles = state.tiles(range)?;
        let backings = tiles
            .iter()
            .map(|tile| backing_for(range, *tile, pieces))
            .collect::<Result<Vec<_>>>()?;
        let mut done = Restored::default();
        for (tile, backing) in tiles.into_iter().zip(backings) {
            let replaced = self.chunk_to_memory(&mut state, tile, &backing).map_err(|source| {
                Error::RestoreIncomplete { chunk: tile, source: Box::new(source) }
            })?;
            done.chunks += 1;
            done.window = done.window.max(replaced.window);
        }
        Ok(done)
    }

    /// `None` when the chunk stands on scrap already.
    fn chunk_to_scrap(
        &self,
        state: &mut State,
        tile: IovaRange,
        scrap: &Scrap,
    ) -> Result<Option<Replaced>, ReplaceError> {
        let Some((_, &Chunk { prot, ref on, .. })) = state.chunks.get(tile.start()) else {
            return Ok(None);
        };
        let lent = match on {
            On::Scrap(_) => return Ok(None),
            On::Memory if scrap.len() >= tile.len() => {
                let lent = scrap.lend();
                let result = self.domain.replace(tile, &lent.memory().backing(), prot);
                return state.settle(tile, result, On::Scrap(lent)).map(Some);
            }
            On::Memory | On::Nothing => scrap.lend(),
        };
        let start = Instant::now();
        self.unmap_chunk(state, tile).map_err(ReplaceError::StillMapped)?;
        state.set(tile, On::Nothing);
        self.fill_with_scrap(state, tile, prot, lent).map_err(ReplaceError::Hole)?;
        Ok(Some(Replaced { window: start.elapsed() }))
    }

    fn chunk_to_memory(
        &self,
        state: &mut State,
        tile: IovaRange,
        backing: &Backing<'_>,
    ) -> Result<Replaced> {
        let Some((_, chunk)) = state.chunks.get(tile.start()) else {
            return Err(Error::NotMapped { range: tile, at: tile.start() });
        };
        let prot = chunk.prot;
        let start = Instant::now();
        if chunk.mappings(tile.len()) == 1 {
            let old = match self.domain.replace(tile, backing, prot) {
                Ok(replaced) => {
                    state.set(tile, On::Memory);
                    return Ok(replaced);
                }
                Err(ReplaceError::StillMapped(error)) => return Err(error),
                Err(ReplaceError::Hole(error)) => (state.set(tile, On::Nothing), error),
            };
            return Err(self.back_to_scrap(state, tile, prot, old));
        }
        self.unmap_chunk(state, tile)?;
        let old = state.set(tile, On::Nothing);
        let mapped =
            state.check_room(&self.limits, 1).and_then(|()| self.domain.map(tile, backing, prot));
        match mapped {
            Ok(()) => {
                state.set(tile, On::Memory);
                Ok(Replaced { window: start.elapsed() })
            }
            Err(error) => Err(self.back_to_scrap(state, tile, prot, (old, error))),
        }
    }

    /// After a failed restore: scrap again, if the chunk was on scrap. Gives the failure's cause.
    fn back_to_scrap(
        &self,
        state: &mut State,
        tile: IovaRange,
        prot: Prot,
        (old, error): (Option<On>, Error),
    ) -> Error {
        if let Some(On::Scrap(lent)) = old
            && let Err(again) = self.fill_with_scrap(state, tile, prot, lent)
        {
            tracing::warn!(chunk = %tile, error = %again, "no scrap behind a chunk");
        }
        error
    }

    /// Covers a chunk that has nothing behind it with scrap, as many times as it takes.
    fn fill_with_scrap(
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
    /// Records what a chunk stands on, keeps the count of mappings, and gives what it stood on.
    fn set(&mut self, tile: IovaRange, on: On) -> Option<On> {
        let chunk = self.chunks.get_mut(tile)?;
        let before = chunk.mappings(tile.len());
        let old = std::mem::replace(&mut chunk.on, on);
        let after = chunk.mappings(tile.len());
        self.mappings = self.mappings - before + after;
        Some(old)
    }

    /// Records what an exchange left behind a chunk.
    fn settle(
        &mut self,
        tile: IovaRange,
        result: Result<Replaced, ReplaceError>,
        on: On,
    ) -> Result<Replaced, ReplaceError> {
        match &result {
            Ok(_) => drop(self.set(tile, on)),
            Err(ReplaceError::Hole(_)) => drop(self.set(tile, On::Nothing)),
            Err(ReplaceError::StillMapped(_)) => {}
        }
        result
    }
}

/// The part of `pieces`, laid end to end over `range`, that lies over `tile`.
fn backing_for<'a>(range: IovaRange, tile: IovaRange, pieces: &[Piece<'a>]) -> Result<Backing<'a>> {
    let mut at = range.start();
    for piece in pieces {
        let end = at + piece.len;
        if tile.start() < end {
            if tile.end() > end {
                return Err(Error::usage(format!(
                    "the memory given breaks at {end:#x}, inside the chunk {tile}"
                )));
            }
            return piece.backing.advance(tile.start() - at);
        }
        at = end;
    }
    Err(Error::usage(format!("no memory was given for {tile}")))
}
