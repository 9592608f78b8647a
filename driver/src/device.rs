//! The device: bring-up, what it offers, the objects made from it, and teardown.
//!
//! Bring-up follows Linux's `pvrdma_pci_probe`: bus master on, version, shared region, check the
//! capabilities, interrupts, ACTIVATE. Teardown happens when the last object that needs the
//! device is gone: GIDs unbound, interrupts off, RESET (where that is usable), bus master off.

use std::collections::BTreeMap;
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use holdfast_wire::attr::PortAttr;
use holdfast_wire::dsr::{Caps, GID_TYPE_ROCE_V1, GID_TYPE_ROCE_V2, MODE_ROCE};
use holdfast_wire::uar::UAR_PAGE_SIZE;
use holdfast_wire::{cmd, regs};

use crate::account::Key;
use crate::command::CommandChannel;
use crate::cq::CompletionQueue;
use crate::dma::{DmaAllocator, DmaBuffer};
use crate::error::{Error, Result};
use crate::events::{Event, EventRings};
use crate::interrupts::{Interrupts, Vectors};
use crate::keys::KeyPool;
use crate::limits::{Counts, Limits};
use crate::mr::MemoryRegion;
use crate::pages::PageDirectory;
use crate::pd::ProtectionDomain;
use crate::qp::QueuePair;
use crate::qp_config::QpConfig;
use crate::quirks::{Facts, Quirks};
use crate::registers::{Control, Registers};
use crate::removal::Removal;
use crate::shared_region::Region;
use crate::srq::SharedReceiveQueue;
use crate::uar::{PagePool, Uar};

/// MTU that GIDs are bound with, in bytes, as Linux does.
const BIND_MTU: u32 = 1024;
/// "No VLAN", as Linux's driver says it in CREATE_BIND.
const NO_VLAN: u32 = 0xfff;
/// Most handles of a kind that the start-up sweep tries.
const SWEEP_LIMIT: u32 = 4096;

/// How to open a device.
#[derive(Debug, Clone)]
pub struct Options {
    /// How long to wait for the answer to a command.
    pub command_deadline: Duration,
    /// How events and notifications are to be learned of.
    pub interrupts: Interrupts,
    /// On devices that keep the objects of a driver that died, destroy those first.
    pub sweep_stale_objects: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            command_deadline: Duration::from_secs(10),
            interrupts: Interrupts::Polling,
            sweep_stale_objects: true,
        }
    }
}

/// A running PVRDMA device.
pub struct Device {
    pub(crate) transport: Arc<dyn holdfast_vfio::Device>,
    pub(crate) dma: Arc<dyn DmaAllocator>,
    pub(crate) registers: Registers,
    pub(crate) channel: CommandChannel,
    pub(crate) counts: Counts,
    pub(crate) uar_pages: Mutex<PagePool>,
    keys: Mutex<KeyPool>,
    gids: Mutex<BTreeMap<u32, [u8; 16]>>,
    rings: EventRings,
    vectors: Option<Vectors>,
    removal: Option<Removal>,
    version: u32,
    caps: Caps,
    limits: Limits,
    quirks: Quirks,
    uar_base_pfn: u64,
    unreachable: AtomicBool,
    // Dropped last: the device is told to stop before.
    region: Option<Region>,
}

impl std::fmt::Debug for Device {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Device")
            .field("version", &self.version)
            .field("quirks", &self.quirks)
            .finish_non_exhaustive()
    }
}

