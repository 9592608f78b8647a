//! What is known of each object, under the address of the structure that its owner holds.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

use holdfast_nic::engine::NicId;

use crate::abi;
use crate::channel::Channel;
use crate::error::Error;
use crate::face::Face;

/// Objects of one kind, by address.
pub(super) struct Objects<T> {
    what: &'static str,
    by_address: HashMap<usize, T>,
}

impl<T> Objects<T> {
    pub(super) fn new(what: &'static str) -> Self {
        Self { what, by_address: HashMap::new() }
    }

    pub(super) fn insert(&mut self, address: usize, object: T) {
        self.by_address.insert(address, object);
    }

    #[inline]
    pub(super) fn find(&self, address: usize) -> Result<&T, Error> {
        self.by_address.get(&address).ok_or(Error::NoSuch { what: self.what, address })
    }

    pub(super) fn find_mut(&mut self, address: usize) -> Result<&mut T, Error> {
        self.by_address.get_mut(&address).ok_or(Error::NoSuch { what: self.what, address })
    }

    pub(super) fn remove(&mut self, address: usize) -> Result<T, Error> {
        self.by_address.remove(&address).ok_or(Error::NoSuch { what: self.what, address })
    }

    /// Addresses of the objects that `which` picks.
    pub(super) fn pick(&self, which: impl Fn(&T) -> bool) -> Vec<usize> {
        self.by_address.iter().filter(|(_, t)| which(t)).map(|(address, _)| *address).collect()
    }
}

/// Whose an object is.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Owner {
    pub(super) nic: NicId,
    /// Address of the context.
    pub(super) context: usize,
}

/// An open device.
pub(super) struct Context {
    pub(super) face: Face<abi::Context>,
    pub(super) nic: NicId,
    pub(super) guid: u64,
}

pub(super) struct Pd {
    pub(super) face: Face<abi::Pd>,
    pub(super) owner: Owner,
    pub(super) handle: u32,
}

pub(super) struct Mr {
    pub(super) _face: Face<abi::Mr>,
    pub(super) owner: Owner,
    pub(super) handle: u32,
    pub(super) pages: Range<u64>,
}

pub(super) struct Ah {
    pub(super) _face: Face<abi::Ah>,
    pub(super) owner: Owner,
    pub(super) attr: abi::AhAttr,
}

pub(super) struct Chan {
    pub(super) face: Face<abi::CompChannel>,
    pub(super) owner: Owner,
    pub(super) channel: Arc<Channel>,
    /// Completion queues on it.
    pub(super) users: u32,
}

pub(super) struct Cq {
    pub(super) face: Face<abi::Cq>,
    pub(super) owner: Owner,
    pub(super) handle: u32,
    /// Address of its channel.
    pub(super) channel: Option<usize>,
    /// What its owner wants back with an event.
    pub(super) context_value: usize,
    /// Events taken and not acknowledged.
    pub(super) unacknowledged: u32,
}

pub(super) struct RetiredCq {
    pub(super) _face: Face<abi::Cq>,
    pub(super) unacknowledged: u32,
}

pub(super) struct Srq {
    pub(super) face: Face<abi::Srq>,
    pub(super) owner: Owner,
    pub(super) handle: u32,
    pub(super) max_sge: u32,
}

pub(super) struct Qp {
    pub(super) face: Face<abi::Qp>,
    pub(super) owner: Owner,
    pub(super) handle: u32,
    /// Addresses of what it was made with.
    pub(super) send_cq: usize,
    pub(super) recv_cq: usize,
    pub(super) srq: Option<usize>,
    pub(super) context_value: usize,
    pub(super) cap: abi::QpCap,
    pub(super) qp_type: u32,
    pub(super) signal_all: bool,
}
