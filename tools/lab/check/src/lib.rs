//! What the programs that run in lab guests have in common: one line for each check
//! ([`Report`]), the calls that change a file's layout and have no wrapper ([`ioctl`]), and the
//! same through io_uring ([`uring`]).

pub mod ioctl;
mod report;
pub mod uring;

pub use report::Report;
