//! A guarded file: its layout pin, its regions, and the way from one state to the next.
//!
//! ```text
//!              notice               fenced, pin released
//!   Held ----------------> Holding --------------------> Open
//!    ^  \_______________________________________________^  |
//!    |            (no region wants time)                   |
//!    +-----------------------------------------------------+
//!                 pin taken again (follow, or a new region)
//! ```
//!
//! *Held*: the pin is in force, and whatever stands on the file may be reached by the device. An
//! operation that wants to change the layout waits. *Open*: no pin; nothing of a region that needs
//! one stands on the file. That is the rule that everything here serves: the file system looks at
//! all pages of the file, so a pin can only be let go as a whole, and from then on any operation
//! may pass; therefore all regions go to scrap first, whatever little the operation wants to change.
//!
//! One lock guards a file's state. Nothing that may block on the file system is done under it; the
//! guard, which only tries it, goes on to other files when it is taken.

use std::ops::Range;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, TryLockError};
use std::time::{Duration, Instant};

use holdfast_dax::notify::{Cause, Notice, NotifierKind, Probe, Subject};
use holdfast_iommu::{Order, retarget_all};

use super::event::{Event, EventKind, Part, RegionId, Timing};
use super::held::{HeldPin, KeptFile};
use super::keeper::Keeper;
use super::policy::Reaction;
use super::region::GuardedRegion;
use super::stream::Publisher;
use crate::Result;
use crate::lock::lock;

/// A file with regions.
#[derive(Debug)]
pub struct GuardedFile {
    /// What notices call it: a file, or anonymous memory, to which much of the same can happen.
    pub subject: Subject,
    /// The file; anonymous memory has none.
    pub fd: Option<OwnedFd>,
    pub path: Option<PathBuf>,
    state: Mutex<State>,
    /// Since the first pin. After the state, with the last pin.
    kept: Mutex<Option<KeptFile>>,
    /// Who restores something has it, one at a time, or who needs that nobody does.
    turn: Mutex<()>,
}

/// What guards a file's state.
#[derive(Debug)]
pub struct State {
    pub phase: Phase,
    pub pin: Option<Arc<HeldPin>>,
    pub regions: Vec<Arc<GuardedRegion>>,
    /// The operation that is dealt with, or was last.
    pub why: Why,
    /// Counts the breaks, so that a restore can tell that there was another.
    pub epoch: u64,
    /// When the pin was taken: what was noticed before is settled.
    pub held_since: Instant,
    /// Its pin was seen to be disturbed, and no notifier has said why yet.
    pub suspected: bool,
    /// It has no regions and is not watched any more: who wants to add one needs a new one.
    pub forgotten: bool,
    /// The page that was pinned last, and until when it is kept out of this process's page tables.
    let_go: Option<(u64, Instant)>,
    /// The last announcement, for the cause of what will be found waiting.
    announced: Option<Why>,
    /// Something that passes pins was announced, and has begun by then at the latest. Page tables may
    /// go on to show blocks that it took from the file.
    passed: Option<Instant>,
    /// Something was done to a file without a pin, and its pages may be others since.
    unsure: bool,
    /// Not looked for before this.
    compare_from: Instant,
}

/// Where a file is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// The pin is in force, or there is nothing to pin.
    Held,
    /// An operation waits, and a region was given time.
    Holding {
        /// When its time is over.
        until: Instant,
    },
    /// No pin: everything that needs one is on scrap.
    Open,
}

/// What is known of an operation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Why {
    pub cause: Cause,
    pub notifier: NotifierKind,
    pub pid: Option<i32>,
    pub range: Option<Range<u64>>,
    pub at: Instant,
}

impl From<Notice> for Why {
    fn from(notice: Notice) -> Self {
        let Notice { cause, notifier, pid, range, at, .. } = notice;
        Self { cause, notifier, pid, range, at }
    }
}

