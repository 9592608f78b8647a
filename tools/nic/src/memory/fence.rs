//! The fence: one writer waits until one reader has let go of everything it held.
//!
//! Quiescent-state based reclamation. The reader (the processor thread) promises to hold no
//! translation across [`Quiescer::quiesce`] and none while offline. The writer removes a
//! translation from wherever readers find it, then calls [`Fence::synchronize`], which returns
//! when the reader has passed a quiescent point that came after the removal, or is offline.
//!
//! Reader's cost: one Acquire load per quiescent point while nothing changes.
//!
//! Why it is right. `synchronize` bumps the generation after the removal. A reader that reports
//! the new generation has loaded it with Acquire, so it also sees the removal, and holds nothing
//! older. A reader that was offline and comes online races with the writer in the store/load
//! pattern of Dekker: it stores "online" and then reads translations, the writer removes the
//! translation and then reads "online". The sequentially consistent fence on each side makes it
//! impossible that both miss the other's store. `tests/loom_fence.rs` checks all of this, and that
//! it breaks when the wait is left out.

use std::sync::Arc;

use super::sync::{AtomicU64, Ordering, fence, spin_loop, yield_now};

const OFFLINE: u64 = u64::MAX;

/// The writer's half. Calls to [`Fence::synchronize`] may come from any thread except the
/// reader's while that is online, which would wait for itself.
#[derive(Debug)]
pub struct Fence {
    // Apart from `seen`: the reader polls this line, which stays shared while nothing changes.
    generation: Padded<AtomicU64>,
    seen: Padded<AtomicU64>,
}

#[derive(Debug)]
#[repr(align(128))]
struct Padded<T>(T);

impl Fence {
    /// A fence and its only reader, which starts offline.
    pub fn new() -> (Arc<Fence>, Quiescer) {
        let fence = Arc::new(Fence {
            generation: Padded(AtomicU64::new(0)),
            seen: Padded(AtomicU64::new(OFFLINE)),
        });
        (fence.clone(), Quiescer { fence, local: 0, online: false })
    }

    /// Waits until the reader holds nothing that it could have found before this call. Spins
    /// briefly, then yields, then naps: the reader's critical sections last some microseconds.
    pub fn synchronize(&self) {
        let target = self.generation.0.fetch_add(1, Ordering::AcqRel) + 1;
        fence(Ordering::SeqCst);
        let mut spins = 0u32;
        loop {
            // Acquire: what the reader did before it let go happened before we return.
            let seen = self.seen.0.load(Ordering::Acquire);
            if seen == OFFLINE || seen >= target {
                return;
            }
            spins = spins.saturating_add(1);
            relax(spins);
        }
    }
}

#[cfg(not(loom))]
fn relax(spins: u32) {
    match spins {
        0..=100 => spin_loop(),
        101..=200 => yield_now(),
        _ => std::thread::sleep(std::time::Duration::from_micros(50)),
    }
}

#[cfg(loom)]
fn relax(_spins: u32) {
    spin_loop();
    yield_now();
}

/// The reader's half; there is one per fence. Dropping it takes it offline for good.
#[derive(Debug)]
pub struct Quiescer {
    fence: Arc<Fence>,
    local: u64,
    online: bool,
}

impl Quiescer {
    /// Passes a quiescent point: the caller holds no translation now. True when something was
    /// removed since the last one, so that whatever is cached must be dropped.
    #[inline]
    pub fn quiesce(&mut self) -> bool {
        debug_assert!(self.online, "a quiescent point was passed while offline");
        let generation = self.fence.generation.0.load(Ordering::Acquire);
        if generation == self.local {
            return false;
        }
        self.local = generation;
        // Release: every access made so far happened before the writer sees this.
        self.fence.seen.0.store(generation, Ordering::Release);
        true
    }

    /// Goes offline: no translation is held, and none will be looked up before
    /// [`Quiescer::online`]. Writers no longer wait.
    pub fn offline(&mut self) {
        self.online = false;
        self.fence.seen.0.store(OFFLINE, Ordering::Release);
    }

    /// Comes back online. True when something was removed meanwhile.
    pub fn online(&mut self) -> bool {
        let generation = self.fence.generation.0.load(Ordering::Acquire);
        // Release: the writer may see this store instead of the one that went offline.
        self.fence.seen.0.store(generation, Ordering::Release);
        fence(Ordering::SeqCst);
        self.online = true;
        let changed = generation != self.local;
        self.local = generation;
        changed
    }

    /// Whether it is online.
    pub fn is_online(&self) -> bool {
        self.online
    }
}

impl Drop for Quiescer {
    fn drop(&mut self) {
        self.offline();
    }
}
