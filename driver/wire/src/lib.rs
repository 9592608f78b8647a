//! The PVRDMA device interface (PCI 15ad:0820) to the byte, and nothing else.
//!
//! Two programs that do not trust each other speak this interface: the driver in `driver/`, and
//! the emulated NIC in `tools/nic`. What both must agree on stands here once: register offsets,
//! the device shared region, the command slot, queue pair attributes, ring state, work requests
//! and completions. There is no behaviour in this crate beyond arithmetic that is part of the
//! interface itself (ring indices, page directory shape, doorbell words, work request strides).
//!
//! Every structure is `repr(C)`, little-endian, free of implicit padding (zerocopy's derives
//! refuse to compile otherwise), and its size and the offset of each field that matters are
//! asserted at compile time. Sizes are in bytes unless a field says otherwise. The layout follows
//! Linux's `drivers/infiniband/hw/vmw_pvrdma/pvrdma_dev_api.h` and rdma-core's
//! `kernel-headers/rdma/vmw_pvrdma-abi.h`; names are the verbs names.
//!
//! All fields hold what the other side wrote and may be anything. Numbers that a device or a
//! client may invent (opcodes, states, statuses) are therefore plain integers in the structures;
//! the enumerations beside them convert with `TryFrom` or a total function.

#[cfg(not(target_endian = "little"))]
compile_error!("the PVRDMA interface is little-endian and this crate reads it in place");

/// Defines a C-like enumeration together with its checked conversion from the wire integer.
macro_rules! wire_enum {
    ($(#[$meta:meta])* $vis:vis enum $name:ident : $repr:ty {
        $($(#[$vmeta:meta])* $variant:ident = $value:expr),+ $(,)?
    }) => {
        $(#[$meta])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[repr($repr)]
        $vis enum $name { $($(#[$vmeta])* $variant = $value),+ }

        impl $name {
            /// Every value the interface defines, in wire order.
            pub const ALL: &'static [$name] = &[$($name::$variant),+];

            /// The integer that stands for this value on the wire.
            pub const fn wire(self) -> $repr { self as $repr }
        }

        impl TryFrom<$repr> for $name {
            type Error = $repr;

            /// Gives the unknown integer back as the error.
            fn try_from(value: $repr) -> Result<Self, $repr> {
                match value { $(v if v == $value => Ok($name::$variant),)+ other => Err(other) }
            }
        }
    };
}

/// Asserts a structure's size and the offsets of its fields at compile time.
macro_rules! assert_layout {
    ($name:ty, $size:expr $(, $field:ident @ $offset:expr)* $(,)?) => {
        const _: () = {
            assert!(::core::mem::size_of::<$name>() == $size);
            $(assert!(::core::mem::offset_of!($name, $field) == $offset);)*
        };
    };
}

pub mod attr;
pub mod cmd;
pub mod completion;
pub mod dsr;
pub mod event;
pub mod pdir;
pub mod regs;
pub mod ring;
pub mod uar;
pub mod wqe;

/// PCI vendor id of a PVRDMA function (VMware).
pub const PCI_VENDOR_ID: u16 = 0x15ad;
/// PCI device id of a PVRDMA function.
pub const PCI_DEVICE_ID: u16 = 0x0820;
/// Size of the pages that the interface counts in, whatever the host's page size is.
pub const PAGE_SIZE: usize = 4096;
