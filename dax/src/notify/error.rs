//! Why a notifier cannot be had, or cannot watch something, and what can be done about it.

use nix::errno::Errno;

use super::{NotifierKind, Subject};

/// Why a notifier cannot be had, or cannot watch something.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NotifyError {
    /// This kernel or machine has not got it.
    #[error("{notifier} is not to be had here: {reason}{}", errno_text(.errno))]
    Missing {
        /// Which notifier.
        notifier: NotifierKind,
        /// What is missing, and what would bring it.
        reason: String,
        /// What the kernel said, if it was asked.
        errno: Option<Errno>,
    },
    /// It is there, and this process may not use it.
    #[error("{notifier} is not permitted: it needs {needs} ({call}: {errno})")]
    NotPermitted {
        /// Which notifier.
        notifier: NotifierKind,
        /// The capability or setting that it needs.
        needs: &'static str,
        /// The call that was refused.
        call: &'static str,
        /// What the kernel said.
        #[source]
        errno: Errno,
    },
    /// This file or mapping is none that it can watch.
    #[error("{notifier} cannot watch {what}: {reason}")]
    Unsuited {
        /// Which notifier.
        notifier: NotifierKind,
        /// What was to be watched.
        what: String,
        /// Why not, and what can.
        reason: &'static str,
        /// What the kernel said, if it was asked.
        errno: Option<Errno>,
    },
    /// Somebody else has the file open, so that a lease is refused.
    #[error(
        "{what} is open elsewhere, and a lease wants this process's one descriptor to be the only \
         one: close the others (they are in /proc/*/fd: {holders})"
    )]
    NotSoleOpener {
        /// The file.
        what: String,
        /// Processes that have it open, as far as they can be seen.
        holders: String,
        /// What the kernel said.
        #[source]
        errno: Errno,
    },
    /// The subject is not watched.
    #[error("{notifier} does not watch {subject}")]
    NotWatched {
        /// Which notifier.
        notifier: NotifierKind,
        /// The subject.
        subject: Subject,
    },
    /// A system call failed that should not.
    #[error("{notifier}: {call} on {what} failed: {errno}")]
    Call {
        /// Which notifier.
        notifier: NotifierKind,
        /// The call.
        call: &'static str,
        /// On what.
        what: String,
        /// Why.
        #[source]
        errno: Errno,
    },
}

fn errno_text(errno: &Option<Errno>) -> String {
    errno.map(|errno| format!(" ({errno})")).unwrap_or_default()
}
