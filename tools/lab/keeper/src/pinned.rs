//! A page of a file on persistent memory: mapped, pinned by a pipe, and seen through /dev/mem.
#![allow(unsafe_code)]

use std::fs::{File, OpenOptions};
use std::io::IoSlice;
use std::num::NonZeroUsize;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::ptr::NonNull;

use anyhow::{Context as _, Result, ensure};
use holdfast_dax::PinParts;
use holdfast_iommu::Backing;
use nix::errno::Errno;
use nix::sys::mman::{MapFlags, MmapAdvise, ProtFlags, madvise, mmap};

const PAGE: NonZeroUsize = NonZeroUsize::new(4096).unwrap();

/// A pin. What it maps stays mapped until the process ends.
pub struct Pinned {
    file: File,
    page: NonNull<libc::c_void>,
    read: OwnedFd,
    write: OwnedFd,
}

impl Pinned {
    pub fn new(path: &Path) -> Result<Self> {
        let file = OpenOptions::new().read(true).write(true).open(path)?;
        let page = map(&file, 0).context("mapping the file")?;
        let (read, write) = nix::unistd::pipe()?;
        // SAFETY: the page is ours; it is populated and handed to the pipe, and never read.
        unsafe {
            let populate = libc::MADV_POPULATE_WRITE;
            Errno::result(libc::madvise(page.as_ptr(), PAGE.get(), populate))?;
            let bytes = std::slice::from_raw_parts(page.as_ptr().cast::<u8>(), PAGE.get());
            let part = [IoSlice::new(bytes)];
            let fd = write.as_raw_fd();
            let spliced = libc::vmsplice(fd, part.as_ptr().cast(), 1, 0);
            ensure!(Errno::result(spliced)? as usize == PAGE.get(), "the page was not taken");
        }
        Ok(Self { file, page, read, write })
    }

    pub fn parts(&self) -> PinParts<'_> {
        let (read, write) = (self.read.as_fd(), self.write.as_fd());
        PinParts { read, write, file: self.file.as_fd(), offset: 0 }
    }

    /// Lets the pin go, as far as this process has it: its page table entry, then the pipe.
    pub fn release(&self) -> Result<()> {
        // SAFETY: the page is ours and nothing refers to it.
        unsafe { madvise(self.page, PAGE.get(), MmapAdvise::MADV_DONTNEED) }?;
        let got = nix::unistd::read(&self.read, &mut [0; 4096])?;
        ensure!(got == PAGE.get(), "{got} bytes were in the pipe");
        Ok(())
    }

    /// The page's physical memory, for a type1 container.
    pub fn window(&self) -> Result<Backing<'static>> {
        let mut entry = [0; 8];
        let at = self.page.as_ptr().addr() as u64 / 4096 * 8;
        File::open("/proc/self/pagemap")?.read_exact_at(&mut entry, at)?;
        let frame = u64::from_ne_bytes(entry) & ((1 << 55) - 1);
        ensure!(frame != 0, "the page has no frame number: is this root?");
        let memory = OpenOptions::new().read(true).write(true).open("/dev/mem")?;
        let window = map(&memory, frame as i64 * 4096).context("mapping /dev/mem")?;
        // SAFETY: the window stays mapped, nothing refers to it, and the pin, which the keeper
        // holds as well, keeps the page what it is until the mapping is gone.
        Ok(unsafe { Backing::memory(window.as_ptr().addr(), None) })
    }
}

fn map(file: &File, offset: i64) -> Result<NonNull<libc::c_void>> {
    let prot = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
    // SAFETY: a fresh mapping at an address of the kernel's choice aliases no Rust object.
    Ok(unsafe { mmap(None, PAGE, prot, MapFlags::MAP_SHARED, file, offset) }?)
}
