//! Doorbell pages, and the doorbell itself.
//!
//! A UAR page belongs to one thread; queues made with it ring it. A doorbell is one 32-bit store
//! to the page and one relaxed load of a word that says whether the device sleeps. On a device
//! that never sleeps that word is a static zero; on a device whose doorbell pages cannot be
//! mapped, the page is private memory and the word a static one, so that the cold path is always
//! taken and carries the doorbell through the transport. The hot path has no other branch.
#![allow(unsafe_code)]

use std::any::Any;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use holdfast_vfio::MappedRegion;
use holdfast_wire::uar::{ASLEEP, UAR_PAGE_SIZE};
use holdfast_wire::{cmd, regs, uar};

use crate::device::Device;
use crate::error::{Error, Result};

static NEVER_ASLEEP: AtomicU32 = AtomicU32::new(0);
static ALWAYS_COLD: AtomicU32 = AtomicU32::new(1);

/// How long an ARM may take to be seen before the device counts as hung.
const ARM_DEADLINE: Duration = Duration::from_secs(1);

/// Page numbers of BAR2 that are free. Page 0 is the driver's own and is never given out.
#[derive(Debug)]
pub(crate) struct PagePool {
    limit: u32,
    next: u32,
    free: Vec<u32>,
}

impl PagePool {
    /// Pages 1 to `limit - 1`.
    pub(crate) fn new(limit: u32) -> Self {
        Self { limit, next: 1, free: Vec::new() }
    }

    fn take(&mut self) -> Result<u32> {
        if let Some(page) = self.free.pop() {
            return Ok(page);
        }
        Error::check_limit("doorbell pages", u64::from(self.next) + 1, u64::from(self.limit))?;
        self.next += 1;
        Ok(self.next - 1)
    }
}

enum Page {
    Mapped(MappedRegion),
    /// Stands in for a page that cannot be mapped.
    Trapped(Box<[AtomicU32; UAR_PAGE_SIZE / 4]>),
}

impl Page {
    fn word(&self, offset: usize) -> &AtomicU32 {
        match self {
            Page::Mapped(region) => region.word(offset),
            Page::Trapped(words) => &words[offset / 4],
        }
    }
}

/// A doorbell page with its device context. Give each thread its own.
pub struct Uar {
    device: Arc<Device>,
    page: Page,
    index: u32,
    context: u32,
}

impl std::fmt::Debug for Uar {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Uar(page {}, context {})", self.index, self.context)
    }
}

impl Uar {
    pub(crate) fn new(device: Arc<Device>) -> Result<Arc<Self>> {
        let index = device.uar_pages.lock().unwrap_or_else(PoisonError::into_inner).take()?;
        let made = Self::open(&device, index);
        match made {
            Ok((page, context)) => Ok(Arc::new(Self { device, page, index, context })),
            Err(error) => {
                give_back(&device.uar_pages, index);
                Err(error)
            }
        }
    }

    fn open(device: &Arc<Device>, index: u32) -> Result<(Page, u32)> {
        let page = map(device.transport.as_ref(), index)?;
        let pfn = device.uar_pfn(index);
        let response = device.channel.execute(cmd::CreateUc { hdr: Default::default(), pfn })?;
        Ok((page, response.ctx_handle))
    }

    /// The device this page belongs to.
    pub fn device(&self) -> &Arc<Device> {
        &self.device
    }

    /// Number of the page in BAR2.
    pub fn page(&self) -> u32 {
        self.index
    }

    pub(crate) fn context(&self) -> u32 {
        self.context
    }

    /// A doorbell on the word at `offset` ([`uar::QP`], [`uar::CQ`] or [`uar::SRQ`]).
    pub(crate) fn doorbell(self: &Arc<Self>, offset: usize) -> Doorbell {
        let asleep = match &self.page {
            Page::Trapped(_) => &ALWAYS_COLD,
            Page::Mapped(_) if self.device.quirks().wake_word => self.page.word(ASLEEP),
            Page::Mapped(_) => &NEVER_ASLEEP,
        };
        Doorbell {
            word: NonNull::from(self.page.word(offset)),
            asleep: NonNull::from(asleep),
            offset,
            uar: self.clone(),
            _owner: None,
        }
    }

    /// The way of a doorbell that a plain store does not reach.
    #[cold]
    #[inline(never)]
    fn slow_doorbell(&self, offset: usize, value: u32) {
        let result = match &self.page {
            Page::Trapped(_) => {
                let at = u64::from(self.index) * UAR_PAGE_SIZE as u64 + offset as u64;
                self.device
                    .transport
                    .write_u32(regs::BAR_UAR, at, value)
                    .map_err(Error::transport("ringing a doorbell"))
            }
            Page::Mapped(_) => self.device.registers.wake(),
        };
        if let Err(error) = result {
            tracing::error!(%error, "a doorbell did not reach the device");
            self.device.mark_unreachable();
        }
    }
}

impl Drop for Uar {
    fn drop(&mut self) {
        let request =
            cmd::DestroyUc { hdr: Default::default(), ctx_handle: self.context, reserved: 0 };
        match self.device.channel.execute(request) {
            Ok(_) => give_back(&self.device.uar_pages, self.index),
            Err(error) if error.is_gone() => {}
            Err(error) => tracing::warn!(%error, page = self.index, "a doorbell page is lost"),
        }
    }
}

