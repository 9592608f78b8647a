//! Regions stay safe when their files move.
//!
//! A [`Guard`] watches the files of the regions that are registered with it
//! ([`ProtectionDomain::register_guarded`](crate::ProtectionDomain::register_guarded)). When an
//! operation is about to change a file's layout (truncate, punch a hole, reflink, ...), the guard
//! puts scrap memory behind the region's addresses, and only then lets the operation go on. The
//! device sees no error, no block that the file gave up is touched, and the application finds in
//! one stream of [`Event`]s which region lost coherence, where and why.
//!
//! What makes the operation wait is a *layout pin* ([`holdfast_dax::Pin`]): a reference to a page
//! of the file that the file system respects before it frees or moves blocks. What tells the guard
//! are *notifiers* ([`holdfast_dax::notify`]); any of them may be missing or late, which costs time
//! and never safety. Memory that the kernel keeps alive by reference (page cache, tmpfs, huge
//! pages) needs no pin: its orphaned pages are harmless; the same events come, as early as the
//! notifiers of that kind of memory tell.

mod event;
mod file;
mod follow;
mod frames;
mod guard;
mod held;
pub mod keeper;
mod keeping;
mod pinning;
mod policy;
mod region;
mod shared;
mod stream;
mod thread;
mod tie;

pub use event::{Event, EventKind, Part, RegionId, Timing};
pub use guard::{Guard, GuardOptions};
pub use holdfast_dax::notify::{Cause, NotifierKind, Options as NotifierOptions, Statement};
pub use holdfast_iommu::Order;
pub use policy::{Policy, Reaction};
pub(crate) use region::Placement;
pub use stream::{Events, event_counts};
pub(crate) use tie::Tie;
