//! A layout pin in force: the driver's, the keeper's copy of it, and the sign that it gives to
//! whoever looks that an operation waits for it. And the keeper's hold on its file.

use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use holdfast_dax::notify::Probe;
use holdfast_dax::{Error, Pin, Sign};
use nix::errno::Errno;

use super::keeper::{HeldFileId, Keeper, KeeperError, PinId};
use crate::Result;
use crate::lock::lock;

/// A pin that its file's guard and the notifier of guard pages share. Dropped, it is released.
#[derive(Debug)]
pub struct HeldPin {
    pin: Mutex<Pin>,
    sign: Arc<Sign>,
    /// A moment before it was taken: an operation noticed earlier did not wait for it.
    since: Instant,
    released: AtomicBool,
    /// Who holds it as well, and by which name.
    kept: Mutex<Option<(Arc<Keeper>, PinId)>>,
}

impl HeldPin {
    /// Shares a pin, taken after `since`, with a keeper. Waits for its answer: from then on the pin
    /// outlives this process.
    pub fn new(pin: Pin, since: Instant, keeper: Option<Arc<Keeper>>) -> Result<Self> {
        let sign = pin.sign();
        let released = AtomicBool::new(false);
        let held = Self { pin: Mutex::new(pin), sign, since, released, kept: Mutex::new(None) };
        if let Some(keeper) = keeper {
            held.hand_over(keeper)?;
        }
        Ok(held)
    }

    /// A moment before it was taken.
    pub fn since(&self) -> Instant {
        self.since
    }

    /// Where the pinned page is in the file.
    pub fn offset(&self) -> u64 {
        lock(&self.pin).parts().offset
    }

    /// Has another keeper hold it as well.
    pub fn hand_over(&self, keeper: Arc<Keeper>) -> Result<(), KeeperError> {
        let pin = lock(&self.pin);
        if !pin.is_released() {
            let id = keeper.hold_pin(&pin.parts())?;
            *lock(&self.kept) = Some((keeper, id));
        }
        Ok(())
    }

    /// Lets it go here, and then has the keeper forget it; see [`Pin::release`].
    pub fn release(&self) -> Result<(), Error> {
        lock(&self.pin).release()?;
        self.released.store(true, Ordering::Release);
        if let Some((keeper, id)) = lock(&self.kept).take() {
            keeper.let_go(id);
        }
        Ok(())
    }

    /// Looks up and maps what the pin holds in place, in a turn that the keeper grants: it does
    /// not let the pin go meanwhile.
    pub fn in_turn<T>(&self, map: impl FnOnce() -> Result<T>) -> Result<T> {
        let kept = lock(&self.kept).clone();
        let _turn = match &kept {
            Some((keeper, id)) => Some(keeper.begin_map(*id)?),
            None => None,
        };
        map()
    }
}

/// A file that a keeper has mapped, for as long as this exists.
#[derive(Debug)]
pub struct KeptFile {
    keeper: Arc<Keeper>,
    id: HeldFileId,
}

impl KeptFile {
    /// Waits for the keeper's answer.
    pub fn new(file: BorrowedFd<'_>, keeper: Arc<Keeper>) -> Result<Self, KeeperError> {
        let id = keeper.hold_file(file)?;
        Ok(Self { keeper, id })
    }

    /// Whether it is this keeper.
    pub fn is_by(&self, keeper: &Arc<Keeper>) -> bool {
        Arc::ptr_eq(&self.keeper, keeper)
    }
}

impl Drop for KeptFile {
    fn drop(&mut self) {
        self.keeper.let_go_file(self.id);
    }
}

impl Probe for HeldPin {
    fn disturbed(&self) -> Result<bool, Errno> {
        // Released, it was dealt with: that is no news.
        Ok(!self.released.load(Ordering::Acquire) && self.sign.disturbed()?)
    }
}

impl Drop for HeldPin {
    fn drop(&mut self) {
        if let Err(error) = self.release() {
            tracing::error!(%error, "a layout pin could not be let go");
        }
    }
}
