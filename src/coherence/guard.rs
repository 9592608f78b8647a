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
use std::time::{Duration, Instant};

use holdfast_dax::notify::{Notice, NotifierKind, Options, Statement};
use holdfast_dax::{GRANULE, Memory};
use holdfast_iommu::{Order, Prot};

use super::event::RegionId;
use super::follow;
use super::keeper::KeeperOptions;
use super::policy::{Policy, Reaction};
use super::region::{GuardedRegion, Placement};
use super::shared::{FOLLOW_QUEUE, Handled, Shared};
use super::stream::Events;
use super::thread;
use super::tie::Tie;
use crate::device::DeviceInner;
use crate::{Error, ProtectionDomain, Result};

/// How long the guard sleeps when nobody wakes it.
const IDLE: Duration = Duration::from_millis(100);
/// How often all pins are looked at, whatever the notifiers say.
const PINS: Duration = Duration::from_millis(100);
/// How often files that lost parts are looked at again.
const LOST: Duration = Duration::from_secs(1);
/// How much longer than a region's time the keeper must wait: what the guard may need for the rest.
const MARGIN: Duration = Duration::from_secs(1);
/// How long it sleeps while a file is busy or a deadline runs.
const SOON: Duration = Duration::from_millis(1);

/// How a guard works.
#[derive(Debug, Clone)]
pub struct GuardOptions {
    /// The processor that its thread runs on.
    pub cpu: Option<usize>,
    /// Real-time priority (SCHED_FIFO, 1 to 99) of its thread, where that is allowed.
    pub priority: Option<u8>,
    /// In which order a file's chunks are taken away. [`Order::ChunkByChunk`], the default: each has
    /// nothing behind it for two calls only, for devices that report a fault for an access in that
    /// time, or wait shortly. [`Order::FenceFirst`]: the operation waits for as few calls as can be.
    pub order: Order,
    /// Which notifiers to use, and how; by default all that this machine allows but leases: while
    /// one is held, whoever opens the file with O_NONBLOCK, as truncate(1) does, fails with EAGAIN.
    pub notifiers: Options,
    /// The keeper process, which is started with the first region that needs a pin. `None`: there
    /// is none, and a kill of this process at the wrong instant may let a device write into blocks
    /// that its file gave up.
    pub keeper: Option<KeeperOptions>,
}

impl Default for GuardOptions {
    fn default() -> Self {
        Self {
            cpu: None,
            priority: None,
            order: Order::ChunkByChunk,
            notifiers: Options { kinds: quiet_notifiers(), ..Options::default() },
            keeper: Some(KeeperOptions::default()),
        }
    }
}

/// The notifiers that no other program sees anything of but a short wait.
fn quiet_notifiers() -> Vec<NotifierKind> {
    NotifierKind::ALL.into_iter().filter(|kind| *kind != NotifierKind::Lease).collect()
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

    /// The application needs no more time for this region
    /// ([`Reaction::Hold`](super::Reaction::Hold)). Never blocks on the file.
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

    /// Refuses a region that would be given time beyond the keeper's patience.
    fn fits_the_keeper(&self, policy: Policy) -> Result<()> {
        let (Reaction::Hold { deadline }, Some(keeper)) =
            (policy.reaction, &self.inner.shared.options.keeper)
        else {
            return Ok(());
        };
        if deadline + MARGIN <= keeper.deadline {
            return Ok(());
        }
        Err(Error::Guard(format!(
            "a region that is given {deadline:?} would have the keeper empty the container, which              it does when an operation has waited for {:?}: give the region less time, or the              keeper (KeeperOptions::deadline) {MARGIN:?} more than the region",
            keeper.deadline
        )))
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
        if placement == Placement::Physical {
            self.fits_the_keeper(policy)?;
            shared.prove(&memory)?;
            shared.cover(&device.space)?;
        }
        let len = memory.len() as u64;
        let mapping = device
            .space
            .reserve(len, prot, Some(GRANULE))
            .map_err(|source| Error::Map { what: memory.source().to_string(), source })?;
        mapping.assign(pd.tenant())?;
        let (id, scrap) = (shared.next_region(), pd.scrap()?);
        let region = Arc::new(GuardedRegion::new(id, policy, memory, mapping, placement, scrap));
        // Known to the guard before anything of the file is within the device's reach.
        let file = shared.add(&region)?;
        let tie = Tie { guard: self.clone(), file, region };
        follow::bring_in(shared, &tie.file, &tie.region).inspect_err(|_| {
            if let Err(error) = tie.take_down() {
                tracing::error!(%error, "a region that could not be guarded stays mapped");
            }
        })?;
        Ok(tie)
    }
}

/// What the guard's thread does.
fn run(shared: &Arc<Shared>) {
    thread::prepare(shared.options.cpu, shared.options.priority);
    let mut notices: Vec<Notice> = Vec::with_capacity(1024);
    let (mut deferred, mut busy) = (Vec::with_capacity(1024), Vec::with_capacity(1024));
    let mut files = Vec::with_capacity(1024);
    let mut period = IDLE;
    let (mut looked_at_pins, mut looked_for_lost) = (Instant::now(), Instant::now());
    while !shared.stopping() {
        shared.wait(period);
        shared.collect(&mut notices);
        if shared.keeper_news(&mut notices) {
            replace_keeper(shared);
        }
        for notice in deferred.drain(..).chain(notices.drain(..)) {
            if matches!(shared.handle(&notice), Handled::Busy) {
                busy.push(notice);
            }
        }
        std::mem::swap(&mut busy, &mut deferred);
        let pins = looked_at_pins.elapsed() >= PINS;
        let lost = looked_for_lost.elapsed() >= LOST;
        if pins {
            looked_at_pins = Instant::now();
        }
        if lost {
            looked_for_lost = Instant::now();
        }
        let holding = shared.look(&mut files, pins, lost);
        period = if deferred.is_empty() && !holding { IDLE } else { SOON };
    }
}

/// Starts another keeper, on a thread of its own: the guard does not wait.
fn replace_keeper(shared: &Arc<Shared>) {
    let shared = Arc::clone(shared);
    let thread = std::thread::Builder::new().name("holdfast-keeper".to_owned());
    if let Err(error) = thread.spawn(move || shared.replace_keeper()) {
        tracing::error!(%error, "no thread to start another keeper");
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
