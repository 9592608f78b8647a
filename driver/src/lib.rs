//! The PVRDMA driver: registers, command channel, queues and doorbells, over any VFIO transport.
//!
//! It knows a device and no files: memory comes as a list of IOVAs, from whoever owns the IOMMU,
//! and memory for its own rings from a [`dma::DmaAllocator`].
//!
//! ```text
//! Device::open ── alloc_uar ── Uar (one per thread)
//!    │               ├── alloc_pd ── ProtectionDomain ── register_mr, create_srq, AddressHandle
//!    │               └── create_cq ── CompletionQueue
//!    └── create_qp(pd, uar, config, send_cq, recv_cq) ── QueuePair { control, send, recv }
//! ```
//!
//! **Owners.** A queue has one owner: posting and polling take `&mut self`, so there is no lock,
//! and any queue can move to another thread. Objects keep alive what they depend on, so dropping
//! them in any order shows the device a safe order.
//!
//! **Fast path.** Posting, ringing and polling allocate nothing, make no system call and do not
//! branch on the kind of device; see [`SendQueue`] and [`CompletionQueue`]. Everything else is a
//! command and blocks until the device answers or the deadline passes.
//!
//! **Trust.** Whatever the device writes (indices, handles, ids, opcodes, statuses) is checked
//! before it means anything; nonsense becomes [`Error::DeviceNonsense`], never a panic.
//!
//! **Models.** Devices differ; [`Quirks`] says how, decided once from what a device reports.
//!
//! Facts about the interface are from Linux's vmw_pvrdma driver and rdma-core's vmw_pvrdma
//! provider.

mod account;
mod ah;
mod barrier;
mod cadence;
mod combiner;
mod command;
mod completion;
mod completion_ring;
mod cq;
mod cq_shared;
mod cq_table;
mod decode;
mod device;
pub mod dma;
mod doorbell_policy;
mod error;
mod events;
mod interrupts;
mod keys;
mod limits;
mod mr;
mod operation;
mod pages;
mod pd;
mod qp;
mod qp_config;
mod qp_inner;
mod qp_state;
mod quirks;
mod recv;
mod registers;
mod relay;
mod removal;
mod request;
mod ring;
mod send;
mod send_slow;
mod shared_region;
mod shared_send;
mod srq;
#[doc(hidden)]
pub mod testing;
mod tickets;
mod uar;
mod work_queue;

pub use ah::{AddressHandle, Path};
pub use completion::Completion;
pub use cq::CompletionQueue;
pub use device::{Device, Options};
pub use doorbell_policy::DoorbellPolicy;
pub use error::{Error, PostError, Result};
pub use events::Event;
pub use interrupts::Interrupts;
pub use limits::Limits;
pub use mr::MemoryRegion;
pub use pd::ProtectionDomain;
pub use qp::QueuePair;
pub use qp_config::QpConfig;
pub use qp_state::{Init, QpControl, ReadyToReceive, ReadyToSend};
pub use quirks::{Facts, Quirks};
pub use recv::RecvQueue;
pub use request::{Datagram, Remote, SendFlags};
pub use send::SendQueue;
pub use shared_send::SharedSendQueue;
pub use srq::{SharedReceiveQueue, SrqHandle};
pub use uar::Uar;

pub use holdfast_wire as wire;
