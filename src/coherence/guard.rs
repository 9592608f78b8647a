//! The guard: a thread that is told when a file's layout is about to change, and sees to it that
//! no device reaches what the file gives up.
//!
//! The guard's thread never touches a guarded file: it waits for notifiers, puts regions on scrap,
//! lets pins go, and publishes. A second thread ([`super::follow`]) looks at files. What a
//! notifier misses is found by the next: the guard page of each pin is looked at as well, and the
//! pin makes the file system wait however late everybody is.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::sync_channel;
use std::thread::JoinHandle;
use std::time::Duration;

use holdfast_dax::Memory;
use holdfast_dax::notify::{Notice, Options, Statement};
use holdfast_iommu::Prot;

use super::event::RegionId;
use super::follow;
use super::policy::Policy;
use super::region::{GuardedRegion, Placement};
use super::shared::{FOLLOW_QUEUE, Handled, Shared};
use super::stream::Events;
use super::thread;
use super::tie::Tie;
use crate::device::DeviceInner;
use crate::{Error, ProtectionDomain, Result};

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
        Self { cpu: None, priority: None, notifiers: Options::default(), keeper: true }
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

impl Guard {
    /// Brings up the notifiers that this machine allows, and the guard's threads.
    ///
    /// # Errors
    /// When a thread could not be started. A notifier that cannot be had is not an error: see
    /// [`Guard::statement`].
    pub fn start(options: GuardOptions) -> Result<Self> {
        let (to_follow, files) = sync_channel(FOLLOW_QUEUE);
        let shared = Arc::new(Shared::new(options, to_follow)?);
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
        self.inner.shared.statement()
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

    /// What its threads share with it.
    pub(super) fn shared(&self) -> &Shared {
        &self.inner.shared
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
        let id = shared.next_region();
        let mut last = None;
        for attempt in 0..REGISTER_TRIES {
            let file = shared.file(&memory)?;
            match shared.try_map(&file, device, &memory, prot, placement) {
                Ok(Some((mut state, mapping))) => {
                    mapping.assign(pd.tenant())?;
                    let region = GuardedRegion::new(id, policy, memory, mapping, placement, scrap);
                    let region = Arc::new(region);
                    state.regions.push(Arc::clone(&region));
                    drop(state);
                    let file = Arc::clone(&file);
                    shared.region_added();
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

fn run(shared: &Shared) {
    thread::prepare(shared.options.cpu, shared.options.priority);
    let mut notices: Vec<Notice> = Vec::with_capacity(1024);
    let (mut deferred, mut busy) = (Vec::with_capacity(1024), Vec::with_capacity(1024));
    let mut files = Vec::with_capacity(1024);
    let mut period = IDLE;
    while !shared.stopping() {
        shared.wait(period);
        shared.collect(&mut notices);
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
        self.shared.stop();
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}
