//! The guard: a thread that is told when a file's layout is about to change, and sees to it that
//! no device reaches what the file gives up.
//!
//! The guard's thread never touches a guarded file: it waits for notifiers, puts regions on scrap,
//! lets pins go, and publishes. A second thread ([`super::follow`]) looks at files. What a
//! notifier misses is found by the next: the guard page of each pin is looked at as well, and the
//! pin makes the file system wait however late everybody is.

use std::collections::HashMap;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use holdfast_dax::notify::{
    Notice, Notifiers, Options, Stage, Statement, Subject, WatchedFile,
};
use holdfast_dax::notify::{Cause, Probe};
use holdfast_dax::{FileId, Memory};
use holdfast_iommu::Prot;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::eventfd::{EfdFlags, EventFd};

use super::event::RegionId;
use super::held::HeldPin;
use super::file::{Broke, GuardedFile, Phase, State, Why};
use super::follow;
use super::policy::{Policy, Reaction};
use super::region::{self, GuardedRegion, Placement};
use super::stream::{Events, Publisher};
use super::thread;
use crate::device::DeviceInner;
use crate::{Error, ProtectionDomain, Result};

/// Files that may wait to be followed at a time.
const FOLLOW_QUEUE: usize = 4096;
/// How often a registration is tried while layout operations come in between.
const REGISTER_TRIES: u32 = 200;

/// How long the guard sleeps when nobody wakes it.
const IDLE: Duration = Duration::from_millis(200);
/// The same while a file is busy or a deadline runs.
const SOON: Duration = Duration::from_millis(1);

/// How a guard works.
#[derive(Debug, Clone)]
pub struct GuardOptions {
    /// The processor that its thread runs on.
    pub cpu: Option<usize>,
    /// Real-time priority (SCHED_FIFO, 1 to 99) of its thread, where that is allowed.
    pub priority: Option<u8>,
    /// Which notifiers to use, and how; by default all that this machine allows.
    pub notifiers: Options,
    /// Whether to spawn a keeper process, without which fs-dax regions are refused on devices of
    /// the kernel.
    pub keeper: bool,
}

impl Default for GuardOptions {
    fn default() -> Self {
        Self {
            cpu: None,
            priority: None,
            notifiers: Options::default(),
            keeper: true,
        }
    }
}

