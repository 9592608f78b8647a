//! Memory that stands in for memory that was taken away.
//!
//! One scrap stands behind many chunks at once: a domain maps the same pages at several addresses,
//! so 2 MiB of scrap serve any number of 2 MiB chunks. What the device writes through one chunk
//! can then be read back through another. That is the price of a small scrap, and it is paid
//! inside one address space and by one [`Tenant`] only: an address space may have any number of
//! scraps, none serves two address spaces or two tenants, and each is zeroed before it stands in
//! again after nothing used it. What a chunk allows the device to do, it allows on scrap as well,
//! and no more: a read-only chunk stands on read-only scrap. A chunk longer than the scrap is covered by mapping the
//! scrap several times, which costs one mapping each.
//!
//! A type1 container charges pinned pages to RLIMIT_MEMLOCK for each mapping of them, so the
//! limit must leave room for all chunks on scrap, even where the memory they replace (a /dev/mem
//! window) was not charged.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use crate::SharedMemory;

/// Scrap memory of one address space; made by [`AddressSpace::scrap`](crate::AddressSpace::scrap).
/// It may be dropped at any time: chunks that stand on it keep it alive.
#[derive(Debug)]
pub struct Scrap {
    pub(crate) inner: Arc<Inner>,
    /// Which address space it belongs to.
    pub(crate) space: u64,
    tenant: Option<Tenant>,
}

/// Who may see the bytes of a scrap: a protection domain, say. Mappings of one tenant never stand
/// on the scrap of another; mappings and scrap without a tenant are a party of their own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Tenant(u64);

impl Tenant {
    /// One that is equal to no other of this process.
    #[expect(clippy::new_without_default, reason = "each is different")]
    pub fn new() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        Self(NEXT.fetch_add(1, Ordering::Relaxed))
    }
}

#[derive(Debug)]
pub(crate) struct Inner {
    pub(crate) memory: SharedMemory,
    users: AtomicUsize,
}

/// One chunk standing on scrap. Made and dropped only under the address space's lock, so that the
/// zeroing after the last one cannot meet a new one.
#[derive(Debug)]
pub(crate) struct Use(Arc<Inner>);

impl Scrap {
    pub(crate) fn new(memory: SharedMemory, space: u64, tenant: Option<Tenant>) -> Self {
        Self { inner: Arc::new(Inner { memory, users: AtomicUsize::new(0) }), space, tenant }
    }

    /// Whose it is.
    pub fn tenant(&self) -> Option<Tenant> {
        self.tenant
    }

    /// Bytes: the longest chunk it covers with one mapping.
    #[expect(clippy::len_without_is_empty, reason = "it is never empty")]
    pub fn len(&self) -> u64 {
        self.inner.memory.len()
    }

    /// Whether it consists of 2 MiB pages.
    pub fn is_huge(&self) -> bool {
        self.inner.memory.is_huge()
    }

    /// How many chunks stand on it.
    pub fn users(&self) -> usize {
        self.inner.users.load(Ordering::Acquire)
    }

    /// Copies out what devices wrote, for diagnosis.
    ///
    /// # Panics
    /// When it would be out of bounds.
    pub fn read(&self, offset: usize, buf: &mut [u8]) {
        self.inner.memory.read(offset, buf);
    }

    pub(crate) fn lend(&self) -> Use {
        self.inner.users.fetch_add(1, Ordering::AcqRel);
        Use(Arc::clone(&self.inner))
    }
}

impl Use {
    pub(crate) fn memory(&self) -> &SharedMemory {
        &self.0.memory
    }
}

impl Drop for Use {
    fn drop(&mut self) {
        if self.0.users.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.0.memory.zero();
        }
    }
}
