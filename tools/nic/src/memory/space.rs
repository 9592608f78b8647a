//! One NIC's IOVA space: the rules of mapping and unmapping.

use std::collections::{BTreeMap, HashMap};
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use super::account::Account;
use super::backing::{Backing, FileFacts, FileKey, Unfit};
use super::fence::Fence;
use super::radix::{self, MAX_TABLES, Radix, Retired};
use super::{IOVA_LIMIT, MAX_MAPPINGS, MapError, Reader};

const PAGE: u64 = 4096;

/// What the NIC may do with a mapping.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Prot {
    /// Read it.
    pub read: bool,
    /// Write it.
    pub write: bool,
}

impl Prot {
    /// Reading and writing.
    pub const READ_WRITE: Prot = Prot { read: true, write: true };
    /// Reading only.
    pub const READ: Prot = Prot { read: true, write: false };

    fn access(self) -> u64 {
        (if self.read { radix::READ } else { 0 }) | (if self.write { radix::WRITE } else { 0 })
    }
}

/// Where in which file a mapping's memory is.
#[derive(Debug, Clone, Copy)]
pub struct FileRange<'a> {
    /// The client's descriptor; the caller may close it afterwards.
    pub fd: BorrowedFd<'a>,
    /// Where the mapping starts in it; a multiple of 4 KiB.
    pub offset: u64,
}

/// How full a space is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SpaceStats {
    /// Mappings.
    pub mappings: usize,
    /// Bytes that they span.
    pub bytes: u64,
    /// Mapped files (a file counts twice when it is mapped both ways or anew).
    pub files: usize,
}

/// What the processor's side sees.
pub(super) struct Shared {
    pub(super) radix: Radix,
    pub(super) account: Account,
    // The book's numbers, for whoever must not wait for its lock.
    mappings: AtomicUsize,
    bytes: AtomicU64,
}

struct Mapping {
    len: u64,
    // None: the client has no memory to give there (device memory); it only takes up the range.
    backing: Option<Arc<Backing>>,
}

#[derive(Default)]
struct Book {
    mappings: BTreeMap<u64, Mapping>,
    files: HashMap<FileKey, Weak<Backing>>,
    bytes: u64,
}

/// One NIC's IOVA space. All calls but [`Space::mapped`] exclude one another, and must not come
/// from the reader's thread while that is online: an unmap that is under way waits for it.
pub struct Space {
    shared: Arc<Shared>,
    fence: Arc<Fence>,
    book: Mutex<Book>,
}

impl std::fmt::Debug for Space {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Space({:?})", self.mapped())
    }
}

impl Space {
    /// An empty space and its only reader, which starts offline.
    pub fn new() -> (Arc<Space>, Reader) {
        let shared = Arc::new(Shared {
            radix: Radix::new(),
            account: Account::default(),
            mappings: AtomicUsize::new(0),
            bytes: AtomicU64::new(0),
        });
        let (fence, quiescer) = Fence::new();
        let reader = Reader::new(shared.clone(), quiescer);
        (Arc::new(Self { shared, fence, book: Mutex::default() }), reader)
    }

    fn book(&self) -> MutexGuard<'_, Book> {
        // Every critical section leaves the book consistent before anything that could panic.
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Maps `iova..iova + len`. Without a file the range is taken but gives only misses. The
    /// translation is visible to the reader when this returns; nothing waits for anything.
    pub fn map(
        &self,
        iova: u64,
        len: u64,
        prot: Prot,
        file: Option<FileRange<'_>>,
    ) -> Result<(), MapError> {
        let offset = file.map_or(0, |file| file.offset);
        if len == 0 || [iova, len, offset].iter().any(|value| !value.is_multiple_of(PAGE)) {
            return Err(MapError::Unaligned { iova, len, offset });
        }
        let end = in_range(iova, len)?;
        if !prot.read && !prot.write {
            return Err(MapError::NoAccess);
        }
        let mut book = self.book();
        if let Some((&existing, found)) = book.mappings.range(..end).next_back()
            && existing + found.len > iova
        {
            return Err(MapError::Overlap { iova, len, existing });
        }
        if book.mappings.len() >= MAX_MAPPINGS {
            return Err(MapError::Limit { what: "mappings", limit: MAX_MAPPINGS });
        }
        if !self.shared.radix.has_room() {
            return Err(MapError::Limit { what: "translation tables", limit: MAX_TABLES });
        }
        let backing = match file {
            Some(file) => Some(book.backing(file, prot, len, &self.shared.account)?),
            None => None,
        };
        if let Some(backing) = &backing {
            self.shared.radix.set(iova, len, backing.host(offset), prot.access());
        }
        book.mappings.insert(iova, Mapping { len, backing });
        book.bytes += len;
        self.publish(&book);
        Ok(())
    }