/// Guards regions: see [`crate::coherence`]. A handle is cheap to clone; the guard ends when the
/// last handle and the last region that it guards are gone. May be used from any thread.
#[derive(Debug, Clone)]
pub struct Guard {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

/// What the guard's threads and its users share.
pub struct Shared {
    pub publisher: Publisher,
    files: Mutex<HashMap<FileId, Arc<GuardedFile>>>,
    notifiers: Mutex<Notifiers>,
    to_follow: SyncSender<Arc<GuardedFile>>,
    wake: EventFd,
    /// Readable when `wake` or any notifier is.
    ready: Epoll,
    stop: AtomicBool,
    regions: AtomicU64,
    next_region: AtomicU64,
    options: GuardOptions,
}

/// A region's tie to its guard; the region leaves it with [`Tie::take_down`].
#[derive(Debug)]
pub struct Tie {
    guard: Guard,
    file: Arc<GuardedFile>,
    pub region: Arc<GuardedRegion>,
}

impl Guard {
    /// Brings up the notifiers that this machine allows, and the guard's threads.
    ///
    /// # Errors
    /// When a thread could not be started. A notifier that cannot be had is not an error: see
    /// [`Guard::statement`].
    pub fn start(options: GuardOptions) -> Result<Self> {
        let notifiers = Notifiers::available(&options.notifiers);
        let (to_follow, files) = sync_channel(FOLLOW_QUEUE);
        let failed = |errno| Error::Guard(format!("cannot make an eventfd or epoll: {errno}"));
        let wake = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK);
        let wake = wake.map_err(failed)?;
        let ready = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).map_err(failed)?;
        let readable = || EpollEvent::new(EpollFlags::EPOLLIN, 0);
        ready.add(&wake, readable()).map_err(failed)?;
        for fd in notifiers.in_force().map(|notifier| notifier.fd()) {
            ready.add(fd, readable()).map_err(failed)?;
        }
        let shared = Arc::new(Shared {
            publisher: Publisher::default(),
            files: Mutex::new(HashMap::new()),
            notifiers: Mutex::new(notifiers),
            to_follow,
            wake,
            ready,
            stop: AtomicBool::new(false),
            regions: AtomicU64::new(0),
            next_region: AtomicU64::new(1),
            options,
        });
        let mut inner = Inner { shared: Arc::clone(&shared), threads: Vec::new() };
        let follower = Arc::clone(&shared);
        inner.spawn("holdfast-follow", move || follow::run(&follower, &files))?;
        inner.spawn("holdfast-guard", move || run(&shared))?;
        Ok(Self { inner: Arc::new(inner) })
    }

    /// Events from now on. Each subscription sees all of them.
    pub fn events(&self) -> Result<Events> {
        let failed = |errno| Error::Guard(format!("cannot make an eventfd: {errno}"));
        self.inner.shared.publisher.subscribe().map_err(failed)
    }

    /// Which notifiers are in force, what each sees and costs, and why the others are not.
    pub fn statement(&self) -> Statement {
        lock(&self.inner.shared.notifiers).statement()
    }

    /// The application needs no more time for this region ([`Reaction::Hold`]). Never blocks on
    /// the file.
    pub fn proceed(&self, region: RegionId) {
        for file in self.inner.shared.files() {
            let state = file.lock();
            if let Some(region) = state.region(region) {
                region.ready.store(true, Ordering::Release);
                self.inner.shared.wake();
                return;
            }
        }
    }

    /// Maps and guards memory. Blocks while a layout operation is under way.
    pub(crate) fn register(
        &self,
        device: &Arc<DeviceInner>,
        pd: &ProtectionDomain,
        memory: Memory,
        prot: Prot,
        policy: Policy,
    ) -> Result<Tie> {
        let shared = &self.inner.shared;
        let placement = Placement::of(memory.kind(), &device.space);
        let scrap = pd.scrap()?;
        let id = RegionId(shared.next_region.fetch_add(1, Ordering::Relaxed));
        let mut last = None;
        for attempt in 0..REGISTER_TRIES {
            let file = shared.file(&memory)?;
            match shared.try_map(&file, device, &memory, prot, placement) {
                Ok(Some((mut state, mapping))) => {
                    mapping.assign(pd.tenant())?;
                    let region =
                        GuardedRegion::new(id, policy, memory, mapping, placement, scrap);
                    let region = Arc::new(region);
                    state.regions.push(Arc::clone(&region));
                    drop(state);
                    let file = Arc::clone(&file);
                    let regions = shared.regions.fetch_add(1, Ordering::Relaxed) + 1;
                    shared.publisher.expect_regions(regions as usize);
                    return Ok(Tie { guard: self.clone(), file, region });
                }
                Ok(None) => {}
                Err(error) if !passes(&error) => {
                    shared.forget_if_unused(&file);
                    return Err(error);
                }
                Err(error) => last = Some(error),
            }
            shared.forget_if_unused(&file);
            std::thread::sleep(Duration::from_millis(u64::from(attempt.min(20))));
        }
        Err(last.unwrap_or_else(|| {
            Error::Guard("the file's layout changes without pause: try again later".to_owned())
        }))
    }
}

/// Whether an error may have come from a layout operation that is under way.
fn passes(error: &Error) -> bool {
    matches!(error, Error::Memory(holdfast_dax::Error::Absent { .. }))
}

impl Tie {
    /// Takes the region out of the device's address space, and the pin away if nobody else needs
    /// it. When this returns `Ok`, no access reaches the memory. On an error the pin stays.
    pub fn take_down(&self) -> Result<()> {
        let mut state = self.file.lock();
        while state.restoring > 0 {
            state = self.file.wait(state);
        }
        self.region.unmap()?;
        self.leave(&mut state);
        Ok(())
    }

    /// [`Tie::take_down`] of a region that the device's process has let go of.
    pub fn leave_unmapped(&self) {
        let mut state = self.file.lock();
        while state.restoring > 0 {
            state = self.file.wait(state);
        }
        self.leave(&mut state);
    }

    fn leave(&self, state: &mut MutexGuard<'_, State>) {
        let shared = &self.guard.inner.shared;
        state.regions.retain(|region| region.id != self.region.id);
        shared.regions.fetch_sub(1, Ordering::Relaxed);
        if !state.needs_pin()
            && let Some(pin) = state.pin.take()
        {
            if let Err(error) = pin.release() {
                tracing::error!(%error, "a layout pin could not be let go");
            }
            state.phase = Phase::Open;
        }
        shared.forget_if_empty(&self.file, state);
    }

