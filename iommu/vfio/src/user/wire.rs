//! The messages, byte by byte: what follows the header in each command and reply.
//!
//! Everything is in the host's byte order (little-endian here); sizes are in bytes. Payloads are
//! read by copying (`read_from_prefix`), so alignment in the receive buffer does not matter. The
//! facts are those of the vfio-user specification (protocol 0.1) and, for the structures that it
//! borrows, of `<linux/vfio.h>`.

use std::fmt;

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Protocol major version; both sides must have the same.
pub const MAJOR: u16 = 0;
/// Highest protocol minor version spoken here.
pub const MINOR: u16 = 1;

/// What a message asks for, or answers. Open: the other side may send any value.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Command(pub u16);

macro_rules! commands {
    ($($(#[$doc:meta])* $name:ident = $value:literal;)*) => {
        impl Command {
            $($(#[$doc])* pub const $name: Command = Command($value);)*
        }

        impl fmt::Display for Command {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                match *self {
                    $(Command::$name => f.write_str(stringify!($name)),)*
                    Command(other) => write!(f, "command {other}"),
                }
            }
        }
    };
}

commands! {
    /// First message on a connection: protocol version and capabilities.
    VERSION = 1;
    /// Makes client memory reachable for DMA.
    DMA_MAP = 2;
    /// Makes it unreachable; the reply is a fence.
    DMA_UNMAP = 3;
    /// Number of regions and interrupt indices.
    DEVICE_GET_INFO = 4;
    /// Size, flags and mappable parts of a region.
    DEVICE_GET_REGION_INFO = 5;
    /// Descriptors through which parts of a region can be reached (ioeventfd, ioregionfd).
    DEVICE_GET_REGION_IO_FDS = 6;
    /// Number and kind of an index' vectors.
    DEVICE_GET_IRQ_INFO = 7;
    /// Binds, fires, masks or disables vectors.
    DEVICE_SET_IRQS = 8;
    /// Reads from a region.
    REGION_READ = 9;
    /// Writes to a region.
    REGION_WRITE = 10;
    /// Server to client: reads client memory.
    DMA_READ = 11;
    /// Server to client: writes client memory.
    DMA_WRITE = 12;
    /// Resets the function.
    DEVICE_RESET = 13;
    /// Several small region writes in one message.
    REGION_WRITE_MULTI = 15;
    /// Gets or sets a device feature (migration, DMA logging).
    DEVICE_FEATURE = 16;
}

impl fmt::Debug for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Bits of [`Header::flags`] that say command or reply.
pub const FLAG_TYPE: u32 = 0xf;
/// Type: a command.
pub const TYPE_COMMAND: u32 = 0;
/// Type: a reply.
pub const TYPE_REPLY: u32 = 1;
/// A command that wants no reply.
pub const FLAG_NO_REPLY: u32 = 1 << 4;
/// A reply to a command that failed; [`Header::error`] is the errno, which may be 0.
pub const FLAG_ERROR: u32 = 1 << 5;

/// Starts every message.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable,
)]
#[repr(C)]
pub struct Header {
    /// The sender's; a reply echoes it.
    pub id: u16,
    /// A [`Command`]; a reply echoes it.
    pub command: u16,
    /// Of the whole message, this header included.
    pub size: u32,
    /// `FLAG_*`.
    pub flags: u32,
    /// errno of a failed command.
    pub error: u32,
}

/// Bytes of a header.
pub const HEADER: usize = size_of::<Header>();

impl Header {
    /// The header of a command with `payload` bytes after it.
    ///
    /// # Panics
    /// When the message would not fit 32 bits of size.
    pub fn command(id: u16, command: Command, payload: usize) -> Self {
        Self { id, command: command.0, size: message_size(payload), flags: TYPE_COMMAND, error: 0 }
    }

    /// The header of a reply to `self` with `payload` bytes after it.
    ///
    /// # Panics
    /// When the message would not fit 32 bits of size.
    pub fn reply(&self, payload: usize) -> Self {
        Self { size: message_size(payload), flags: TYPE_REPLY, error: 0, ..*self }
    }

    /// The header, and all there is, of a reply that says that `self` failed.
    pub fn failure(&self, errno: i32) -> Self {
        let error = errno.unsigned_abs();
        Self { size: HEADER as u32, flags: TYPE_REPLY | FLAG_ERROR, error, ..*self }
    }

    /// What it asks for or answers.
    pub fn kind(&self) -> Command {
        Command(self.command)
    }

    /// It is a command.
    pub fn is_command(&self) -> bool {
        self.flags & FLAG_TYPE == TYPE_COMMAND
    }

    /// It is a reply.
    pub fn is_reply(&self) -> bool {
        self.flags & FLAG_TYPE == TYPE_REPLY
    }

    /// No reply is wanted.
    pub fn no_reply(&self) -> bool {
        self.flags & FLAG_NO_REPLY != 0
    }

    /// The command failed.
    pub fn is_failure(&self) -> bool {
        self.flags & FLAG_ERROR != 0
    }
}

fn message_size(payload: usize) -> u32 {
    u32::try_from(HEADER + payload).expect("a message is smaller than 4 GiB")
}

/// VERSION, both ways; NUL-terminated JSON may follow.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable,
)]
#[repr(C)]
pub struct Version {
    /// [`MAJOR`].
    pub major: u16,
    /// At most what the client proposed.
    pub minor: u16,
}