impl Device {
    /// Brings the device up. Blocks for register accesses and a command or two (thousands, when
    /// stale objects have to be swept).
    pub fn open(
        transport: Arc<dyn holdfast_vfio::Device>,
        dma: Arc<dyn DmaAllocator>,
        options: Options,
    ) -> Result<Arc<Self>> {
        let registers = Registers::new(transport.clone());
        registers.check_identity()?;
        // Without it the device cannot read its shared region, and says so by silence.
        registers.set_bus_master(true)?;
        let version = registers.version()?;
        if !(regs::VERSION_MIN..=regs::VERSION_MAX).contains(&version) {
            return Err(Error::Version { version });
        }
        let extension = registers.extension()?;
        if extension.is_some() {
            // The last owner may have died with queues running, whose addresses now mean other
            // memory. Only of a device with the extension is it known that a reset is quick and
            // thorough; others are swept once they are up.
            registers.control(Control::Reset)?;
        }
        let bar = transport
            .region(regs::BAR_UAR)
            .map_err(Error::transport("looking at the doorbell BAR"))?;
        let uar_base_pfn = transport
            .bus_address(regs::BAR_UAR)
            .map_err(Error::transport("looking for the doorbell BAR's address"))?
            / UAR_PAGE_SIZE as u64;

        let region = Region::new(dma.as_ref(), version, uar_base_pfn)?;
        // From here on the device may know the region: it has to be stopped before that goes.
        let stop = StopOnError::new(&registers);
        let caps = region.load(&registers)?;
        check_caps(version, &caps)?;
        let quirks = Quirks::detect(Facts { version, caps: &caps, extension });
        let mut limits = Limits::new(&caps, &quirks, bar.size);

        let vectors = match options.interrupts {
            Interrupts::Polling => None,
            Interrupts::Eventfd => {
                let vectors = Vectors::new(&transport)?;
                registers.mask_interrupts(false)?;
                Some(vectors)
            }
        };
        let removal = Removal::new(&transport);
        if !quirks.stays_active || !registers.left_active()? {
            registers.control(Control::Activate)?;
            match registers.error()? {
                0 => {}
                code => return Err(Error::Activate { code }),
            }
        }
        let channel = CommandChannel::new(
            registers.clone(),
            region.request.clone(),
            region.response.clone(),
            &quirks,
            options.command_deadline,
        );
        let port = channel.execute(query_port(1))?.attrs;
        limits = limits.with_port(&port, &quirks);
        let rings = EventRings::new(&region.events, &region.notifications)?;
        stop.disarm();
        let device = Arc::new(Self {
            transport,
            dma,
            registers,
            channel,
            counts: Counts::new(&limits),
            uar_pages: Mutex::new(PagePool::new(limits.max_uar)),
            keys: Mutex::default(),
            gids: Mutex::default(),
            rings,
            vectors,
            removal,
            version,
            caps,
            limits,
            quirks,
            uar_base_pfn,
            unreachable: AtomicBool::new(false),
            region: Some(region),
        });
        if quirks.keeps_stale_objects && options.sweep_stale_objects {
            device.sweep();
        }
        tracing::debug!(version, fw = caps.fw_ver, ?quirks, "device is up");
        Ok(device)
    }

    /// Capabilities as the device reports them; [`Device::limits`] are what can be relied on.
    pub fn caps(&self) -> &Caps {
        &self.caps
    }

    /// What this driver holds its callers to.
    pub fn limits(&self) -> Limits {
        self.limits
    }

    /// Interface version, 17 to 20.
    pub fn version(&self) -> u32 {
        self.version
    }

    /// What sets this device apart.
    pub fn quirks(&self) -> &Quirks {
        &self.quirks
    }

    /// Whether a doorbell or a wake-up could not reach the device: it is gone.
    pub fn is_unreachable(&self) -> bool {
        self.unreachable.load(Ordering::Relaxed)
    }

    /// Attributes of `port`, counted from 1. Blocks for a command.
    pub fn query_port(&self, port: u8) -> Result<PortAttr> {
        Ok(self.channel.execute(query_port(port))?.attrs)
    }

    /// Partition key `index` of `port`. Blocks for a command.
    pub fn query_pkey(&self, port: u8, index: u8) -> Result<u16> {
        let request =
            cmd::QueryPkey { hdr: Default::default(), port_num: port, index, reserved: [0; 6] };
        Ok(self.channel.execute(request)?.pkey)
    }

    /// Tells the device to go on after its link came up (Linux does so on link-up).
    pub fn unquiesce(&self) -> Result<()> {
        self.registers.control(Control::Unquiesce)?;
        match self.registers.error()? {
            0 => Ok(()),
            code => Err(Error::Activate { code }),
        }
    }

