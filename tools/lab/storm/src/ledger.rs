//! The books of the events: what was told of each region, page by page, against what was done.
//!
//! Each page of a region is on the file, off it, or lost. `Broken` takes pages off, `Restored` and
//! `Lost` settle those that are off, and nothing else may happen to any page. What an operation
//! must bring, and what must not come without one, is asked of the books after each step.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};
use holdfast::coherence::{Event, EventKind, Events, Part, RegionId};
use serde::Serialize;

use crate::operation::PAGE;
use crate::region::Extent;

/// The kernel's times are whole microseconds.
const ROUNDING: Duration = Duration::from_micros(2);

/// Where a page of a region is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    OnFile,
    Off,
    Lost,
}

/// What was told in all.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Totals {
    pub breaking: u64,
    pub broken: u64,
    pub restored: u64,
    pub lost: u64,
    /// Breaks by the cause that they named.
    pub causes: BTreeMap<&'static str, u64>,
    /// Breaks by the notifier that told first.
    pub notifiers: BTreeMap<&'static str, u64>,
    /// Breaks beyond the first of an operation.
    pub repeats: u64,
    /// Events that stand for others as well.
    pub merged: u64,
}

/// A break as an event told it.
#[derive(Debug, Clone, Copy)]
pub struct Break {
    pub region: RegionId,
    pub at: Instant,
    pub fenced: Instant,
    pub window: Duration,
}

/// The books.
pub struct Ledger {
    events: Events,
    regions: Vec<Book>,
    pub totals: Totals,
    /// Announced since the last step.
    announced: Vec<(RegionId, &'static str, Instant)>,
    /// Broken since the last step.
    pub breaks: Vec<Break>,
    /// Everything since the last step.
    told: Vec<Event>,
}

struct Book {
    id: RegionId,
    extent: Extent,
    pages: Vec<Place>,
}

impl Ledger {
    /// Books for regions that are wholly on the file.
    pub fn new(events: Events, regions: impl Iterator<Item = (RegionId, Extent)>) -> Self {
        let book = |(id, extent): (RegionId, Extent)| Book {
            id,
            extent,
            pages: vec![Place::OnFile; (extent.len / PAGE) as usize],
        };
        let regions = regions.map(book).collect();
        let (announced, breaks, told) = (Vec::new(), Vec::new(), Vec::new());
        Self { events, regions, totals: Totals::default(), announced, breaks, told }
    }

    /// Enters all events that are there.
    pub fn read(&mut self) -> Result<()> {
        while let Some(event) = self.events.try_next() {
            self.enter(&event)?;
        }
        Ok(())
    }

    /// Between operations nothing may break. Begins a new step.
    pub fn quiet(&mut self) -> Result<()> {
        self.announced.clear();
        self.breaks.clear();
        self.told.clear();
        self.read()?;
        if let Some((region, cause, _)) = self.announced.first() {
            bail!("region {region} was told of '{cause}' and nothing was done");
        }
        ensure!(self.breaks.is_empty(), "a break without an operation: {:?}", self.breaks);
        Ok(())
    }

    /// Everything that was announced for `began..ended` came before its end, and was one of
    /// `causes` (or unknown).
    pub fn in_time(&self, began: Instant, ended: Instant, causes: &[&str]) -> Result<()> {
        for (region, cause, at) in &self.announced {
            let known = causes.contains(cause) || *cause == "unknown" || *cause == "several";
            ensure!(known, "region {region} was told of '{cause}', and done was {causes:?}");
            ensure!(
                *at + ROUNDING >= began && *at <= ended + ROUNDING,
                "region {region} was told of '{cause}' {:?} after the operation's start, which \
                 took {:?}",
                at.saturating_duration_since(began),
                ended.saturating_duration_since(began)
            );
        }
        Ok(())
    }

    /// Each region has been told by now, and of one of `causes`.
    pub fn all_announced(&self, causes: &[&str], causes_known: bool) -> Result<()> {
        for book in &self.regions {
            let told: Vec<_> = self.announced.iter().filter(|told| told.0 == book.id).collect();
            ensure!(!told.is_empty(), "region {} was not told when the operation ended", book.id);
            let named = told.iter().any(|told| causes.contains(&told.1));
            ensure!(
                named || !causes_known,
                "region {} was told of {:?} and not of {causes:?}",
                book.id,
                told.iter().map(|told| told.1).collect::<Vec<_>>()
            );
        }
        Ok(())
    }

    /// Nothing was announced in this step.
    pub fn none_announced(&self) -> Result<()> {
        let causes: Vec<_> = self.announced.iter().map(|told| told.1).collect();
        ensure!(causes.is_empty(), "told of {causes:?} though nothing moved");
        Ok(())
    }

    /// All breaks of this step were in force before the operation that waited for them ended.
    pub fn fenced_by(&self, ended: Instant) -> Result<()> {
        match self.breaks.iter().find(|one| one.fenced > ended) {
            None => Ok(()),
            Some(late) => bail!(
                "region {} was in reach of the device {:?} after the operation had returned",
                late.region,
                late.fenced.saturating_duration_since(ended)
            ),
        }
    }

    /// As many breaks as announcements for each region.
    pub fn adds_up(&mut self) -> Result<()> {
        for book in &self.regions {
            let announced = self.announced.iter().filter(|told| told.0 == book.id).count();
            let broken: Vec<_> = self.breaks.iter().filter(|one| one.region == book.id).collect();
            ensure!(
                announced == broken.len(),
                "region {}: {announced} breaks announced and {} told",
                book.id,
                broken.len()
            );
            self.totals.repeats += broken.len().saturating_sub(1) as u64;
        }
        Ok(())
    }

