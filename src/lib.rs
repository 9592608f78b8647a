//! Holdfast: a user-space, poll-mode RDMA driver that keeps memory regions safe when their files
//! move.
//!
//! This crate joins the parts: [`holdfast_vfio`] and [`holdfast_iommu`] own the device and its
//! address space, [`holdfast_driver`] drives it, [`holdfast_dax`] knows files as memory. What comes
//! out are the objects that RDMA programs know:
//!
//! * A [`Device`] is opened by name: an emulated NIC, a vfio-user socket, a PCI function.
//! * A [`ProtectionDomain`] holds what may be used together. [`Memory`] that is registered in it
//!   becomes a [`MemoryRegion`], which lives until nobody needs it: neither a handle nor an
//!   outstanding request.
//! * A [`QueuePair`] posts requests that name [`Slice`]s of regions; a [`CompletionQueue`] tells
//!   how they ended. Queues have one owner (`&mut`), so nothing on the fast path locks.
//! * [`connect`] brings two peers together over TCP, as perftest does.
//! * [`cores`] prepares a thread that has a processor for itself, and has the loop that runs there.
//! * [`stats`] shows what a running process does, on a local socket.
//!
//! # Example
//! Two NICs on threads of this process, and an RDMA WRITE from one to the other's memory:
//!
//! ```
//! use holdfast::{
//!     Access, Completion, EmulatedNic, EmulatedOptions, Memory, Populate, QueuePair,
//!     QueuePairOptions, Remote, SendFlags, Source,
//! };
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let nics = EmulatedNic::start(EmulatedOptions { nics: 2, ..Default::default() })?;
//! let (here, there) = (nics.open(0)?, nics.open(1)?);
//!
//! // Each side: a protection domain, a region, completion queues, a queue pair.
//! let (pd_here, pd_there) = (here.protection_domain()?, there.protection_domain()?);
//! let memory = || Memory::open(&Source::Memfd, 4096, Populate::Yes);
//! let source = pd_here.register(memory()?, Access::LOCAL_READ)?;
//! let target = pd_there.register(memory()?, Access::REMOTE_WRITE)?;
//! let mut completions = here.completion_queue(256)?;
//! let completions_there = there.completion_queue(256)?;
//! let options = QueuePairOptions::default();
//! let mut qp = pd_here.queue_pair(&options, &completions, &completions)?;
//! let mut peer = pd_there.queue_pair(&options, &completions_there, &completions_there)?;
//! QueuePair::connect_pair(&mut qp, &mut peer)?;
//!
//! source.memory().write_at(0, b"held fast")?;
//! let remote = Remote { addr: target.remote().addr + 100, rkey: target.rkey() };
//! qp.write(1, &[source.slice(0, 9)?], remote, SendFlags::SIGNALED)?;
//! qp.ring_sends();
//!
//! let mut done = [Completion::default()];
//! while completions.poll(&mut done)? == 0 {
//!     std::hint::spin_loop();
//! }
//! assert!(done[0].is_success() && done[0].wr_id == 1);
//! let mut bytes = [0; 9];
//! target.memory().read_at(100, &mut bytes)?;
//! assert_eq!(&bytes, b"held fast");
//! # Ok(())
//! # }
//! ```
//!
//! # Threads and blocking
//! A [`Waiter`] polls for a while and then sleeps until the device interrupts.
//! Posting, ringing and polling never block, allocate or make a system call (see [`QueuePair`]).
//! Everything else is a command to the device and waits for its answer, with a deadline. Objects
//! may move between threads; handles ([`Device`], [`ProtectionDomain`], [`MemoryRegion`]) may be
//! shared.

mod address;
pub mod coherence;
pub mod connect;
pub mod cores;
mod device;
pub mod dma;
mod emulated;
mod error;
mod hold;
mod lock;
mod protection_domain;
mod queue_pair;
mod region;
mod shared_queue_pair;
mod shared_receive;
pub mod stats;
mod wait;

pub use address::{AddressError, DeviceAddress};
pub use device::{Device, DoorbellPage};
pub use emulated::{EmulatedNic, EmulatedOptions};
pub use error::{Error, Result};
pub use protection_domain::{Access, ProtectionDomain};
pub use queue_pair::{Busy, MAX_SGE, QueuePair, QueuePairOptions};
pub use region::{DeregisterError, MemoryRegion, Slice};
pub use shared_queue_pair::SharedQueuePair;
pub use shared_receive::SharedReceiveQueue;
pub use wait::Waiter;

pub use holdfast_dax::{Kind, Memory, Populate, Source};
pub use holdfast_driver::{
    AddressHandle, Completion, CompletionQueue, Datagram, DoorbellPolicy, Interrupts, Options,
    Path, PostError, Remote, SendFlags,
};
pub use holdfast_iommu::PageKind;
pub use holdfast_wire::attr::QpType;
pub use holdfast_wire::completion::Status;
