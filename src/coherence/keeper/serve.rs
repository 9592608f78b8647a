//! The keeper's loop: hold, watch, and when the driver dies or is late, fence and then drain.
//!
//! After the start nothing here allocates (but for what a refused message may cost), nothing
//! panics, and nothing blocks, save one thing: populating a new pin's guard page waits while a
//! layout operation on that very file is at work, and such an operation ends by itself.

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use holdfast_vfio::kernel;
use holdfast_vfio::user::scm;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::held::HeldPin;
use super::note::Notes;
use super::protocol::{MAX_FDS, MESSAGE, Reply, Request, VERSION};
use super::sys::{self, Anchor};

/// How often guard pages are looked at, and how often a fence that failed is tried again.
pub const PERIOD: Duration = Duration::from_millis(50);
/// How long a driver may live on after its socket was closed: one that is dying has closed all that
/// it had long before.
const ENDS_WITHIN: Duration = Duration::from_secs(5);
/// Most containers, and most pins and files.
const MAX_CONTAINERS: usize = 256;
const MAX_PINS: usize = 4096;

/// How a container's mappings are taken away.
pub trait Fence {
    /// Whether this descriptor is a container that can be fenced; an errno if not.
    fn check(&mut self, container: BorrowedFd<'_>) -> Result<(), Errno>;

    /// Takes all mappings away. When it returns `Ok`, no DMA reaches what was mapped. Must neither
    /// allocate nor panic.
    fn fence(&mut self, container: BorrowedFd<'_>) -> Result<(), Errno>;
}

/// VFIO's containers: VFIO_IOMMU_UNMAP_DMA of everything.
#[derive(Debug, Default)]
pub struct VfioFence;

impl Fence for VfioFence {
    fn check(&mut self, container: BorrowedFd<'_>) -> Result<(), Errno> {
        match kernel::can_unmap_all(container) {
            Ok(true) => Ok(()),
            Ok(false) => Err(Errno::EOPNOTSUPP),
            Err(error) => Err(errno_of(&error)),
        }
    }

    fn fence(&mut self, container: BorrowedFd<'_>) -> Result<(), Errno> {
        kernel::unmap_all(container).map(drop).map_err(|error| errno_of(&error))
    }
}

fn errno_of(error: &holdfast_vfio::Error) -> Errno {
    match error {
        holdfast_vfio::Error::Ioctl { errno, .. } => *errno,
        _ => Errno::EIO,
    }
}

/// The keeper's ends of the sockets.
#[derive(Debug)]
pub struct Sockets {
    /// Where the driver asks and is answered.
    pub calls: OwnedFd,
    /// Where the driver is told.
    pub events: OwnedFd,
}

/// What the keeper holds.
#[derive(Debug)]
pub(super) struct Server<F> {
    /// Dropped first: a pin may be in it that was not taken over, and counts while its file is mapped.
    sockets: Sockets,
    fence: F,
    notes: Notes,
    pagemap: File,
    driver: Option<OwnedFd>,
    containers: Vec<(u64, OwnedFd)>,
    files: Vec<(u64, Anchor)>,
    pins: Vec<HeldPin>,
    received: Vec<OwnedFd>,
    /// When the pins were looked at last.
    watched: Instant,
    /// The driver was killed, because it was late in the middle of a turn.
    killed: bool,
}

/// Whether there is still somebody to serve.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Turn {
    GoOn,
    DriverIsGone,
}

/// Serves one driver until it is gone, then fences, drains and returns. All memory it will need is
/// allocated before it says that it is ready.
pub fn serve<F: Fence>(sockets: Sockets, fence: F) -> Result<(), Errno> {
    let mut server = Server::new(sockets, fence)?;
    server.ready()?;
    server.run();
    Ok(())
}

impl<F: Fence> Server<F> {
    pub(super) fn new(sockets: Sockets, fence: F) -> Result<Self, Errno> {
        let pagemap = File::open("/proc/self/pagemap")
            .map_err(|error| error.raw_os_error().map_or(Errno::EIO, Errno::from_raw))?;
        Ok(Self {
            sockets,
            fence,
            notes: Notes::default(),
            pagemap,
            driver: None,
            containers: Vec::with_capacity(MAX_CONTAINERS),
            files: Vec::with_capacity(MAX_PINS),
            pins: Vec::with_capacity(MAX_PINS),
            received: Vec::with_capacity(MAX_FDS),
            watched: Instant::now(),
            killed: false,
        })
    }

