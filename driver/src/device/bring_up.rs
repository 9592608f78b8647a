//! Bringing a device up.
//!
//! It follows Linux's `pvrdma_pci_probe`: bus master on, version, shared region, check the
//! capabilities, interrupts, ACTIVATE.

use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use holdfast_wire::dsr::{Caps, GID_TYPE_ROCE_V1, GID_TYPE_ROCE_V2, MODE_ROCE};
use holdfast_wire::uar::UAR_PAGE_SIZE;
use holdfast_wire::{cmd, regs};

use super::{Device, query_port};
use crate::command::CommandChannel;
use crate::dma::DmaAllocator;
use crate::error::{Error, Result};
use crate::events::EventRings;
use crate::interrupts::{Interrupts, Vectors};
use crate::limits::{Counts, Limits};
use crate::quirks::{Facts, Quirks};
use crate::registers::{Control, Registers};
use crate::removal::Removal;
use crate::shared_region::Region;
use crate::uar::PagePool;

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
