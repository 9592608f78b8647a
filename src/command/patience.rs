//! Patience with a loop that waits for the device: it ends the wait on Ctrl-C, and when nothing has
//! happened for too long. A tick costs a few instructions; the clock is read once in many.

use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use holdfast::Device;
use holdfast_driver as driver;

use super::interrupt;

/// Ticks between two looks at the clock.
const INTERVAL: u32 = 1 << 14;

/// Patience with a waiting loop.
#[derive(Debug)]
pub struct Patience {
    ticks: u32,
    since: Option<Instant>,
    patience: Duration,
    /// By address; they are not kept open.
    devices: Vec<(String, Weak<driver::Device>)>,
}

impl Patience {
    /// Waits at most `patience` from one sign of progress to the next.
    pub fn new(patience: Duration) -> Self {
        Self { ticks: 0, since: None, patience, devices: Vec::new() }
    }

    /// Blames one of these devices when nothing comes because it is gone.
    pub fn over<'d>(self, devices: impl Iterator<Item = &'d Device>) -> Self {
        let weak =
            |device: &Device| (device.address().to_string(), Arc::downgrade(device.driver()));
        Self { devices: devices.map(weak).collect(), ..self }
    }

    /// Nothing has happened yet; `what` is waited for.
    #[inline(always)]
    pub fn tick(&mut self, what: &'static str) -> anyhow::Result<()> {
        self.ticks += 1;
        if self.ticks == INTERVAL { self.look(what) } else { Ok(()) }
    }

    /// Something has happened.
    #[inline(always)]
    pub fn progress(&mut self) {
        self.ticks = 0;
        self.since = None;
    }

    #[cold]
    #[inline(never)]
    fn look(&mut self, what: &'static str) -> anyhow::Result<()> {
        self.ticks = 0;
        interrupt::check()?;
        let since = *self.since.get_or_insert_with(Instant::now);
        let waited = since.elapsed();
        if waited >= self.patience {
            for (address, device) in &self.devices {
                if let Some(device) = device.upgrade() {
                    device.check_present().with_context(|| address.clone())?;
                }
            }
        }
        anyhow::ensure!(
            waited < self.patience,
            "{what} did not come within {:?}; is the NIC, or the other side, still running?",
            self.patience
        );
        // Whoever shares this processor, perhaps the NIC itself, gets a turn.
        std::thread::yield_now();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wait_without_progress_ends() {
        let mut watch = Patience::new(Duration::from_millis(20));
        let started = Instant::now();
        let error = loop {
            if let Err(error) = watch.tick("a completion") {
                break error.to_string();
            }
            assert!(started.elapsed() < Duration::from_secs(10));
        };
        assert!(error.contains("a completion did not come within 20ms"), "{error}");
    }

    #[test]
    fn progress_starts_the_wait_anew() {
        let mut watch = Patience::new(Duration::from_millis(5));
        let started = Instant::now();
        while started.elapsed() < Duration::from_millis(30) {
            watch.tick("nothing").unwrap();
            watch.progress();
        }
    }
}
