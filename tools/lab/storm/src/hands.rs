//! Who performs operations: threads of this process, and processes of their own.
//!
//! Every operation is done by somebody else than the thread that counts, so that one that never
//! returns is found and told, and several can be under way at a time. A process gets operations as
//! lines and answers with lines: its errno (0 for success) and the times, by CLOCK_MONOTONIC, at
//! which the call began and ended.

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, bail};
use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::time::{ClockId, clock_gettime};
use nix::unistd::Pid;

use crate::operation::{Files, Operation};

/// How an operation went.
#[derive(Debug, Clone, Copy)]
pub struct Done {
    /// What the kernel refused it with.
    pub refused: Option<Errno>,
    /// When the call was made.
    pub began: Instant,
    /// When it returned.
    pub ended: Instant,
    /// It ended although nobody could have let it.
    pub early: bool,
}

impl Done {
    /// How long its caller waited.
    pub fn stall(&self) -> Duration {
        self.ended.saturating_duration_since(self.began)
    }
}

/// Somebody who performs operations, one after the other.
pub struct Hands {
    name: &'static str,
    requests: Requests,
    answers: Receiver<Result<Done>>,
    child: Option<Child>,
}

enum Requests {
    Thread(Sender<Operation>),
    Process(ChildStdin),
}

impl Hands {
    /// A thread of this process.
    pub fn thread(name: &'static str, folder: &Path) -> Result<Self> {
        let files = Files::open_in(folder).context("opening the region's file")?;
        let (requests, wanted) = channel::<Operation>();
        let (answer, answers) = channel();
        thread::Builder::new().name(format!("hands-{name}")).spawn(move || {
            for operation in wanted {
                let began = Instant::now();
                let result = perform(&operation, &files);
                let ended = Instant::now();
                let done = Done { refused: result.err(), began, ended, early: false };
                if answer.send(Ok(done)).is_err() {
                    return;
                }
            }
        })?;
        Ok(Self { name, requests: Requests::Thread(requests), answers, child: None })
    }

    /// A process of its own, which opens the file now.
    pub fn process(name: &'static str, folder: &Path) -> Result<Self> {
        let program = std::env::current_exe()?;
        let mut child = Command::new(program)
            .arg("operate")
            .arg(folder)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("starting a process for operations")?;
        let (Some(stdin), Some(stdout)) = (child.stdin.take(), child.stdout.take()) else {
            bail!("no pipes to a process for operations");
        };
        let (answer, answers) = channel();
        thread::Builder::new().name(format!("hands-{name}")).spawn(move || {
            let clock = Clock::now();
            for line in BufReader::new(stdout).lines() {
                let done = line.map_err(Into::into).and_then(|line| clock.read(&line));
                if answer.send(done).is_err() {
                    return;
                }
            }
        })?;
        Ok(Self { name, requests: Requests::Process(stdin), answers, child: Some(child) })
    }

    /// What it is called.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// Has it begin an operation.
    pub fn begin(&mut self, operation: &Operation) -> Result<()> {
        match &mut self.requests {
            Requests::Thread(requests) => {
                requests.send(*operation).map_err(|_| anyhow!("{} is gone", self.name))
            }
            Requests::Process(stdin) => Ok(writeln!(stdin, "{operation}")?),
        }
    }

    /// Has a process stop this one before the operation, and let it go on some time after it.
    pub fn begin_while_stopped(&mut self, operation: &Operation, time: Duration) -> Result<()> {
        let Requests::Process(stdin) = &mut self.requests else {
            bail!("a thread cannot stop its own process and go on");
        };
        let (pid, millis) = (std::process::id(), time.as_millis());
        Ok(writeln!(stdin, "stopped {pid} {millis} {operation}")?)
    }

    /// Waits for its end.
    pub fn end(&self, patience: Duration) -> Result<Done> {
        match self.answers.recv_timeout(patience) {
            Ok(done) => done,
            Err(RecvTimeoutError::Timeout) => {
                bail!("{} is not back after {patience:?}: the operation is stuck", self.name)
            }
            Err(RecvTimeoutError::Disconnected) => bail!("{} died", self.name),
        }
    }
}

impl Drop for Hands {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            // Ours, and not yet waited for: the number is still its own.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Does an operation in this thread.
pub fn perform(operation: &Operation, files: &Files) -> Result<(), Errno> {
    if operation.ring { operation.perform_by_ring(files) } else { operation.perform(files) }
}

/// The other end: does what it is told on standard input until that is closed.
pub fn operate(folder: PathBuf) -> Result<()> {
    let files = Files::open_in(&folder)?;
    for line in std::io::stdin().lock().lines() {
        let line = line?;
        let (errno, began, ended, early) = match line.strip_prefix("stopped ") {
            None => {
                let operation: Operation = line.parse()?;
                let began = monotonic();
                let result = perform(&operation, &files);
                (result.err().map_or(0, |errno| errno as i32), began, monotonic(), false)
            }
            Some(rest) => while_stopped(rest, &files)?,
        };
        println!("{errno} {began} {ended} {}", u8::from(early));
    }
    Ok(())
}

/// An operation while the guard's process is stopped.
fn while_stopped(text: &str, files: &Files) -> Result<(i32, u64, u64, bool)> {
    let words: Vec<&str> = text.splitn(3, ' ').collect();
    let [pid, millis, operation] = words[..] else { bail!("malformed: {text}") };
    let (pid, millis) = (Pid::from_raw(pid.parse()?), Duration::from_millis(millis.parse()?));
    let operation: Operation = operation.parse()?;
    kill(pid, Signal::SIGSTOP)?;
    let began = monotonic();
    let outcome = thread::scope(|scope| {
        let call = scope.spawn(|| {
            let result = perform(&operation, files);
            (result.err().map_or(0, |errno| errno as i32), monotonic())
        });
        thread::sleep(millis);
        let early = call.is_finished();
        let _ = kill(pid, Signal::SIGCONT);
        call.join().map(|(errno, ended)| (errno, began, ended, early))
    });
    outcome.map_err(|_| anyhow!("the operation's thread died"))
}

/// Nanoseconds of CLOCK_MONOTONIC.
fn monotonic() -> u64 {
    clock_gettime(ClockId::CLOCK_MONOTONIC).map_or(0, |time| Duration::from(time).as_nanos() as u64)
}

/// Turns times of other processes into ours.
struct Clock {
    instant: Instant,
    nanos: u64,
}

impl Clock {
    /// The closest of some pairs: between the two readings the thread may lose its processor.
    fn now() -> Self {
        let pair = |_| {
            let instant = Instant::now();
            let nanos = monotonic();
            (instant.elapsed(), Self { instant, nanos })
        };
        let closest = (0..32).map(pair).min_by_key(|(apart, _)| *apart);
        closest
            .map_or_else(|| Self { instant: Instant::now(), nanos: monotonic() }, |(_, pair)| pair)
    }

    fn instant(&self, nanos: u64) -> Instant {
        match nanos.checked_sub(self.nanos) {
            Some(later) => self.instant + Duration::from_nanos(later),
            None => self.instant - Duration::from_nanos(self.nanos - nanos),
        }
    }

    fn read(&self, line: &str) -> Result<Done> {
        let words: Vec<&str> = line.split_whitespace().collect();
        let [errno, began, ended, early] = words[..] else { bail!("malformed answer: {line}") };
        let refused = Some(errno.parse::<i32>()?).filter(|n| *n != 0).map(Errno::from_raw);
        let (began, ended) = (self.instant(began.parse()?), self.instant(ended.parse()?));
        Ok(Done { refused, began, ended, early: early == "1" })
    }
}
