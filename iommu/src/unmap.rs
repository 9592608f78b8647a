//! Taking chunks away from a domain: in as few calls as it allows, and so that of each it is known
//! whether it went.

use crate::books::State;
use crate::chunk::{Chunk, On};
use crate::{AddressSpace, Error, IovaRange, Result, Unmapped};

impl AddressSpace {
    /// Unmaps whole chunks, runs of them at once where the domain can, and frees their addresses.
    pub(crate) fn unmap_tiles(&self, state: &mut State, tiles: &[IovaRange]) -> Result<()> {
        if let (Some(first), Some(last)) = (tiles.first(), tiles.last())
            && let Some(range) = IovaRange::between(first.start(), last.end())
        {
            state.permits.revoke(range);
        }
        let mut failed = None;
        self.unmap_runs(state, tiles, |state, tile, result| match result {
            Ok(_) => {
                if let Some(chunk) = state.chunks.remove(tile) {
                    state.mappings -= chunk.mappings(tile.len());
                }
                state.free.release(tile);
            }
            Err(error) => failed = failed.take().or(Some(error)),
        });
        failed.map_or(Ok(()), Err)
    }

    /// Takes everything away from behind chunks in the domain, not in the books, runs of them at
    /// once where it can, and says of each how that went.
    pub(crate) fn unmap_runs(
        &self,
        state: &mut State,
        tiles: &[IovaRange],
        mut each: impl FnMut(&mut State, IovaRange, Result<Unmapped>),
    ) {
        let mut rest = tiles;
        while !rest.is_empty() {
            let (run, after) = rest.split_at(self.run(state, rest));
            rest = after;
            if let [first, .., last] = run
                && let Some(range) = IovaRange::between(first.start(), last.end())
                && let Ok(Unmapped::All) = self.domain.unmap_exact(range)
            {
                run.iter().for_each(|tile| each(state, *tile, Ok(Unmapped::All)));
                continue;
            }
            // One chunk, or an answer that leaves a question.
            for tile in run {
                let answer = self.unmap_chunk(state, *tile);
                each(state, *tile, answer);
            }
        }
    }

    /// How many chunks at the start of a list one call to the domain can unmap.
    fn run(&self, state: &State, tiles: &[IovaRange]) -> usize {
        let mapped = |tile: &IovaRange| {
            let chunk = state.chunks.get(tile.start());
            chunk.is_some_and(|(_, chunk)| !matches!(chunk.on, On::Nothing(_)))
        };
        let joins = |a: &IovaRange, b: &IovaRange| {
            self.limits.unmap_spans && a.end() == b.start() && mapped(a) && mapped(b)
        };
        tiles.chunk_by(joins).next().map_or(0, <[_]>::len)
    }

    /// Takes everything away from behind one chunk in the domain, not in the books.
    pub(crate) fn unmap_chunk(&self, state: &State, tile: IovaRange) -> Result<Unmapped> {
        let Some((_, chunk)) = state.chunks.get(tile.start()) else { return Ok(Unmapped::All) };
        let several = match chunk.on {
            On::Nothing(_) => return Ok(Unmapped::All),
            On::Memory | On::Scrap(_) => chunk.mappings(tile.len()) > 1,
        };
        if self.limits.unmap_spans || !several {
            match self.domain.unmap_exact(tile) {
                // Some of the mappings may have been gone before.
                Err(Error::PartialUnmap { .. }) if several => {}
                answer => return answer,
            }
        }
        let mut found = Unmapped::Nothing;
        let mut gone = Vec::new();
        for step in tile.steps(chunk.step(tile.len())) {
            match self.domain.unmap_exact(step) {
                Ok(Unmapped::All) => {
                    found = Unmapped::All;
                    gone.push(step);
                }
                Ok(Unmapped::Nothing) => gone.push(step),
                Err(error) => {
                    self.put_back(chunk, &gone);
                    return Err(error);
                }
            }
        }
        Ok(found)
    }

    /// Scrap again behind those parts of a chunk that went before one that would not go, so that
    /// the chunk is whole, as the books say.
    fn put_back(&self, chunk: &Chunk, parts: &[IovaRange]) {
        let On::Scrap(scrap) = &chunk.on else { return };
        for part in parts {
            if let Err(error) = self.domain.map(*part, &scrap.memory().backing(), chunk.prot) {
                tracing::error!(%part, %error, "a part of a chunk on scrap has nothing behind it");
            }
        }
    }
}
