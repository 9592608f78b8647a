//! What one space may take of what all spaces of the process share.
//!
//! Mapped files cost entries of a fixed table, addresses, and, where pages vanished, kernel mappings
//! of their own (the replaced page splits its file's). All of these are counted per process by the
//! kernel or by `sigbus`; a share per space keeps one client from using up the others'.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use super::MapError;

/// Most mapped files of one space.
pub const MAX_FILES: usize = 2048;
/// Most bytes of addresses that one space's files take: 16 TiB of the process's 128.
pub const MAX_FILE_BYTES: u64 = 16 << 40;
/// Most vanished pages of one space; beyond that no further file is mapped for it.
pub const MAX_VANISHED: usize = 1024;

/// One space's account.
#[derive(Debug, Default)]
pub(super) struct Account {
    files: Arc<AtomicUsize>,
    bytes: Arc<AtomicU64>,
    // Counted by the SIGBUS handler.
    poison: Arc<AtomicUsize>,
}

/// A mapped file's share, given back when dropped.
#[derive(Debug)]
pub(super) struct Lease {
    bytes: u64,
    of_files: Arc<AtomicUsize>,
    of_bytes: Arc<AtomicU64>,
}

impl Account {
    /// Takes a file of `bytes` bytes. One thread at a time.
    pub(super) fn lease(&self, bytes: usize) -> Result<Lease, MapError> {
        let limit = |what, limit| Err(MapError::Limit { what, limit });
        if self.files.load(Ordering::Relaxed) >= MAX_FILES {
            return limit("mapped files", MAX_FILES);
        }
        let bytes = bytes as u64;
        if bytes > MAX_FILE_BYTES - self.bytes.load(Ordering::Relaxed).min(MAX_FILE_BYTES) {
            return limit("bytes of mapped files", MAX_FILE_BYTES as usize);
        }
        if self.poison.load(Ordering::Relaxed) > MAX_VANISHED {
            return limit("pages that vanished from its files", MAX_VANISHED);
        }
        self.files.fetch_add(1, Ordering::Relaxed);
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
        Ok(Lease { bytes, of_files: self.files.clone(), of_bytes: self.bytes.clone() })
    }

    /// Counts the vanished pages.
    pub(super) fn poison(&self) -> &Arc<AtomicUsize> {
        &self.poison
    }

    /// Whether any page of the space's files has vanished.
    pub(super) fn is_poisoned(&self) -> bool {
        self.poison.load(Ordering::Acquire) != 0
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.of_files.fetch_sub(1, Ordering::Relaxed);
        self.of_bytes.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}
