//! The register file of one NIC, and what the driver told it at bring-up.

use holdfast_wire::PAGE_SIZE;
use holdfast_wire::dsr::SharedRegion;
use holdfast_wire::event::{EventEntry, NotifyEntry};
use holdfast_wire::regs;
use holdfast_wire::uar;

use super::client::{self, BadDirectory};
use super::device_ring::DeviceRing;
use super::pages::QueuePages;
use super::{Front, caps};
use crate::engine::{Engine, NicId};

/// What is fixed for a NIC's life.
#[derive(Debug, Clone, Copy)]
pub struct DeviceConfig {
    /// Interface version, 17 to 20.
    pub version: u32,
    /// Node GUID.
    pub guid: u64,
    /// Doorbell pages are memory that the client maps.
    pub mapped_doorbells: bool,
    /// Answer REQUEST before executing it.
    pub async_commands: bool,
    /// The processor may sleep.
    pub may_sleep: bool,
}

/// The driver's side of the command channel, as its shared region names it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Slots {
    pub(super) command: u64,
    pub(super) response: u64,
}

/// Most doorbell pages that are polled: the shared region's and one per user context.
const MAX_CONTEXTS: usize = caps::UAR_PAGES as usize;

/// The register file of one NIC. Lives on the processor's thread.
#[derive(Debug)]
pub struct Device {
    pub(super) config: DeviceConfig,
    pub(super) nic: NicId,
    dsr: u64,
    err: u32,
    pub(super) slots: Option<Slots>,
    // Doorbell page of the driver itself, then of each user context.
    home_page: Option<u32>,
    contexts: Vec<Option<u32>>,
    pages: Vec<u32>,
}

impl Device {
    /// A NIC that was just switched on.
    pub fn new(config: DeviceConfig, nic: NicId) -> Self {
        Self {
            config,
            nic,
            dsr: 0,
            err: regs::ERR_NO_DSR,
            slots: None,
            home_page: None,
            contexts: Vec::new(),
            pages: Vec::new(),
        }
    }

    /// How it was configured.
    pub fn config(&self) -> &DeviceConfig {
        &self.config
    }

    /// The engine's name for it.
    pub fn nic(&self) -> NicId {
        self.nic
    }

    /// The doorbell pages in use, each once.
    pub fn pages(&self) -> &[u32] {
        &self.pages
    }

    /// Reads the 32-bit register at `offset` (aligned); reserved ones are zero.
    pub fn read(&self, front: &Front, offset: u64) -> u32 {
        match offset {
            regs::VERSION => self.config.version,
            regs::DSR_LOW => self.dsr as u32,
            regs::DSR_HIGH => (self.dsr >> 32) as u32,
            regs::ERR => self.err,
            regs::IMR => front.irqs.mask(),
            regs::EXT_MAGIC => regs::EXT_MAGIC_VALUE,
            regs::EXT_FEATURES => {
                let memory = regs::EXT_FEATURE_MEMORY_DOORBELLS;
                let wake = regs::EXT_FEATURE_WAKE;
                (if self.config.mapped_doorbells { memory } else { 0 })
                    | (if self.config.may_sleep { wake } else { 0 })
            }
            _ => 0,
        }
    }

    /// Writes the 32-bit register at `offset` (aligned).
    pub fn write(&mut self, engine: &mut Engine<Front>, offset: u64, value: u32) {
        match offset {
            regs::DSR_LOW => self.dsr = self.dsr & !0xffff_ffff | u64::from(value),
            regs::DSR_HIGH => {
                self.dsr = self.dsr & 0xffff_ffff | u64::from(value) << 32;
                self.load(engine);
            }
            regs::CTL => match value {
                regs::CTL_ACTIVATE | regs::CTL_UNQUIESCE => {
                    self.err = if self.slots.is_some() { 0 } else { regs::ERR_NO_DSR };
                }
                regs::CTL_RESET => {
                    self.reset(engine);
                    self.err = 0;
                }
                _ => self.err = negative(libc::EINVAL),
            },
            regs::REQUEST if value == 0 => self.err = self.request(engine),
            regs::REQUEST => self.err = negative(libc::EINVAL),
            regs::IMR => engine.host(self.nic).irqs.set_mask(value),
            _ => {}
        }
    }

    /// An asynchronous device's answer to REQUEST, before it executes anything.
    pub fn accept_request(&mut self) {
        self.err = if self.slots.is_some() { 0 } else { regs::ERR_NO_DSR };
    }

    /// Executes the command slot of an asynchronous device, which accepted it before.
    pub fn run_accepted(&mut self, engine: &mut Engine<Front>) {
        self.request(engine);
    }

    /// Forgets everything but the configuration: objects, shared region, contexts.
    pub fn reset(&mut self, engine: &mut Engine<Front>) {
        engine.reset_nic(self.nic);
        let front = engine.host(self.nic);
        front.clear();
        front.irqs.set_mask(0);
        *self = Self::new(self.config, self.nic);
    }

    /// Loads the shared region and writes the capabilities into it. As in QEMU's model, failure
    /// shows as zero capabilities, and as ERR on the next command; here ERR says so at once.
    fn load(&mut self, engine: &mut Engine<Front>) {
        self.slots = None;
        match self.try_load(engine) {
            Ok(()) => self.err = 0,
            Err(error) => {
                self.err = regs::ERR_NO_DSR;
                tracing::warn!(dsr = self.dsr, %error, "the shared region cannot be loaded");
            }
        }
    }

