//! (in progress)
pub mod dma;
