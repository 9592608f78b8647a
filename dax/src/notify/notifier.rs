//! The one interface of all notifiers.

use std::fmt;
use std::ops::Range;
use std::os::fd::BorrowedFd;

use super::{Notice, NotifierKind, NotifyError, Subject, Watched};

/// A means of learning that the memory behind a file or a mapping is about to change, or has.
///
/// Notifiers may be late, incomplete or absent; where a file's blocks are at stake, the layout pin
/// holds the operation until it has been dealt with, whoever brings the news first.
pub trait Notifier: Send + fmt::Debug {
    /// Which one it is.
    fn kind(&self) -> NotifierKind;

    /// Readable (`POLLIN`) when [`Notifier::collect`] has something to hand over. The same
    /// descriptor for the notifier's life.
    fn fd(&self) -> BorrowedFd<'_>;

    /// Begins to watch. Watching what is watched already renews it: a lease is taken anew, a
    /// guard page's sign is replaced. May block for as long as the kernel takes (up to a hundred
    /// milliseconds for kprobe filters); never waits for an operation on the file.
    fn watch(&mut self, watched: &Watched<'_>) -> Result<(), NotifyError>;

    /// Ends watching, and lets go whatever waits for an answer. Of what is not watched: nothing.
    fn unwatch(&mut self, subject: Subject);

    /// Hands over what has been seen since the last call. Never blocks, never touches a watched
    /// file in a way that waits for its lock, and does not allocate once everything is watched.
    fn collect(&mut self, sink: &mut dyn FnMut(Notice)) -> Result<(), NotifyError>;

    /// The subject was dealt with: operations that this notifier holds may go on (lease: given
    /// back; fanotify: answered). The pin is not its business.
    fn allow(&mut self, subject: Subject);

    /// This range of a file, in bytes, was faulted in, holes as well, and is about to be used: what is
    /// taken of it from here on must be told. Blocks as [`Notifier::watch`].
    fn filled(&mut self, _subject: Subject, _range: Range<u64>) {}

    /// What it sees, what it misses, what it costs.
    fn statement(&self) -> Terms;
}

/// What a notifier is worth on this machine, in words for a person.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Terms {
    /// Operations of which it tells, and when.
    pub sees: String,
    /// Operations that pass it by.
    pub misses: String,
    /// What it costs this process and others.
    pub costs: String,
}

impl fmt::Display for Terms {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sees {}; misses {}; costs {}", self.sees, self.misses, self.costs)
    }
}
