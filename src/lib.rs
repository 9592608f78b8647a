//! (in progress)
pub mod connect;
pub mod dma;
