//! The device: what it offers, and the objects made from it.
//!
//! Teardown happens when the last object that needs the device is gone: GIDs unbound, interrupts
//! off, RESET (where that is usable), bus master off.

mod bring_up;
mod teardown;

use std::collections::BTreeMap;
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use holdfast_wire::attr::PortAttr;
use holdfast_wire::dsr::Caps;
use holdfast_wire::{cmd, regs};

pub use self::bring_up::Options;
use crate::account::Key;
use crate::command::CommandChannel;
use crate::cq::CompletionQueue;
use crate::dma::DmaAllocator;
use crate::error::{Error, Result};
use crate::events::{Event, EventRings};
use crate::interrupts::Vectors;
use crate::keys::KeyPool;
use crate::limits::{Counts, Limits};
use crate::mr::MemoryRegion;
use crate::pd::ProtectionDomain;
use crate::qp::QueuePair;
use crate::qp_config::QpConfig;
use crate::quirks::Quirks;
use crate::registers::{Control, Registers};
use crate::removal::Removal;
use crate::shared_region::Region;
use crate::srq::SharedReceiveQueue;
use crate::uar::{PagePool, Uar};

/// MTU that GIDs are bound with, in bytes, as Linux does.
const BIND_MTU: u32 = 1024;
/// "No VLAN", as Linux's driver says it in CREATE_BIND.
const NO_VLAN: u32 = 0xfff;

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
}

fn query_port(port: u8) -> cmd::QueryPort {
    cmd::QueryPort { hdr: Default::default(), port_num: port, reserved: [0; 7] }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
