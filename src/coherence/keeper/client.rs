//! The driver's side: start a keeper, hand things over to it, hear what it did.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::process::Child;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use holdfast_dax::PinParts;
use holdfast_vfio::user::scm;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::error::KeeperError;
use super::protocol::{ContainerId, HeldFileId, MESSAGE, PinId, Reply, Request, VERSION};
use super::{spawn, sys};
use crate::lock::lock;

/// How long a keeper may take to answer. Populating the guard page may wait for a layout operation
/// on that file to end.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long a keeper may take to end when it is not needed any more.
const FAREWELL: Duration = Duration::from_secs(2);

/// How a keeper is to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeeperOptions {
    /// The `holdfast` program to run. By default this very program if it is `holdfast`, else a
    /// `holdfast` beside it, else one in PATH.
    pub program: Option<PathBuf>,
    /// How long a layout operation may wait for this process before the keeper empties the
    /// containers and lets the operation go on. 5 s by default.
    pub deadline: Duration,
}

impl Default for KeeperOptions {
    fn default() -> Self {
        Self { program: None, deadline: Duration::from_secs(5) }
    }
}

/// What a keeper did, or what became of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeeperEvent {
    /// A layout operation had waited for a pin beyond the deadline. The keeper emptied **all**
    /// containers, also of what has nothing to do with that file, and lets the operation go on.
    Revoked {
        /// The pin; it is not held any more.
        pin: PinId,
        /// How long the operation had waited.
        waited: Duration,
    },
    /// The keeper is gone, and holds nothing any more. [`Keeper::respawn`], and hand everything
    /// over again.
    Died,
}

/// A keeper process. Methods may be called from any thread; those that say so wait for an answer.
///
/// When it is dropped while it holds something, the keeper does what it does when the driver dies.
#[derive(Debug)]
pub struct Keeper {
    options: KeeperOptions,
    child: Mutex<Child>,
    /// Taken when this is dropped.
    calls: Option<OwnedFd>,
    events: OwnedFd,
    sequence: AtomicU32,
    next: AtomicU64,
    /// Held by whoever waits for an answer. Who only tells something does not wait for those who
    /// wait.
    asking: Mutex<()>,
}

/// While it exists, the keeper does not let the pin go; dropped, it may. Short is the word.
#[derive(Debug)]
#[must_use = "dropping it ends the turn"]
pub struct MapTurn<'k> {
    keeper: &'k Keeper,
    pin: PinId,
}

impl Keeper {
    /// Starts a keeper and waits until it is ready. It is a child of this process, in a session of
    /// its own; it ends by itself when this process is gone or the `Keeper` dropped.
    ///
    /// # Errors
    /// [`KeeperError::NoProgram`], [`KeeperError::Start`], [`KeeperError::NotReady`],
    /// [`KeeperError::Version`] and [`KeeperError::System`].
    pub fn spawn(options: &KeeperOptions) -> Result<Self, KeeperError> {
        let spawn::Spawned { child, program, calls, events } = spawn::spawn(options)?;
        let keeper = Self {
            options: options.clone(),
            child: Mutex::new(child),
            calls: Some(calls),
            events,
            sequence: AtomicU32::new(1),
            next: AtomicU64::new(1),
            asking: Mutex::new(()),
        };
        match keeper.wait_ready() {
            Ok(()) => {}
            Err(KeeperError::Gone) => {
                let status = lock(&keeper.child).wait().ok();
                return Err(KeeperError::NotReady { program, status });
            }
            Err(error) => return Err(error),
        }
        // Its end is the end of all its threads, which no inherited socket can hide.
        match sys::pidfd_self() {
            Ok(pidfd) => keeper.call("this process", &Request::Driver, &[pidfd.as_fd()])?,
            Err(errno) => tracing::debug!(%errno, "no pidfd: the keeper only sees closed sockets"),
        }
        Ok(keeper)
    }

    /// Starts another keeper with the same options, in the place of one that died. It holds
    /// nothing yet.
    pub fn respawn(&self) -> Result<Self, KeeperError> {
        Self::spawn(&self.options)
    }

    /// The keeper's process number.
    pub fn pid(&self) -> u32 {
        lock(&self.child).id()
    }

    /// The options it was started with.
    pub fn options(&self) -> &KeeperOptions {
        &self.options
    }

    /// Hands a duplicate of a VFIO container over. Do so before any fs-dax memory is mapped in it.
    /// Waits for the answer.
    pub fn hold_container(&self, container: BorrowedFd<'_>) -> Result<ContainerId, KeeperError> {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        self.call("the container", &Request::HoldContainer(id), &[container])
            .inspect_err(|error| self.forget(error, &Request::LetGoContainer(id)))?;
        Ok(ContainerId(id))
    }

