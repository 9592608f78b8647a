//! A layout pin in force, and the sign that it gives to whoever looks: an operation waits for it.

use std::sync::{Mutex, MutexGuard, PoisonError};

use holdfast_dax::notify::Probe;
use holdfast_dax::{Error, Pin};
use nix::errno::Errno;

/// A pin that its file's guard and the notifier of guard pages share.
#[derive(Debug)]
pub struct HeldPin {
    pin: Mutex<Pin>,
}

impl HeldPin {
    /// Shares a pin.
    pub fn new(pin: Pin) -> Self {
        Self { pin: Mutex::new(pin) }
    }

    /// Lets it go; see [`Pin::release`].
    pub fn release(&self) -> Result<(), Error> {
        self.lock().release()
    }

    /// The pin, for what is done with it when it is taken.
    pub fn lock(&self) -> MutexGuard<'_, Pin> {
        // A pin is changed by its release alone, which may be repeated.
        self.pin.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Probe for HeldPin {
    fn disturbed(&self) -> Result<bool, Errno> {
        let pin = self.lock();
        if pin.is_released() {
            // It was dealt with: that is no news.
            return Ok(false);
        }
        pin.disturbed().map_err(|error| match error {
            Error::Pagemap { errno, .. } => errno,
            _ => Errno::EIO,
        })
    }
}
