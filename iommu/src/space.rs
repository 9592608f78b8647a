//! A DMA address space, as its users see it: a domain, and books of what is mapped where.
//!
//! Memory is mapped in chunks. A chunk is one call to the domain, the unit in which memory can be
//! taken away again: type1 refuses to unmap half a mapping, and forms large IOMMU pages only
//! inside one. Small chunks cost mappings, of which there is a limit.
//!
//! Every method may be called from any thread and may block in the domain. One lock guards the
//! books and is held over each call to the domain, but [`AddressSpace::map`] gives it up between
//! chunks, and takes it again only when no retarget wants it, which so waits for the pinning of a
//! chunk or two and no more.

use std::fmt;
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::books::State;
use crate::chunk::{Chunk, ChunkInfo, On};
use crate::iova::{IovaAllocator, MSI_WINDOW};
use crate::{
    Behind, Domain, Error, IovaRange, Limits, Mapping, Piece, Prot, Result, Scrap, SharedMemory,
    Tenant,
};

/// How long a map steps aside at a time for who takes memory away.
const ASIDE: Duration = Duration::from_micros(20);

static NEXT_ID: AtomicU64 = AtomicU64::new(0);

/// A DMA address space with its owner.
pub struct AddressSpace {
    pub(crate) domain: Arc<dyn Domain>,
    pub(crate) limits: Limits,
    pub(crate) page: u64,
    // The usable ranges less the reserved ones, as they were at the start.
    usable: IovaAllocator,
    pub(crate) id: u64,
    state: Mutex<State>,
    /// Threads that wait to take memory away.
    urgent: AtomicU32,
}

impl AddressSpace {
    /// Takes over a domain in which nothing is mapped yet. The MSI window of x86 is reserved, and
    /// page 0.
    ///
    /// # Errors
    /// [`Error::NoSpace`] when no usable address is left.
    pub fn new(domain: Arc<dyn Domain>) -> Result<Arc<Self>> {
        Self::with_reserved(domain, &[])
    }

    /// [`AddressSpace::new`] with more ranges reserved.
    pub fn with_reserved(domain: Arc<dyn Domain>, reserved: &[IovaRange]) -> Result<Arc<Self>> {
        let limits = domain.limits()?;
        let page =
            limits.page().ok_or_else(|| Error::NoSpace("it names no page size".to_owned()))?;
        let mut reserved = reserved.to_vec();
        reserved.extend(IovaRange::new(MSI_WINDOW.0, MSI_WINDOW.1));
        let usable = IovaAllocator::new(&limits.ranges, &reserved, page);
        if usable.free_bytes().0 == 0 {
            return Err(Error::NoSpace(format!(
                "nothing is left of {:?} without the reserved {reserved:?}",
                limits.ranges
            )));
        }
        let state = State::new(usable.clone());
        let id = NEXT_ID.fetch_add(1, Ordering::Relaxed);
        let (state, urgent) = (Mutex::new(state), AtomicU32::new(0));
        Ok(Arc::new(Self { domain, limits, page, usable, id, state, urgent }))
    }

    /// What the domain can do.
    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    /// The unit of mapping, in bytes.
    pub fn page_size(&self) -> u64 {
        self.page
    }

    /// Whether a retarget leaves no instant in which an access fails.
    pub fn replaces_without_window(&self) -> bool {
        self.domain.replaces_without_window()
    }

    /// Zeroed scrap memory of this address space, at least `len` bytes: best as long as the
    /// chunks that may have to be retargeted. Its pages are allocated here.
    pub fn scrap(&self, len: u64) -> Result<Scrap> {
        Ok(Scrap::new(SharedMemory::new(len.max(self.page))?, self.id, None))
    }

    /// [`AddressSpace::scrap`] in ordinary pages, for measuring what they cost.
    pub fn scrap_of_ordinary_pages(&self, len: u64) -> Result<Scrap> {
        let memory = SharedMemory::of_ordinary_pages(len.max(self.page))?;
        Ok(Scrap::new(memory, self.id, None))
    }

