//! Bus mastering is set through configuration space, over any device.

use std::os::fd::BorrowedFd;
use std::sync::Mutex;

use holdfast_vfio::device::REGION_CONFIG;
use holdfast_vfio::kernel::enable_bus_master;
use holdfast_vfio::{Device, DeviceInfo, Error, IrqInfo, MappedRegion, RegionInfo, Result};

/// A device with a configuration space, some command bits of which are stuck at zero.
struct Config {
    bytes: Mutex<[u8; 64]>,
    writable: u16,
}

impl Device for Config {
    fn info(&self) -> DeviceInfo {
        DeviceInfo { regions: 9, irqs: 0, can_reset: false }
    }
    fn region(&self, index: u32) -> Result<RegionInfo> {
        Err(Error::NoRegion { index })
    }
    fn read_region(&self, index: u32, offset: u64, buf: &mut [u8]) -> Result<()> {
        assert_eq!(index, REGION_CONFIG);
        let offset = offset as usize;
        buf.copy_from_slice(&self.bytes.lock().unwrap()[offset..offset + buf.len()]);
        Ok(())
    }
    fn write_region(&self, index: u32, offset: u64, data: &[u8]) -> Result<()> {
        assert_eq!((index, offset, data.len()), (REGION_CONFIG, 4, 2));
        let value = u16::from_le_bytes([data[0], data[1]]) & self.writable;
        self.bytes.lock().unwrap()[4..6].copy_from_slice(&value.to_le_bytes());
        Ok(())
    }
    fn map_region(&self, index: u32, offset: u64, len: u64) -> Result<MappedRegion> {
        Err(Error::NotMappable { index, offset, len })
    }
    fn bus_address(&self, index: u32) -> Result<u64> {
        Err(Error::NoRegion { index })
    }
    fn irq(&self, index: u32) -> Result<IrqInfo> {
        Err(Error::NoIrq { index })
    }
    fn enable_irqs(&self, index: u32, _: &[Option<BorrowedFd<'_>>]) -> Result<()> {
        Err(Error::NoIrq { index })
    }
    fn disable_irqs(&self, _: u32) -> Result<()> {
        Ok(())
    }
    fn reset(&self) -> Result<()> {
        Ok(())
    }
}

fn config(command: u16, writable: u16) -> Config {
    let mut bytes = [0x55; 64];
    bytes[4..6].copy_from_slice(&command.to_le_bytes());
    Config { bytes: Mutex::new(bytes), writable }
}

#[test]
fn bus_mastering_is_added_to_what_the_command_register_holds() {
    for before in [0, 0x0400, 0x0406, 0x0141] {
        let device = config(before, u16::MAX);
        enable_bus_master(&device).unwrap();
        let bytes = device.bytes.lock().unwrap();
        assert_eq!(u16::from_le_bytes([bytes[4], bytes[5]]), before | 0x6);
        assert!(bytes[6..].iter().all(|byte| *byte == 0x55));
    }
}

#[test]
fn a_command_register_that_does_not_take_the_bit_is_an_error() {
    let error = enable_bus_master(&config(0, 0x2)).unwrap_err();
    assert!(matches!(error, Error::BusMaster { found: 0x2 }), "{error}");
}
