//! What is handed to a notifier to be watched.

use std::fmt;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;
use std::sync::Arc;

use nix::errno::Errno;

use super::{MappingId, Subject};
use crate::FileId;

/// A sign that a layout operation has started to wait; the layout pin offers one.
pub trait Probe: Send + Sync + fmt::Debug {
    /// Whether an operation waits. Neither blocks nor touches the file nor allocates.
    fn disturbed(&self) -> Result<bool, Errno>;
}

/// A file or a mapping to watch.
#[derive(Debug, Clone)]
pub enum Watched<'a> {
    /// A file.
    File(WatchedFile<'a>),
    /// A range of this process's address space.
    Mapping(WatchedMapping),
}

/// A file to watch.
#[derive(Debug, Clone)]
pub struct WatchedFile<'a> {
    /// Which one.
    pub id: FileId,
    /// A descriptor of it, open for reading and writing; borrowed for the call only.
    pub fd: BorrowedFd<'a>,
    /// A name of it, for messages and for noticing that it was renamed.
    pub path: Option<&'a Path>,
    /// The pin's sign, for [`super::GuardPages`]; without one that notifier does not apply.
    pub probe: Option<Arc<dyn Probe>>,
}

/// A range of this process's address space to watch: whole pages.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WatchedMapping {
    /// What notices call it.
    pub id: MappingId,
    /// Its first address.
    pub address: usize,
    /// Its bytes.
    pub len: usize,
}

impl<'a> WatchedFile<'a> {
    /// A file by its descriptor alone.
    pub fn of(fd: &'a impl AsFd) -> Result<Self, Errno> {
        let fd = fd.as_fd();
        Ok(Self { id: FileId::of(fd)?, fd, path: None, probe: None })
    }

    /// The same, with a name.
    pub fn path(mut self, path: &'a Path) -> Self {
        self.path = Some(path);
        self
    }

    /// The same, with its pin's sign.
    pub fn probe(mut self, probe: Arc<dyn Probe>) -> Self {
        self.probe = Some(probe);
        self
    }

    /// What to call it in messages.
    pub(crate) fn what(&self) -> String {
        match self.path {
            Some(path) => path.display().to_string(),
            None => format!("file {}", self.id),
        }
    }
}

impl Watched<'_> {
    /// What notices call it.
    pub fn subject(&self) -> Subject {
        match self {
            Self::File(file) => file.id.into(),
            Self::Mapping(mapping) => mapping.id.into(),
        }
    }
}

impl<'a> From<WatchedFile<'a>> for Watched<'a> {
    fn from(file: WatchedFile<'a>) -> Self {
        Self::File(file)
    }
}

impl From<WatchedMapping> for Watched<'_> {
    fn from(mapping: WatchedMapping) -> Self {
        Self::Mapping(mapping)
    }
}