    /// Puts `gid` at `index` of the GID table. Every path needs one; bind index 0 before any
    /// queue pair is connected. Rebinding an index unbinds it first. Blocks for a command or two.
    pub fn bind_gid(&self, index: u32, gid: [u8; 16]) -> Result<()> {
        let last = u64::from(self.limits.gid_table.clamp(1, 256)) - 1;
        Error::check_limit("GID index", u64::from(index), last)?;
        let mut gids = lock(&self.gids);
        if let Some(old) = gids.get(&index).copied() {
            self.destroy_bind(index, old)?;
            gids.remove(&index);
        } else if self.quirks.keeps_stale_objects {
            // A driver that died may have bound the index. Bound anew without this, it would go on
            // meaning that driver's GID.
            let _ = self.destroy_bind(index, [0; 16]);
        }
        self.channel.execute(cmd::CreateBind {
            hdr: Default::default(),
            mtu: BIND_MTU,
            vlan: NO_VLAN,
            index,
            new_gid: gid,
            gid_type: self.caps.gid_types,
            reserved: [0; 3],
        })?;
        gids.insert(index, gid);
        Ok(())
    }

    /// Takes the GID at `index` out of the table. Blocks for a command.
    pub fn unbind_gid(&self, index: u32) -> Result<()> {
        let mut gids = lock(&self.gids);
        let gid = *gids.get(&index).ok_or(Error::Invalid("no GID is bound at that index"))?;
        self.destroy_bind(index, gid)?;
        gids.remove(&index);
        Ok(())
    }

    /// The GID bound at `index`.
    pub fn gid(&self, index: u32) -> Option<[u8; 16]> {
        lock(&self.gids).get(&index).copied()
    }

    /// A doorbell page. Give each thread that owns queues its own. Blocks for a command.
    pub fn alloc_uar(self: &Arc<Self>) -> Result<Arc<Uar>> {
        Uar::new(self.clone())
    }

    /// A protection domain. Blocks for a command.
    pub fn alloc_pd(self: &Arc<Self>, uar: &Arc<Uar>) -> Result<Arc<ProtectionDomain>> {
        self.check_same(uar.device())?;
        ProtectionDomain::new(uar)
    }

    /// Registers memory: `start` and `length` in the region's own address space, and the IOVA of
    /// each 4 KiB page it touches. The pages must stay mapped for the device until the region is
    /// destroyed. `access` are `holdfast_wire::attr::ACCESS_*` bits. Blocks for a command.
    pub fn register_mr(
        self: &Arc<Self>,
        pd: &Arc<ProtectionDomain>,
        start: u64,
        length: u64,
        pages: &[u64],
        access: u32,
    ) -> Result<MemoryRegion> {
        self.check_same(pd.device())?;
        MemoryRegion::new(pd, start, length, pages, access)
    }

    /// A completion queue of at least `depth` entries. Blocks for a command.
    pub fn create_cq(self: &Arc<Self>, uar: &Arc<Uar>, depth: u32) -> Result<CompletionQueue> {
        self.check_same(uar.device())?;
        CompletionQueue::new(uar, depth)
    }

    /// A queue pair in RESET. Blocks for a command.
    pub fn create_qp(
        self: &Arc<Self>,
        pd: &Arc<ProtectionDomain>,
        uar: &Arc<Uar>,
        config: &QpConfig,
        send_cq: &CompletionQueue,
        recv_cq: &CompletionQueue,
    ) -> Result<QueuePair> {
        self.check_same(pd.device())?;
        QueuePair::new(pd, uar, config, send_cq, recv_cq)
    }

    /// A shared receive queue. Blocks for a command.
    pub fn create_srq(
        self: &Arc<Self>,
        pd: &Arc<ProtectionDomain>,
        uar: &Arc<Uar>,
        depth: u32,
        max_sge: u32,
    ) -> Result<SharedReceiveQueue> {
        self.check_same(pd.device())?;
        SharedReceiveQueue::new(pd, uar, depth, max_sge)
    }

    /// The next asynchronous event, if there is one. Never blocks on the device.
    ///
    /// # Errors
    /// [`Error::DeviceNonsense`] for an event nobody knows (it is skipped) or a broken ring.
    pub fn next_event(&self) -> Result<Option<Event>> {
        self.rings.next_event()
    }

    /// The handle of the next completion queue that was armed and fired, if there is one. Never
    /// blocks on the device. The handle is the device's claim: compare it with those in use.
    pub fn next_notification(&self) -> Result<Option<u32>> {
        self.rings.next_notification()
    }