    /// The region's memory, once [`Tie::take_down`] has worked.
    pub fn into_memory(self) -> Result<Memory> {
        let region = Arc::try_unwrap(self.region);
        let region = region.map_err(|_| Error::Guard("the region is in use".to_owned()))?;
        Ok(region.memory)
    }
}

impl Shared {
    /// Whether the guard ends.
    pub fn stopping(&self) -> bool {
        self.stop.load(Ordering::Acquire)
    }

    fn wake(&self) {
        let _ = self.wake.write(1);
    }

    fn files(&self) -> Vec<Arc<GuardedFile>> {
        lock(&self.files).values().map(Arc::clone).collect()
    }

    fn find(&self, id: FileId) -> Option<Arc<GuardedFile>> {
        lock(&self.files).get(&id).map(Arc::clone)
    }

    /// The file behind `memory`, watched.
    fn file(&self, memory: &Memory) -> Result<Arc<GuardedFile>> {
        let (Some(id), Some((fd, _))) = (memory.file_id(), memory.backing()) else {
            return Err(Error::Guard(format!(
                "{} has no file behind it: there is no layout to guard",
                memory.source()
            )));
        };
        let mut files = lock(&self.files);
        if let Some(file) = files.get(&id) {
            return Ok(Arc::clone(file));
        }
        let fd = fd
            .try_clone_to_owned()
            .map_err(|error| Error::Guard(format!("cannot keep {}: {error}", memory.source())))?;
        let path = memory.path().map(Path::to_owned);
        let file = Arc::new(GuardedFile::new(id, fd, path));
        self.watch(&file, None);
        files.insert(id, Arc::clone(&file));
        Ok(file)
    }

    fn forget_if_unused(&self, file: &GuardedFile) {
        self.forget_if_empty(file, &mut file.lock());
    }

    /// A file without regions is watched no more; who still holds it finds it so marked.
    fn forget_if_empty(&self, file: &GuardedFile, state: &mut State) {
        if !state.regions.is_empty() || state.forgotten {
            return;
        }
        state.forgotten = true;
        lock(&self.files).remove(&file.id);
        lock(&self.notifiers).unwatch(file.id.into());
    }

    /// Has a file watched, anew if it was: with the sign of its new pin, and a new lease.
    pub fn watch(&self, file: &GuardedFile, pin: Option<&Arc<HeldPin>>) {
        let mut watched =
            WatchedFile { id: file.id, fd: file.fd.as_fd(), path: file.path.as_deref(), probe: None };
        watched.probe = pin.map(|pin| Arc::clone(pin) as Arc<dyn Probe>);
        let (by, refusals) = lock(&self.notifiers).watch(&watched.into());
        for error in refusals {
            tracing::debug!(file = %file.id, %error, "a notifier does not watch this file");
        }
        tracing::debug!(file = %file.id, ?by, "watched");
    }

