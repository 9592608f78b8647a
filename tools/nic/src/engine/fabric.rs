//! Where a GID is: at a NIC of this engine, behind a link, or nowhere.
//!
//! Queue pairs keep the answer and the epoch it was given in; any change of the tables starts a
//! new epoch. A NIC of this engine comes before a link, and the first to bind a GID before others.

use std::collections::BTreeMap;

/// The way to a GID.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Route {
    Nowhere,
    Nic(usize),
    Link(usize),
}

/// Most GIDs that one link may announce.
const MAX_LINK_GIDS: usize = 4096;

pub(crate) struct Fabric {
    /// Never 0, so that 0 stands for no answer.
    epoch: u64,
    local: BTreeMap<u128, usize>,
    remote: BTreeMap<u128, usize>,
}

impl Fabric {
    pub(crate) fn new() -> Self {
        Self { epoch: 1, local: BTreeMap::new(), remote: BTreeMap::new() }
    }

    #[inline]
    pub(crate) fn epoch(&self) -> u64 {
        self.epoch
    }

    pub(crate) fn route(&self, gid: u128) -> Route {
        match (self.local.get(&gid), self.remote.get(&gid)) {
            (Some(nic), _) => Route::Nic(*nic),
            (None, Some(link)) => Route::Link(*link),
            (None, None) => Route::Nowhere,
        }
    }

    /// Gives a GID to a NIC; false when another NIC has it.
    pub(crate) fn bind(&mut self, gid: u128, nic: usize) -> bool {
        self.epoch += 1;
        *self.local.entry(gid).or_insert(nic) == nic
    }

    pub(crate) fn unbind(&mut self, gid: u128) {
        self.epoch += 1;
        self.local.remove(&gid);
    }

    /// Every GID of this engine's NICs.
    pub(crate) fn locals(&self) -> impl Iterator<Item = u128> {
        self.local.keys().copied()
    }

    /// A link announced a GID; false when it announced too many.
    pub(crate) fn learn(&mut self, gid: u128, link: usize) -> bool {
        self.epoch += 1;
        if self.remote.values().filter(|l| **l == link).count() >= MAX_LINK_GIDS {
            return false;
        }
        self.remote.entry(gid).or_insert(link);
        true
    }

    /// A link withdrew a GID.
    pub(crate) fn forget(&mut self, gid: u128, link: usize) {
        self.epoch += 1;
        if self.remote.get(&gid) == Some(&link) {
            self.remote.remove(&gid);
        }
    }

    /// A link is gone.
    pub(crate) fn forget_link(&mut self, link: usize) {
        self.epoch += 1;
        self.remote.retain(|_, l| *l != link);
    }

    /// How many GIDs a link announced.
    pub(crate) fn learned(&self, link: usize) -> usize {
        self.remote.values().filter(|l| **l == link).count()
    }
}
