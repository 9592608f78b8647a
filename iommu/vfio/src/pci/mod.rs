//! Finding PCI functions that can do RDMA, and moving them between their kernel driver and VFIO.
//!
//! Everything is read from and written to files under one root ([`Tree`]): sysfs, a little of
//! procfs and `/dev/vfio`. [`Tree::rdma_functions`] lists, [`next_step`] says what to do about
//! each, [`in_use`] says why not to touch one, [`BindPlan`] is what a change will write, as data,
//! and [`BindPlan::execute`] writes it and takes it back if a step fails.

mod address;
mod execute;
mod hint;
mod ids;
mod plan;
mod tree;
mod usage;

pub use address::Address;
pub use execute::{FileWriter, SysfsWrite};
pub use hint::{NextStep, next_step};
pub use ids::{Known, known};
pub use plan::{BindPlan, Member, Step, VFIO_DRIVER};
pub use tree::{Function, Tree};
pub use usage::{Reason, in_use};
