//! The PVRDMA front: what makes the engine look like PCI function 15ad:0820.
//!
//! Two threads meet here. The server thread owns a [`NicBackend`]: configuration space, interrupt
//! bindings and the IOVA space are handled there and then, everything that concerns queues is
//! passed to the processor thread and waited for. The processor thread owns a [`Device`] (the
//! register file and the command slot) and a [`Front`] per NIC: the rings, as the engine's
//! [`Host`](crate::engine::host::Host).
//!
//! Rooms: `pci` and `irq` are the PCI side; `device`, `caps` and `commands` the register file, the
//! shared region and the command channel; `front`, `work`, `cq`, `device_ring` and `pages` the
//! queues; `uar` the doorbell pages; `client` slow-path access to client memory.

mod backend;
pub mod caps;
pub mod client;
mod commands;
pub mod cq;
mod device;
pub mod device_ring;
mod front;
pub mod irq;
mod pages;
pub mod pci;
#[cfg(test)]
mod shown;
mod uar;
mod work;

pub use backend::NicBackend;
pub use device::{Device, DeviceConfig};
pub use front::{Front, FrontCounters};
pub use uar::UarPages;
