//! Client memory as the NIC sees it.
pub mod span;
pub use span::{Fault, Span};
