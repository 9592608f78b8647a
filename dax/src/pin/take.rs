//! Taking a pin, asking it, and letting go.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::resource::{UsageWho, getrusage};

use super::guard::Guard;
use super::pipe::Pipe;
use crate::fsdax::{SystemRam, await_operations, is_locked, why_not_dax};
use crate::notify::Probe;
use crate::pagemap::{Entry, Pagemap};
use crate::{Error, FileId, Result, sys};

/// How often a page that moves while it is being pinned is tried again.
const TRIES: u32 = 16;
/// How long a file's lock may be held by somebody who waits for nothing.
const A_WRITE: Duration = Duration::from_millis(200);
/// Between looks at it.
const A_MOMENT: Duration = Duration::from_micros(200);

/// A file's layout, held. See the module's text for what waits for it and what does not.
///
/// Dropping it releases it: the page-table entry of the guard page goes first, then the pipe is
/// drained, and only then go the guard mapping (with its last [`Sign`]), the pipe and the file. So
/// whatever lets a device reach the file's blocks must be gone **before** its pin is dropped.
///
/// May be used from any thread. Not from a forked child, which has neither the guard mapping nor
/// the right page table; it cannot spoil the parent's pin by closing what it inherited.
#[derive(Debug)]
pub struct Pin {
    sign: Arc<Sign>,
    pipe: Pipe,
    file: OwnedFd,
    id: FileId,
    offset: u64,
}

/// The guard page of a [`Pin`], for whoever looks at it by the clock ([`Pin::sign`]). It shows
/// that somebody waits for the pin; it holds nothing but a mapping of one page.
#[derive(Debug)]
pub struct Sign {
    guard: Guard,
    pagemap: Pagemap,
    /// What the guard's entry said when the page was pinned.
    pinned: Entry,
    released: AtomicBool,
}

impl Probe for Sign {
    fn disturbed(&self) -> Result<bool, Errno> {
        if self.released.load(Ordering::Acquire) {
            return Ok(true);
        }
        Ok(self.guard.entry(&self.pagemap)? != self.pinned)
    }
}

/// What another process needs to hold the same pin: both ends of the pipe, the file, and where the
/// guard page is in it. See [`super::AdoptedPin`].
#[derive(Debug, Clone, Copy)]
pub struct PinParts<'a> {
    /// The end that is drained.
    pub read: BorrowedFd<'a>,
    /// The end that keeps the pipe from being closed.
    pub write: BorrowedFd<'a>,
    /// The file, open for reading and writing.
    pub file: BorrowedFd<'a>,
    /// Offset of the guard page in the file, in bytes.
    pub offset: u64,
}

impl Pin {
    /// Pins the file by its page at `file_offset` (a multiple of the page size, before the file's
    /// end). The page is populated first, so a hole there is filled; it should be one of the
    /// region's, so that populating the region after the pin shows whether the page moved.
    /// `file` must be open for reading and writing; the pin keeps a duplicate.
    ///
    /// Refuses a file that is not DAX ([`Error::NotDax`]): there the pin would hold nothing. Waits
    /// until an operation that is under way is over: for ever, if that waits for a pin of the
    /// caller's.
    ///
    /// Before Linux 6.15 one page is not enough where somebody syncs the file: see
    /// [`Self::take_several`].
    pub fn take(file: BorrowedFd<'_>, file_offset: u64) -> Result<Self> {
        Self::take_several(file, file_offset, &[])
    }