impl Why {
    /// Something waits, and nobody knows what.
    pub fn unknown(notifier: NotifierKind) -> Self {
        Self { cause: Cause::Unknown, notifier, pid: None, range: None, at: Instant::now() }
    }
}

/// What was announced has begun, and holds the file's lock, after this: it did not wait for a pin that
/// was taken later still. One that was taken before, it waits for after as long.
const UNDER_WAY: Duration = Duration::from_millis(50);

/// How long an announcement explains what is found waiting.
const FRESH: Duration = Duration::from_secs(2);

/// What was announced, and waits for nobody, has begun after this.
const BEGUN: Duration = Duration::from_millis(500);

/// How long a page that was pinned is kept out of page tables, if nobody sees the operation end.
const REFAULTS: Duration = Duration::from_secs(10);

/// Comparing pages takes at most about one part in so many of a thread's time.
const COMPARE_SELDOM: u32 = 20;

/// What a break came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Broke {
    /// Everything is away from the file, and the operation may go on.
    Done,
    /// A region was given time.
    Waits,
    /// Something may still reach the file: the pin stays, and this must be tried again.
    Again,
}

impl GuardedFile {
    /// A file without regions.
    pub fn new(subject: Subject, fd: Option<OwnedFd>, path: Option<PathBuf>) -> Self {
        let state = State {
            phase: Phase::Open,
            pin: None,
            regions: Vec::new(),
            why: Why::unknown(NotifierKind::GuardPage),
            epoch: 0,
            held_since: Instant::now(),
            suspected: false,
            forgotten: false,
            let_go: None,
            announced: None,
            passed: None,
            unsure: false,
            compare_from: Instant::now(),
        };
        Self {
            subject,
            fd,
            path,
            state: Mutex::new(state),
            kept: Mutex::default(),
            turn: Mutex::new(()),
        }
    }

    pub fn lock(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    /// The state, unless somebody else has it.
    pub fn try_lock(&self) -> Option<MutexGuard<'_, State>> {
        match self.state.try_lock() {
            Ok(state) => Some(state),
            Err(TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        }
    }

    /// Has this keeper map the file, as is needed before a pin is taken. Waits for its answer, if it
    /// has not.
    pub fn keep(&self, keeper: Arc<Keeper>) -> Result<()> {
        let mut kept = lock(&self.kept);
        let Some(fd) = &self.fd else { return Ok(()) };
        if !kept.as_ref().is_some_and(|kept| kept.is_by(&keeper)) {
            *kept = Some(KeptFile::new(fd.as_fd(), keeper)?);
        }
        Ok(())
    }

    /// The turn to put regions back on the file, or to keep others from it: who has it may hold
    /// regions. Blocks while another thread has it, which may wait for the file system. To be taken
    /// before the state; the guard never takes it.
    pub fn turn(&self) -> MutexGuard<'_, ()> {
        lock(&self.turn)
    }
}

impl State {
    /// Whether an operation waits for the pin, by the pin's own sign.
    pub fn is_disturbed(&self) -> bool {
        self.pin.as_ref().is_some_and(|pin| pin.disturbed().unwrap_or(true))
    }

    /// Whether any region would need a pin.
    pub fn needs_pin(&self) -> bool {
        self.regions.iter().any(|region| region.needs_pin())
    }

    /// Remembers what was announced, to explain what will be found waiting.
    pub fn announce(&mut self, why: Why) {
        self.announced = Some(why);
    }

    /// Something that passes pins was announced: what is looked up from now on may be wrong before it
    /// is over, and in page tables afterwards.
    pub fn passes(&mut self) {
        self.epoch += 1;
        self.passed = Some(Instant::now() + BEGUN);
    }

    /// Whether what passes pins may not have begun yet; if it has, whether page tables may show
    /// blocks that are not the file's any more.
    pub fn passed(&self) -> (bool, bool) {
        let later = self.passed.is_some_and(|begun| Instant::now() < begun);
        (later, self.passed.is_some())
    }

