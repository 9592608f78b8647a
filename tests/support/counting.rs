//! Counts what a fast path must not do: heap allocations of the whole process (so that a NIC on a
//! thread of it counts as well), and system calls of one thread.
//!
//! Allocations are counted by a global allocator while counting is on. System calls are counted by the kernel's syscall user dispatch
//! (`prctl(PR_SET_SYSCALL_USER_DISPATCH)`): while the selector byte says *block*, the kernel turns
//! each system call of this thread into SIGSYS, whose handler counts it, opens the gate again and
//! lets the program go on. So one counted call per gate is enough to fail a test, and the number
//! of gates closed says how often the path was watched.
#![allow(unsafe_code)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};

const ALLOW: u8 = 0; // SYSCALL_DISPATCH_FILTER_ALLOW
const BLOCK: u8 = 1; // SYSCALL_DISPATCH_FILTER_BLOCK
const PR_SET_SYSCALL_USER_DISPATCH: libc::c_int = 59;
const PR_SYS_DISPATCH_ON: libc::c_ulong = 1;

static COUNTING: AtomicBool = AtomicBool::new(false);
static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);
static SELECTOR: AtomicU8 = AtomicU8::new(ALLOW);
static SYSCALLS: AtomicU64 = AtomicU64::new(0);
static LAST_SYSCALL: AtomicU64 = AtomicU64::new(u64::MAX);

/// The system's allocator, with a count of its calls.
pub struct CountingAllocator;

fn count_allocation() {
    if COUNTING.load(Ordering::Relaxed) {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
    }
}

// SAFETY: every call is passed on to the system allocator unchanged.
unsafe impl GlobalAlloc for CountingAllocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count_allocation();
        // SAFETY: the caller's contract is the system allocator's.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        count_allocation();
        // SAFETY: as above.
        unsafe { System.dealloc(ptr, layout) }
    }

    unsafe fn realloc(&self, ptr: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        count_allocation();
        // SAFETY: as above.
        unsafe { System.realloc(ptr, layout, new_size) }
    }
}

extern "C" fn on_sigsys(_: libc::c_int, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
    // The gate opens first, so that returning from the handler is not itself counted.
    SELECTOR.store(ALLOW, Ordering::Relaxed);
    SYSCALLS.fetch_add(1, Ordering::Relaxed);
    // SAFETY: the kernel passes a valid siginfo; si_syscall stands at byte 24 of it on x86-64.
    let number = unsafe { info.cast::<u8>().add(24).cast::<i32>().read_unaligned() };
    LAST_SYSCALL.store(number as u64, Ordering::Relaxed);
}

/// Watches the calling thread; one at a time in a process.
pub struct Watch(());

/// What was done meanwhile.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Counts {
    /// Calls of the allocator, by any thread.
    pub allocations: u64,
    /// System calls of the watched thread.
    pub system_calls: u64,
    /// Number of the last one.
    pub last_system_call: Option<u64>,
}

impl Watch {
    /// Arms the calling thread.
    pub fn new() -> std::io::Result<Self> {
        // SAFETY: installs a handler that touches only atomics, then tells the kernel where the
        // selector byte lives: a static, so it outlives the thread.
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = on_sigsys as *const () as usize;
            action.sa_flags = libc::SA_SIGINFO;
            if libc::sigaction(libc::SIGSYS, &action, std::ptr::null_mut()) != 0 {
                return Err(std::io::Error::last_os_error());
            }
            if libc::prctl(
                PR_SET_SYSCALL_USER_DISPATCH,
                PR_SYS_DISPATCH_ON,
                0 as libc::c_ulong,
                0 as libc::c_ulong,
                SELECTOR.as_ptr(),
            ) != 0
            {
                return Err(std::io::Error::last_os_error());
            }
        }
        Ok(Self(()))
    }

    /// Runs `work` with both counters on and says what it did.
    pub fn count(&mut self, work: impl FnOnce()) -> Counts {
        SYSCALLS.store(0, Ordering::Relaxed);
        LAST_SYSCALL.store(u64::MAX, Ordering::Relaxed);
        ALLOCATIONS.store(0, Ordering::Relaxed);
        COUNTING.store(true, Ordering::SeqCst);
        SELECTOR.store(BLOCK, Ordering::SeqCst);
        work();
        SELECTOR.store(ALLOW, Ordering::SeqCst);
        COUNTING.store(false, Ordering::SeqCst);
        let last = LAST_SYSCALL.load(Ordering::Relaxed);
        Counts {
            allocations: ALLOCATIONS.load(Ordering::Relaxed),
            system_calls: SYSCALLS.load(Ordering::Relaxed),
            last_system_call: (last != u64::MAX).then_some(last),
        }
    }
}
