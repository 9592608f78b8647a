//! Where a GID is: at a NIC of this engine, behind a link, or nowhere.
//!
//! Queue pairs keep the answer and the epoch it was given in; any change of the tables starts a
//! new epoch. A GID belongs to whoever had it first, NIC or link: a NIC cannot bind one that is
//! behind a link, and a link that claims one in vain is remembered and comes after those before it.

use std::collections::BTreeMap;

use super::error::Error;

/// The way to a GID.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Route {
    Nowhere,
    Nic(usize),
    Link(usize),
}

/// Most GIDs of one link that are remembered.
const MAX_LINK_GIDS: usize = 4096;

pub(crate) struct Fabric {
    /// Never 0, so that 0 stands for no answer.
    epoch: u64,
    local: BTreeMap<u128, usize>,
    /// Links that announced a GID, first come first; never empty.
    remote: BTreeMap<u128, Vec<usize>>,
    /// How many GIDs each link announced.
    announced: BTreeMap<usize, usize>,
}

impl Fabric {
    pub(crate) fn new() -> Self {
        let (local, remote) = (BTreeMap::new(), BTreeMap::new());
        Self { epoch: 1, local, remote, announced: BTreeMap::new() }
    }

    #[inline]
    pub(crate) fn epoch(&self) -> u64 {
        self.epoch
    }

    pub(crate) fn route(&self, gid: u128) -> Route {
        if let Some(nic) = self.local.get(&gid) {
            return Route::Nic(*nic);
        }
        let first = self.remote.get(&gid).and_then(|links| links.first());
        first.map_or(Route::Nowhere, |link| Route::Link(*link))
    }

    /// Gives a GID to a NIC, unless another NIC has it, here or behind a link.
    pub(crate) fn bind(&mut self, gid: u128, nic: usize) -> Result<(), Error> {
        let taken = |what| Err(Error::Invalid { what, value: gid as u64 });
        match self.local.get(&gid) {
            Some(owner) if *owner != nic => return taken("GID (another NIC has it)"),
            None if self.remote.contains_key(&gid) => {
                return taken("GID (a NIC behind a link has it)");
            }
            _ => self.local.insert(gid, nic),
        };
        self.epoch += 1;
        Ok(())
    }

    pub(crate) fn unbind(&mut self, gid: u128) {
        self.epoch += 1;
        self.local.remove(&gid);
    }

    /// Every GID of this engine's NICs.
    pub(crate) fn locals(&self) -> impl Iterator<Item = u128> {
        self.local.keys().copied()
    }

    /// A link announced a GID; false when it has announced as many as are remembered, and this one
    /// is not.
    pub(crate) fn learn(&mut self, gid: u128, link: usize) -> bool {
        if self.remote.get(&gid).is_some_and(|links| links.contains(&link)) {
            return true;
        }
        let announced = self.announced.entry(link).or_default();
        if *announced >= MAX_LINK_GIDS {
            return false;
        }
        *announced += 1;
        self.remote.entry(gid).or_default().push(link);
        self.epoch += 1;
        true
    }

    /// A link withdrew a GID.
    pub(crate) fn forget(&mut self, gid: u128, link: usize) {
        let Some(links) = self.remote.get_mut(&gid) else { return };
        let Some(place) = links.iter().position(|l| *l == link) else { return };
        links.remove(place);
        if links.is_empty() {
            self.remote.remove(&gid);
        }
        if let Some(announced) = self.announced.get_mut(&link) {
            *announced -= 1;
        }
        self.epoch += 1;
    }

    /// A link is gone.
    pub(crate) fn forget_link(&mut self, link: usize) {
        self.remote.retain(|_, links| {
            links.retain(|l| *l != link);
            !links.is_empty()
        });
        self.announced.remove(&link);
        self.epoch += 1;
    }

    /// How many GIDs a link announced.
    pub(crate) fn learned(&self, link: usize) -> usize {
        self.announced.get(&link).copied().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gid_belongs_to_whoever_had_it_first() {
        let mut fabric = Fabric::new();
        fabric.bind(1, 0).expect("free");
        fabric.bind(1, 0).expect("its own");
        assert!(fabric.bind(1, 1).is_err(), "another NIC has it");
        assert!(fabric.learn(1, 5) && fabric.learn(2, 5));
        assert_eq!(fabric.route(1), Route::Nic(0));
        assert!(fabric.bind(2, 0).is_err(), "it is behind a link");
        assert_eq!(fabric.route(2), Route::Link(5));
        fabric.unbind(1);
        assert_eq!(fabric.route(1), Route::Link(5));
        fabric.forget(2, 5);
        fabric.bind(2, 0).expect("free again");
    }

    #[test]
    fn the_next_link_that_claimed_a_gid_has_it_when_the_first_is_gone() {
        let mut fabric = Fabric::new();
        assert!(fabric.learn(1, 9) && fabric.learn(1, 3) && fabric.learn(1, 4));
        assert_eq!((fabric.route(1), fabric.learned(3)), (Route::Link(9), 1));
        fabric.forget_link(9);
        assert_eq!((fabric.route(1), fabric.learned(9)), (Route::Link(3), 0));
        fabric.forget(1, 3);
        assert_eq!(fabric.route(1), Route::Link(4));
        fabric.forget_link(4);
        assert_eq!(fabric.route(1), Route::Nowhere);
    }

    #[test]
    fn surplus_gids_are_not_remembered_and_those_before_are() {
        let mut fabric = Fabric::new();
        for gid in 1..=MAX_LINK_GIDS as u128 {
            assert!(fabric.learn(gid, 0));
        }
        let epoch = fabric.epoch();
        assert!(fabric.learn(7, 0), "it is known");
        assert!(!fabric.learn(5000, 0));
        assert!(fabric.epoch() == epoch && fabric.route(5000) == Route::Nowhere);
        assert!(fabric.learn(5000, 1), "each link has its own share");
        fabric.forget(7, 0);
        assert!(fabric.learn(5001, 0));
    }
}
