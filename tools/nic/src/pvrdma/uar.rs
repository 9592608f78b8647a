//! The doorbell pages (BAR2): memory that the client stores to and the processor polls.
#![allow(unsafe_code)]

use std::num::NonZeroUsize;
use std::os::fd::OwnedFd;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use holdfast_wire::regs::BAR_UAR_SIZE;
use holdfast_wire::uar::{ASLEEP, SRQ, UAR_PAGE_SIZE};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};

/// All doorbell pages of one NIC for one client, and the sealed memfd behind them, which the
/// client can map. A new client gets new ones.
#[derive(Debug)]
pub struct UarPages {
    base: NonNull<u8>,
    fd: Arc<OwnedFd>,
}

// SAFETY: shared memory at a fixed address, only reached through atomics.
unsafe impl Send for UarPages {}
// SAFETY: as above.
unsafe impl Sync for UarPages {}

const SIZE: usize = BAR_UAR_SIZE as usize;

impl UarPages {
    /// Fresh pages, all zero. The file cannot shrink, so polling it cannot fault.
    pub fn new() -> nix::Result<Self> {
        use nix::fcntl::{FcntlArg, SealFlag, fcntl};
        let fd = memfd_create(c"pvrdma-uar", MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING)?;
        nix::unistd::ftruncate(&fd, SIZE as i64)?;
        let seals = SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SEAL;
        fcntl(&fd, FcntlArg::F_ADD_SEALS(seals))?;
        let len = NonZeroUsize::new(SIZE).ok_or(nix::errno::Errno::EINVAL)?;
        let access = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: a fresh mapping at an address of the kernel's choice; unmapped only by drop.
        let base = unsafe { mmap(None, len, access, MapFlags::MAP_SHARED, &fd, 0) }?;
        Ok(Self { base: base.cast(), fd: Arc::new(fd) })
    }

    /// The file, for the client to map.
    pub fn fd(&self) -> Arc<OwnedFd> {
        self.fd.clone()
    }

    #[inline]
    fn at(&self, page: u32, offset: usize) -> *mut u8 {
        let byte = page as usize * UAR_PAGE_SIZE + offset;
        assert!(byte < SIZE);
        self.base.as_ptr().wrapping_add(byte)
    }

    /// A word of a page.
    ///
    /// # Panics
    /// When it is out of bounds or not aligned.
    #[inline]
    pub fn word(&self, page: u32, offset: usize) -> &AtomicU32 {
        assert!(offset.is_multiple_of(4));
        // SAFETY: in bounds and aligned; the client's stores are what atomics allow.
        unsafe { AtomicU32::from_ptr(self.at(page, offset).cast()) }
    }

    /// Looks at the three doorbell words of a page: (QP, CQ, SRQ).
    #[inline]
    pub fn peek(&self, page: u32) -> (u32, u32, u32) {
        // SAFETY: the start of a page is in bounds and aligned. QP and CQ are read as one word;
        // x86 allows atomics of different sizes on the same memory.
        let pair = unsafe { AtomicU64::from_ptr(self.at(page, 0).cast()) }.load(Ordering::Acquire);
        (pair as u32, (pair >> 32) as u32, self.word(page, SRQ).load(Ordering::Relaxed))
    }

    /// Tells clients of that page whether the NIC sleeps.
    pub fn set_asleep(&self, page: u32, asleep: bool) {
        self.word(page, ASLEEP).store(asleep.into(), Ordering::SeqCst);
    }
}

impl Drop for UarPages {
    fn drop(&mut self) {
        // SAFETY: mapped by `new`; no reference outlives self.
        if let Err(errno) = unsafe { munmap(self.base.cast(), SIZE) } {
            tracing::error!(%errno, "doorbell pages could not be unmapped");
        }
    }
}
