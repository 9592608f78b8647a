//! The storm: a peer that never stops writing, and every layout operation in random order.
//!
//! A step is an operation, or a burst of them by several processes at once. Then a canary takes
//! all the space there is, which is what was freed; the peer writes everything once more; the
//! canary is compared, and compared again before it is removed. In the end the file gets its size
//! and blocks back, the region has to be whole again, and the books of the events are closed.

mod after;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use holdfast::coherence::{Guard, NotifierKind};
use holdfast_lab_check::allocations;
use nix::errno::Errno;

use crate::canary::{Look, later_marks};
use crate::choice;
use crate::ends::Ends;
use crate::field::Field;
use crate::figures::{FailedIn, Figures, Times};
use crate::freed::Freed;
use crate::guarding;
use crate::hands::{Done, Hands};
use crate::ledger::Ledger;
use crate::operation::{Kind, Operation};
use crate::random::Random;

/// How long an operation may take; a loaded machine without KVM is slow.
const PATIENCE: Duration = Duration::from_secs(60);
/// Steps after which all lists have found their sizes.
const WARM_UP: u64 = 3;
/// How long a canary is left to the peer at least.
const MOMENT: Duration = Duration::from_millis(10);

/// What the storm is like.
#[derive(Debug, Clone)]
pub struct Plan {
    pub folder: PathBuf,
    pub device: holdfast::DeviceAddress,
    pub peer: holdfast::DeviceAddress,
    /// It goes on at least so long,
    pub time: Duration,
    /// and until so many operations were done.
    pub operations: u64,
    pub seed: u64,
    pub size: u64,
    pub guarded: bool,
    pub notifiers: Vec<NotifierKind>,
    /// Stop the guard's process for as long during some operations.
    pub delay: Option<Duration>,
    /// Switch tracing off half-way.
    pub stop_tracing: bool,
    /// Regions on the file.
    pub regions: usize,
    /// Do what shares blocks with other files, too.
    pub sharing: bool,
    /// Touch the region's pages meanwhile.
    pub touch: bool,
}

/// A storm under way.
pub struct Storm {
    plan: Plan,
    random: Random,
    field: Field,
    ends: Ends,
    ledger: Option<Ledger>,
    guard: Option<Guard>,
    /// Whether events name causes.
    causes: bool,
    hands: Vec<Hands>,
    figures: Figures,
}

impl Storm {
    /// Sets the scene: the files, those who will operate, the devices, the guard, the regions.
    pub fn new(plan: Plan) -> Result<Self> {
        let field = Field::lay_out(&plan.folder, plan.size).context("laying out the files")?;
        // Its descriptor is older than the registration.
        let early = Hands::process("an earlier process", &plan.folder)?;
        let guard =
            if plan.guarded { Some(guarding::start(&plan.notifiers, PATIENCE)?) } else { None };
        let events = guard.as_ref().map(Guard::events).transpose()?;
        let ends = Ends::open(&plan, &field.path("region"), guard.as_ref())?;
        let late = Hands::process("a later process", &plan.folder)?;
        let hands = vec![Hands::thread("this process", &plan.folder)?, early, late];
        let ledger = events.map(|events| Ledger::new(events, ends.named()));
        let in_force: Vec<NotifierKind> =
            guard.as_ref().map_or(Vec::new(), |guard| guard.statement().in_force().collect());
        let figures = Figures {
            seed: plan.seed,
            file_system: field.fs,
            guarded: plan.guarded,
            notifiers: in_force.iter().map(|kind| kind.name()).collect(),
            seconds: 0.0,
            steps: 0,
            rows: Default::default(),
            to_scrap: Times::default(),
            windows: Times::default(),
            to_whole: Times::default(),
            writes: 0,
            failed: 0,
            statuses: Default::default(),
            reconnects: 0,
            touched: 0,
            failed_in: Vec::new(),
            allocations: 0,
            events: Default::default(),
            canaries: 0,
            look: Look::default(),
            freed: Freed::default(),
            spent: Default::default(),
        };
        let causes = in_force.contains(&NotifierKind::Kprobe);
        let random = Random::new(plan.seed);
        Ok(Self { plan, random, field, ends, ledger, guard, causes, hands, figures })
    }

    /// Runs it for its time, or until it has shown what it was to show. What was counted is there
    /// whether that worked or not.
    pub fn run(mut self) -> (Figures, Result<()>) {
        let start = Instant::now();
        let result = self.steps(start).and_then(|()| self.close());
        self.figures.allocations = allocations::calls();
        self.figures.seconds = start.elapsed().as_secs_f64();
        self.ends.count(&mut self.figures);
        if let Some(ledger) = &self.ledger {
            self.figures.events = ledger.totals.clone();
        }
        let ended = self.ends.take_down();
        drop(self.guard);
        (self.figures, result.and(ended))
    }

