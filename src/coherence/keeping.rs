//! The guard's keeper: started when the first pin is taken, given every container before anything
//! under a pin is mapped in it, and replaced when it dies.

use std::sync::{Arc, Mutex, Weak};

use holdfast_iommu::AddressSpace;

use super::keeper::{ContainerId, Keeper, KeeperEvent, KeeperOptions};
use crate::Result;
use crate::lock::lock;

/// Who keeps what when this process dies.
#[derive(Debug)]
pub struct Keeping {
    /// `None`: there is to be none.
    options: Option<KeeperOptions>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    keeper: Option<Arc<Keeper>>,
    spaces: Vec<(Weak<AddressSpace>, ContainerId)>,
}

/// News of the keeper.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum News {
    /// It let a pin go, and emptied every container before.
    Revoked,
    /// It is gone.
    Died,
}

impl Keeping {
    /// Starts nothing yet.
    pub fn new(options: Option<KeeperOptions>) -> Self {
        Self { options, state: Mutex::default() }
    }

    /// Has the keeper hold the container of `space`, if it stands on one; starts the keeper if
    /// there is none. Waits for its answers. Says whether a keeper was started.
    pub fn cover(&self, space: &Arc<AddressSpace>) -> Result<bool> {
        let (Some(options), Some(container)) = (&self.options, space.container()) else {
            return Ok(false);
        };
        let mut state = lock(&self.state);
        let started = state.keeper.is_none();
        let keeper = match state.keeper.take() {
            Some(keeper) => keeper,
            None => Arc::new(Keeper::spawn(options)?),
        };
        let keeper = state.keeper.insert(keeper).clone();
        let known = |(known, _): &(Weak<_>, _)| std::ptr::eq(known.as_ptr(), Arc::as_ptr(space));
        if !state.spaces.iter().any(known) {
            let id = keeper.hold_container(container)?;
            state.spaces.push((Arc::downgrade(space), id));
        }
        Ok(started)
    }

    /// Takes back the containers of devices that were closed. Does not wait.
    pub fn tidy(&self) {
        let mut state = lock(&self.state);
        let State { keeper: Some(keeper), spaces } = &mut *state else { return };
        spaces.retain(|(space, container)| {
            let open = space.strong_count() > 0;
            if !open {
                keeper.let_go_container(*container);
            }
            open
        });
    }

    /// The keeper, if there is one by now.
    pub fn keeper(&self) -> Option<Arc<Keeper>> {
        lock(&self.state).keeper.clone()
    }

    /// What it has done, and what became of it. Does not wait.
    pub fn news(&self, sink: &mut dyn FnMut(News)) {
        let Some(keeper) = self.keeper() else { return };
        keeper.collect(&mut |event| match event {
            KeeperEvent::Revoked { waited, .. } => {
                tracing::error!(
                    ?waited,
                    "the keeper emptied all containers: a layout operation \
                     had waited too long for this process; devices that were in them are useless \
                     until they are opened anew"
                );
                sink(News::Revoked);
            }
            KeeperEvent::Died => sink(News::Died),
        });
    }

    /// Starts another keeper in the place of one that died, with all containers; it must be given
    /// the pins. Waits for its answers.
    pub fn replace(&self) -> Result<Option<Arc<Keeper>>> {
        let Some(old) = self.keeper() else { return Ok(None) };
        let new = Arc::new(old.respawn()?);
        let mut state = lock(&self.state);
        for (space, id) in &mut state.spaces {
            if let Some(space) = space.upgrade()
                && let Some(container) = space.container()
            {
                *id = new.hold_container(container)?;
            }
        }
        state.keeper = Some(Arc::clone(&new));
        Ok(Some(new))
    }
}

impl Drop for Keeping {
    fn drop(&mut self) {
        // No pin is left, so nothing in a container needs one: a keeper that were to find it at its
        // end would empty it under a device that goes on.
        let mut state = lock(&self.state);
        let State { keeper: Some(keeper), spaces } = &mut *state else { return };
        for (_, container) in spaces.drain(..) {
            keeper.let_go_container(container);
        }
    }
}
