//! Laying out a range anew: the same addresses, other memory, cut elsewhere.
//!
//! After a file's layout changed, the blocks behind a range are other ones, in other extents, and
//! some may be missing. The chunks the range had, all of them on scrap by now, make way for new
//! ones. Addresses, owner and permissions stay.
//!
//! A mapping can be neither cut nor grown, so old chunks have to go before new ones can come. Where
//! an old and a new boundary coincide, the work can be split: between two such places lies a
//! *group*, and only one group at a time has nothing behind it.

use std::time::{Duration, Instant};

use crate::books::State;
use crate::chunk::{Chunk, On};
use crate::permit::Permit;
use crate::{AddressSpace, Backing, Error, IovaRange, Piece, Result, Scrap};

/// What a stretch of a range is to stand on.
#[derive(Debug, Clone, Copy)]
pub enum Part<'a> {
    /// Memory.
    Memory(Piece<'a>),
    /// Scrap: there is no memory for it.
    Scrap {
        /// Bytes.
        len: u64,
    },
}

/// What a new layout brought.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Retiled {
    /// Chunks of the range on memory now.
    pub memory: usize,
    /// Chunks of the range on scrap now.
    pub scrap: usize,
    /// Chunks of the range with nothing behind them now, because scrap could not be mapped.
    pub holes: usize,
    /// The longest time any address of the range had nothing behind it during this call.
    pub window: Duration,
    /// Time of the whole call.
    pub total: Duration,
}

/// A chunk as it is to be.
#[derive(Debug, Clone, Copy)]
struct Tile<'a> {
    range: IovaRange,
    /// `None`: scrap.
    backing: Option<Backing<'a>>,
}

