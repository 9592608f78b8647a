//! Giving memory back to a range, in the chunks it was mapped with.

use std::time::{Duration, Instant};

use crate::books::State;
use crate::chunk::On;
use crate::{AddressSpace, Backing, Error, IovaRange, Piece, Prot, ReplaceError, Replaced, Result};

/// What a restore did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Restored {
    /// Chunks that stand on memory now.
    pub chunks: usize,
    /// The longest time any one chunk had nothing behind it.
    pub window: Duration,
}

impl AddressSpace {
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
                Err(ReplaceError::Hole(error)) => (state.set(tile, On::Nothing(start)), error),
            };
            return Err(self.back_to_scrap(state, tile, prot, old));
        }
        let found = self.unmap_chunk(state, tile)?;
        let old = state.set(tile, On::Nothing(start));
        let mapped =
            state.check_room(&self.limits, 1).and_then(|()| self.domain.map(tile, backing, prot));
        match mapped {
            Ok(()) => {
                state.set(tile, On::Memory);
                Ok(Replaced { window: start.elapsed(), found })
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
