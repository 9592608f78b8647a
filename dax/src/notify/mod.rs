//! Who tells us that the memory behind a file is about to change.
//!
//! No kernel interface tells all of it everywhere, so there are several [`Notifier`]s behind one
//! interface, and any subset may be in force:
//!
//! | notifier | tells | when |
//! |---|---|---|
//! | [`NotifierKind::Kprobe`] | every layout operation on a DAX file, cause, range and thread | as the file system starts to wait for our pin |
//! | [`NotifierKind::GuardPage`] | that some operation waits for our pin | within a polling period |
//! | [`NotifierKind::Lease`] | that somebody else opens or truncates the file | before; it waits |
//! | [`NotifierKind::Fanotify`] | truncation and fallocate with their ranges, opens | before; it waits |
//! | [`NotifierKind::Inotify`] | changed size, holes, names, unmounting | afterwards |
//! | [`NotifierKind::Userfaultfd`] | what this process does to its own mappings | afterwards, `MADV_*` before |
//!
//! Safety never rests on them: for files whose blocks a device may reach, the layout pin makes the
//! file system wait, and a notice that is late or missing costs time. Memory that the kernel keeps
//! alive by reference (page cache, tmpfs, anonymous) needs no pin, and gets the same notices.

mod cause;
mod error;
mod fanotify;
mod guard_page;
mod inotify;
mod kprobe;
mod lease;
mod notice;
mod notifier;
mod notifiers;
mod sys;
mod userfaultfd;
mod watched;

pub use cause::Cause;
pub use error::NotifyError;
pub use fanotify::Fanotify;
pub use guard_page::GuardPages;
pub use inotify::Inotify;
pub use kprobe::KprobeEvents;
pub use lease::{Hold, Leases};
pub use notice::{MappingId, Notice, NotifierKind, Stage, Subject, UnknownNotifier};
pub use notifier::{Notifier, Terms};
pub use notifiers::{Notifiers, Options, State, Statement};
pub use userfaultfd::Userfaultfd;
pub use watched::{Probe, Watched, WatchedFile, WatchedMapping};