    /// Pins the file by the page at `file_offset`, as [`Self::take`] does, and by others: those that
    /// are beyond the file's end by now, or for which the pipe has no room
    /// (fs.pipe-user-pages-soft), are left out.
    ///
    /// Linux before 6.15 does not look at a page that is just being written back when it looks for
    /// pinned ones (`dax_layout_busy_page_range` skips locked entries; mended by the commit
    /// "fs/dax: don't skip locked entries when scanning entries"), so an operation goes past a pin
    /// of one page if it comes while an fsync has got to that very page. Each thread that syncs the
    /// file has got to one page at a time, and the look is one for up to 4096 pages: of `n` pages
    /// close to each other, at most `n / 2` threads that sync hide not all. Pages of one huge page
    /// are written back together, and count as one.
    ///
    /// # Errors
    /// As for [`Self::take`].
    pub fn take_several(file: BorrowedFd<'_>, file_offset: u64, others: &[u64]) -> Result<Self> {
        let id = FileId::of(file).map_err(Error::identity)?;
        let failed = |call, hint| {
            move |errno| Error::Pin { call, file: id, offset: file_offset, hint, errno }
        };
        let file = file.try_clone_to_owned().map_err(|error| {
            failed("dup", "raise the limit on open files")(crate::open::errno_of(&error))
        })?;
        if !sys::is_dax(file.as_fd()).map_err(failed("statx", "is the file still there?"))? {
            let why = why_not_dax(file.as_fd())?;
            return Err(Error::NotDax { path: format!("file {id}").into(), why });
        }
        let pagemap = Pagemap::own()?;
        let page = pagemap.page_size() as usize;
        let guard = Guard::map(file.as_fd(), file_offset, page).map_err(failed(
            "mmap",
            "the file must be open for reading and writing, and the offset a multiple of the page",
        ))?;
        let pipe = Pipe::new(1 + others.len())
            .map_err(failed("pipe2", "raise the limit on open files"))?;
        let unreadable = failed("pread", "is the file still there?");
        let mut tries = 0;
        let pinned = loop {
            tries += 1;
            if tries > TRIES {
                return Err(Error::Restless { file: id, tries: TRIES });
            }
            // An operation that waits for the page already (for the last pin, say, which was let go a
            // moment ago) took it out of page tables before and does not again: were the page
            // pinned once more, it would wait on, and the guard page would never show it.
            await_operations(file.as_fd(), file_offset).map_err(unreadable)?;
            guard.populate().map_err(failed(
                "MADV_POPULATE_WRITE",
                "is the page before the end of the file, and is there room on the file system?",
            ))?;
            let put = put(&guard, &pagemap, &pipe).map_err(|(call, errno)| {
                let hint = "is /proc mounted? are pipes restricted (fs.pipe-user-pages-hard)?";
                failed(call, hint)(errno)
            })?;
            if let Some(entry) = put
                && put_others(file.as_fd(), others, &pagemap, &pipe)
            {
                // Nor may one have come since that waits for the pin of another process.
                let shows = || guard.entry(&pagemap).is_ok_and(|now| now != entry);
                if none_waits(file.as_fd(), file_offset, shows).map_err(unreadable)? {
                    break entry;
                }
            }
            // An operation waits, and finds nothing of ours to wait for now.
            let _ = guard.forget();
            pipe.drain().map_err(failed("read", "the pipe cannot be drained"))?;
        };
        let sign = Sign { guard, pagemap, pinned, released: AtomicBool::new(false) };
        let pin = Self { sign: Arc::new(sign), pipe, file, id, offset: file_offset };
        pin.check_persistent()?;
        Ok(pin)
    }

    /// Refuses a page that is not persistent memory. Without privilege its address is hidden, and
    /// that the file is DAX and the page was populated for writing has to do.
    fn check_persistent(&self) -> Result<()> {
        let Entry::At(phys) = self.sign.pinned else { return Ok(()) };
        if SystemRam::read()?.contains(phys) {
            let what = format!("file {}", self.id);
            return Err(Error::NotPersistent { what, offset: self.offset, phys });
        }
        Ok(())
    }

    /// The file.
    pub fn file_id(&self) -> FileId {
        self.id
    }

    /// Whether somebody has started to wait for this pin, or has gone past it: the guard page's
    /// entry is gone, or shows another block. Stays true. One read of pagemap: no lock of the file,
    /// no fault, no allocation; it waits only while another thread changes this process's
    /// mappings. After [`Self::release`] it is true.
    pub fn disturbed(&self) -> Result<bool> {
        self.sign.disturbed().map_err(|errno| Error::Pagemap { call: "read", errno })
    }

    /// What [`Self::disturbed`] asks, to be asked by another.
    pub fn sign(&self) -> Arc<Sign> {
        Arc::clone(&self.sign)
    }

    /// Lets go, so that a waiting operation proceeds: empties the guard page's entry (Linux 7.3
    /// waits until nothing refers to the page, page tables included), then drains the pipe. May be
    /// called again. No allocation, no wait, no lock of the file.
    ///
    /// From its return on nothing holds the file's blocks in place.
    pub fn release(&mut self) -> Result<()> {
        if self.is_released() {
            return Ok(());
        }
        let failed = |call, errno| Error::Pin {
            call,
            file: self.id,
            offset: self.offset,
            hint: "the pin may still be held; it goes when every process that has it ends",
            errno,
        };
        // The drain is what counts: it is tried even if the first step fails.
        let forgotten = self.sign.guard.forget().map_err(|errno| failed("MADV_DONTNEED", errno));
        self.pipe.drain().map_err(|errno| failed("read of the pipe", errno))?;
        self.sign.released.store(true, Ordering::Release);
        forgotten
    }

