//! What the programs that run in lab guests have in common: one line for each check
//! ([`Report`]), the calls that change a file's layout and have no wrapper ([`ioctl`]), the same
//! through io_uring ([`uring`]), and a count of a thread's allocations ([`allocations`]).

pub mod allocations;
pub mod ioctl;
mod report;
pub mod uring;

pub use report::Report;
