//! The emulated NIC: a PVRDMA device (PCI 15ad:0820) as a vfio-user server.
//!
//! An RDMA [`engine`] that knows no PCI carries out work requests between the NICs of a process,
//! and over sockets between processes. Under it, [`pvrdma`] gives it registers, a command slot,
//! rings, doorbells and interrupts, [`memory`] the client's memory by IOVA, translated on every
//! access, and [`server`] the vfio-user protocol. One [`processor`] thread runs all queues;
//! [`control`] tells what was counted. [`NicProcess`] puts it together:
//!
//! ```no_run
//! use holdfast_nic::{NicOptions, NicProcess};
//! let options = NicOptions { sockets: vec!["/tmp/nic0.sock".into()], ..Default::default() };
//! let process = NicProcess::start(options)?;
//! process.wait();
//! # Ok::<(), holdfast_nic::Error>(())
//! ```
//!
//! Nothing a client writes is trusted: neither its messages, nor its registers, nor what stands in
//! the memory it shares. [`fuzz_client`] plays such a client.

pub mod control;
pub mod engine;
mod error;
mod fuzz;
mod links;
pub mod memory;
mod process;
pub mod processor;
pub mod pvrdma;
pub mod server;

pub use error::Error;
#[doc(hidden)]
pub use fuzz::fuzz_client;
pub use links::{LinkAddress, NoLinkAddress};
pub use process::{Doorbells, NicOptions, NicProcess};
pub use processor::PollMode;