    /// All regions that follow were looked up anew, in `epoch`.
    pub fn looked_up(&mut self, epoch: u64) {
        if self.epoch == epoch {
            self.passed = None;
        }
    }

    /// Whether what was announced then can be what is found now to wait for the pin. What was announced
    /// before the pin was taken, and was not over by then, waits for it soon.
    fn explains(&self, announced: Instant, found: Instant) -> bool {
        let before = self.held_since.saturating_duration_since(announced);
        let held = found.saturating_duration_since(self.held_since);
        found.saturating_duration_since(announced) < FRESH
            && (before.is_zero() || (before < UNDER_WAY && held < UNDER_WAY))
    }

    /// An operation waits (or, where nothing makes it wait, has been): the first step. Regions
    /// that want time are given it, if it waits; otherwise everything goes to scrap at once.
    pub fn start_break(&mut self, mut why: Why, order: Order, publisher: &Publisher) -> Broke {
        // Whatever it explains, it explains nothing that comes later.
        let announced = self.announced.take();
        if why.cause == Cause::Unknown
            && let Some(announced) = announced
            && self.explains(announced.at, why.at)
        {
            why = Why { at: why.at, notifier: why.notifier, ..announced };
        }
        self.why = why;
        self.suspected = false;
        let waits = !self.why.cause.passes_pins();
        if !waits {
            self.passes();
        }
        for region in &self.regions {
            // What the application said of an earlier operation.
            region.ready.store(false, Ordering::Release);
            publish(publisher, region, EventKind::Breaking, region.whole(), &self.why, None);
        }
        let hold = |region: &Arc<GuardedRegion>| match region.policy.reaction {
            Reaction::Hold { deadline } if waits => Some(deadline),
            Reaction::Hold { .. } | Reaction::Retarget | Reaction::Revoke => None,
        };
        match self.regions.iter().filter_map(hold).max() {
            Some(deadline) => {
                self.phase = Phase::Holding { until: Instant::now() + deadline };
                Broke::Waits
            }
            None => self.finish_break(order, publisher),
        }
    }

    /// Everything away from the file; then, and only then, the pin goes. Scrap is put where the file
    /// was on the way or afterwards, as `order` says.
    pub fn finish_break(&mut self, order: Order, publisher: &Publisher) -> Broke {
        let Self { regions, pin, why, let_go, .. } = self;
        for region in regions.iter() {
            if region.policy.reaction == Reaction::Revoke {
                region.revoke();
            }
        }
        let targets = regions.iter().filter_map(|region| region.target(region.whole()));
        let mut timing = Timing::default();
        let taken = retarget_all(targets, order, |_| {
            timing.to_fence = why.at.elapsed();
            if let Some(pin) = pin.take() {
                *let_go = Some((pin.offset(), Instant::now() + REFAULTS));
                if let Err(error) = pin.release() {
                    // Dropping it tries again; what is fenced stays fenced.
                    tracing::error!(%error, "a layout pin could not be let go");
                }
            }
            timing.to_release = why.at.elapsed();
        });
        match taken {
            Ok(done) => timing.window = done.window,
            Err(error) => {
                tracing::error!(%error, "regions may still reach their file, whose layout \
                     operation goes on waiting; trying again");
                self.phase = Phase::Holding { until: Instant::now() };
                return Broke::Again;
            }
        }
        self.epoch += 1;
        self.phase = Phase::Open;
        self.keep_out();
        for region in &self.regions {
            let (whole, why) = (region.whole(), &self.why);
            publish(publisher, region, EventKind::Broken, whole, why, Some(timing));
        }
        self.end_if_final(publisher);
        Broke::Done
    }

    /// After what nothing brings the memory back from, regions stay where they are.
    fn end_if_final(&self, publisher: &Publisher) {
        if self.why.cause.is_final() {
            for region in &self.regions {
                give_up(publisher, region, region.whole(), &self.why);
            }
        }
    }