    fn steps(&mut self, start: Instant) -> Result<()> {
        self.arrives().context("before the storm")?;
        let mut tracing = self.plan.stop_tracing;
        while start.elapsed() < self.plan.time || self.figures.operations() < self.plan.operations {
            if tracing && start.elapsed() > self.plan.time / 2 {
                tracing = false;
                self.causes = false;
                guarding::stop_tracing()?;
            }
            let number = self.figures.steps;
            self.step().with_context(|| format!("step {number}, seed {}", self.plan.seed))?;
            self.figures.steps += 1;
            if self.plan.guarded && self.figures.steps == WARM_UP {
                ensure!(allocations::watch_thread("holdfast-guard"), "no thread of the guard");
            }
            if !self.plan.guarded && self.figures.look.foreign > 0 {
                // It has shown what it was to show, and goes on to spoil the file system.
                break;
            }
        }
        Ok(())
    }

    /// A last look at everything.
    fn close(&mut self) -> Result<()> {
        let look = self.field.look()?;
        self.figures.look.add(look);
        if let Some(ledger) = &mut self.ledger {
            ledger.quiet().context("after the storm")?;
        }
        Ok(())
    }

    fn step(&mut self) -> Result<()> {
        if let Some(ledger) = &mut self.ledger {
            ledger.quiet()?;
        }
        let failed = self.ends.failed();
        let before = self.field.segments()?;
        let (what, ended) = if self.plan.guarded && self.random.one_in(2) {
            (self.timed("operating", Self::burst)?, None)
        } else {
            let (operation, ended) = self.timed("operating", Self::single)?;
            (vec![operation], Some(ended))
        };
        self.ends.next_epoch();
        self.canary(&what, &before)?;
        self.tidy(&what)?;
        if self.ledger.is_some() {
            self.timed("settling", |storm| storm.settle(&what, ended))?;
        }
        self.timed("restoring", |storm| storm.restore(&what))?;
        self.note_failures(&what, failed);
        Ok(())
    }

    /// Does something, and enters the time it took under a name.
    fn timed<T>(
        &mut self,
        name: &'static str,
        what: impl FnOnce(&mut Self) -> Result<T>,
    ) -> Result<T> {
        let start = Instant::now();
        let done = what(self);
        *self.figures.spent.entry(name).or_default() += start.elapsed();
        done
    }

    /// One operation, and the events that it must bring.
    fn single(&mut self) -> Result<(Operation, Instant)> {
        let operation = self.choose();
        let epoch = self.prepare(&operation)?;
        let delay = self.plan.delay.filter(|_| self.random.one_in(4));
        let done = match delay {
            Some(time) => {
                self.hands[1].begin_while_stopped(&operation, time)?;
                self.hands[1].end(PATIENCE + time)
            }
            None if self.random.one_in(6) => {
                let mut fresh = Hands::process("a new process", &self.plan.folder)?;
                fresh.begin(&operation)?;
                fresh.end(PATIENCE)
            }
            None => {
                let who = self.random.below(self.hands.len() as u64) as usize;
                self.hands[who].begin(&operation)?;
                self.hands[who].end(PATIENCE)
            }
        };
        let done = done.with_context(|| operation.to_string())?;
        self.note(&operation, &done);
        let waits = operation.kind.waits(self.field.fs);
        if let Some(ledger) = &mut self.ledger {
            // What was published before the operation was let go is there when it has returned.
            ledger.read()?;
            let told = (|| {
                match done.refused.filter(|errno| *errno != Errno::EILSEQ) {
                    // It may have come to waiting before that, or not.
                    Some(_) => {}
                    None if waits => {
                        ensure!(!done.early, "it did not wait for the guard");
                        ledger.all_announced(operation.kind.causes(), self.causes)?;
                    }
                    None => ledger.none_announced()?,
                }
                ledger.in_time(done.began, done.ended, operation.kind.causes())
            })();
            told.with_context(|| format!("{operation}: {done:?}"))?;
        }
        self.keep_epoch(&[operation], epoch)?;
        Ok((operation, done.ended))
    }

