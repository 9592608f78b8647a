//! The one bit of PCI configuration space that DMA needs.

use crate::device::REGION_CONFIG;
use crate::{Device, Error, Result};

/// Offset of the command register.
const COMMAND: u64 = 0x04;
/// Answer to memory accesses (BARs).
const MEMORY_SPACE: u16 = 1 << 1;
/// Start DMA and MSI.
const BUS_MASTER: u16 = 1 << 2;

/// Lets the function answer on its BARs and start DMA: sets memory space and bus master in the
/// command register. Works on any [`Device`]. The kernel clears bus mastering when the device's
/// descriptor is opened, reset or closed.
///
/// # Errors
/// [`Error::BusMaster`] when the bits do not stay set.
pub fn enable_bus_master(device: &dyn Device) -> Result<()> {
    let wanted = MEMORY_SPACE | BUS_MASTER;
    let before = command(device)?;
    if before & wanted != wanted {
        device.write_region(REGION_CONFIG, COMMAND, &(before | wanted).to_le_bytes())?;
    }
    let found = command(device)?;
    if found & wanted == wanted { Ok(()) } else { Err(Error::BusMaster { found }) }
}

fn command(device: &dyn Device) -> Result<u16> {
    let mut bytes = [0; 2];
    device.read_region(REGION_CONFIG, COMMAND, &mut bytes)?;
    Ok(u16::from_le_bytes(bytes))
}
