//! What a notifier says: a notice of something happening to a file or a mapping.

use std::fmt;
use std::ops::Range;
use std::str::FromStr;
use std::time::Instant;

use super::Cause;
use crate::FileId;

/// What a notice is about, and what is watched.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Subject {
    /// A file.
    File(FileId),
    /// A mapping of this process, named by whoever watches it: anonymous memory has no inode, and
    /// of two mappings of one file one may go while the other stays.
    Mapping(MappingId),
}

/// A name for a mapping of this process; the caller's choice, used by one mapping at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct MappingId(pub u64);

impl From<FileId> for Subject {
    fn from(id: FileId) -> Self {
        Self::File(id)
    }
}

impl From<MappingId> for Subject {
    fn from(id: MappingId) -> Self {
        Self::Mapping(id)
    }
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(id) => id.fmt(f),
            Self::Mapping(MappingId(id)) => write!(f, "mapping {id}"),
        }
    }
}

/// Which means brought the news.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum NotifierKind {
    /// Events on kernel functions, in a tracing instance of our own.
    Kprobe,
    /// The pin's guard page, looked at by the clock.
    GuardPage,
    /// A lease or a delegation on the file.
    Lease,
    /// fanotify's pre-content events.
    Fanotify,
    /// inotify, after the fact.
    Inotify,
    /// userfaultfd, for mappings.
    Userfaultfd,
}

impl NotifierKind {
    /// All of them, in the order in which they tell most.
    pub const ALL: [Self; 6] = [
        Self::Kprobe,
        Self::GuardPage,
        Self::Lease,
        Self::Fanotify,
        Self::Inotify,
        Self::Userfaultfd,
    ];

    /// Whether an operation that it tells of as waiting waits for this notifier
    /// ([`super::Notifier::allow`]), and not for a pin.
    pub fn waits_for_answer(self) -> bool {
        matches!(self, Self::Lease | Self::Fanotify)
    }

    /// Its name in tables, options and JSON.
    pub fn name(self) -> &'static str {
        match self {
            Self::Kprobe => "kprobe",
            Self::GuardPage => "guard-page",
            Self::Lease => "lease",
            Self::Fanotify => "fanotify",
            Self::Inotify => "inotify",
            Self::Userfaultfd => "userfaultfd",
        }
    }
}

impl FromStr for NotifierKind {
    type Err = UnknownNotifier;

    fn from_str(name: &str) -> Result<Self, UnknownNotifier> {
        let known = Self::ALL.into_iter().find(|kind| kind.name() == name);
        known.ok_or(UnknownNotifier)
    }
}

/// No notifier has that name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("no notifier; there are kprobe, guard-page, lease, fanotify, inotify and userfaultfd")]
pub struct UnknownNotifier;

impl fmt::Display for NotifierKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// How far the operation has come when the notice is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Stage {
    /// It has changed nothing yet and waits: for the pin, the lease or the notifier's answer.
    Waiting,
    /// It is about to begin, and nobody but the pin holds it. It may still fail and change nothing.
    Announced,
    /// It has happened.
    Done,
}

impl Stage {
    /// Its name in tables and JSON.
    pub fn name(self) -> &'static str {
        match self {
            Self::Waiting => "waiting",
            Self::Announced => "announced",
            Self::Done => "done",
        }
    }
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Something happens to a watched file or mapping.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Notice {
    /// To which one.
    pub subject: Subject,
    /// Which bytes of it lose what is in them; `None` is all of it. Of a file: offsets in the
    /// file, as the operation named them (not rounded to pages), an end of `u64::MAX` being the
    /// end of the file. Of a mapping: offsets from its start.
    pub range: Option<Range<u64>>,
    /// What happens.
    pub cause: Cause,
    /// Who says so.
    pub notifier: NotifierKind,
    /// How far it has come.
    pub stage: Stage,
    /// The thread that does it, where the kernel tells.
    pub pid: Option<i32>,
    /// When: the kernel's own time where it gives one, else when the notice was collected.
    pub at: Instant,
}

impl Notice {
    /// A notice of an unknown cause on the whole subject, made now.
    pub fn new(subject: impl Into<Subject>, notifier: NotifierKind, stage: Stage) -> Self {
        Self {
            subject: subject.into(),
            range: None,
            cause: Cause::Unknown,
            notifier,
            stage,
            pid: None,
            at: Instant::now(),
        }
    }

    /// The same, of this cause.
    pub fn cause(mut self, cause: Cause) -> Self {
        self.cause = cause;
        self
    }

    /// The same, of this range.
    pub fn range(mut self, range: Option<Range<u64>>) -> Self {
        self.range = range;
        self
    }

    /// The same, done by this thread; 0 and less is nobody we can name.
    pub fn pid(mut self, pid: i32) -> Self {
        self.pid = (pid > 0).then_some(pid);
        self
    }

    /// The same, at this time.
    pub fn at(mut self, at: Instant) -> Self {
        self.at = at;
        self
    }

    /// The file it is about.
    pub fn file(&self) -> Option<FileId> {
        match self.subject {
            Subject::File(id) => Some(id),
            Subject::Mapping(_) => None,
        }
    }
}

impl fmt::Display for Notice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {} {}", self.subject, self.cause, self.stage)?;
        match &self.range {
            None => f.write_str(", all of it")?,
            Some(Range { start, end: u64::MAX }) => write!(f, ", from {start:#x} on")?,
            Some(Range { start, end }) => write!(f, ", {start:#x}..{end:#x}")?,
        }
        if let Some(pid) = self.pid {
            write!(f, ", by {pid}")?;
        }
        write!(f, " ({})", self.notifier)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_notifier_is_known_by_its_name_and_the_error_names_all() {
        for kind in NotifierKind::ALL {
            assert_eq!(kind.name().parse(), Ok(kind));
            assert!(UnknownNotifier.to_string().contains(kind.name()), "{kind}");
        }
        assert_eq!("kprobes".parse::<NotifierKind>(), Err(UnknownNotifier));
    }
}