/// [`DmaMap::flags`]: the device may read.
pub const DMA_MAP_READ: u32 = 1 << 0;
/// [`DmaMap::flags`]: the device may write.
pub const DMA_MAP_WRITE: u32 = 1 << 1;
/// [`DmaMap::flags`]: the descriptor is to be mapped. libvfio-user's; without it a descriptor means
/// the same.
pub const DMA_MAP_MMAP: u32 = 1 << 2;
/// [`DmaUnmap::flags`]: everything; address and size are 0.
pub const DMA_UNMAP_ALL: u32 = 1 << 1;

/// DMA_MAP; at most one descriptor comes with it. The reply has no payload.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable,
)]
#[repr(C)]
pub struct DmaMap {
    /// Bytes of this structure.
    pub argsz: u32,
    /// `DMA_MAP_*`.
    pub flags: u32,
    /// Where in the file.
    pub offset: u64,
    /// First I/O virtual address.
    pub address: u64,
    /// Bytes.
    pub size: u64,
}

/// DMA_UNMAP, both ways; in the reply `size` is what was unmapped.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable,
)]
#[repr(C)]
pub struct DmaUnmap {
    /// Room the client has for the reply's payload.
    pub argsz: u32,
    /// `DMA_UNMAP_*`.
    pub flags: u32,
    /// First I/O virtual address.
    pub address: u64,
    /// Bytes.
    pub size: u64,
}

/// [`DeviceInfo::flags`]: DEVICE_RESET works.
pub const DEVICE_RESET_WORKS: u32 = 1 << 0;
/// [`DeviceInfo::flags`]: a PCI device.
pub const DEVICE_IS_PCI: u32 = 1 << 1;

/// DEVICE_GET_INFO, both ways.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable,
)]
#[repr(C)]
pub struct DeviceInfo {
    /// Room for the reply's payload; in the reply, what it needs.
    pub argsz: u32,
    /// `DEVICE_*`.
    pub flags: u32,
    /// Regions.
    pub regions: u32,
    /// Interrupt indices.
    pub irqs: u32,
}

/// [`RegionInfo::flags`]: can be read.
pub const REGION_READABLE: u32 = 1 << 0;
/// [`RegionInfo::flags`]: can be written.
pub const REGION_WRITABLE: u32 = 1 << 1;
/// [`RegionInfo::flags`]: can be mapped; a descriptor comes with the reply.
pub const REGION_MAPPABLE: u32 = 1 << 2;
/// [`RegionInfo::flags`]: capabilities follow at `cap_offset`.
pub const REGION_HAS_CAPS: u32 = 1 << 3;

/// DEVICE_GET_REGION_INFO, both ways; capabilities may follow in the reply.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable,
)]
#[repr(C)]
pub struct RegionInfo {
    /// Room for the reply's payload; in the reply, what all of it needs.
    pub argsz: u32,
    /// `REGION_*`.
    pub flags: u32,
    /// Which region.
    pub index: u32,
    /// Where the first capability stands, counted from this structure's start.
    pub cap_offset: u32,
    /// Bytes.
    pub size: u64,
    /// Where in the descriptor's file the region begins.
    pub offset: u64,
}

/// [`CapHeader::id`] of the list of mappable areas.
pub const CAP_SPARSE_MMAP: u16 = 1;

/// Starts every region capability.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable,
)]
#[repr(C)]
pub struct CapHeader {
    /// `CAP_*`.
    pub id: u16,
    /// Of the capability.
    pub version: u16,
    /// Where the next one stands, counted from the region info's start; 0: there is none.
    pub next: u32,
}

/// Follows a [`CAP_SPARSE_MMAP`] header.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable,
)]
#[repr(C)]
pub struct SparseMmap {
    /// [`SparseArea`]s that follow.
    pub areas: u32,
    /// 0.
    pub reserved: u32,
}

/// One mappable area.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable,
)]
#[repr(C)]
pub struct SparseArea {
    /// Offset in the region.
    pub offset: u64,
    /// Bytes.
    pub size: u64,
}

/// DEVICE_GET_REGION_IO_FDS, both ways; sub-regions may follow in the reply.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable,
)]
#[repr(C)]
pub struct RegionIoFds {
    /// Room for the reply's payload; in the reply, what all of it needs.
    pub argsz: u32,
    /// 0.
    pub flags: u32,
    /// Which region.
    pub index: u32,
    /// Sub-regions that follow.
    pub count: u32,
}

