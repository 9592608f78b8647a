//! PCI configuration space: a type 0 header, three BARs and an MSI-X capability.
//!
//! It is 256 bytes with a mask that says which bits software may write, which is all the behaviour
//! that configuration space has here: BARs answer a write of all ones with their size because the
//! low address bits are not writable.

use holdfast_wire::regs::{
    BAR_MSIX_SIZE, BAR_REGS_SIZE, BAR_UAR_SIZE, MSIX_PBA_OFFSET, VECTOR_COUNT,
};
use holdfast_wire::{PCI_DEVICE_ID, PCI_VENDOR_ID};

/// Bytes of configuration space.
pub const CONFIG_SIZE: usize = 256;

const COMMAND: usize = 0x04;
const BAR0: usize = 0x10;
const MSIX_CAP: usize = 0x40;
const CAP_MSIX: u8 = 0x11;
const COMMAND_BUS_MASTER: u8 = 1 << 2;
/// I/O, memory, bus master, parity, SERR, INTx disable.
const COMMAND_WRITABLE: u16 = 0x0547;
/// MSI-X enable and function mask.
const MSIX_CONTROL_WRITABLE: u16 = 0xc000;

/// The configuration space of one NIC.
#[derive(Debug, Clone)]
pub struct ConfigSpace {
    bytes: [u8; CONFIG_SIZE],
    writable: [u8; CONFIG_SIZE],
}

impl Default for ConfigSpace {
    fn default() -> Self {
        let mut space = Self { bytes: [0; CONFIG_SIZE], writable: [0; CONFIG_SIZE] };
        let b = &mut space.bytes;
        put16(b, 0x00, PCI_VENDOR_ID);
        put16(b, 0x02, PCI_DEVICE_ID);
        b[0x06] = 0x10; // status: there is a capability list
        b[0x0b] = 0x02; // class 0x0280: network controller, other
        b[0x0a] = 0x80;
        put16(b, 0x2c, PCI_VENDOR_ID);
        put16(b, 0x2e, PCI_DEVICE_ID);
        b[0x34] = MSIX_CAP as u8;
        // No interrupt pin: it would never be asserted, and QEMU insists on an eventfd for one.
        b[0x3d] = 0;
        b[MSIX_CAP] = CAP_MSIX;
        put16(b, MSIX_CAP + 2, VECTOR_COUNT as u16 - 1);
        // Table at offset 0 and pending bits, both in BAR0 (the low three bits name the BAR).
        put32(b, MSIX_CAP + 4, 0);
        put32(b, MSIX_CAP + 8, MSIX_PBA_OFFSET);
        let w = &mut space.writable;
        put16(w, COMMAND, COMMAND_WRITABLE);
        w[0x0c] = 0xff; // cache line size
        w[0x0d] = 0xff; // latency timer
        for (bar, size) in [BAR_MSIX_SIZE, BAR_REGS_SIZE, BAR_UAR_SIZE].into_iter().enumerate() {
            put32(w, BAR0 + 4 * bar, !(size as u32 - 1));
        }
        w[0x3c] = 0xff; // interrupt line
        put16(w, MSIX_CAP + 2, MSIX_CONTROL_WRITABLE);
        space
    }
}

impl ConfigSpace {
    /// Reads; bytes beyond the end are zero.
    pub fn read(&self, offset: u64, data: &mut [u8]) {
        for (at, byte) in data.iter_mut().enumerate() {
            let at = usize::try_from(offset).ok().and_then(|start| start.checked_add(at));
            *byte = at.and_then(|at| self.bytes.get(at)).map_or(0, |b| *b);
        }
    }

    /// Whether the device may use memory at all.
    pub fn bus_master(&self) -> bool {
        self.bytes[COMMAND] & COMMAND_BUS_MASTER != 0
    }

    /// Writes what software may write of it, and drops the rest.
    pub fn write(&mut self, offset: u64, data: &[u8]) {
        let Ok(start) = usize::try_from(offset) else { return };
        for (at, byte) in data.iter().enumerate() {
            let Some(at) = start.checked_add(at) else { return };
            if let (Some(old), Some(mask)) = (self.bytes.get_mut(at), self.writable.get(at)) {
                *old = *old & !mask | byte & mask;
            }
        }
    }
}

fn put16(bytes: &mut [u8], at: usize, value: u16) {
    bytes[at..at + 2].copy_from_slice(&value.to_le_bytes());
}

fn put32(bytes: &mut [u8], at: usize, value: u32) {
    bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    fn word(space: &ConfigSpace, at: u64) -> u32 {
        let mut data = [0; 4];
        space.read(at, &mut data);
        u32::from_le_bytes(data)
    }

    #[test]
    fn bars_answer_all_ones_with_their_size() {
        for (bar, size) in [(0, 16 << 10), (1, 256), (2, 8 << 20), (3, 0)] {
            let mut space = ConfigSpace::default();
            space.write(0x10 + 4 * bar, &[0xff; 4]);
            let mask = if size == 0 { 0 } else { !(size as u32 - 1) };
            assert_eq!(word(&space, 0x10 + 4 * bar), mask, "BAR{bar}");
        }
    }

    #[test]
    fn identity_is_read_only() {
        let mut space = ConfigSpace::default();
        space.write(0, &[0xff; CONFIG_SIZE]);
        assert_eq!(word(&space, 0x00), 0x0820_15ad);
        assert_eq!(word(&space, 0x08) >> 16, 0x0280);
        assert_eq!(word(&space, 0x40), 0xc002_0011);
        assert_eq!(word(&space, 0x48), 0x2000);
    }

    #[test]
    fn accesses_beyond_the_end_do_nothing() {
        let mut space = ConfigSpace::default();
        let mut data = [9; 8];
        space.write(252, &[1; 8]);
        space.read(u64::MAX, &mut data[..1]);
        space.read(252, &mut data);
        assert_eq!(data, [0; 8]);
    }
}
