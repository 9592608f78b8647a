//! What the guard's threads and its users share: the files, the notifiers, and what is to be done
//! when one of them tells of an operation.
//!
//! Locks are taken in this order: a file's state, the table of files, the notifiers. A notifier's
//! news is collected first and dealt with afterwards, so none is held while another waits.

use std::collections::{HashMap, HashSet};
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::SyncSender;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use holdfast_dax::notify::{
    Cause, MappingId, Notice, NotifierKind, Notifiers, Probe, Stage, Statement, Subject, Watched,
    WatchedFile, WatchedMapping,
};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::eventfd::{EfdFlags, EventFd};

use super::event::{Part, RegionId};
use super::file::{Broke, GuardedFile, Phase, State, Why};
use super::follow::Follow;
use super::guard::GuardOptions;
use super::held::HeldPin;
use super::keeping::Keeping;
use super::policy::Reaction;
use super::region::GuardedRegion;
use super::stream::Publisher;
use crate::lock::lock;
use crate::{Error, Result};

/// Files that may wait to be followed at a time.
pub const FOLLOW_QUEUE: usize = 4096;
/// What was announced has begun, and holds the file's lock, after this.
const ANNOUNCED: Duration = Duration::from_millis(5);
/// What was let go is over after this, if nobody says so before.
const UNTOLD: Duration = Duration::from_millis(500);

/// What the guard's threads and its users share.
pub struct Shared {
    pub publisher: Publisher,
    files: Mutex<HashMap<Subject, Arc<GuardedFile>>>,
    notifiers: Mutex<Notifiers>,
    to_follow: SyncSender<Follow>,
    wake: EventFd,
    /// Readable when `wake` or any notifier is.
    pub(super) ready: Epoll,
    stop: AtomicBool,
    regions: AtomicU64,
    next_region: AtomicU64,
    /// File systems, by device, of which it was shown that a pin holds there.
    pub(super) proven: Mutex<HashSet<u64>>,
    /// Who makes the death of this process safe.
    pub(super) keeping: Keeping,
    pub options: GuardOptions,
}