    /// The file's end, while nothing of it is within a device's reach or on the way to it.
    pub fn end(&mut self, why: Why, publisher: &Publisher) {
        self.epoch += 1;
        self.why = why;
        if self.phase == Phase::Open {
            self.end_if_final(publisher);
        }
    }

    /// Empties the page-table entries of the page that was pinned: Linux 7.3 lets the operation go
    /// on when nothing at all refers to that page, and this process may have touched it since. Says
    /// whether it should be done again soon. Takes no lock of the file.
    pub fn keep_out(&mut self) -> bool {
        let Some((offset, until)) = self.let_go.filter(|_| self.phase == Phase::Open) else {
            return false;
        };
        for region in &self.regions {
            region.forget_page(offset);
        }
        if until <= Instant::now() {
            self.let_go = None;
        }
        self.let_go.is_some()
    }

    /// Somebody who began to look in `epoch` saw the operation end: pages may be faulted in again,
    /// and stay. `false` when there was a break since: what was seen was another one's end, and the
    /// operation of that break may still wait.
    pub fn over(&mut self, epoch: u64) -> bool {
        let seen = self.epoch == epoch;
        if seen {
            self.let_go = None;
        }
        seen
    }

    /// Something was done to the file: its pages are compared with those that were pinned, where
    /// these are known. One look for a lock for each region.
    pub fn doubt(&mut self) {
        self.unsure |= self.regions.iter().any(|region| region.knows_frames());
    }

    /// When pages are to be compared, if they are.
    pub fn doubted(&self) -> Option<Instant> {
        self.unsure.then_some(self.compare_from)
    }

    /// They are being compared; with what, and in which epoch.
    pub fn compare(&mut self) -> (Vec<Arc<GuardedRegion>>, u64) {
        self.unsure = false;
        (self.regions.clone(), self.epoch)
    }

    /// They were, in `epoch`, which took so long: these ranges of the file are on other pages. A break
    /// since then makes it necessary again.
    pub fn compared(
        &mut self,
        epoch: u64,
        took: Duration,
        replaced: Vec<Range<u64>>,
        publisher: &Publisher,
    ) {
        self.compare_from = Instant::now() + COMPARE_SELDOM * took;
        if replaced.is_empty() {
            return;
        }
        if self.epoch != epoch {
            self.unsure = true;
            return;
        }
        for range in replaced {
            let why = Why::unknown(NotifierKind::Inotify);
            self.lose(Why { range: Some(range), ..why }, publisher);
        }
    }

    /// Where the file ends, if a region stands on it beyond that. One `fstat` for each region.
    pub fn beyond_the_end(&self) -> Option<u64> {
        self.regions.iter().find_map(|region| {
            let end = region.file_end().ok()?;
            region.is_on_file_from(end).then_some(region.file_offset() + end)
        })
    }

    /// For regions that nothing needs to pin: takes away what a notice names.
    pub fn lose(&mut self, why: Why, publisher: &Publisher) {
        self.epoch += 1;
        self.why = why;
        let file_range = self.why.range.clone().unwrap_or(0..u64::MAX);
        for region in &self.regions {
            let len = region.whole().len();
            let named = Part::of_file(&file_range, region.file_offset(), len);
            let Some(part) = named.and_then(|named| region.chunks_around(named)) else { continue };
            if region.is_given_up(part) {
                continue;
            }
            if region.policy.reaction == Reaction::Revoke {
                region.revoke();
            }
            let Some(target) = region.target(part) else { continue };
            match target.space.retarget(target.range, target.scrap) {
                Ok(done) => {
                    let elapsed = self.why.at.elapsed();
                    let timing =
                        Timing { to_fence: elapsed, to_release: elapsed, window: done.window };
                    let why = &self.why;
                    publish(publisher, region, EventKind::Broken, part, why, Some(timing));
                    if why.cause.is_final() {
                        give_up(publisher, region, part, why);
                    }
                }
                Err(error) => {
                    tracing::error!(?region, %error, "a region could not be put on scrap");
                }
            }
        }
    }

