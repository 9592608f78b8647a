//! The vfio-user dialect: VFIO's calls as messages over a Unix stream socket.
//!
//! [`wire`] has the messages byte by byte and [`version`] the capabilities; a [`Channel`] carries
//! whole messages and the descriptors that travel with them. These are used by both ends. On top
//! stands the client's end, [`UserDevice`]: a [`Device`](crate::Device) whose registers are
//! messages or, where the server lets them be mapped, plain memory, plus the DMA_MAP and
//! DMA_UNMAP calls that an address space is made of. The server's end is the emulated NIC's.

pub mod channel;
pub mod version;
pub mod wire;

mod client;
mod fuzz;
mod link;
mod regions;
mod registers;
pub mod scm;

pub use channel::{Channel, ChannelError, Message, Wait};
pub use client::{ConnectOptions, UserDevice};
pub use fuzz::fuzz_client_replies;
pub use version::Capabilities;
pub use wire::{Command, Header};