    /// Takes a container back, which must not reach any pinned memory any more. Does not wait.
    pub fn let_go_container(&self, container: ContainerId) {
        self.tell(&Request::LetGoContainer(container.0));
    }

    /// Has the keeper map a file that is going to be pinned. Do so before the pin is taken: a pin
    /// that has not got to the keeper when this process dies counts then for as long as there is a
    /// page in its pipe. Waits for the answer.
    pub fn hold_file(&self, file: BorrowedFd<'_>) -> Result<HeldFileId, KeeperError> {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        self.call("the file", &Request::HoldFile(id), &[file])
            .inspect_err(|error| self.forget(error, &Request::LetGoFile(id)))?;
        Ok(HeldFileId(id))
    }

    /// Tells that no pin of the file is left. Does not wait.
    pub fn let_go_file(&self, file: HeldFileId) {
        self.tell(&Request::LetGoFile(file.0));
    }

    /// Hands duplicates of a pin's parts over. Waits for the answer: only then may memory of the
    /// file be put within a device's reach. (The keeper touches the guard page of its own here,
    /// which waits while a layout operation on that file is at work.)
    pub fn hold_pin(&self, parts: &PinParts<'_>) -> Result<PinId, KeeperError> {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let deadline = self.options.deadline;
        let request = Request::HoldPin { id, offset: parts.offset, deadline };
        self.call("the pin", &request, &[parts.read, parts.write, parts.file])
            .inspect_err(|error| self.forget(error, &Request::LetGoPin(id)))?;
        Ok(PinId(id))
    }

    /// Tells that a pin was released by this process, or that nothing relies on it. Does not wait.
    pub fn let_go(&self, pin: PinId) {
        self.tell(&Request::LetGoPin(pin.0));
    }

    /// Asks for a turn to map memory of the pin's file. While the turn lasts, the keeper does not
    /// let the pin go, so what was looked up under the pin stays true; should the turn outlast the
    /// pin's deadline while a layout operation waits, the keeper ends **this process** first, as
    /// nothing else can keep it from mapping. So: look up where the blocks are, take a turn, map,
    /// look whether the pin was disturbed (and if so, take the memory away again), drop the turn.
    /// Waits for the answer.
    ///
    /// # Errors
    /// [`KeeperError::Revoked`] when the keeper has let the pin go: nothing may be mapped.
    pub fn begin_map(&self, pin: PinId) -> Result<MapTurn<'_>, KeeperError> {
        match self.call("the pin", &Request::BeginMap(pin.0), &[]) {
            Ok(()) => Ok(MapTurn { keeper: self, pin }),
            Err(KeeperError::Refused { errno: Errno::ESTALE, .. }) => {
                Err(KeeperError::Revoked { pin })
            }
            Err(error) => Err(error),
        }
    }

    /// Readable when [`Keeper::collect`] has something; also when the keeper is gone.
    pub fn events_fd(&self) -> BorrowedFd<'_> {
        self.events.as_fd()
    }

    /// Hands over what the keeper did. Never blocks. After [`KeeperEvent::Died`] there is nothing
    /// more to come, and each call says so again.
    pub fn collect(&self, sink: &mut dyn FnMut(KeeperEvent)) {
        loop {
            let mut bytes = [0; MESSAGE];
            let mut none = Vec::new();
            match scm::recv(self.events.as_fd(), &mut bytes, &mut none, 0) {
                Ok(received) if received.bytes > 0 => {
                    let message = bytes.get(..received.bytes).unwrap_or_default();
                    if let Some(Reply::Revoked { id, waited }) = Reply::decode(message) {
                        sink(KeeperEvent::Revoked { pin: PinId(id), waited });
                    }
                }
                Err(Errno::EAGAIN) => return,
                Err(Errno::EINTR) => {}
                Ok(_) | Err(_) => {
                    sink(KeeperEvent::Died);
                    return;
                }
            }
        }
    }

    fn wait_ready(&self) -> Result<(), KeeperError> {
        match receive(self.socket()?, Instant::now() + PATIENCE)? {
            Reply::Ready { version: VERSION } => Ok(()),
            Reply::Ready { version } => {
                Err(KeeperError::Version { found: version, wanted: VERSION })
            }
            _ => Err(KeeperError::Gone),
        }
    }

    /// Asks and waits for the answer.
    fn call(
        &self,
        what: &'static str,
        request: &Request,
        fds: &[BorrowedFd<'_>],
    ) -> Result<(), KeeperError> {
        let _asking = lock(&self.asking);
        let socket = self.socket()?;
        let asked = self.send(request, fds)?;
        let deadline = Instant::now() + PATIENCE;
        loop {
            // Answers to what was only told come first.
            if let Reply::Answer { sequence, result } = receive(socket, deadline)?
                && sequence == asked
            {
                return result.map_err(|errno| KeeperError::Refused { what, errno });
            }
        }
    }

    /// After a hold that failed: should the keeper come round to it after all, it need not hold on.
    fn forget(&self, error: &KeeperError, let_go: &Request) {
        if matches!(error, KeeperError::NoAnswer { .. }) {
            self.tell(let_go);
        }
    }

    /// Tells without waiting for the answer.
    fn tell(&self, request: &Request) {
        if let (Ok(_asking), Ok(socket)) = (self.asking.try_lock(), self.socket()) {
            // Answers that nobody waits for must not fill the socket.
            while matches!(try_receive(socket), Ok(Some(_))) {}
        }
        if let Err(error) = self.send(request, &[]) {
            tracing::debug!(%error, ?request, "the keeper was not told");
        }
    }

    fn socket(&self) -> Result<&OwnedFd, KeeperError> {
        self.calls.as_ref().ok_or(KeeperError::Gone)
    }

    /// Sends a request and gives its number.
    fn send(&self, request: &Request, fds: &[BorrowedFd<'_>]) -> Result<u32, KeeperError> {
        let sequence = self.sequence.fetch_add(1, Ordering::Relaxed);
        let message = request.encode(sequence);
        let socket = self.socket()?;
        let deadline = Instant::now() + PATIENCE;
        loop {
            match scm::send(socket.as_fd(), &[std::io::IoSlice::new(&message)], fds) {
                Ok(_) => return Ok(sequence),
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => wait(socket, PollFlags::POLLOUT, deadline)?,
                Err(Errno::EPIPE | Errno::ECONNRESET | Errno::ENOTCONN) => {
                    return Err(KeeperError::Gone);
                }
                Err(errno) => return Err(KeeperError::System { step: "ask the keeper", errno }),
            }
        }
    }
}

impl MapTurn<'_> {
    /// The pin.
    pub fn pin(&self) -> PinId {
        self.pin
    }
}

