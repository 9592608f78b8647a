//! The emulated NIC (in progress).
pub mod engine;
pub mod memory;
pub mod server;