    fn publish(&self, book: &Book) {
        self.shared.mappings.store(book.mappings.len(), Ordering::Relaxed);
        self.shared.bytes.store(book.bytes, Ordering::Relaxed);
    }

    /// Unmaps every mapping inside `iova..iova + len` and gives the number of bytes unmapped,
    /// which is zero when there was none. A mapping that is partly inside is an error, and then
    /// nothing is unmapped (VFIO type1 v2's rules). The range may end at 2^64.
    ///
    /// This is a fence: when it returns, no access through the old translations is in flight or
    /// can still start. It waits for the reader's next quiescent point, some microseconds; called
    /// on the reader's own thread while that is online it would wait for ever.
    pub fn unmap(&self, iova: u64, len: u64) -> Result<u64, MapError> {
        if len == 0 || !iova.is_multiple_of(PAGE) || !len.is_multiple_of(PAGE) {
            return Err(MapError::Unaligned { iova, len, offset: 0 });
        }
        // The range may reach to the end of all addresses, where there are no mappings.
        iova.checked_add(len - 1).ok_or(MapError::OutOfRange { iova, len })?;
        let end = iova.saturating_add(len);
        let mut book = self.book();
        let bisects = |existing| Err(MapError::Bisect { iova, len, existing });
        if let Some((&start, found)) = book.mappings.range(..iova).next_back()
            && start + found.len > iova
        {
            return bisects(start);
        }
        if let Some((&start, found)) = book.mappings.range(iova..end).next_back()
            && start + found.len > end
        {
            return bisects(start);
        }
        Ok(self.remove(&mut book, iova, end))
    }

    /// Unmaps everything; a fence as [`Space::unmap`] is.
    pub fn unmap_all(&self) -> u64 {
        let mut book = self.book();
        self.remove(&mut book, 0, IOVA_LIMIT)
    }

    fn remove(&self, book: &mut Book, start: u64, end: u64) -> u64 {
        let mut retired = Retired::default();
        let mut bytes = 0;
        // Holds the files until the fence was passed.
        let mut released: Vec<Mapping> = Vec::new();
        while let Some((&iova, _)) = book.mappings.range(start..end).next() {
            let Some(mapping) = book.mappings.remove(&iova) else { break };
            if mapping.backing.is_some() {
                self.shared.radix.clear(iova, mapping.len, &mut retired);
            }
            bytes += mapping.len;
            released.push(mapping);
        }
        book.bytes -= bytes;
        self.publish(book);
        if released.iter().any(|mapping| mapping.backing.is_some()) {
            self.fence.synchronize();
        }
        drop(released);
        bytes
    }

    /// Mappings, and the bytes that they span. Waits for nobody, so that the reader's thread may
    /// ask as well.
    pub fn mapped(&self) -> (usize, u64) {
        (self.shared.mappings.load(Ordering::Relaxed), self.shared.bytes.load(Ordering::Relaxed))
    }

    /// How full the space is. Waits for a map or unmap that is under way.
    pub fn stats(&self) -> SpaceStats {
        let book = self.book();
        SpaceStats {
            mappings: book.mappings.len(),
            bytes: book.bytes,
            files: book.files.values().filter(|file| file.strong_count() > 0).count(),
        }
    }
}

impl Drop for Space {
    fn drop(&mut self) {
        self.unmap_all();
    }
}

impl Book {
    /// The mapping of `file` to use: the one there is, or a new one when that is too short, gone,
    /// or lost pages to a truncation.
    fn backing(
        &mut self,
        file: FileRange<'_>,
        prot: Prot,
        len: u64,
        account: &Account,
    ) -> Result<Arc<Backing>, MapError> {
        let FileRange { fd, offset } = file;
        let facts = FileFacts::of(fd, prot).map_err(|unfit| match unfit {
            Unfit::Errno(errno) => MapError::File { offset, len, errno },
            Unfit::Remote(system) => MapError::Remote { system },
            Unfit::Kind => MapError::Kind,
        })?;
        if let Some(backing) = self.files.get(&facts.key).and_then(Weak::upgrade)
            && backing.serves(offset, len)
        {
            return Ok(backing);
        }
        let backing = Arc::new(Backing::new(fd, &facts, prot, offset, len, account)?);
        self.files.retain(|_, file| file.strong_count() > 0);
        self.files.insert(facts.key, Arc::downgrade(&backing));
        Ok(backing)
    }
}

fn in_range(iova: u64, len: u64) -> Result<u64, MapError> {
    iova.checked_add(len).filter(|&end| end <= IOVA_LIMIT).ok_or(MapError::OutOfRange { iova, len })
}
