//! BAR layout and the register file (BAR1, 32-bit little-endian registers).
//!
//! The stock register file ends at 0x24. From [`EXT_MAGIC`] on, this project's emulated NIC adds
//! a small vendor extension: a device without it answers anything but [`EXT_MAGIC_VALUE`] there
//! (QEMU 7.2's model gives back what was last written, zero at first), so a driver that finds the
//! value may rely on the feature bits. Stock drivers never look.

/// BAR that holds the MSI-X table and pending bits.
pub const BAR_MSIX: u32 = 0;
/// BAR that holds the register file.
pub const BAR_REGS: u32 = 1;
/// BAR that holds the doorbell (UAR) pages.
pub const BAR_UAR: u32 = 2;

/// Size of BAR0 in bytes: MSI-X table at 0, pending bit array at [`MSIX_PBA_OFFSET`].
pub const BAR_MSIX_SIZE: u64 = 16 * 1024;
/// Offset of the MSI-X pending bit array in BAR0.
pub const MSIX_PBA_OFFSET: u32 = 0x2000;
/// Size of BAR1 in bytes; note that it is smaller than a page, so it can rarely be mmapped.
pub const BAR_REGS_SIZE: u64 = 256;
/// Size of BAR2 in bytes (2048 doorbell pages).
pub const BAR_UAR_SIZE: u64 = 8 * 1024 * 1024;

/// Read: device interface version, 17 to 20.
pub const VERSION: u64 = 0x00;
/// Write first: low half of the device shared region's bus address.
pub const DSR_LOW: u64 = 0x04;
/// Write second: high half; triggers loading of the shared region and filling of the caps.
pub const DSR_HIGH: u64 = 0x08;
/// Write: one of the `CTL_*` values.
pub const CTL: u64 = 0x0c;
/// Write 0: execute the command slot.
pub const REQUEST: u64 = 0x10;
/// Read: 0 is success; else a negative errno, or 0xffff for "no shared region".
pub const ERR: u64 = 0x14;
/// Read: interrupt cause, INTx only.
pub const ICR: u64 = 0x18;
/// Read/write: interrupt mask; write only 0 (all on) or `!0` (all masked).
pub const IMR: u64 = 0x1c;
/// Unused low half of the MAC address.
pub const MAC_LOW: u64 = 0x20;
/// Unused high half of the MAC address.
pub const MAC_HIGH: u64 = 0x24;

/// Vendor extension, read: [`EXT_MAGIC_VALUE`] when the extension is there.
pub const EXT_MAGIC: u64 = 0x80;
/// Vendor extension, read: `EXT_FEATURE_*` bits.
pub const EXT_FEATURES: u64 = 0x84;
/// Vendor extension, write anything: wake a NIC whose [`crate::uar::ASLEEP`] word is not zero.
pub const EXT_WAKE: u64 = 0x88;

/// Value of [`EXT_MAGIC`]: "HDFT".
pub const EXT_MAGIC_VALUE: u32 = 0x5446_4448;
/// The doorbell page is memory that the NIC polls, not a register: a store may be overwritten by
/// the next store to the same word before the NIC has looked. Queue doorbells are then hints (the
/// NIC scans the rings); an ARM must be confirmed by reading its word until it is zero.
pub const EXT_FEATURE_MEMORY_DOORBELLS: u32 = 1 << 0;
/// The NIC may sleep; [`crate::uar::ASLEEP`] says so and [`EXT_WAKE`] ends it.
pub const EXT_FEATURE_WAKE: u32 = 1 << 1;

/// [`CTL`]: start the device.
pub const CTL_ACTIVATE: u32 = 0;
/// [`CTL`]: resume after a quiesce (link up).
pub const CTL_UNQUIESCE: u32 = 1;
/// [`CTL`]: stop and forget everything.
pub const CTL_RESET: u32 = 2;

/// [`ERR`] before a shared region was loaded.
pub const ERR_NO_DSR: u32 = 0xffff;

/// Oldest interface version a driver can speak.
pub const VERSION_MIN: u32 = 17;
/// From this version on, RoCE v2 and the fast-registration caps exist.
pub const VERSION_ROCE_V2: u32 = 18;
/// From this version on, UAR page frame numbers are 64 bits wide.
pub const VERSION_PFN64: u32 = 19;
/// From this version on, a queue pair's handle differs from its number.
pub const VERSION_QP_HANDLE: u32 = 20;
/// Newest interface version known here.
pub const VERSION_MAX: u32 = 20;

/// MSI-X vector for command responses.
pub const VECTOR_RESPONSE: u32 = 0;
/// MSI-X vector for asynchronous events.
pub const VECTOR_EVENT: u32 = 1;
/// First MSI-X vector for completion notifications.
pub const VECTOR_COMPLETION: u32 = 2;
/// Number of vectors a device offers.
pub const VECTOR_COUNT: u32 = 3;