    /// Says that the keeper is ready.
    pub(super) fn ready(&self) -> Result<(), Errno> {
        let message = Reply::Ready { version: VERSION }.encode();
        scm::send(self.sockets.calls.as_fd(), &[std::io::IoSlice::new(&message)], &[]).map(drop)
    }

    /// Until the driver is gone and nothing is held any more.
    pub(super) fn run(&mut self) {
        while self.wait() == Turn::GoOn {
            self.watch(Instant::now());
        }
        let held = self.pins.iter().filter(|pin| !pin.is_let_go()).count();
        // One that lives on and has given its containers back has a right to be rid of its keeper.
        if !self.containers.is_empty() || self.pins.iter().any(|pin| pin.mapping > 0) {
            self.see_it_end();
        }
        // A fence that fails is tried until it works: a layout operation that waits for ever is
        // better than one that frees blocks which a device still writes.
        while let Err(errno) = self.fence_all() {
            self.notes.fence_failed(errno);
            let _ = poll(&mut [], timeout(PERIOD));
        }
        for pin in &mut self.pins {
            pin.drain();
        }
        if held > 0 || !self.containers.is_empty() {
            self.notes.driver_died(self.containers.len(), held);
        }
    }

    /// Waits until a driver whose socket is closed has ended, so that all its descriptors are: the
    /// kernel does not keep calls on a container apart from the end of its last group
    /// (`vfio_fops_unl_ioctl`, `vfio_group_detach_container`), and what the calls use would be
    /// freed under them.
    fn see_it_end(&self) {
        let Some(driver) = &self.driver else { return };
        let until = Instant::now() + ENDS_WITHIN;
        while let Some(left) = until.checked_duration_since(Instant::now()) {
            let mut fds = [PollFd::new(driver.as_fd(), PollFlags::POLLIN)];
            // An interrupted wait goes on.
            if poll(&mut fds, timeout(left)).is_ok_and(|ready| ready > 0) {
                return;
            }
        }
    }

    /// Waits for a message or the driver's end, and deals with it.
    fn wait(&mut self) -> Turn {
        let time = if self.pins.is_empty() { PollTimeout::NONE } else { timeout(PERIOD) };
        let calls = PollFd::new(self.sockets.calls.as_fd(), PollFlags::POLLIN);
        let driver = self
            .driver
            .as_ref()
            .map_or(calls.clone(), |driver| PollFd::new(driver.as_fd(), PollFlags::POLLIN));
        let has_pidfd = self.driver.is_some();
        let mut fds = [calls, driver];
        // An interrupted or failed wait is one that found nothing; the next one follows.
        let _ = poll(&mut fds, time);
        let [calls, driver] = fds;
        let is_ready = |fd: &PollFd<'_>| fd.any().unwrap_or(false);
        let (calls, gone) = (is_ready(&calls), has_pidfd && is_ready(&driver));
        if gone {
            return Turn::DriverIsGone;
        }
        if calls { self.receive() } else { Turn::GoOn }
    }

    /// Deals with one message.
    fn receive(&mut self) -> Turn {
        let mut bytes = [0; MESSAGE + 1];
        self.received.clear();
        let received =
            scm::recv(self.sockets.calls.as_fd(), &mut bytes, &mut self.received, MAX_FDS);
        let received = match received {
            Ok(received) if received.bytes > 0 => received,
            Err(Errno::EAGAIN | Errno::EINTR) => return Turn::GoOn,
            Ok(_) | Err(_) => return Turn::DriverIsGone,
        };
        let message = bytes.get(..received.bytes).unwrap_or_default();
        let Some((sequence, request)) = Request::decode(message) else {
            self.notes.strange_message();
            return Turn::GoOn;
        };
        let result = if received.lost_fds { Err(Errno::EMFILE) } else { self.handle(request) };
        self.received.clear();
        let answer = Reply::Answer { sequence, result }.encode();
        // A driver that does not read its answers does not wait for them either.
        let _ = scm::send(self.sockets.calls.as_fd(), &[std::io::IoSlice::new(&answer)], &[]);
        Turn::GoOn
    }

