//! Surviving a client that truncates a file while the NIC copies to or from it.
//!
//! Touching a mapped page beyond the end of its file raises SIGBUS. The handler here recognises
//! addresses inside the NIC's backings, puts an anonymous page in the place of the missing one so
//! that the interrupted copy can finish, and counts the fault in the thread that suffered it.
//! [`super::span`] compares that count before and after an access and reports the fault. The page
//! is remembered as poisoned: what is there now is not the client's memory, so [`super::Reader`]
//! gives no translation for it. Any other SIGBUS goes to whichever handler was there before.
//!
//! Everything the handler touches is a fixed table of atomics, and the only call it makes is mmap.
#![allow(unsafe_code)]

use std::cell::UnsafeCell;
use std::mem::MaybeUninit;
use std::sync::atomic::{AtomicPtr, AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Once};

/// Most backings alive in the process at once.
pub(super) const MAX_BACKINGS: usize = 8192;
/// Poisoned pages remembered per backing; one more condemns the whole backing.
const MAX_POISONED: usize = 10;

#[repr(align(128))]
struct Slot {
    // 0 while the slot is free.
    start: AtomicUsize,
    end: AtomicUsize,
    page: AtomicUsize,
    poisoned: AtomicUsize,
    // Kept alive by the registration.
    owner: AtomicPtr<AtomicUsize>,
    pages: [AtomicUsize; MAX_POISONED],
}

impl Slot {
    /// The part of the backing that shares a page with `address`, which lies in it: (start, end).
    fn page_of(&self, address: usize) -> (usize, usize) {
        let page = self.page.load(Ordering::Relaxed);
        let (start, end) = (self.start.load(Ordering::Relaxed), self.end.load(Ordering::Relaxed));
        let at = address & !(page - 1);
        // A backing need not begin or end where such a page does, and beside it is other memory.
        (at.max(start), at.saturating_add(page).min(end))
    }
}

static SLOTS: [Slot; MAX_BACKINGS] = [const {
    Slot {
        start: AtomicUsize::new(0),
        end: AtomicUsize::new(0),
        page: AtomicUsize::new(0),
        poisoned: AtomicUsize::new(0),
        owner: AtomicPtr::new(std::ptr::null_mut()),
        pages: [const { AtomicUsize::new(0) }; MAX_POISONED],
    }
}; MAX_BACKINGS];
static HIGH_WATER: AtomicUsize = AtomicUsize::new(0);
// A free slot with `start` at this value is being filled in.
const BUSY: usize = 1;

thread_local! {
    static FAULTS: AtomicU32 = const { AtomicU32::new(0) };
}

/// Faults that this thread has met so far.
#[inline]
pub(super) fn faults() -> u32 {
    FAULTS.with(|count| count.load(Ordering::Relaxed))
}

/// A backing's entry in the table; dropping it forgets the range and its poison.
#[derive(Debug)]
pub(super) struct Registration {
    index: usize,
    // Counts the poisoned pages of all backings of one owner.
    owner: Arc<AtomicUsize>,
}

impl Registration {
    /// Enters `start..start + len`, whose file has pages of `page` bytes (a power of two). Its
    /// poisoned pages are counted in `owner` while it lives. `None` when [`MAX_BACKINGS`] are
    /// registered.
    pub(super) fn new(
        start: usize,
        len: usize,
        page: usize,
        owner: &Arc<AtomicUsize>,
    ) -> Option<Self> {
        install();
        for (index, slot) in SLOTS.iter().enumerate() {
            if slot.start.load(Ordering::Relaxed) == 0
                && slot
                    .start
                    .compare_exchange(0, BUSY, Ordering::Acquire, Ordering::Relaxed)
                    .is_ok()
            {
                slot.end.store(start + len, Ordering::Relaxed);
                slot.page.store(page, Ordering::Relaxed);
                slot.poisoned.store(0, Ordering::Relaxed);
                slot.owner.store(Arc::as_ptr(owner).cast_mut(), Ordering::Relaxed);
                slot.start.store(start, Ordering::Release);
                HIGH_WATER.fetch_max(index + 1, Ordering::Release);
                return Some(Self { index, owner: owner.clone() });
            }
        }
        None
    }

    /// Whether any of its pages vanished.
    pub(super) fn is_poisoned(&self) -> bool {
        SLOTS[self.index].poisoned.load(Ordering::Acquire) != 0
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        let slot = &SLOTS[self.index];
        self.owner.fetch_sub(slot.poisoned.load(Ordering::Acquire), Ordering::Relaxed);
        slot.start.store(0, Ordering::Release);
    }
}

fn find(address: usize) -> Option<&'static Slot> {
    SLOTS[..HIGH_WATER.load(Ordering::Acquire)].iter().find(|slot| {
        let start = slot.start.load(Ordering::Acquire);
        let end = slot.end.load(Ordering::Acquire);
        // A slot that changes hands under us is not the one of a live access.
        start > BUSY
            && (start..end).contains(&address)
            && slot.start.load(Ordering::Acquire) == start
    })
}

/// How many of the `len` bytes at `start`, which lie in one backing, come before its first
/// poisoned page. Costs a scan of the table: for use only once something was poisoned.
pub(super) fn clean_prefix(start: usize, len: usize) -> usize {
    let Some(slot) = find(start) else { return len };
    let count = slot.poisoned.load(Ordering::Acquire);
    if count > MAX_POISONED {
        return 0;
    }
    slot.pages[..count].iter().fold(len, |clean, poisoned| {
        let (at, end) = slot.page_of(poisoned.load(Ordering::Acquire));
        if start < end && at < start + clean { at.saturating_sub(start) } else { clean }
    })
}

