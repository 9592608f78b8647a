//! PCI functions known to do RDMA whose class does not say so: most RDMA NICs call themselves
//! Ethernet controllers.

use super::Function;

/// A known RDMA function.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Known {
    /// What people call it.
    pub name: &'static str,
    /// Whether Holdfast has a driver for it.
    pub supported: bool,
}

/// Vendor, device (`None`: every network function of the vendor), what it is.
const TABLE: &[(u16, Option<u16>, Known)] = &[
    (0x15ad, Some(0x0820), Known { name: "VMware PVRDMA", supported: true }),
    (0x15b3, None, Known { name: "NVIDIA/Mellanox", supported: false }),
    (0x1414, Some(0x00ba), Known { name: "Microsoft MANA", supported: false }),
    (0x1d0f, Some(0xefa0), Known { name: "Amazon EFA", supported: false }),
    (0x1d0f, Some(0xefa1), Known { name: "Amazon EFA", supported: false }),
    (0x1d0f, Some(0xefa2), Known { name: "Amazon EFA", supported: false }),
    (0x1d0f, Some(0xefa3), Known { name: "Amazon EFA", supported: false }),
    (0x1ded, Some(0x107f), Known { name: "Alibaba Elastic RDMA", supported: false }),
];

/// PCI base class of network controllers.
const NETWORK: u32 = 0x02;

/// What is known about a function, if anything.
pub fn known(function: &Function) -> Option<Known> {
    let fits = |(vendor, device, _): &&(u16, Option<u16>, Known)| {
        *vendor == function.vendor
            && match device {
                Some(device) => *device == function.device,
                None => function.class >> 16 == NETWORK,
            }
    };
    TABLE.iter().find(fits).map(|(_, _, known)| *known)
}