fn give_back(pool: &Mutex<PagePool>, index: u32) {
    pool.lock().unwrap_or_else(PoisonError::into_inner).free.push(index);
}

/// Maps doorbell page `index`, or makes a stand-in where the transport cannot map it.
fn map(transport: &dyn holdfast_vfio::Device, index: u32) -> Result<Page> {
    let offset = u64::from(index) * UAR_PAGE_SIZE as u64;
    let len = UAR_PAGE_SIZE as u64;
    let region =
        transport.region(regs::BAR_UAR).map_err(Error::transport("looking at the doorbell BAR"))?;
    let mappable = region.mappable.iter().any(|(start, size)| {
        *start <= offset && start.checked_add(*size).is_some_and(|end| offset + len <= end)
    });
    if !mappable {
        return Ok(Page::Trapped(Box::new([const { AtomicU32::new(0) }; UAR_PAGE_SIZE / 4])));
    }
    let mapped = transport
        .map_region(regs::BAR_UAR, offset, len)
        .map_err(Error::transport("mapping a doorbell page"))?;
    if mapped.len() < UAR_PAGE_SIZE {
        return Err(Error::nonsense("doorbell page mapping length", mapped.len() as u64));
    }
    Ok(Page::Mapped(mapped))
}

/// One doorbell word.
#[derive(Clone)]
pub(crate) struct Doorbell {
    word: NonNull<AtomicU32>,
    asleep: NonNull<AtomicU32>,
    offset: usize,
    uar: Arc<Uar>,
    /// Of a word that is not in the page.
    _owner: Option<Arc<dyn Any + Send + Sync>>,
}

// SAFETY: both words are atomics that live as long as `uar` (its page never moves), or the owner, or
// for ever.
unsafe impl Send for Doorbell {}
// SAFETY: as above.
unsafe impl Sync for Doorbell {}

impl Doorbell {
    /// A doorbell that nobody hears, on another word.
    ///
    /// # Safety
    /// The word lives as long as `owner`, at the same place.
    pub(crate) unsafe fn instead(
        &self,
        word: NonNull<AtomicU32>,
        owner: Arc<dyn Any + Send + Sync>,
    ) -> Self {
        let asleep = NonNull::from(&NEVER_ASLEEP);
        Self { word, asleep, offset: self.offset, uar: self.uar.clone(), _owner: Some(owner) }
    }

    /// Rings: everything published before is there for the device to see.
    #[inline(always)]
    pub(crate) fn ring(&self, value: u32) {
        // SAFETY: alive as long as self, see above.
        let (word, asleep) = unsafe { (self.word.as_ref(), self.asleep.as_ref()) };
        word.store(value, Ordering::Release);
        // SAFETY: as above; a volatile load is compared in place, where an atomic one is not.
        if unsafe { asleep.as_ptr().read_volatile() } != 0 {
            self.uar.slow_doorbell(self.offset, value);
        }
    }

    /// Rings and, where the page is memory that the device polls, first waits until the word is
    /// free and then until the device has taken it, so that of several threads none overwrites
    /// another's. Blocks for up to a second.
    pub(crate) fn ring_confirmed(&self, value: u32) -> Result<()> {
        let polled = matches!(self.uar.page, Page::Mapped(_));
        if !polled || !self.uar.device.quirks().memory_doorbells {
            self.ring(value);
            return Ok(());
        }
        let started = Instant::now();
        self.wait(started, |word| {
            word.compare_exchange(0, value, Ordering::AcqRel, Ordering::Relaxed).is_ok()
        })?;
        self.wait(started, |word| word.load(Ordering::Acquire) != value)
    }

    /// Waits until `done`, waking the device if it sleeps.
    fn wait(&self, started: Instant, done: impl Fn(&AtomicU32) -> bool) -> Result<()> {
        // SAFETY: alive as long as self, see above.
        let (word, asleep) = unsafe { (self.word.as_ref(), self.asleep.as_ref()) };
        let mut polls = 0u32;
        while !done(word) {
            if polls.is_multiple_of(1024) {
                let pending = word.load(Ordering::Relaxed);
                if pending != 0 && asleep.load(Ordering::Relaxed) != 0 {
                    self.uar.slow_doorbell(self.offset, pending);
                }
                let waited = started.elapsed();
                if waited >= ARM_DEADLINE {
                    return Err(Error::Late { what: "take an ARM doorbell", waited });
                }
                std::thread::yield_now();
            }
            polls = polls.wrapping_add(1);
            std::hint::spin_loop();
        }
        Ok(())
    }

    pub(crate) fn uar(&self) -> &Arc<Uar> {
        &self.uar
    }
}

/// The word that names `handle` with these bits, which must fit.
pub(crate) fn doorbell_word(what: &'static str, handle: u32, bits: u32) -> Result<u32> {
    if handle & !uar::HANDLE_MASK != 0 {
        return Err(Error::nonsense(what, u64::from(handle)));
    }
    Ok(handle | bits)
}