struct Previous(UnsafeCell<MaybeUninit<libc::sigaction>>);
// SAFETY: written once, before our handler (its only reader) is installed.
unsafe impl Sync for Previous {}
static PREVIOUS: Previous = Previous(UnsafeCell::new(MaybeUninit::zeroed()));

fn install() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        // SAFETY: `PREVIOUS` has no other user yet. The handler has the signature that SA_SIGINFO
        // asks for, and does only what a signal handler may (see the module's documentation).
        unsafe {
            libc::sigaction(libc::SIGBUS, std::ptr::null(), PREVIOUS.0.get().cast());
            let mut action: libc::sigaction = std::mem::zeroed();
            let handler: extern "C" fn(_, _, _) = on_sigbus;
            action.sa_sigaction = handler as *const () as usize;
            action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
            libc::sigemptyset(&mut action.sa_mask);
            libc::sigaction(libc::SIGBUS, &action, std::ptr::null_mut());
        }
    });
}

extern "C" fn on_sigbus(
    signal: libc::c_int,
    info: *mut libc::siginfo_t,
    context: *mut libc::c_void,
) {
    // SAFETY: the kernel passes a valid siginfo.
    let address = unsafe { (*info).si_addr() }.addr();
    // A positive si_code comes from the kernel; anything else is a signal somebody sent.
    // SAFETY: as above.
    let is_fault = unsafe { (*info).si_code } > 0;
    if is_fault && let Some(slot) = find(address) {
        let (at, end) = slot.page_of(address);
        if let Some(entry) = slot.pages.get(slot.poisoned.load(Ordering::Relaxed)) {
            entry.store(at, Ordering::Relaxed);
        }
        // Release: whoever sees the count sees the entry. One thread uses a backing, so this is
        // no race, and a lost entry would only make the page fault again.
        slot.poisoned.fetch_add(1, Ordering::Release);
        // SAFETY: the registration, which the interrupted access keeps alive, holds the counter.
        unsafe { (*slot.owner.load(Ordering::Relaxed)).fetch_add(1, Ordering::Relaxed) };
        // SAFETY: the range lies in a mapping that the NIC owns, which the interrupted access
        // keeps alive; it is replaced by zeroes.
        let mapped = unsafe {
            libc::mmap(
                std::ptr::with_exposed_provenance_mut(at),
                end - at,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED | libc::MAP_NORESERVE,
                -1,
                0,
            )
        };
        if mapped != libc::MAP_FAILED {
            FAULTS.with(|count| count.fetch_add(1, Ordering::Relaxed));
            return;
        }
    }
    pass_on(signal, info, context);
}

fn pass_on(signal: libc::c_int, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: written before this handler was installed, never changed since.
    let previous = unsafe { (*PREVIOUS.0.get()).assume_init_ref() };
    match previous.sa_sigaction {
        libc::SIG_DFL | libc::SIG_IGN => {
            // SAFETY: the default action is restored; the access that faulted is retried on
            // return and ends the process, as it would have done without us. A signal that was
            // sent is sent again.
            unsafe {
                let mut action: libc::sigaction = std::mem::zeroed();
                action.sa_sigaction = libc::SIG_DFL;
                libc::sigaction(signal, &action, std::ptr::null_mut());
                if (*info).si_code <= 0 {
                    libc::raise(signal);
                }
            }
        }
        handler if previous.sa_flags & libc::SA_SIGINFO != 0 => {
            type Action = extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void);
            // SAFETY: SA_SIGINFO says that the handler has this signature.
            let handler: Action = unsafe { std::mem::transmute(handler) };
            handler(signal, info, context);
        }
        handler => {
            // SAFETY: without SA_SIGINFO the handler has this signature.
            let handler: extern "C" fn(libc::c_int) = unsafe { std::mem::transmute(handler) };
            handler(signal);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: usize = 4096;

    /// A page that vanished is replaced, and what lies next to the backing is left alone, although
    /// the backing's own pages are said to be larger than it is.
    #[test]
    fn the_replacement_stays_inside_the_backing() {
        let private = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        let access = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: fresh memory; the file, of no length, takes the place of its middle page.
        let base = unsafe {
            let base = libc::mmap(std::ptr::null_mut(), 3 * PAGE, access, private, -1, 0);
            assert_ne!(base, libc::MAP_FAILED);
            let file = libc::memfd_create(c"empty".as_ptr(), libc::MFD_CLOEXEC);
            let fixed = libc::MAP_SHARED | libc::MAP_FIXED;
            let middle = base.byte_add(PAGE);
            assert_eq!(libc::mmap(middle, PAGE, access, fixed, file, 0), middle);
            libc::close(file);
            base.cast::<u8>()
        };
        // SAFETY: inside what was mapped above; another process could not see it.
        let byte = |page: usize| unsafe { AtomicU32::from_ptr(base.add(page * PAGE).cast()) };
        byte(0).store(1, Ordering::Relaxed);
        byte(2).store(2, Ordering::Relaxed);
        let start = base.expose_provenance() + PAGE;
        let owner = Arc::new(AtomicUsize::new(0));
        let registration = Registration::new(start, PAGE, 2 << 20, &owner).unwrap();
        let before = faults();
        byte(1).store(3, Ordering::Relaxed);
        assert_eq!(faults(), before + 1, "the fault was met");
        let kept = [0, 2].map(|page| byte(page).load(Ordering::Relaxed));
        assert_eq!(kept, [1, 2], "the neighbours were replaced as well");
        assert_eq!(owner.load(Ordering::Relaxed), 1);
        assert_eq!(clean_prefix(start, PAGE), 0);
        drop(registration);
        assert_eq!(owner.load(Ordering::Relaxed), 0, "what is gone is no longer poisoned");
    }
}
