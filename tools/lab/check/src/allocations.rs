//! Counts what one thread asks of the allocator, for what must not wait for memory.
#![allow(unsafe_code)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::fs;
use std::sync::atomic::{AtomicI32, AtomicU64, Ordering};

/// The system's allocator; calls of the watched thread that take memory are counted. To be made a
/// program's `#[global_allocator]`.
#[derive(Debug)]
pub struct CountingAllocator;

const NOBODY: i32 = -1;
static WATCHED: AtomicI32 = AtomicI32::new(NOBODY);
static CALLS: AtomicU64 = AtomicU64::new(0);

/// From now on, counts the calls of this process's thread of that name (as in `comm`, 15 bytes at
/// most); says whether there is one.
pub fn watch_thread(name: &str) -> bool {
    let tasks = fs::read_dir("/proc/self/task").into_iter().flatten().flatten();
    let is_named = |path: &std::path::PathBuf| {
        fs::read_to_string(path.join("comm")).is_ok_and(|comm| comm.trim() == name)
    };
    let found = tasks.map(|task| task.path()).find(is_named);
    let tid = found.and_then(|path| path.file_name()?.to_str()?.parse().ok());
    WATCHED.store(tid.unwrap_or(NOBODY), Ordering::Relaxed);
    tid.is_some()
}

/// Calls since the program began; nobody is watched any more.
pub fn calls() -> u64 {
    WATCHED.store(NOBODY, Ordering::Relaxed);
    CALLS.load(Ordering::Relaxed)
}

fn count() {
    let watched = WATCHED.load(Ordering::Relaxed);
    // SAFETY: gettid has no arguments and cannot fail.
    if watched != NOBODY && unsafe { libc::gettid() } == watched {
        CALLS.fetch_add(1, Ordering::Relaxed);
    }
}

// SAFETY: every call is passed on to the system allocator unchanged.
unsafe impl GlobalAlloc for CountingAllocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: the caller's contract is the system allocator's.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(at, layout) }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count();
        // SAFETY: as above.
        unsafe { System.realloc(at, layout, size) }
    }
}