impl AddressSpace {
    /// Lays out the permit's range anew: the parts, end to end, must be as long as it, and each
    /// becomes a chunk, or chunks of at most `granule` bytes. All of the range must stand on scrap
    /// or on nothing. Addresses, owner, tenant and permissions stay. Chunks on scrap where scrap
    /// is wanted are left as they are.
    ///
    /// Blocks for two calls to the domain per chunk. The lock is given up between groups of chunks
    /// that share no boundary with what was there before, so a retarget waits for one group.
    ///
    /// # Errors
    /// [`Error::RetileIncomplete`]: chunks before the named one are as they were to be; all others
    /// are on scrap, or holes where even that failed. Its cause is [`Error::Superseded`] when the
    /// permit ended: nothing was mapped after that. [`Error::OnMemory`], [`Error::ForeignScrap`],
    /// [`Error::NotMapped`], [`Error::Superseded`] and [`Error::Usage`] before anything was done.
    pub fn retile(
        &self,
        permit: &Permit,
        parts: &[Part<'_>],
        granule: Option<u64>,
        scrap: &Scrap,
    ) -> Result<Retiled> {
        let start = Instant::now();
        let range = permit.range();
        if permit.space != self.id {
            return Err(Error::usage("a permit is good for its own address space only"));
        }
        let new = self.new_tiles(range, parts, granule)?;
        let old = {
            let state = self.lock();
            if permit.has_ended() {
                return Err(Error::Superseded { range });
            }
            let old = state.tiles(range)?;
            self.check_scrap(&state, range, scrap)?;
            state.check_replaceable(&old)?;
            old
        };
        let mut done = Retiled::default();
        let ends: Vec<u64> = old.iter().map(IovaRange::end).collect();
        let mut rest = &new[..];
        while let Some(group) = take_group(&mut rest, &ends) {
            if let Err((chunk, source)) = self.retile_group(permit, group, scrap, &mut done) {
                let holes = self.holes(range);
                let source = Box::new(source);
                return Err(Error::RetileIncomplete { range, chunk, holes, source });
            }
        }
        done.total = start.elapsed();
        Ok(done)
    }

    /// Exchanges the chunks behind one group. On an error, what is not on memory is on scrap again.
    fn retile_group(
        &self,
        permit: &Permit,
        group: &[Tile<'_>],
        scrap: &Scrap,
        done: &mut Retiled,
    ) -> Result<(), (IovaRange, Error)> {
        let (Some(first), Some(last)) = (group.first(), group.last()) else { return Ok(()) };
        let range = IovaRange::between(first.range.start(), last.range.end());
        let range = range.unwrap_or(first.range);
        let fail = |error| (first.range, error);

        let mut state = self.lock();
        if permit.has_ended() {
            return Err(fail(Error::Superseded { range: permit.range() }));
        }
        let old = state.tiles(range).map_err(fail)?;
        state.check_replaceable(&old).map_err(fail)?;
        if group.iter().all(|tile| tile.backing.is_none()) {
            self.fill_holes(&mut state, &old, scrap, done);
            return Ok(());
        }

        let start = Instant::now();
        let Some((owner, prot, tenant)) = state
            .chunks
            .get(range.start())
            .map(|(_, chunk)| (chunk.owner, chunk.prot, chunk.tenant))
        else {
            return Ok(());
        };
        // Scrap that nobody uses any more is zeroed, which must not happen in the window.
        let mut kept = Vec::with_capacity(old.len());
        let mut stuck = None;
        self.unmap_runs(&mut state, &old, |state, tile, result| match result {
            Ok(_) => kept.extend(state.set(tile, On::Nothing(start))),
            Err(error) => stuck = stuck.take().or(Some(error)),
        });
        if let Some(error) = stuck {
            // The chunk that could not be unmapped stands on scrap still: back to where we were.
            self.fill_holes(&mut state, &old, scrap, &mut Retiled::default());
            return Err(fail(error));
        }
        for tile in &old {
            state.chunks.remove(*tile);
        }

        let mut failed = None;
        for tile in group {
            let mut on = On::Nothing(start);
            if let (Some(backing), None) = (&tile.backing, &failed) {
                let mapped = state
                    .check_room(&self.limits, 1)
                    .and_then(|()| self.domain.map(tile.range, backing, prot));
                match mapped {
                    Ok(()) => on = On::Memory,
                    Err(error) => failed = Some((tile.range, error)),
                }
            }
            let on_memory = matches!(on, On::Memory);
            let chunk = Chunk { owner, prot, tenant, on };
            if let Err(existing) = state.add(tile.range, chunk) {
                // Cannot be: the group is made of the very addresses that were just removed.
                let error = Error::Overlap { range: tile.range, existing };
                failed = failed.or(Some((tile.range, error)));
                continue;
            }
            if on_memory {
                state.mappings += 1;
                done.memory += 1;
            } else {
                self.fill_holes(&mut state, &[tile.range], scrap, done);
            }
        }
        done.window = done.window.max(start.elapsed());
        // Still under the lock, as everything that makes or drops a use of scrap.
        drop(kept);
        drop(state);
        failed.map_or(Ok(()), Err)
    }

    /// Puts scrap behind those of the chunks that have nothing behind them, and counts all.
    fn fill_holes(
        &self,
        state: &mut State,
        tiles: &[IovaRange],
        scrap: &Scrap,
        done: &mut Retiled,
    ) {
        for tile in tiles {
            let Some((_, chunk)) = state.chunks.get(tile.start()) else { continue };
            let prot = chunk.prot;
            if matches!(chunk.on, On::Nothing(_))
                && let Err(error) = self.fill_with_scrap(state, *tile, prot, scrap.lend())
            {
                tracing::warn!(chunk = %tile, %error, "no scrap behind a chunk");
                done.holes += 1;
            } else {
                done.scrap += 1;
            }
        }
    }

    fn holes(&self, range: IovaRange) -> usize {
        let state = self.lock();
        let chunks = state.chunks.overlapping(range);
        chunks.filter(|(_, chunk)| matches!(chunk.on, On::Nothing(_))).count()
    }

    /// The chunks that `parts` become.
    fn new_tiles<'a>(
        &self,
        range: IovaRange,
        parts: &[Part<'a>],
        granule: Option<u64>,
    ) -> Result<Vec<Tile<'a>>> {
        let too_long = || Error::usage(format!("the parts given are not as long as {range}"));
        let mut tiles = Vec::new();
        let mut at = range.start();
        for part in parts {
            let (len, backing) = match part {
                Part::Memory(piece) => {
                    (self.check_pieces(&[*piece], granule)?, Some(piece.backing))
                }
                Part::Scrap { len } => {
                    self.check_aligned("length", *len)?;
                    (*len, None)
                }
            };
            let whole = IovaRange::new(at, len).filter(|part| range.covers(part));
            let whole = whole.ok_or_else(too_long)?;
            for tile in whole.steps(granule.unwrap_or(len).max(1)) {
                let step = tile.start() - whole.start();
                let backing = backing.map(|backing| backing.advance(step)).transpose()?;
                tiles.push(Tile { range: tile, backing });
            }
            at = whole.end();
        }
        if at == range.end() { Ok(tiles) } else { Err(too_long()) }
    }
}

impl State {
    /// Whether these chunks stand on no memory and belong together.
    fn check_replaceable(&self, tiles: &[IovaRange]) -> Result<()> {
        let mut owner = None;
        for tile in tiles {
            let Some((_, chunk)) = self.chunks.get(tile.start()) else { continue };
            if matches!(chunk.on, On::Memory) {
                return Err(Error::OnMemory { chunk: *tile });
            }
            if owner.replace(chunk.owner).is_some_and(|owner| owner != chunk.owner) {
                return Err(Error::usage("the range belongs to two mappings"));
            }
        }
        Ok(())
    }
}

/// Takes the least number of tiles off the front whose end is an old boundary as well.
fn take_group<'t, 'a>(rest: &mut &'t [Tile<'a>], ends: &[u64]) -> Option<&'t [Tile<'a>]> {
    if rest.is_empty() {
        return None;
    }
    let ends_here = |tile: &Tile<'_>| ends.binary_search(&tile.range.end()).is_ok();
    let count = rest.iter().position(ends_here).map_or(rest.len(), |last| last + 1);
    let (group, after) = rest.split_at(count);
    *rest = after;
    Some(group)
}
