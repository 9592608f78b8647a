//! The vfio-user server (in progress).

mod backend;

pub use backend::{
    Backend, DmaMap, DmaUnmap, Irq, IrqAction, PCI_IRQS, PCI_REGIONS, Region, RegionMap,
};
