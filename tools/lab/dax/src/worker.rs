//! The process that does an operation on somebody else's file: it opens the file when it starts,
//! says so, and waits for a word. The pin can so be taken before or after the file is opened.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::ValueEnum;
use nix::errno::Errno;

use crate::operation::{Files, Operation, Way};

/// How long a process may take to start on a loaded machine.
const START: Duration = Duration::from_secs(30);

/// A process that is about to do an operation. Killed on drop.
pub struct Worker {
    child: Child,
    lines: Receiver<String>,
}

impl Worker {
    /// Starts it and waits until it has opened the files of `folder`.
    pub fn start(folder: &Path, operation: Operation, way: Way) -> Result<Self> {
        let name = |value: Option<clap::builder::PossibleValue>| {
            value.map(|value| value.get_name().to_owned()).unwrap_or_default()
        };
        let mut child = Command::new(std::env::current_exe()?)
            .arg("worker")
            .arg(folder)
            .arg(name(operation.to_possible_value()))
            .arg(name(way.to_possible_value()))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("cannot start a worker")?;
        let output = child.stdout.take().context("a worker without output")?;
        let (sender, lines) = mpsc::channel();
        thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                let _ = sender.send(line);
            }
        });
        let worker = Self { child, lines };
        match worker.lines.recv_timeout(START) {
            Ok(line) if line == "ready" => Ok(worker),
            other => bail!("a worker that should be ready said {other:?}"),
        }
    }

    /// Has it do the operation.
    pub fn go(&mut self) -> Result<()> {
        let mut input = self.child.stdin.take().context("a worker was sent twice")?;
        Ok(writeln!(input, "go")?)
    }

    /// How the operation ended, if it does within a time.
    pub fn ended(&self, within: Duration) -> Result<Option<Result<(), Errno>>> {
        match self.lines.recv_timeout(within) {
            Ok(line) => match line.strip_prefix("done ").map(str::parse) {
                Some(Ok(0)) => Ok(Some(Ok(()))),
                Some(Ok(errno)) => Ok(Some(Err(Errno::from_raw(errno)))),
                _ => bail!("a worker said {line:?}"),
            },
            Err(RecvTimeoutError::Timeout) => Ok(None),
            Err(RecvTimeoutError::Disconnected) => bail!("a worker died"),
        }
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        let _ = self.child.kill();
        // An operation that cannot be killed must not take the checker with it.
        let start = Instant::now();
        while start.elapsed() < Duration::from_secs(5) {
            if !matches!(self.child.try_wait(), Ok(None)) {
                return;
            }
            thread::sleep(Duration::from_millis(2));
        }
        eprintln!("worker {} cannot be killed", self.child.id());
    }
}

/// The worker's side.
pub fn serve(folder: &Path, operation: Operation, way: Way) -> Result<()> {
    let files = Files::open(folder)?;
    println!("ready");
    let mut word = String::new();
    std::io::stdin().read_line(&mut word)?;
    if word.trim() != "go" {
        bail!("told {word:?}");
    }
    let result = match (way, operation.ring()) {
        (Way::Uring, Some(ring)) => ring.perform(&files.file),
        (Way::Uring, None) => Err(Errno::ENOSYS),
        (Way::Call, _) => operation.perform(&files),
    };
    println!("done {}", result.err().map_or(0, |errno| errno as i32));
    Ok(())
}