impl Drop for MapTurn<'_> {
    fn drop(&mut self) {
        self.keeper.tell(&Request::EndMap(self.pin.0));
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        self.calls = None;
        let mut child = lock(&self.child);
        let deadline = Instant::now() + FAREWELL;
        while matches!(child.try_wait(), Ok(None)) {
            if Instant::now() >= deadline {
                // It is never killed: it may be all that keeps a device from a file's blocks.
                tracing::warn!(pid = child.id(), "the keeper has not let everything go yet");
                return;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

fn receive(socket: &OwnedFd, deadline: Instant) -> Result<Reply, KeeperError> {
    loop {
        if let Some(reply) = try_receive(socket)? {
            return Ok(reply);
        }
        wait(socket, PollFlags::POLLIN, deadline)?;
    }
}

fn try_receive(socket: &OwnedFd) -> Result<Option<Reply>, KeeperError> {
    let mut bytes = [0; MESSAGE];
    match scm::recv(socket.as_fd(), &mut bytes, &mut Vec::new(), 0) {
        Ok(received) if received.bytes > 0 => {
            let reply = Reply::decode(bytes.get(..received.bytes).unwrap_or_default());
            // A program that speaks otherwise is no keeper.
            reply.map(Some).ok_or(KeeperError::Gone)
        }
        Err(Errno::EAGAIN | Errno::EINTR) => Ok(None),
        Ok(_) | Err(Errno::ECONNRESET | Errno::EPIPE) => Err(KeeperError::Gone),
        Err(errno) => Err(KeeperError::System { step: "hear the keeper", errno }),
    }
}

fn wait(socket: &OwnedFd, flags: PollFlags, deadline: Instant) -> Result<(), KeeperError> {
    let left = deadline.saturating_duration_since(Instant::now());
    let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
    match poll(&mut [PollFd::new(socket.as_fd(), flags)], timeout) {
        Ok(0) => Err(KeeperError::NoAnswer { patience: PATIENCE }),
        Ok(_) | Err(Errno::EINTR) => Ok(()),
        Err(errno) => Err(KeeperError::System { step: "wait for the keeper", errno }),
    }
}