    /// Waits until no page is off.
    pub fn settle(&mut self, patience: Duration) -> Result<()> {
        self.wait(patience, |place| place != Place::Off, "neither restored nor lost")
    }

    /// Waits until all pages are on the file.
    pub fn whole(&mut self, patience: Duration) -> Result<()> {
        self.wait(patience, |place| place == Place::OnFile, "not on the file again")
    }

    fn wait(&mut self, patience: Duration, good: fn(Place) -> bool, what: &str) -> Result<()> {
        let until = Instant::now() + patience;
        loop {
            self.read()?;
            let bad = |book: &Book| {
                let page = book.pages.iter().position(|place| !good(*place))?;
                Some((book.id, page, book.pages.iter().filter(|place| !good(**place)).count()))
            };
            let bad = self.regions.iter().find_map(bad);
            // The second half of a break comes after the operation was let go.
            let (breaking, broken) = (self.totals.breaking, self.totals.broken);
            if bad.is_none() && breaking == broken {
                return Ok(());
            }
            let left = until.saturating_duration_since(Instant::now());
            match bad {
                _ if !left.is_zero() => {}
                None => bail!("{breaking} breaks were announced and {broken} told"),
                Some((id, page, count)) => bail!(
                    "region {id}: {count} pages, the first at {:#x}, {what} within {patience:?}",
                    page as u64 * PAGE
                ),
            }
            if let Some(event) = self.events.next_within(left.min(Duration::from_millis(100))) {
                self.enter(&event)?;
            }
        }
    }

    /// What is on the file according to the events must be what has blocks there: `has_blocks`
    /// is asked for each page of the file. A page that got a block back after it was lost may be
    /// told of later, for nothing need have told the guard.
    pub fn come_to_agree(
        &mut self,
        has_blocks: impl Fn(u64) -> bool,
        patience: Duration,
    ) -> Result<()> {
        let until = Instant::now() + patience;
        while let Some((book, offset, place)) = self.disagreement(&has_blocks) {
            let (there, left) =
                (has_blocks(offset), until.saturating_duration_since(Instant::now()));
            ensure!(
                there && !left.is_zero(),
                "region {book}: the file has {} at {offset:#x}, and the events say {place:?}",
                if there { "a block" } else { "no block" }
            );
            if let Some(event) = self.events.next_within(left.min(Duration::from_millis(100))) {
                self.enter(&event)?;
            }
        }
        Ok(())
    }

    /// The first page of which the events say another thing than the file.
    fn disagreement(&self, has_blocks: impl Fn(u64) -> bool) -> Option<(RegionId, u64, Place)> {
        self.regions.iter().find_map(|book| {
            let mut pages = book.pages.iter().enumerate();
            pages.find_map(|(page, place)| {
                let offset = book.extent.offset + page as u64 * PAGE;
                let differs = has_blocks(offset) != (*place == Place::OnFile);
                differs.then_some((book.id, offset, *place))
            })
        })
    }

    /// What was told in this step, a line each, with the seconds before now.
    pub fn last_words(&mut self) -> Vec<String> {
        let _ = self.read();
        let line = |event: &Event| {
            let Event { region, kind, part, cause, notifier, timing, at, .. } = event;
            let ago = at.elapsed().as_secs_f64();
            let timing = timing.unwrap_or_default();
            format!("-{ago:.3} {kind} {region} {part} {cause} {notifier} {timing:?}")
        };
        self.told.iter().map(line).collect()
    }

    fn enter(&mut self, event: &Event) -> Result<()> {
        self.told.push(*event);
        let Some(book) = self.regions.iter_mut().find(|book| book.id == event.region) else {
            bail!("an event of a region that is none of ours: {event:?}");
        };
        self.totals.merged += u64::from(event.merged);
        let pages = pages_of(event.part);
        let Some(pages) = book.pages.get_mut(pages) else {
            bail!("an event beyond region {}: {}", book.id, event.part);
        };
        let cause = event.cause.name();
        match event.kind {
            EventKind::Breaking => {
                self.totals.breaking += 1;
                *self.totals.causes.entry(cause).or_default() += 1;
                *self.totals.notifiers.entry(event.notifier.name()).or_default() += 1;
                self.announced.push((event.region, cause, event.at));
            }
            EventKind::Broken => {
                self.totals.broken += 1;
                pages.fill(Place::Off);
                let timing = event.timing.unwrap_or_default();
                self.breaks.push(Break {
                    region: event.region,
                    at: event.at,
                    fenced: event.at + timing.to_fence,
                    window: timing.window,
                });
            }
            EventKind::Restored => {
                self.totals.restored += 1;
                let twice = pages.contains(&Place::OnFile);
                ensure!(!twice, "{} of region {} was restored twice", event.part, event.region);
                pages.fill(Place::OnFile);
            }
            EventKind::Lost => {
                self.totals.lost += 1;
                let was_off = pages.iter().all(|place| *place == Place::Off);
                ensure!(
                    was_off,
                    "{} of region {} was lost, and was not off the file",
                    event.part,
                    event.region
                );
                pages.fill(Place::Lost);
            }
        }
        Ok(())
    }
}

fn pages_of(part: Part) -> std::ops::Range<usize> {
    (part.start / PAGE) as usize..part.end.div_ceil(PAGE) as usize
}