    /// Whether completion queues may ring POLL. Where doorbells are memory, completions show by
    /// themselves, and the word is left to ARM.
    pub(crate) fn rings_poll(&self) -> bool {
        let may_meet = self.quirks.poll_excludes_interrupts && self.vectors.is_some();
        !may_meet && !self.quirks.memory_doorbells
    }

    /// Drops all notifications of a device that writes them unasked; whoever waits for
    /// notifications takes them himself. Polling and posting come here now and then, since
    /// completions of a full ring take the device much longer. Never blocks.
    pub(crate) fn forget_notifications(&self) {
        if self.quirks.notifies_always && self.vectors.is_none() {
            self.rings.skip_notifications();
        }
    }

    /// Becomes readable when an event arrives; `None` when polling.
    pub fn event_fd(&self) -> Option<BorrowedFd<'_>> {
        self.vectors.as_ref().map(Vectors::event)
    }

    /// Becomes readable when an armed completion queue fires; `None` when polling.
    pub fn notification_fd(&self) -> Option<BorrowedFd<'_>> {
        self.vectors.as_ref().map(Vectors::notification)
    }

    /// Becomes readable when the kernel wants the function back (hot unplug, `remove` in sysfs,
    /// unbinding): close everything made from the device soon, because the kernel waits for that,
    /// and asks again every so often. `None` where nobody can ask, as over vfio-user.
    pub fn removal_fd(&self) -> Option<BorrowedFd<'_>> {
        self.removal.as_ref().map(Removal::fd)
    }

    /// Whether the kernel has asked for the function back; once true it stays true. A system call
    /// at most, never blocks.
    pub fn removal_requested(&self) -> bool {
        self.removal.as_ref().is_some_and(Removal::requested)
    }

    /// Looks whether the device is still there, by a register read. Completions alone do not tell:
    /// a device that was pulled just writes none. For a wait that has become long, not for a loop.
    ///
    /// # Errors
    /// [`Error::Gone`] when its registers read as all ones.
    pub fn check_present(&self) -> Result<()> {
        self.registers.check_present()
    }

    pub(crate) fn uar_pfn(&self, page: u32) -> u64 {
        let pfn = self.uar_base_pfn.wrapping_add(u64::from(page));
        if self.version >= regs::VERSION_PFN64 { pfn } else { pfn & u64::from(u32::MAX) }
    }

    pub(crate) fn mark_unreachable(&self) {
        self.unreachable.store(true, Ordering::Relaxed);
    }

    pub(crate) fn check_same(&self, other: &Device) -> Result<()> {
        if std::ptr::eq(self, other) {
            Ok(())
        } else {
            Err(Error::Invalid("the objects belong to different devices"))
        }
    }

    pub(crate) fn issue_key(&self) -> Result<Key> {
        lock(&self.keys).issue()
    }

    pub(crate) fn retire_key(&self, key: Key) {
        lock(&self.keys).retire(key);
    }

    pub(crate) fn release_key(&self, key: Key) {
        lock(&self.keys).release(key);
    }

    /// Whether a work queue had that key and is gone.
    pub(crate) fn was_issued(&self, key: Key) -> bool {
        lock(&self.keys).is_retired(key)
    }

    /// Frees an object's rings, unless the device may still use them.
    pub(crate) fn release_memory(
        &self,
        what: &'static str,
        mut destroyed: Result<()>,
        memory: Option<(Arc<DmaBuffer>, PageDirectory)>,
    ) {
        if destroyed.is_ok() && !self.quirks.answers_everything {
            // Nobody said that the object is gone. Commands are carried out in order, so an answer
            // to a later one says it.
            destroyed = self.query_port(1).map(drop);
        }
        // A device that is gone has taken its objects with it.
        if let Err(error) = destroyed
            && !error.is_gone()
        {
            tracing::error!(%error, what, "an object was not destroyed; its memory is not reused");
            std::mem::forget(memory);
        }
    }

    /// Keeps memory out of use for good if the device may still carry out the command that was to
    /// create an object in it; gives the error back.
    pub(crate) fn not_created<T>(&self, what: &'static str, error: Error, memory: T) -> Error {
        if error.device_may_act() {
            tracing::error!(%error, what, "an object may have been created; its memory is not reused");
            std::mem::forget(memory);
        }
        error
    }

    fn destroy_bind(&self, index: u32, dest_gid: [u8; 16]) -> Result<()> {
        self.channel
            .execute(cmd::DestroyBind {
                hdr: Default::default(),
                index,
                dest_gid,
                reserved: [0; 4],
            })
            .map(drop)
    }

    /// Destroys whatever a driver that died has left: every plausible handle, in safe order.
    fn sweep(&self) {
        let hdr = Default::default;
        let handles = |limit: u32| 0..limit.min(SWEEP_LIMIT);
        let mut taken = 0u32;
        let mut count = |result: Result<()>| taken += u32::from(result.is_ok());
        for qp_handle in handles(self.limits.max_qp) {
            let request = cmd::DestroyQp { hdr: hdr(), qp_handle, reserved: 0 };
            count(self.channel.execute(request).map(drop));
        }
        for srq_handle in handles(self.limits.max_srq) {
            let request = cmd::DestroySrq { hdr: hdr(), srq_handle, reserved: 0 };
            count(self.channel.execute(request).map(drop));
        }
        for cq_handle in handles(self.limits.max_cq) {
            let request = cmd::DestroyCq { hdr: hdr(), cq_handle, reserved: 0 };
            count(self.channel.execute(request).map(drop));
        }
        for mr_handle in handles(self.limits.max_mr) {
            let request = cmd::DestroyMr { hdr: hdr(), mr_handle, reserved: 0 };
            count(self.channel.execute(request).map(drop));
        }
        for pd_handle in handles(self.limits.max_pd) {
            let request = cmd::DestroyPd { hdr: hdr(), pd_handle, reserved: 0 };
            count(self.channel.execute(request).map(drop));
        }
        for ctx_handle in handles(self.limits.max_uar) {
            let request = cmd::DestroyUc { hdr: hdr(), ctx_handle, reserved: 0 };
            count(self.channel.execute(request).map(drop));
        }
        // Some of these commands succeed whether the object was there or not.
        tracing::debug!(taken, "swept the objects of earlier drivers");
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        let gids = std::mem::take(&mut *lock(&self.gids));
        for (index, gid) in gids {
            if let Err(error) = self.destroy_bind(index, gid)
                && !error.is_gone()
            {
                tracing::warn!(%error, index, "a GID was not unbound");
            }
        }
        if self.vectors.take().is_some()
            && let Err(error) = self.registers.mask_interrupts(true)
        {
            tracing::warn!(%error, "interrupts were not masked");
        }
        let reset = if self.quirks.reset_unusable {
            Ok(())
        } else {
            self.registers.control(Control::Reset)
        };
        let stopped = reset.and_then(|()| self.registers.set_bus_master(false));
        if let Err(error) = stopped {
            tracing::error!(%error, "the device was not stopped; its memory is not reused");
            std::mem::forget(self.region.take());
        }
    }
}