    fn handle(&mut self, request: Request) -> Result<(), Errno> {
        match request {
            Request::Driver => {
                self.driver = Some(self.received.pop().ok_or(Errno::EBADMSG)?);
                Ok(())
            }
            Request::HoldContainer(id) => {
                let container = self.received.pop().ok_or(Errno::EBADMSG)?;
                if self.containers.len() >= MAX_CONTAINERS {
                    return Err(Errno::ENOSPC);
                }
                self.fence.check(container.as_fd())?;
                self.containers.push((id, container));
                Ok(())
            }
            Request::LetGoContainer(id) => {
                self.containers.retain(|(held, _)| *held != id);
                Ok(())
            }
            Request::HoldFile(id) => {
                let file = self.received.pop().ok_or(Errno::EBADMSG)?;
                if self.files.len() >= MAX_PINS {
                    return Err(Errno::ENOSPC);
                }
                self.files.push((id, Anchor::of(file.as_fd())?));
                Ok(())
            }
            Request::LetGoFile(id) => {
                self.files.retain(|(held, _)| *held != id);
                Ok(())
            }
            Request::HoldPin { id, offset, deadline } => {
                let mut parts = self.received.drain(..);
                let (Some(read), Some(write), Some(file)) =
                    (parts.next(), parts.next(), parts.next())
                else {
                    return Err(Errno::EBADMSG);
                };
                drop(parts);
                if self.pins.len() >= MAX_PINS {
                    return Err(Errno::ENOSPC);
                }
                self.pins.push(HeldPin::new(id, deadline, offset, [read, write, file])?);
                Ok(())
            }
            Request::LetGoPin(id) => {
                let at = self.pins.iter().position(|pin| pin.id == id).ok_or(Errno::ENOENT)?;
                // Whoever holds a pin no more has no use for what is in the pipe: the drain makes
                // up for a driver that closed it without one.
                self.pins.swap_remove(at).drain();
                Ok(())
            }
            Request::BeginMap(id) => {
                let pin = self.pin(id)?;
                if pin.is_let_go() {
                    return Err(Errno::ESTALE);
                }
                pin.mapping = pin.mapping.saturating_add(1);
                Ok(())
            }
            Request::EndMap(id) => {
                let pin = self.pin(id)?;
                pin.mapping = pin.mapping.saturating_sub(1);
                Ok(())
            }
        }
    }

    fn pin(&mut self, id: u64) -> Result<&mut HeldPin, Errno> {
        self.pins.iter_mut().find(|pin| pin.id == id).ok_or(Errno::ENOENT)
    }

    /// Lets go of pins that have been waited for too long.
    fn watch(&mut self, now: Instant) {
        if now.saturating_duration_since(self.watched) < PERIOD / 2 {
            return;
        }
        self.watched = now;
        for at in 0..self.pins.len() {
            let Some(pin) = self.pins.get_mut(at) else { continue };
            let Some(waited) = pin.overdue(&self.pagemap, now) else { continue };
            let id = pin.id;
            if pin.mapping > 0 {
                // It may map what it looked up under the pin at any moment, and nothing but its
                // end keeps it from that.
                self.end_driver();
                continue;
            }
            if !std::mem::replace(&mut pin.told, true) {
                let told = Reply::Revoked { id, waited }.encode();
                let told = [std::io::IoSlice::new(&told)];
                let _ = scm::send(self.sockets.events.as_fd(), &told, &[]);
            }
            match self.fence_all() {
                Ok(()) => {
                    if let Some(pin) = self.pins.get_mut(at) {
                        pin.drain();
                    }
                    self.notes.driver_is_late(id, waited);
                }
                // Not drained; the next round tries again.
                Err(errno) => self.notes.fence_failed(errno),
            }
        }
    }

    fn end_driver(&mut self) {
        if std::mem::replace(&mut self.killed, true) {
            return;
        }
        let killed = self.driver.as_ref().is_some_and(|driver| sys::kill(driver.as_fd()).is_ok());
        self.notes.driver_killed(killed);
    }

    /// Empties every container; all are tried, whatever fails.
    fn fence_all(&mut self) -> Result<(), Errno> {
        let mut result = Ok(());
        for (_, container) in &self.containers {
            result = result.and(self.fence.fence(container.as_fd()));
        }
        result
    }
}

fn timeout(time: Duration) -> PollTimeout {
    PollTimeout::try_from(time).unwrap_or(PollTimeout::MAX)
}