    fn try_load(&mut self, engine: &mut Engine<Front>) -> Result<(), LoadError> {
        let limits = *engine.limits(self.nic);
        let front = engine.host(self.nic);
        front.events = None;
        front.notify = None;
        let (reader, budget) = (&mut front.reader, &front.budget);
        if !self.dsr.is_multiple_of(8) {
            return Err(LoadError::Unaligned("shared region", self.dsr));
        }
        let region: SharedRegion = client::read(reader, self.dsr).map_err(BadDirectory::from)?;
        let slots = Slots { command: region.cmd_slot_dma, response: region.resp_slot_dma };
        for (what, slot) in [("command slot", slots.command), ("response slot", slots.response)] {
            if !slot.is_multiple_of(8) {
                return Err(LoadError::Unaligned(what, slot));
            }
        }
        // Mapped now, so that a driver learns at once of a slot that is not.
        let _: u64 = client::read(reader, slots.command).map_err(BadDirectory::from)?;
        let _: u64 = client::read(reader, slots.response).map_err(BadDirectory::from)?;
        let mut ring = |what, pages: u32, pdir, entry| {
            if !(2..=512).contains(&pages) {
                return Err(LoadError::Ring(what, pages));
            }
            let lease = budget.take(pages as usize).ok_or(LoadError::Ring(what, pages))?;
            let list = client::read_directory(reader, pdir, pages as usize)?;
            DeviceRing::new(QueuePages::new(list, lease), entry, reader)
                .ok_or(LoadError::Ring(what, pages))
        };
        let (n, e) = (region.cq_ring, region.async_ring);
        let notify = ring("notification", n.num_pages, n.pdir_dma, size_of::<NotifyEntry>())?;
        let events = ring("event", e.num_pages, e.pdir_dma, size_of::<EventEntry>())?;
        let caps = caps::caps(self.config.version, &limits, self.config.guid);
        let at = self.dsr + core::mem::offset_of!(SharedRegion, caps) as u64;
        client::write(reader, at, &caps).map_err(BadDirectory::from)?;
        front.notify = Some(notify);
        front.events = Some(events);
        self.slots = Some(slots);
        self.home_page = Some(self.uar_page(region.uar_pfn));
        self.list_pages();
        Ok(())
    }

    /// The doorbell page that a page frame number names. BAR2 is aligned to its own size, so the
    /// low bits are the page within it wherever it was placed.
    fn uar_page(&self, pfn: u64) -> u32 {
        let pfn = if self.config.version >= regs::VERSION_PFN64 { pfn } else { pfn & 0xffff_ffff };
        (pfn % u64::from(caps::UAR_PAGES)) as u32
    }

    /// Gives a user context its doorbell page; `None` when there are too many contexts.
    pub(super) fn add_context(&mut self, pfn: u64) -> Option<u32> {
        let page = self.uar_page(pfn);
        let free = self.contexts.iter().position(Option::is_none);
        let handle = match free {
            Some(handle) => handle,
            None if self.contexts.len() < MAX_CONTEXTS => {
                self.contexts.push(None);
                self.contexts.len() - 1
            }
            None => return None,
        };
        self.contexts[handle] = Some(page);
        self.list_pages();
        Some(handle as u32)
    }

    /// Takes a user context away. False when there is none of that handle.
    pub(super) fn remove_context(&mut self, handle: u32) -> bool {
        let taken = self.contexts.get_mut(handle as usize).and_then(Option::take);
        self.list_pages();
        taken.is_some()
    }

    fn list_pages(&mut self) {
        self.pages =
            self.home_page.into_iter().chain(self.contexts.iter().flatten().copied()).collect();
        self.pages.sort_unstable();
        self.pages.dedup();
    }

    /// What a 32-bit store to a doorbell page means. Says whether the engine has more to do.
    pub fn doorbell(
        &mut self,
        engine: &mut Engine<Front>,
        offset: u64,
        word: u32,
        now: u64,
    ) -> bool {
        let handle = uar::handle(word);
        engine.host(self.nic).counters.doorbells += 1;
        match offset as usize % PAGE_SIZE {
            uar::QP => {
                let mut more = false;
                if word & uar::QP_SEND != 0 {
                    more |= engine.send_doorbell(self.nic, handle, now);
                }
                if word & uar::QP_RECV != 0 {
                    more |= engine.recv_doorbell(self.nic, handle);
                }
                more
            }
            uar::CQ => {
                let (any, solicited) = (word & uar::CQ_ARM != 0, word & uar::CQ_ARM_SOLICITED != 0);
                if any || solicited {
                    engine.host(self.nic).arm(handle, !any);
                }
                // POLL asks to make completions visible, which they always are.
                false
            }
            uar::SRQ => {
                engine.srq_doorbell(self.nic, handle);
                false
            }
            _ => false,
        }
    }
}

/// ERR's form of an errno.
pub(super) fn negative(errno: i32) -> u32 {
    errno.wrapping_neg() as u32
}

#[derive(Debug, thiserror::Error)]
enum LoadError {
    #[error("the {0} is at {1:#x}, which is not 8-byte aligned")]
    Unaligned(&'static str, u64),
    #[error("the {0} ring cannot be used with {1} pages; 2 to 512 that are mapped are needed")]
    Ring(&'static str, u32),
    #[error(transparent)]
    Directory(#[from] BadDirectory),
}
