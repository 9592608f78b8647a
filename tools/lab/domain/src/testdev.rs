//! QEMU's `iommu-testdev` (QEMU hw/misc/iommu-testdev.c): a register access makes it write a
//! fixed pattern to an address through the IOMMU, and says whether that went well.

use std::sync::Arc;

use anyhow::{Result, bail};
use holdfast_vfio::{Device, MappedRegion};

const BAR: u32 = 0;
const TRIGGER: usize = 0x00;
const ADDRESS_LOW: usize = 0x04;
const ADDRESS_HIGH: usize = 0x08;
const LENGTH: usize = 0x0c;
const RESULT: usize = 0x10;
const ARM: usize = 0x14;

/// The write was refused by the IOMMU.
const WRITE_FAILED: u32 = 0xdead_0002;
/// The write went well, but the device did not find the same bytes at the *physical* address it
/// may be told to compare with; we tell it none.
const MISMATCH: u32 = 0xdead_0004;
/// The comparison could not be read, or was equal by chance.
const COMPARED: [u32; 3] = [0, 0xdead_0003, MISMATCH];

/// The bytes it writes, over and over.
pub const PATTERN: [u8; 4] = 0x1234_5678_u32.to_le_bytes();

/// The engine.
pub struct Testdev {
    registers: MappedRegion,
    _device: Arc<dyn Device>,
}

impl Testdev {
    /// Takes the device's registers.
    pub fn new(device: Arc<dyn Device>) -> Result<Self> {
        let registers = device.map_region(BAR, 0, 0x1000)?;
        Ok(Self { registers, _device: device })
    }

    /// Writes `len` bytes of [`PATTERN`] to `iova`; whether the IOMMU let it.
    pub fn write(&self, iova: u64, len: u32) -> Result<bool> {
        self.registers.write_u32(ADDRESS_LOW, iova as u32);
        self.registers.write_u32(ADDRESS_HIGH, (iova >> 32) as u32);
        self.registers.write_u32(LENGTH, len);
        self.again()
    }

    /// The last write once more.
    pub fn again(&self) -> Result<bool> {
        self.registers.write_u32(ARM, 1);
        self.registers.read_u32(TRIGGER);
        match self.registers.read_u32(RESULT) {
            WRITE_FAILED => Ok(false),
            result if COMPARED.contains(&result) => Ok(true),
            result => bail!("iommu-testdev answers {result:#x}"),
        }
    }
}
