//! The keeper.
mod client;
mod error;
mod held;
pub mod protocol;
mod spawn;
mod sys;

pub use client::{Keeper, KeeperEvent, KeeperOptions, MapTurn};
pub use error::KeeperError;
pub use protocol::{ContainerId, PinId, PinParts};