impl Shared {
    /// Brings up the notifiers that this machine allows.
    pub fn new(options: GuardOptions, to_follow: SyncSender<Follow>) -> Result<Self> {
        let notifiers = Notifiers::available(&options.notifiers);
        let failed = |errno| Error::Guard(format!("cannot make an eventfd or epoll: {errno}"));
        let wake = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK);
        let wake = wake.map_err(failed)?;
        let ready = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).map_err(failed)?;
        let readable = || EpollEvent::new(EpollFlags::EPOLLIN, 0);
        ready.add(&wake, readable()).map_err(failed)?;
        for fd in notifiers.in_force().map(|notifier| notifier.fd()) {
            ready.add(fd, readable()).map_err(failed)?;
        }
        Ok(Self {
            publisher: Publisher::default(),
            files: Mutex::new(HashMap::new()),
            notifiers: Mutex::new(notifiers),
            to_follow,
            wake,
            ready,
            stop: AtomicBool::new(false),
            regions: AtomicU64::new(0),
            next_region: AtomicU64::new(1),
            proven: Mutex::default(),
            keeping: Keeping::new(options.keeper.clone()),
            options,
        })
    }

    /// What is in force, and what is not and why.
    pub fn statement(&self) -> Statement {
        lock(&self.notifiers).statement()
    }

    /// A number for a new region.
    pub fn next_region(&self) -> RegionId {
        RegionId(self.next_region.fetch_add(1, Ordering::Relaxed))
    }

    /// There is one more: its events need room.
    pub fn region_added(&self) {
        let regions = self.regions.fetch_add(1, Ordering::Relaxed) + 1;
        self.publisher.expect_regions(regions as usize);
    }

    /// There is one fewer.
    pub fn region_gone(&self) {
        self.regions.fetch_sub(1, Ordering::Relaxed);
    }

    /// Ends both threads.
    pub fn stop(&self) {
        self.stop.store(true, Ordering::Release);
        self.wake();
    }

    /// Takes the news of all notifiers, those that name causes first.
    pub fn collect(&self, notices: &mut Vec<Notice>) {
        if let Err(error) = lock(&self.notifiers).collect(&mut |notice| notices.push(notice)) {
            tracing::error!(%error, "a notifier failed; the others and the pins still hold");
        }
        // They were asked last.
        let named = |notice: &Notice| notice.notifier == NotifierKind::Kprobe;
        if let Some(first) = notices.iter().position(named) {
            notices.rotate_left(first);
        }
    }

    /// Whether the guard ends.
    pub fn stopping(&self) -> bool {
        self.stop.load(Ordering::Acquire)
    }

    /// Has the guard look again.
    pub fn wake(&self) {
        let _ = self.wake.write(1);
    }

    /// All files.
    pub fn files(&self) -> Vec<Arc<GuardedFile>> {
        lock(&self.files).values().map(Arc::clone).collect()
    }

    fn find(&self, subject: Subject) -> Option<Arc<GuardedFile>> {
        lock(&self.files).get(&subject).map(Arc::clone)
    }

    /// Makes a region known, with its file; from here on it is taken away when the file changes.
    pub fn add(&self, region: &Arc<GuardedRegion>) -> Result<Arc<GuardedFile>> {
        loop {
            let file = self.file(region)?;
            let mut state = file.lock();
            if state.forgotten {
                continue;
            }
            state.regions.push(Arc::clone(region));
            self.region_added();
            drop(state);
            return Ok(file);
        }
    }

    /// The file behind a region, watched; or its memory, if that has no file.
    fn file(&self, region: &GuardedRegion) -> Result<Arc<GuardedFile>> {
        let memory = &region.memory;
        let (subject, fd) = match (memory.file_id(), memory.backing()) {
            (Some(id), Some((fd, _))) => (Subject::File(id), Some(fd)),
            _ => (Subject::Mapping(MappingId(region.id.0)), None),
        };
        let mut files = lock(&self.files);
        if let Some(file) = files.get(&subject) {
            return Ok(Arc::clone(file));
        }
        let fd = fd
            .map(|fd| fd.try_clone_to_owned())
            .transpose()
            .map_err(|error| Error::Guard(format!("cannot keep {}: {error}", memory.source())))?;
        let path = memory.path().map(Path::to_owned);
        let file = Arc::new(GuardedFile::new(subject, fd, path));
        match subject {
            Subject::File(_) => self.watch(&file, None),
            Subject::Mapping(id) => {
                let address = memory.as_ptr().as_ptr().addr();
                self.have_watched(WatchedMapping { id, address, len: memory.len() }.into());
            }
        }
        files.insert(subject, Arc::clone(&file));
        Ok(file)
    }

    /// A file without regions is watched no more; who still holds it finds it so marked.
    pub fn forget_if_empty(&self, file: &GuardedFile, state: &mut State) {
        if !state.regions.is_empty() || state.forgotten {
            return;
        }
        state.forgotten = true;
        lock(&self.files).remove(&file.subject);
        lock(&self.notifiers).unwatch(file.subject);
    }

    /// Has a file watched, anew if it was: with the sign of its new pin, and a new lease.
    pub fn watch(&self, file: &GuardedFile, pin: Option<&Arc<HeldPin>>) {
        let (Subject::File(id), Some(fd)) = (file.subject, &file.fd) else { return };
        let probe = pin.map(|pin| Arc::clone(pin) as Arc<dyn Probe>);
        let path = file.path.as_deref();
        self.have_watched(WatchedFile { id, fd: fd.as_fd(), path, probe }.into());
    }

    /// A part of a region was faulted in: what its file loses of it from here on is to be told.
    pub fn filled(&self, file: &GuardedFile, region: &GuardedRegion, part: Part) {
        let offset = region.file_offset();
        lock(&self.notifiers).filled(file.subject, offset + part.start..offset + part.end);
    }

    fn have_watched(&self, watched: Watched<'_>) {
        let (by, refusals) = lock(&self.notifiers).watch(&watched);
        tracing::debug!(subject = %watched.subject(), ?by, ?refusals, "watched");
    }

    /// Deals with a notice, unless somebody else has the file.
    pub fn handle(&self, notice: &Notice) -> Handled {
        let Some(file) = self.find(notice.subject) else { return Handled::Done };
        let Some(mut state) = file.try_lock() else { return Handled::Busy };
        let why = Why::from(notice.clone());
        if state.pin.is_none() && !state.needs_pin() {
            return self.handle_unpinned(&file, &mut state, notice.stage, why);
        }
        match (notice.stage, state.phase) {
            // Nothing moves; but what is lost may come back, as soon as that is over.
            (Stage::Announced | Stage::Done, Phase::Held) if why.cause.only_adds() => {
                let delay = if notice.stage == Stage::Done { Duration::ZERO } else { ANNOUNCED };
                self.follow(&file, &state, delay);
            }
            (Stage::Announced | Stage::Done, Phase::Open) if why.cause.only_adds() => {
                state.epoch += 1;
            }
            // It waits for an answer, and will wait for the pin: that is when it is dealt with.
            (Stage::Waiting, _) if notice.notifier.waits_for_answer() => {
                state.announce(why);
                self.allow(file.subject);
            }
            // No pin holds it: what is done now is done as early as can be, and may be too late.
            (Stage::Announced, Phase::Held | Phase::Holding { .. }) if why.cause.passes_pins() => {
                tracing::error!(file = %file.subject, cause = %why.cause, "the file's blocks are \
                     exchanged behind its layout pin: for some microseconds devices may have \
                     reached blocks of another file");
                let broke = state.start_break(why, self.options.order, &self.publisher);
                self.after(&file, &state, broke);
            }
            (Stage::Announced, Phase::Open) if why.cause.passes_pins() => state.passes(),
            // The pages stay for as long as they are pinned; but nothing is the file's any more.
            (Stage::Announced, Phase::Held) if why.cause.is_final() => {
                let broke = state.start_break(why, self.options.order, &self.publisher);
                self.after(&file, &state, broke);
            }
            (Stage::Announced, _) if why.cause.is_final() => state.end(why, &self.publisher),
            (Stage::Announced, _) => state.announce(why),
            // What happened before the pin was taken is settled. If the pin itself says otherwise,
            // that is something else.
            (Stage::Waiting, Phase::Held) => {
                let why = match notice.at >= state.held_since {
                    true => why,
                    false if state.is_disturbed() => Why::unknown(NotifierKind::GuardPage),
                    false => return Handled::Done,
                };
                let broke = state.start_break(why, self.options.order, &self.publisher);
                self.after(&file, &state, broke);
            }
            (Stage::Waiting, Phase::Open) => state.epoch += 1,
            (Stage::Waiting | Stage::Done, _) => {}
        }
        Handled::Done
    }

    /// A file that nothing makes wait: what a notice names goes to scrap as soon as it is known.
    fn handle_unpinned(
        &self,
        file: &Arc<GuardedFile>,
        state: &mut State,
        stage: Stage,
        why: Why,
    ) -> Handled {
        match why.cause {
            // No page goes; but what was lost beyond the end may be there again. Or it was there, and
            // went before anybody had looked, who then saw a file of the size that it had before.
            cause if cause.only_adds() => match state.beyond_the_end() {
                None => state.epoch += 1,
                Some(end) => {
                    let cause = Cause::Truncate { size: end };
                    state.lose(Why { cause, range: Some(end..u64::MAX), ..why }, &self.publisher);
                }
            },
            // Nor here. (The pages that a device reaches stay with the parent of a fork.)
            Cause::Unlink
            | Cause::Rename
            | Cause::Attributes
            | Cause::OpenedByOther
            | Cause::Fork => {}
            _ => state.lose(why, &self.publisher),
        }
        if stage == Stage::Done {
            state.doubt();
            self.follow(file, state, Duration::ZERO);
        } else {
            self.allow(file.subject);
            // It goes on now. That it is over is told by the one who tells afterwards, if anybody.
            self.follow(file, state, UNTOLD);
        }
        Handled::Done
    }

    /// What is to be done after a break, or the first half of one.
    fn after(&self, file: &Arc<GuardedFile>, state: &State, broke: Broke) {
        if broke == Broke::Done {
            self.allow(file.subject);
            self.follow(file, state, Duration::ZERO);
        }
    }

    fn allow(&self, subject: Subject) {
        lock(&self.notifiers).allow(subject);
    }

    /// Has what is left of a file put back behind its regions, after a while.
    fn follow(&self, file: &Arc<GuardedFile>, state: &State, delay: Duration) {
        let wanted = state.regions.iter().any(|region| region.wants_to_follow());
        let now = Instant::now();
        let not_before = match state.doubted() {
            Some(from) if !wanted => from.max(now),
            _ => now + delay,
        };
        let follow = Follow { file: Arc::clone(file), not_before, tries: 0 };
        if (wanted || state.doubted().is_some()) && self.to_follow.try_send(follow).is_err() {
            tracing::error!(file = %file.subject, "too many files to follow: this one stays on scrap");
        }
    }

    /// Looks at the deadlines of files whose regions were given time. Says whether there are any.
    /// With `pins`, looks at their pins as well, and once more before it acts on what it sees, so
    /// that a notifier may still say what it is; with `lost`, has those that lost parts looked at: a
    /// file may get blocks back without a word from any notifier.
    pub fn look(&self, files: &mut Vec<Arc<GuardedFile>>, pins: bool, lost: bool) -> bool {
        let mut any = false;
        files.extend(lock(&self.files).values().map(Arc::clone));
        for file in files.drain(..) {
            let Some(mut state) = file.try_lock() else { continue };
            any |= state.keep_out();
            // Whatever became of the news: nobody waits for ever.
            if lost && state.phase == Phase::Held {
                self.follow(&file, &state, Duration::ZERO);
            }
            if (pins || state.suspected) && state.phase == Phase::Held && state.is_disturbed() {
                any = true;
                if std::mem::replace(&mut state.suspected, true) {
                    let why = Why::unknown(NotifierKind::GuardPage);
                    let broke = state.start_break(why, self.options.order, &self.publisher);
                    self.after(&file, &state, broke);
                }
            }
            let Phase::Holding { until } = state.phase else { continue };
            any = true;
            let ready = state.regions.iter().all(|region| {
                !matches!(region.policy.reaction, Reaction::Hold { .. })
                    || region.ready.load(Ordering::Acquire)
            });
            if ready || until <= Instant::now() {
                let broke = state.finish_break(self.options.order, &self.publisher);
                self.after(&file, &state, broke);
            }
        }
        any
    }

    /// Waits for a notifier, for a user, or for at most `period`.
    pub fn wait(&self, period: Duration) {
        let timeout = EpollTimeout::try_from(period).unwrap_or(EpollTimeout::from(1u8));
        let _ = self.ready.wait(&mut [EpollEvent::empty()], timeout);
        let _ = self.wake.read();
    }
}

/// What became of a notice.
pub enum Handled {
    /// It was dealt with, or concerns nobody.
    Done,
    /// Somebody else has the file: again, soon.
    Busy,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Guard of {} regions", self.regions.load(Ordering::Relaxed))
    }
}