    /// The region of this number.
    pub fn region(&self, id: RegionId) -> Option<&Arc<GuardedRegion>> {
        self.regions.iter().find(|region| region.id == id)
    }
}

/// A part of a region will never come back, and neither will the rest.
fn give_up(publisher: &Publisher, region: &GuardedRegion, part: Part, why: &Why) {
    region.give_up();
    if region.lose(part) {
        publish(publisher, region, EventKind::Lost, part, why, None);
    }
}

/// Tells the application.
pub fn publish(
    publisher: &Publisher,
    region: &GuardedRegion,
    kind: EventKind,
    part: Part,
    why: &Why,
    timing: Option<Timing>,
) {
    if !region.known.load(Ordering::Acquire) {
        return;
    }
    let named = why
        .range
        .as_ref()
        .and_then(|range| Part::of_file(range, region.file_offset(), region.whole().len()));
    let at = match kind {
        EventKind::Breaking | EventKind::Broken => why.at,
        EventKind::Restored | EventKind::Lost => Instant::now(),
    };
    publisher.publish(Event {
        region: region.id,
        kind,
        part,
        named,
        cause: why.cause,
        notifier: why.notifier,
        pid: why.pid,
        at,
        timing,
        merged: 0,
    });
}

#[cfg(test)]
mod tests {
    use holdfast_dax::notify::MappingId;

    use super::*;

    #[test]
    fn the_end_of_an_earlier_operation_is_not_that_of_a_later_one() {
        let file = GuardedFile::new(Subject::Mapping(MappingId(1)), None, None);
        let mut state = file.lock();
        let before = state.epoch;
        state.start_break(
            Why::unknown(NotifierKind::Kprobe),
            Order::FenceFirst,
            &Publisher::default(),
        );
        state.let_go = Some((0, Instant::now() + REFAULTS));
        assert!(!state.over(before), "it was seen before the break");
        assert!(state.keep_out(), "the page stays out of page tables");
        let now = state.epoch;
        assert!(state.over(now) && !state.keep_out());
    }

    #[test]
    fn an_announcement_explains_the_next_break_and_no_later_one() {
        let file = GuardedFile::new(Subject::Mapping(MappingId(1)), None, None);
        let publisher = Publisher::default();
        let mut state = file.lock();
        let named = |cause| Why { cause, ..Why::unknown(NotifierKind::Kprobe) };
        let broken_by = |state: &mut State, why| {
            state.start_break(why, Order::FenceFirst, &publisher);
            state.why.cause
        };
        let unknown = || Why::unknown(NotifierKind::GuardPage);
        state.announce(named(Cause::PunchHole));
        assert_eq!(broken_by(&mut state, unknown()), Cause::PunchHole);
        assert_eq!(broken_by(&mut state, unknown()), Cause::Unknown);
        // It came late: what it announced was over when the pin was taken.
        let old = Why { at: Instant::now() - 2 * UNDER_WAY, ..named(Cause::PunchHole) };
        state.held_since = Instant::now();
        state.announce(old);
        assert_eq!(broken_by(&mut state, unknown()), Cause::Unknown);
        // It was announced as the pin was taken: it waits for that at once, or was over.
        for (held, explains) in [(UNDER_WAY / 2, true), (2 * UNDER_WAY, false)] {
            state.held_since = Instant::now() - held;
            let at = state.held_since - UNDER_WAY / 2;
            state.announce(Why { at, ..named(Cause::PunchHole) });
            assert_eq!(broken_by(&mut state, unknown()) == Cause::PunchHole, explains);
        }
        state.held_since = Instant::now();
        // The operation was told of by somebody who knew: the announcement was its own.
        state.announce(named(Cause::PunchHole));
        assert_eq!(broken_by(&mut state, named(Cause::PunchHole)), Cause::PunchHole);
        assert_eq!(broken_by(&mut state, unknown()), Cause::Unknown);
    }
}
