//! What tests and fuzzers need to play the device: memory that a fake device can reach by bus
//! address, and a device that answers everything from a string of bytes.
//!
//! Not part of the driver's interface.

mod fuzz;
mod memory;

pub use crate::combiner::Combiner;
pub use fuzz::{fuzz_device, fuzz_device_steps};
pub use memory::HeapMemory;