    /// Whether [`Self::release`] was called and succeeded.
    pub fn is_released(&self) -> bool {
        self.sign.released.load(Ordering::Acquire)
    }

    /// Whether the page is still in the pipe: false after a release here, or by whoever adopted
    /// the pin.
    pub fn is_held(&self) -> Result<bool> {
        self.pipe.is_full().map_err(|errno| Error::Pin {
            call: "FIONREAD",
            file: self.id,
            offset: self.offset,
            hint: "the pipe cannot be asked",
            errno,
        })
    }

    /// What another process needs to hold it too.
    pub fn parts(&self) -> PinParts<'_> {
        PinParts {
            read: self.pipe.read_end(),
            write: self.pipe.write_end(),
            file: self.file.as_fd(),
            offset: self.offset,
        }
    }
}

/// Puts a page that was populated into the pipe and says where it is; `None` when it moved
/// meanwhile, and whatever the pipe got may be another one.
///
/// vmsplice faults a page in that was taken out just before it, for reading: what it holds then may
/// be a hole's zero page or another block, or the same that a clone has as well by now and the next
/// write exchanges for a copy. Without a fault it is the populated one, and still is while the
/// page table has it.
fn put(
    page: &Guard,
    pagemap: &Pagemap,
    pipe: &Pipe,
) -> Result<Option<Entry>, (&'static str, Errno)> {
    let faults = thread_faults().map_err(|errno| ("getrusage", errno))?;
    match pipe.put(page.page(), page.len()) {
        Ok(()) => {}
        // The page is past the end of the file by now: populating says so.
        Err(Errno::EFAULT) => return Ok(None),
        Err(errno) => return Err(("vmsplice", errno)),
    }
    if thread_faults().map_err(|errno| ("getrusage", errno))? != faults {
        return Ok(None);
    }
    let entry = page.entry(pagemap).map_err(|errno| ("pagemap", errno))?;
    Ok((entry != Entry::Absent).then_some(entry))
}

/// How often this thread has faulted a page in, by a kernel's call as well.
fn thread_faults() -> Result<libc::c_long, Errno> {
    let usage = getrusage(UsageWho::RUSAGE_THREAD)?;
    Ok(usage.minor_page_faults() + usage.major_page_faults())
}

/// Puts other pages into the pipe, where that can be; `false` when one moved meanwhile.
fn put_others(file: BorrowedFd<'_>, offsets: &[u64], pagemap: &Pagemap, pipe: &Pipe) -> bool {
    for offset in offsets {
        let Ok(page) = Guard::map(file, *offset, pagemap.page_size() as usize) else { continue };
        // Beyond the end by now, or no room for a block.
        if page.populate().is_err() {
            continue;
        }
        match put(&page, pagemap, pipe) {
            Ok(Some(_)) => {}
            Ok(None) => return false,
            // The pipe is full: it may not be as long as was asked for.
            Err(_) => return true,
        }
    }
    true
}

/// Whether the file's lock was seen free, or the guard page shows somebody who waits. Whoever takes
/// the lock after that takes the page out of page tables, and so shows. Whoever has it already may
/// just write, and be done soon; or it is an operation that waits for somebody else's pin of the
/// same page and took it out of page tables before it was in ours, so that it would never show.
fn none_waits(file: BorrowedFd<'_>, offset: u64, shows: impl Fn() -> bool) -> Result<bool, Errno> {
    let start = Instant::now();
    while is_locked(file, offset)? {
        if shows() {
            return Ok(true);
        }
        if start.elapsed() > A_WRITE {
            return Ok(false);
        }
        std::thread::sleep(A_MOMENT);
    }
    Ok(true)
}

impl Drop for Pin {
    fn drop(&mut self) {
        if let Err(error) = self.release() {
            tracing::error!(%error, "a layout pin could not be released");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_is_not_dax_is_not_pinned() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        std::fs::write(&path, [1; 4096]).unwrap();
        let file = std::fs::OpenOptions::new().read(true).write(true).open(&path).unwrap();
        match Pin::take(file.as_fd(), 0) {
            Err(Error::NotDax { .. }) => {}
            Ok(_) if sys::is_dax(file.as_fd()).unwrap() => {}
            other => panic!("{other:?}"),
        }
    }
}