    /// Several operations by several processes at once.
    fn burst(&mut self) -> Result<Vec<Operation>> {
        let count = 2 + self.random.below(11) as usize;
        let mut operations = Vec::new();
        while operations.len() < count {
            let operation = self.choose();
            // Those that need a second file beforehand are done alone.
            let alone = operation.kind.shares() || operation.kind == Kind::Exchange;
            if !alone || matches!(operation.kind, Kind::CloneFrom | Kind::CloneRangeFrom) {
                operations.push(operation);
            }
        }
        let epoch = self.ends.epoch();
        let mut span: Option<(Instant, Instant)> = None;
        for together in operations.chunks(self.hands.len()) {
            for (hands, operation) in self.hands.iter_mut().zip(together) {
                hands.begin(operation)?;
            }
            let mut ended = Vec::new();
            for (hands, operation) in self.hands.iter().zip(together) {
                let done = hands.end(PATIENCE);
                let done = done.with_context(|| format!("{operation} by {}", hands.name()))?;
                ended.push((*operation, done));
            }
            for (operation, done) in ended {
                self.note(&operation, &done);
                let (first, last) = span.unwrap_or((done.began, done.ended));
                span = Some((first.min(done.began), last.max(done.ended)));
            }
        }
        if let (Some(ledger), Some((began, ended))) = (&mut self.ledger, span) {
            ledger.read()?;
            let causes = causes_of(&operations);
            ledger.in_time(began, ended, &causes).with_context(|| format!("{operations:?}"))?;
        }
        self.keep_epoch(&operations, epoch)?;
        Ok(operations)
    }

    fn choose(&mut self) -> Operation {
        loop {
            let guarded = self.plan.guarded;
            let operation = choice::any(&mut self.random, &self.field, guarded, self.causes);
            let sharing = operation.kind.shares() || operation.kind == Kind::Unshare;
            if self.plan.sharing || !sharing {
                return operation;
            }
        }
    }

    /// Makes the second file that an operation needs; the epoch of what it may hold.
    fn prepare(&mut self, operation: &Operation) -> Result<u32> {
        let epoch = self.ends.epoch();
        match operation.kind {
            Kind::DedupeFrom | Kind::DedupeOnto => {
                // All of the region is of this epoch when it has been written once.
                self.ends.pass(PATIENCE)?;
                self.field.twin(operation.offset, operation.len, epoch)?;
            }
            Kind::CloneOnto | Kind::CloneRangeOnto | Kind::Exchange => {
                self.field.donor()?;
            }
            _ => {}
        }
        Ok(epoch)
    }

    /// What other files got from the region, nobody writes any more.
    fn keep_epoch(&mut self, what: &[Operation], epoch: u32) -> Result<()> {
        let took = |operation: &Operation| match operation.kind {
            Kind::CloneFrom | Kind::CloneRangeFrom | Kind::DedupeFrom | Kind::DedupeOnto => {
                Some("clone")
            }
            Kind::Exchange => Some("donor"),
            _ => None,
        };
        let Some(name) = what.iter().find_map(took) else { return Ok(()) };
        self.ends.next_epoch();
        self.ends.pass(PATIENCE)?;
        let path = self.field.path(name);
        if path.exists() {
            let look = later_marks(&path, epoch)?;
            self.foreign(look, what)?;
        }
        if what.iter().any(|operation| operation.kind == Kind::Exchange) {
            // It holds the peer's older words: no canary any more, and what it had is free.
            self.field.spend_donor();
        }
        Ok(())
    }

    fn note(&mut self, operation: &Operation, done: &Done) {
        let row = self.figures.rows.entry(operation.kind).or_default();
        match done.refused {
            None => {
                row.done += 1;
                row.stall.note(done.stall());
            }
            Some(errno) => *row.refused.entry(format!("{errno:?}")).or_default() += 1,
        }
        if let Some(ledger) = &mut self.ledger {
            let _ = ledger.read();
            for one in ledger.breaks.iter().filter(|one| one.at >= done.began) {
                self.figures.to_scrap.note(one.fenced.saturating_duration_since(done.began));
            }
        }
    }

    fn note_failures(&mut self, what: &[Operation], before: u64) {
        let failures = self.ends.failed() - before;
        if failures > 0 {
            let names: Vec<_> = what.iter().map(|operation| operation.kind.name()).collect();
            let breaks = self.ledger.iter().flat_map(|ledger| &ledger.breaks);
            let window = breaks.map(|one| one.window).max().unwrap_or_default();
            self.figures.failed_in.push(FailedIn {
                operation: names.join("+"),
                failures,
                window_us: window.as_nanos() as f64 / 1e3,
            });
        }
    }
}

fn causes_of(operations: &[Operation]) -> Vec<&'static str> {
    operations.iter().flat_map(|operation| operation.kind.causes()).copied().collect()
}