    /// Maps memory with the file held; `None` when a layout operation is under way.
    fn try_map<'f>(
        &self,
        file: &'f GuardedFile,
        device: &DeviceInner,
        memory: &Memory,
        prot: Prot,
        placement: Placement,
    ) -> Result<Option<(MutexGuard<'f, State>, holdfast_iommu::Mapping)>> {
        let needs_pin = placement == Placement::Physical;
        let mut pin = None;
        if needs_pin {
            memory.populate(0, memory.len() as u64)?;
            if file.lock().pin.is_none() {
                let (_, offset) = memory.backing().unwrap_or((file.fd.as_fd(), 0));
                pin = Some(file.pin(offset)?);
            }
        }
        let mut state = file.lock();
        if state.forgotten || matches!(state.phase, Phase::Holding { .. }) {
            return Ok(None);
        }
        if state.pin.is_none() && needs_pin || state.phase == Phase::Open {
            if needs_pin && pin.is_none() {
                return Ok(None);
            }
            follow::install(self, file, &mut state, pin)?;
        }
        let mapping = region::map(&device.space, memory, prot, placement)?;
        Ok(Some((state, mapping)))
    }

    /// Hands a new pin to the keeper. When this returns `Ok`, the pin outlives this process.
    pub fn keep(&self, _file: &GuardedFile, _pin: &HeldPin) -> Result<()> {
        Ok(())
    }

    /// Deals with a notice, unless somebody else has the file.
    fn handle(&self, notice: &Notice) -> Handled {
        let Some(file) = notice.file().and_then(|id| self.find(id)) else {
            return Handled::Done;
        };
        let Some(mut state) = file.try_lock() else { return Handled::Busy };
        let why = Why::from(notice.clone());
        if state.pin.is_none() && !state.needs_pin() {
            return self.handle_unpinned(&file, &mut state, notice.stage, why);
        }
        match (notice.stage, state.phase) {
            (Stage::Announced, _) => state.announce(why),
            // What happened before the pin was taken is settled.
            (Stage::Waiting, Phase::Held) if notice.at >= state.held_since => {
                let broke = state.start_break(why, &self.publisher);
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
            // No page goes; but what was lost beyond the end may be there again.
            Cause::Grow { .. } | Cause::Allocate | Cause::Write => state.epoch += 1,
            Cause::Unlink | Cause::Rename | Cause::Attributes | Cause::OpenedByOther => {}
            _ => state.lose(why, &self.publisher),
        }
        if stage != Stage::Done {
            self.allow(file.id);
        }
        self.follow(file, state);
        Handled::Done
    }

    /// What is to be done after a break, or the first half of one.
    fn after(&self, file: &Arc<GuardedFile>, state: &State, broke: Broke) {
        if broke == Broke::Done {
            file.changed();
            self.allow(file.id);
            self.follow(file, state);
        }
    }

    fn allow(&self, id: FileId) {
        lock(&self.notifiers).allow(Subject::File(id));
    }

    fn follow(&self, file: &Arc<GuardedFile>, state: &State) {
        let wanted = state.regions.iter().any(|region| region.policy.follow);
        if wanted && self.to_follow.try_send(Arc::clone(file)).is_err() {
            tracing::error!(file = %file.id, "too many files to follow: this one stays on scrap");
        }
    }

    /// Looks at the deadlines of files whose regions were given time. Says whether there are any.
    fn look(&self, files: &mut Vec<Arc<GuardedFile>>) -> bool {
        let mut any = false;
        files.extend(lock(&self.files).values().map(Arc::clone));
        for file in files.drain(..) {
            let Some(mut state) = file.try_lock() else { continue };
            let Phase::Holding { until } = state.phase else { continue };
            any = true;
            let ready = state.regions.iter().all(|region| {
                !matches!(region.policy.reaction, Reaction::Hold { .. })
                    || region.ready.load(Ordering::Acquire)
            });
            if ready || until <= Instant::now() {
                for region in &state.regions {
                    region.ready.store(false, Ordering::Release);
                }
                let broke = state.finish_break(&self.publisher);
                self.after(&file, &state, broke);
            }
        }
        any
    }

    /// Waits for a notifier, for a user, or for at most `period`.
    fn wait(&self, period: Duration) {
        let timeout = EpollTimeout::try_from(period).unwrap_or(EpollTimeout::from(1u8));
        let _ = self.ready.wait(&mut [EpollEvent::empty()], timeout);
        let _ = self.wake.read();
    }
}

enum Handled {
    Done,
    /// Somebody else has the file: again, soon.
    Busy,
}

fn run(shared: &Shared) {
    thread::prepare(shared.options.cpu, shared.options.priority);
    let mut notices: Vec<Notice> = Vec::with_capacity(1024);
    let (mut deferred, mut busy) = (Vec::with_capacity(1024), Vec::with_capacity(1024));
    let mut files = Vec::with_capacity(1024);
    let mut period = IDLE;
    while !shared.stopping() {
        shared.wait(period);
        if let Err(error) = lock(&shared.notifiers).collect(&mut |notice| notices.push(notice)) {
            tracing::error!(%error, "a notifier failed; the others and the pins still hold");
        }
        for notice in deferred.drain(..).chain(notices.drain(..)) {
            if matches!(shared.handle(&notice), Handled::Busy) {
                busy.push(notice);
            }
        }
        std::mem::swap(&mut busy, &mut deferred);
        let holding = shared.look(&mut files);
        period = if deferred.is_empty() && !holding { IDLE } else { SOON };
    }
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Guard of {} regions", self.regions.load(Ordering::Relaxed))
    }
}

impl Inner {
    fn spawn(&mut self, name: &str, body: impl FnOnce() + Send + 'static) -> Result<()> {
        let thread = std::thread::Builder::new().name(name.to_owned()).spawn(body);
        let failed = |error| Error::Guard(format!("cannot start a thread: {error}"));
        self.threads.push(thread.map_err(failed)?);
        Ok(())
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Release);
        self.shared.wake();
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What the locks guard is changed in single steps, so a panic elsewhere leaves it true.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