/// Stops a device whose bring-up failed half way.
struct StopOnError<'a> {
    registers: Option<&'a Registers>,
}

impl<'a> StopOnError<'a> {
    fn new(registers: &'a Registers) -> Self {
        Self { registers: Some(registers) }
    }

    fn disarm(mut self) {
        self.registers = None;
    }
}

impl Drop for StopOnError<'_> {
    fn drop(&mut self) {
        // Not RESET: which devices survive that is not known yet. Without bus mastering the
        // device reaches no memory.
        if let Some(registers) = self.registers
            && let Err(error) = registers.set_bus_master(false)
        {
            tracing::warn!(%error, "bus mastering was not turned off");
        }
    }
}

fn query_port(port: u8) -> cmd::QueryPort {
    cmd::QueryPort { hdr: Default::default(), port_num: port, reserved: [0; 7] }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The device must be RoCE with exactly one GID type, and version 17 knows only the first.
fn check_caps(version: u32, caps: &Caps) -> Result<()> {
    let one_type = match caps.gid_types {
        GID_TYPE_ROCE_V1 => true,
        GID_TYPE_ROCE_V2 => version >= regs::VERSION_ROCE_V2,
        _ => false,
    };
    if caps.mode != MODE_ROCE || !one_type {
        return Err(Error::NotRoce { mode: caps.mode, gid_types: caps.gid_types });
    }
    Ok(())
}
