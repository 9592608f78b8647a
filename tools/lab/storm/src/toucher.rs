//! An application that reads its region: a thread that faults pages of it in, in no order, whatever
//! else happens to the file.
//!
//! A page that is read between two looks of the guard is in the page tables again, though for
//! reading only and perhaps of a block that a clone has as well. And Linux 7.3 lets no operation
//! go on while the page that was pinned is in any page table.
#![allow(unsafe_code)]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::Result;
use holdfast::MemoryRegion;

use crate::operation::PAGE;
use crate::random::Random;

/// It ends with this.
pub struct Toucher {
    stop: Arc<AtomicBool>,
    touched: Arc<AtomicU64>,
    thread: Option<JoinHandle<()>>,
}

impl Toucher {
    /// Touches pages of the region without pause; the first page, by which the file is usually
    /// pinned, as often as all others together.
    pub fn start(region: MemoryRegion) -> Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let touched = Arc::new(AtomicU64::new(0));
        let (ends, count) = (Arc::clone(&stop), Arc::clone(&touched));
        let thread = std::thread::Builder::new().name("toucher".to_owned()).spawn(move || {
            let mut random = Random::new(1);
            let pages = region.len() as u64 / PAGE;
            while !ends.load(Ordering::Relaxed) {
                let page = if random.one_in(2) { 0 } else { random.below(pages) };
                if touch(&region, page) {
                    count.fetch_add(1, Ordering::Relaxed);
                }
                std::thread::sleep(Duration::from_micros(300));
            }
        })?;
        Ok(Self { stop, touched, thread: Some(thread) })
    }

    /// How many pages were there when they were touched.
    pub fn touched(&self) -> u64 {
        self.touched.load(Ordering::Relaxed)
    }

    /// Ends it, and gives the region up.
    pub fn stop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Drop for Toucher {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Faults a page in for reading, as a load does; beyond the end of the file it is an error here,
/// and no SIGBUS.
fn touch(region: &MemoryRegion, page: u64) -> bool {
    let start = region.memory().as_ptr().as_ptr().wrapping_add((page * PAGE) as usize);
    // SAFETY: the page is the region's, which stays mapped as long as there is a handle; nothing is
    // read or written.
    let ret = unsafe { libc::madvise(start.cast(), PAGE as usize, libc::MADV_POPULATE_READ) };
    ret == 0
}
