//! Which pages of a region are on its file, by its events alone.

use std::time::{Duration, Instant};

use holdfast::coherence::{Event, EventKind, Events, Part, RegionId};

use super::interrupt;

/// Bytes of a page.
const PAGE: usize = 4096;

/// Follows one region's events.
#[derive(Debug)]
pub struct Tracker<'e> {
    events: &'e Events,
    region: RegionId,
    /// For each page: whether it is on scrap.
    off: Vec<bool>,
    patience: Duration,
}

impl<'e> Tracker<'e> {
    /// A region of `len` bytes, all of it on its file now. Events so far are dropped.
    pub fn new(events: &'e Events, region: RegionId, len: u64, patience: Duration) -> Self {
        while events.try_next().is_some() {}
        Self { events, region, off: vec![false; len as usize / PAGE], patience }
    }

    /// The next `Broken`.
    pub fn broken(&mut self, what: &str) -> anyhow::Result<Event> {
        let started = Instant::now();
        loop {
            let event = self.next(what, started)?;
            if event.kind == EventKind::Broken {
                return Ok(event);
            }
        }
    }

    /// Waits until all of the region is on its file, and says since when.
    pub fn whole(&mut self, what: &str) -> anyhow::Result<Instant> {
        let started = Instant::now();
        let mut since = started;
        while self.off.contains(&true) {
            since = self.next(what, started)?.at;
        }
        Ok(since)
    }

    fn next(&mut self, what: &str, started: Instant) -> anyhow::Result<Event> {
        loop {
            interrupt::check()?;
            anyhow::ensure!(
                started.elapsed() < self.patience,
                "{what}: the guard said no more within {:?}",
                self.patience
            );
            let Some(event) = self.events.next_within(Duration::from_millis(50)) else { continue };
            if event.region != self.region {
                continue;
            }
            match event.kind {
                EventKind::Broken => self.set(event.part, true),
                EventKind::Restored => self.set(event.part, false),
                EventKind::Breaking | EventKind::Lost => {}
            }
            return Ok(event);
        }
    }

    fn set(&mut self, part: Part, off: bool) {
        let pages = part.start as usize / PAGE..(part.end as usize / PAGE).min(self.off.len());
        if let Some(pages) = self.off.get_mut(pages) {
            pages.fill(off);
        }
    }
}
