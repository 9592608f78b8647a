//! The register file and the PCI command register, as typed accessors.
//!
//! BAR1 is smaller than a page and can rarely be mapped, and no register is on a fast path, so all
//! access goes through the transport's region reads and writes. The offsets themselves stand in
//! `holdfast_wire::regs`.

use std::sync::Arc;

use holdfast_vfio::device::REGION_CONFIG;
use holdfast_wire::regs;
use holdfast_wire::{PCI_DEVICE_ID, PCI_VENDOR_ID};

use crate::error::{Error, Result};

/// PCI configuration space: vendor and device id (PCI 3.0, 6.1).
const CONFIG_ID: u64 = 0x00;
/// PCI configuration space: command register, 16 bits.
const CONFIG_COMMAND: u64 = 0x04;
/// Command register: answer memory accesses.
const COMMAND_MEMORY: u16 = 1 << 1;
/// Command register: may master the bus.
const COMMAND_BUS_MASTER: u16 = 1 << 2;

/// What a read gives where no device answers (PCI 3.0, 3.3.3.3.1).
const ABSENT: u32 = !0;

/// What CTL can be told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Control {
    Activate,
    Unquiesce,
    Reset,
}

/// The device's registers.
#[derive(Clone)]
pub(crate) struct Registers {
    transport: Arc<dyn holdfast_vfio::Device>,
}

impl Registers {
    pub(crate) fn new(transport: Arc<dyn holdfast_vfio::Device>) -> Self {
        Self { transport }
    }

    /// Fails unless the function is a PVRDMA device.
    pub(crate) fn check_identity(&self) -> Result<()> {
        let id = self
            .transport
            .read_u32(REGION_CONFIG, CONFIG_ID)
            .map_err(Error::transport("reading the PCI ids"))?;
        if id == ABSENT {
            return Err(Error::Gone);
        }
        let (vendor, device) = (id as u16, (id >> 16) as u16);
        if (vendor, device) == (PCI_VENDOR_ID, PCI_DEVICE_ID) {
            Ok(())
        } else {
            Err(Error::NotPvrdma { vendor, device })
        }
    }

    /// Turns memory decoding on, and bus mastering on or off.
    pub(crate) fn set_bus_master(&self, on: bool) -> Result<()> {
        let mut raw = [0; 2];
        self.transport
            .read_region(REGION_CONFIG, CONFIG_COMMAND, &mut raw)
            .map_err(Error::transport("reading the PCI command register"))?;
        let old = u16::from_le_bytes(raw);
        let new =
            if on { old | COMMAND_MEMORY | COMMAND_BUS_MASTER } else { old & !COMMAND_BUS_MASTER };
        self.transport
            .write_region(REGION_CONFIG, CONFIG_COMMAND, &new.to_le_bytes())
            .map_err(Error::transport("writing the PCI command register"))
    }

    /// Interface version.
    pub(crate) fn version(&self) -> Result<u32> {
        self.read(regs::VERSION, "reading VERSION")
    }

    /// Fails with [`Error::Gone`] when nobody answers at the device's address any more.
    pub(crate) fn check_present(&self) -> Result<()> {
        if self.version()? == ABSENT { Err(Error::Gone) } else { Ok(()) }
    }

    /// The vendor extension's feature bits, where the device has the extension.
    pub(crate) fn extension(&self) -> Result<Option<u32>> {
        if self.read(regs::EXT_MAGIC, "looking for the extension")? != regs::EXT_MAGIC_VALUE {
            return Ok(None);
        }
        self.read(regs::EXT_FEATURES, "reading the extension's features").map(Some)
    }

    /// Hands over the shared region; the device loads it and fills in its capabilities.
    pub(crate) fn set_shared_region(&self, address: u64) -> Result<()> {
        self.write(regs::DSR_LOW, address as u32, "writing the shared region's address")?;
        self.write(regs::DSR_HIGH, (address >> 32) as u32, "writing the shared region's address")
    }

    /// Writes CTL.
    pub(crate) fn control(&self, control: Control) -> Result<()> {
        let value = match control {
            Control::Activate => regs::CTL_ACTIVATE,
            Control::Unquiesce => regs::CTL_UNQUIESCE,
            Control::Reset => regs::CTL_RESET,
        };
        self.write(regs::CTL, value, "writing CTL")
    }

    /// Whether the last driver left an active device, as far as registers that keep what was
    /// written tell: a command or ACTIVATE succeeded, and no RESET came after ACTIVATE.
    pub(crate) fn left_active(&self) -> Result<bool> {
        let reset = self.read(regs::CTL, "reading CTL")? == regs::CTL_RESET;
        Ok(!reset && self.error()? == 0)
    }

    /// Starts the command in the command slot.
    pub(crate) fn request(&self) -> Result<()> {
        self.write(regs::REQUEST, 0, "starting a command")
    }

    /// The error register: 0, [`regs::ERR_NO_DSR`], or a negative errno.
    pub(crate) fn error(&self) -> Result<u32> {
        self.read(regs::ERR, "reading ERR")
    }

    /// Masks or unmasks all interrupts. Models differ in what single bits mean.
    pub(crate) fn mask_interrupts(&self, masked: bool) -> Result<()> {
        self.write(regs::IMR, if masked { !0 } else { 0 }, "writing IMR")
    }

    /// Wakes a sleeping device that has the extension.
    pub(crate) fn wake(&self) -> Result<()> {
        self.write(regs::EXT_WAKE, 1, "waking the device")
    }

    fn read(&self, offset: u64, doing: &'static str) -> Result<u32> {
        self.transport.read_u32(regs::BAR_REGS, offset).map_err(Error::transport(doing))
    }

    fn write(&self, offset: u64, value: u32, doing: &'static str) -> Result<()> {
        self.transport.write_u32(regs::BAR_REGS, offset, value).map_err(Error::transport(doing))
    }
}