    /// [`AddressSpace::scrap`] for the mappings that were assigned to `tenant`
    /// ([`Mapping::assign`]), and no others.
    pub fn scrap_for(&self, tenant: Tenant, len: u64) -> Result<Scrap> {
        Ok(Scrap::new(SharedMemory::new(len.max(self.page))?, self.id, Some(tenant)))
    }

    /// The VFIO container it stands on, if it does.
    pub fn container(&self) -> Option<BorrowedFd<'_>> {
        self.domain.container()
    }

    /// Puts memory behind addresses of this crate's choice. See [`AddressSpace::map_pieces`].
    pub fn map(
        self: &Arc<Self>,
        piece: Piece<'_>,
        prot: Prot,
        granule: Option<u64>,
    ) -> Result<Mapping> {
        self.map_pieces(&[piece], prot, granule)
    }

    /// Puts pieces of memory, end to end, behind one range of addresses of this crate's choice.
    /// Each piece is cut into chunks of at most `granule` bytes (by default it is one chunk), which
    /// can be revoked on their own. From 2 MiB and from 1 GiB on, the addresses are aligned to as
    /// much, where there is room.
    ///
    /// # Errors
    /// On any error, nothing is mapped ([`Error::MapUndo`] is the exception, and says so).
    /// [`Error::IovaExhausted`], [`Error::MappingLimit`], [`Error::Unaligned`], and whatever the
    /// domain says.
    pub fn map_pieces(
        self: &Arc<Self>,
        pieces: &[Piece<'_>],
        prot: Prot,
        granule: Option<u64>,
    ) -> Result<Mapping> {
        let len = self.check_pieces(pieces, granule)?;
        let range = self.find_room(&mut self.lock(), len)?;
        self.map_into(range, pieces, prot, granule)
    }

    /// Takes free addresses, aligned as well as there is room for.
    pub(crate) fn find_room(&self, state: &mut State, len: u64) -> Result<IovaRange> {
        let wanted = IovaAllocator::alignment_for(len, self.page);
        let aligns = [wanted, wanted.min(2 << 20).max(self.page), self.page];
        aligns.into_iter().find_map(|align| state.free.allocate(len, align)).ok_or_else(|| {
            let (free, largest) = state.free.free_bytes();
            Error::IovaExhausted { len, align: self.page, free, largest }
        })
    }

    /// The number of a new mapping; never given out again.
    pub(crate) fn next_owner(&self) -> u64 {
        NEXT_ID.fetch_add(1, Ordering::Relaxed)
    }

    /// [`AddressSpace::map_pieces`] at addresses of the caller's choice.
    ///
    /// # Errors
    /// [`Error::Reserved`] when the domain cannot use them, [`Error::Overlap`] when they are taken.
    pub fn map_at(
        self: &Arc<Self>,
        start: u64,
        pieces: &[Piece<'_>],
        prot: Prot,
        granule: Option<u64>,
    ) -> Result<Mapping> {
        let len = self.check_pieces(pieces, granule)?;
        self.check_aligned("address", start)?;
        let range = IovaRange::new(start, len)
            .ok_or_else(|| Error::usage("the addresses wrap around the end of the space"))?;
        if !self.usable.is_free(range) {
            return Err(Error::Reserved { range, usable: self.usable.free_ranges().collect() });
        }
        {
            let mut state = self.lock();
            if !state.free.allocate_at(range) {
                let existing = state.chunks.overlapping(range).next();
                let existing = existing.map_or(range, |(found, _)| found);
                return Err(Error::Overlap { range, existing });
            }
        }
        self.map_into(range, pieces, prot, granule)
    }

    /// Takes everything away from behind `range`, which must be made up of whole chunks, and
    /// frees the addresses. When it returns, no DMA reaches the memory.
    ///
    /// # Errors
    /// [`Error::NotMapped`], [`Error::Bisects`] (nothing was done), or what the domain says: then
    /// chunks whose unmap failed stay in the books, their addresses stay taken, and the call may
    /// be repeated for what [`AddressSpace::chunks`] still shows.
    pub fn unmap(&self, range: IovaRange) -> Result<()> {
        let mut state = self.lock();
        let tiles = state.tiles(range)?;
        self.unmap_tiles(&mut state, &tiles)
    }

    /// Takes away what is left of the mapping `owner` in `range`; other mappings may have been
    /// given the addresses of parts that went before.
    pub(crate) fn unmap_owned(&self, range: IovaRange, owner: u64) -> Result<()> {
        let mut state = self.lock();
        let owned = |&(_, chunk): &(IovaRange, &Chunk)| chunk.owner == owner;
        let tiles: Vec<_> =
            state.chunks.overlapping(range).filter(owned).map(|(tile, _)| tile).collect();
        self.unmap_tiles(&mut state, &tiles)
    }

    /// Whether any chunk that shares an address with `range` is one of those asked for.
    pub fn any_chunk(&self, range: IovaRange, is_one: impl Fn(Behind) -> bool) -> bool {
        self.lock().chunks.overlapping(range).any(|(_, chunk)| is_one(chunk.behind()))
    }

    /// The addresses from the first to the last of the chunks that share one with `range`.
    pub fn chunks_around(&self, range: IovaRange) -> Option<IovaRange> {
        let state = self.lock();
        let mut chunks = state.chunks.overlapping(range).map(|(chunk, _)| chunk);
        let first = chunks.next()?;
        IovaRange::between(first.start(), chunks.last().unwrap_or(first).end())
    }

    /// The chunks that share an address with `range`, in order.
    pub fn chunks(&self, range: IovaRange) -> Vec<ChunkInfo> {
        let state = self.lock();
        let info =
            |(range, chunk): (IovaRange, &Chunk)| ChunkInfo { range, behind: chunk.behind() };
        state.chunks.overlapping(range).map(info).collect()
    }

    /// How many mappings exist in the domain.
    pub fn mappings(&self) -> u64 {
        self.lock().mappings
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, State> {
        // The books are only changed after the domain has answered, a step at a time, so a panic
        // elsewhere leaves them true.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The lock, for who takes memory away: before those who map chunk after chunk.
    pub(crate) fn lock_at_once(&self) -> MutexGuard<'_, State> {
        self.urgent.fetch_add(1, Ordering::Relaxed);
        let state = self.lock();
        self.urgent.fetch_sub(1, Ordering::Relaxed);
        state
    }

    /// The lock, for who takes it again and again: after those who take memory away.
    fn lock_in_turn(&self) -> MutexGuard<'_, State> {
        // A mutex alone is taken again before a thread that waits for it has woken up.
        while self.urgent.load(Ordering::Relaxed) > 0 {
            std::thread::sleep(ASIDE);
        }
        self.lock()
    }

    /// Gives what is left of the mapping `owner` in `range` to a tenant.
    pub(crate) fn assign(&self, range: IovaRange, owner: u64, tenant: Tenant) -> Result<()> {
        let mut state = self.lock();
        let mut tiles = Vec::new();
        for (tile, chunk) in state.chunks.overlapping(range) {
            if chunk.owner == owner {
                if matches!(chunk.on, On::Scrap(_)) && chunk.tenant != Some(tenant) {
                    return Err(Error::ForeignScrap);
                }
                tiles.push(tile);
            }
        }
        for tile in tiles {
            if let Some(chunk) = state.chunks.get_mut(tile) {
                chunk.tenant = Some(tenant);
            }
        }
        Ok(())
    }

    pub(crate) fn check_aligned(&self, what: &'static str, value: u64) -> Result<()> {
        if value.is_multiple_of(self.page) {
            Ok(())
        } else {
            Err(Error::Unaligned { what, value, page: self.page })
        }
    }

    /// Checks alignments and gives the sum of the lengths.
    pub(crate) fn check_pieces(&self, pieces: &[Piece<'_>], granule: Option<u64>) -> Result<u64> {
        let mut sum = 0u64;
        for piece in pieces {
            self.check_aligned("length", piece.len)?;
            if let Some(va) = piece.backing.va() {
                self.check_aligned("virtual address", va as u64)?;
            }
            if let Some((_, offset)) = piece.backing.fd() {
                self.check_aligned("file offset", offset)?;
            }
            if piece.len == 0 {
                return Err(Error::usage("a piece of no bytes cannot be mapped"));
            }
            piece.backing.advance(piece.len)?;
            sum = sum
                .checked_add(piece.len)
                .ok_or_else(|| Error::usage("more memory than an address space holds"))?;
        }
        if sum == 0 {
            return Err(Error::usage("no memory to map was given"));
        }
        match granule {
            Some(0) => Err(Error::usage("a granule of no bytes was asked for")),
            Some(granule) => self.check_aligned("granule", granule).map(|()| sum),
            None => Ok(sum),
        }
    }

    /// Maps `pieces` into `range`, which was taken from the free addresses, chunk by chunk.
    fn map_into(
        self: &Arc<Self>,
        range: IovaRange,
        pieces: &[Piece<'_>],
        prot: Prot,
        granule: Option<u64>,
    ) -> Result<Mapping> {
        let owner = self.next_owner();
        let mut at = range.start();
        for piece in pieces {
            let whole = IovaRange::new(at, piece.len)
                .ok_or_else(|| Error::usage("the addresses wrap around the end of the space"))?;
            for chunk in whole.steps(granule.unwrap_or(piece.len)) {
                if let Err(error) = self.map_chunk(owner, chunk, whole, piece, prot) {
                    return Err(self.undo(range, chunk.start(), error));
                }
            }
            at = whole.end();
        }
        Ok(Mapping::new(Arc::clone(self), range, owner))
    }

    fn map_chunk(
        &self,
        owner: u64,
        range: IovaRange,
        whole: IovaRange,
        piece: &Piece<'_>,
        prot: Prot,
    ) -> Result<()> {
        let backing = piece.backing.advance(range.start() - whole.start())?;
        let mut state = self.lock_in_turn();
        state.check_room(&self.limits, 1)?;
        self.domain.map(range, &backing, prot)?;
        state.mappings += 1;
        state
            .add(range, Chunk { owner, prot, tenant: None, on: On::Memory })
            .map_err(|existing| Error::Overlap { range, existing })
    }

    /// Takes back what [`AddressSpace::map_into`] mapped of `range` before it failed at `failed`.
    fn undo(&self, range: IovaRange, failed: u64, error: Error) -> Error {
        let mut state = self.lock();
        if let Some(done) = IovaRange::between(range.start(), failed) {
            let undone = state.tiles(done).and_then(|tiles| self.unmap_tiles(&mut state, &tiles));
            if let Err(undo) = undone {
                tracing::error!(range = %done, error = %undo, "a failed DMA mapping stays behind");
                let rest = IovaRange::between(failed, range.end());
                rest.map(|rest| state.free.release(rest));
                let left = state.chunks.overlapping(done).map(|(tile, _)| tile);
                let left = left.reduce(|a, b| IovaRange::between(a.start(), b.end()).unwrap_or(a));
                return Error::MapUndo {
                    range: left.unwrap_or(done),
                    undo: Box::new(undo),
                    source: Box::new(error),
                };
            }
        }
        let rest = IovaRange::between(failed, range.end());
        rest.map(|rest| state.free.release(rest));
        error
    }
}

impl fmt::Debug for AddressSpace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.lock();
        f.debug_struct("AddressSpace")
            .field("page", &self.page)
            .field("chunks", &state.chunks.len())
            .field("mappings", &state.mappings)
            .finish_non_exhaustive()
    }
}