/// [`IrqInfo::flags`]: vectors can be bound to eventfds.
pub const IRQ_EVENTFD: u32 = 1 << 0;
/// [`IrqInfo::flags`]: vectors can be masked.
pub const IRQ_MASKABLE: u32 = 1 << 1;
/// [`IrqInfo::flags`]: a vector masks itself when it fires.
pub const IRQ_AUTOMASKED: u32 = 1 << 2;
/// [`IrqInfo::flags`]: vectors are set up as one set.
pub const IRQ_NORESIZE: u32 = 1 << 3;

/// DEVICE_GET_IRQ_INFO, both ways.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable,
)]
#[repr(C)]
pub struct IrqInfo {
    /// Room for the reply's payload; in the reply, what it needs.
    pub argsz: u32,
    /// `IRQ_*`.
    pub flags: u32,
    /// Which index.
    pub index: u32,
    /// Vectors.
    pub count: u32,
}

/// [`IrqSet::flags`]: no data, all vectors of the range are meant.
pub const IRQ_SET_DATA_NONE: u32 = 1 << 0;
/// [`IrqSet::flags`]: one byte per vector follows; those not 0 are meant.
pub const IRQ_SET_DATA_BOOL: u32 = 1 << 1;
/// [`IrqSet::flags`]: one descriptor per vector comes along; none at all: unbind.
pub const IRQ_SET_DATA_EVENTFD: u32 = 1 << 2;
/// [`IrqSet::flags`]: mask.
pub const IRQ_SET_ACTION_MASK: u32 = 1 << 3;
/// [`IrqSet::flags`]: unmask.
pub const IRQ_SET_ACTION_UNMASK: u32 = 1 << 4;
/// [`IrqSet::flags`]: fire, or say where firing goes.
pub const IRQ_SET_ACTION_TRIGGER: u32 = 1 << 5;
/// The data flags of [`IrqSet::flags`]; exactly one is set.
pub const IRQ_SET_DATA: u32 = IRQ_SET_DATA_NONE | IRQ_SET_DATA_BOOL | IRQ_SET_DATA_EVENTFD;
/// The action flags of [`IrqSet::flags`]; exactly one is set.
pub const IRQ_SET_ACTION: u32 =
    IRQ_SET_ACTION_MASK | IRQ_SET_ACTION_UNMASK | IRQ_SET_ACTION_TRIGGER;

/// DEVICE_SET_IRQS; the reply has no payload.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable,
)]
#[repr(C)]
pub struct IrqSet {
    /// Bytes of this structure and its data.
    pub argsz: u32,
    /// One `IRQ_SET_DATA_*` and one `IRQ_SET_ACTION_*`.
    pub flags: u32,
    /// Which index.
    pub index: u32,
    /// First vector.
    pub start: u32,
    /// Vectors; 0 with [`IRQ_SET_DATA_NONE`] and `IRQ_SET_ACTION_TRIGGER`: disable the index.
    pub count: u32,
}

/// REGION_READ and REGION_WRITE, both ways; data follows in a write and in a read's reply.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable,
)]
#[repr(C)]
pub struct RegionAccess {
    /// Offset in the region.
    pub offset: u64,
    /// Which region.
    pub region: u32,
    /// Bytes.
    pub count: u32,
}

/// DMA_READ and DMA_WRITE, both ways; data follows in a write and in a read's reply.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable,
)]
#[repr(C)]
pub struct DmaAccess {
    /// First I/O virtual address.
    pub address: u64,
    /// Bytes.
    pub count: u64,
}

/// REGION_WRITE_MULTI, both ways; [`WriteOne`]s follow in the command.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable,
)]
#[repr(C)]
pub struct WriteMulti {
    /// Writes that follow; in the reply, writes done.
    pub count: u64,
}

/// One write of a REGION_WRITE_MULTI.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable,
)]
#[repr(C)]
pub struct WriteOne {
    /// Offset in the region.
    pub offset: u64,
    /// Which region.
    pub region: u32,
    /// Bytes of `data` that are meant, 1 to 8.
    pub count: u32,
    /// What to write.
    pub data: [u8; 8],
}

const _: () = {
    assert!(size_of::<Header>() == 16);
    assert!(size_of::<Version>() == 4);
    assert!(size_of::<DmaMap>() == 32);
    assert!(size_of::<DmaUnmap>() == 24);
    assert!(size_of::<DeviceInfo>() == 16);
    assert!(size_of::<RegionInfo>() == 32);
    assert!(size_of::<CapHeader>() == 8);
    assert!(size_of::<SparseMmap>() == 8);
    assert!(size_of::<SparseArea>() == 16);
    assert!(size_of::<RegionIoFds>() == 16);
    assert!(size_of::<IrqInfo>() == 16);
    assert!(size_of::<IrqSet>() == 20);
    assert!(size_of::<RegionAccess>() == 16);
    assert!(size_of::<DmaAccess>() == 16);
    assert!(size_of::<WriteMulti>() == 8);
    assert!(size_of::<WriteOne>() == 24);
    assert!(cfg!(target_endian = "little"));
};
