//! The RDMA engine (in progress).
pub mod host;
