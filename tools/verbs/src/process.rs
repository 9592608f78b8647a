//! What the process has once: the state behind its lock, the thread that runs timers, the links.

use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::{Condvar, LockResult, Mutex, MutexGuard, OnceLock};
use std::time::Duration;

use nix::sys::signal::{SigSet, SigmaskHow, Signal};

use crate::config::{Config, LinkConfig};
use crate::error::Error;
use crate::state::{Due, State};

/// Longest sleep while links exist, which may wake us between a look and the sleep.
const LINK_NAP: Duration = Duration::from_millis(1);

/// The library's state in this process.
pub(crate) struct Process {
    state: Mutex<State>,
    wake: Condvar,
    log: bool,
}

static PROCESS: OnceLock<Result<Process, Error>> = OnceLock::new();

/// A lock whose holder panicked is taken all the same: the panic was answered where it happened.
pub(crate) fn unpoisoned<T>(lock: LockResult<T>) -> T {
    lock.unwrap_or_else(|poisoned| poisoned.into_inner())
}

/// Runs `call` on the state, and lets the thread know when it left something to do.
pub(crate) fn with<R>(call: impl FnOnce(&mut State) -> Result<R, Error>) -> Result<R, Error> {
    let process = process()?;
    let mut state = process.lock();
    let result = call(&mut state);
    if state.is_earlier_than_planned() {
        drop(state);
        process.wake.notify_one();
    }
    result
}

/// Whether refused calls are told to the user.
pub(crate) fn logs() -> bool {
    matches!(PROCESS.get(), Some(Ok(Process { log: true, .. })))
}

fn process() -> Result<&'static Process, Error> {
    let mut first = false;
    let made = PROCESS.get_or_init(|| {
        first = true;
        let made = start();
        if let Err(error) = &made {
            // The caller can only see that something failed; QEMU does not even look.
            eprintln!("holdfast-verbs: {error}");
        }
        made
    });
    let process = made.as_ref().map_err(Clone::clone)?;
    if first {
        let links = process.lock().take_links();
        let started = std::iter::once(spawn("verbs", move || process.run()))
            .chain(links.into_iter().map(|link| process.join(link)))
            .collect::<Result<(), _>>();
        if let Err(error) = started {
            eprintln!("holdfast-verbs: {error}");
        }
    }
    Ok(process)
}

fn start() -> Result<Process, Error> {
    let config = Config::read(|name| std::env::var(name).ok())?;
    let log = config.log;
    Ok(Process { state: Mutex::new(State::new(config)?), wake: Condvar::new(), log })
}

/// Starts a thread that takes none of the program's signals.
fn spawn(name: &str, run: impl FnOnce() + Send + 'static) -> Result<(), Error> {
    let mut mask = SigSet::all();
    for fault in [Signal::SIGSEGV, Signal::SIGBUS, Signal::SIGFPE, Signal::SIGILL] {
        mask.remove(fault);
    }
    let before = mask
        .thread_swap_mask(SigmaskHow::SIG_SETMASK)
        .map_err(|errno| Error::os("the signal mask", errno))?;
    let spawned = std::thread::Builder::new().name(name.into()).spawn(run);
    let _ = before.thread_set_mask();
    spawned.map(drop).map_err(|error| Error::io("a thread", &error))
}

impl Process {
    /// Runs what waits for a time or for a turn, until the process ends.
    fn run(&self) {
        let mut state = self.lock();
        loop {
            state.settle();
            let due = match state.plan() {
                Due::In(time) if state.has_links() => Due::In(time.min(LINK_NAP)),
                Due::Never if state.has_links() => Due::In(LINK_NAP),
                due => due,
            };
            state = match due {
                Due::Now => {
                    drop(state);
                    std::thread::yield_now();
                    self.lock()
                }
                Due::In(time) => unpoisoned(self.wake.wait_timeout(state, time)).0,
                Due::Never => unpoisoned(self.wake.wait(state)),
            };
        }
    }

    fn join(&'static self, link: LinkConfig) -> Result<(), Error> {
        match link {
            LinkConfig::Connect(path) => {
                let stream = UnixStream::connect(&path).map_err(|error| {
                    Error::Settings(format!("no link to {}: {error}", path.display()))
                })?;
                self.add(stream)
            }
            LinkConfig::Listen(path) => {
                let listener = UnixListener::bind(&path).map_err(|error| {
                    Error::Settings(format!("no link at {}: {error}", path.display()))
                })?;
                spawn("verbs-links", move || {
                    for stream in listener.incoming() {
                        if let Err(error) = stream
                            .map_err(|error| Error::io("accept", &error))
                            .and_then(|stream| self.add(stream))
                        {
                            eprintln!("holdfast-verbs: {error}");
                            return;
                        }
                    }
                })
            }
        }
    }

    fn add(&'static self, stream: UnixStream) -> Result<(), Error> {
        let waker = Box::new(|| self.wake.notify_one());
        self.lock().add_link(stream, waker).map_err(|error| Error::io("a link", &error))?;
        self.wake.notify_one();
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        unpoisoned(self.state.lock())
    }
}
