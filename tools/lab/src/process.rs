//! Child processes that cannot outlive us.
//!
//! Three ways to end, one result. When `lab` returns or unwinds, [`Guarded`]'s drop kills the
//! child's process group and waits for it. On Ctrl-C or SIGTERM a flag is raised, every wait here
//! notices it within a tenth of a second, and the error unwinds to the same drops. When `lab` is
//! killed outright, the kernel kills the child (`PR_SET_PDEATHSIG`); a child that starts others
//! of its own runs in a PID namespace ([`namespaced`]), so they go with it.
//!
//! The parent-death signal belongs to the *thread* that started the child, so children are
//! started from the main thread only.
#![allow(unsafe_code)]

use std::ffi::OsStr;
use std::io::{self, Read};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::prctl;
use nix::sys::signal::{Signal, killpg};
use nix::unistd::{Pid, getppid};

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// Turns SIGINT, SIGTERM and SIGHUP into [`interrupted`]. Call once.
pub fn catch_signals() -> Result<()> {
    ctrlc::set_handler(|| INTERRUPTED.store(true, Ordering::Relaxed))
        .context("cannot install the handler for Ctrl-C")
}

/// Whether someone asked us to stop.
pub fn interrupted() -> bool {
    INTERRUPTED.load(Ordering::Relaxed)
}

/// Whether the child shares our terminal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Terminal {
    /// The child gets a process group of its own; Ctrl-C reaches us only.
    Own,
    /// The child stays in our group and may read the terminal (an interactive guest).
    Shared,
}

/// A child process that is killed and reaped when this is dropped.
#[derive(Debug)]
pub struct Guarded {
    child: Child,
    name: String,
    group: bool,
}

impl Guarded {
    /// Starts `command`; it dies with us.
    pub fn spawn(command: &mut Command, terminal: Terminal) -> Result<Self> {
        let name = command.get_program().to_string_lossy().into_owned();
        let parent = nix::unistd::getpid();
        if terminal == Terminal::Own {
            command.process_group(0);
        }
        // SAFETY: between fork and exec the closure makes three system calls (prctl, getppid and,
        // if the parent is gone already, an error return); it allocates nothing and takes no lock.
        unsafe {
            command.pre_exec(move || {
                prctl::set_pdeathsig(Signal::SIGKILL).map_err(io::Error::from)?;
                if getppid() == parent { Ok(()) } else { Err(io::ErrorKind::BrokenPipe.into()) }
            });
        }
        let child = command.spawn().with_context(|| format!("cannot start {name}"))?;
        Ok(Self { child, name, group: terminal == Terminal::Own })
    }

    /// The same, called `name` in errors.
    pub fn named(mut self, name: &str) -> Self {
        self.name = name.to_owned();
        self
    }

    /// The child's standard output and error, if they were piped and not yet taken.
    pub fn take_output(
        &mut self,
    ) -> (Option<std::process::ChildStdout>, Option<std::process::ChildStderr>) {
        (self.child.stdout.take(), self.child.stderr.take())
    }

    /// The exit status, if it has ended.
    pub fn ended(&mut self) -> Result<Option<ExitStatus>> {
        self.child.try_wait().with_context(|| format!("cannot wait for {}", self.name))
    }

    /// Waits until it ends; fails at an interrupt or after `limit`.
    pub fn wait(&mut self, limit: Duration) -> Result<ExitStatus> {
        let start = Instant::now();
        loop {
            if let Some(status) = self.ended()? {
                return Ok(status);
            }
            self.tick("end", start, limit)?;
        }
    }

    /// Waits until it ended or did something (`what`, in words); fails as [`Guarded::wait`] does.
    pub fn wait_until(
        &mut self,
        what: &str,
        limit: Duration,
        did: impl Fn() -> bool,
    ) -> Result<()> {
        let start = Instant::now();
        while !did() && self.ended()?.is_none() {
            self.tick(what, start, limit)?;
        }
        Ok(())
    }

    fn tick(&self, what: &str, start: Instant, limit: Duration) -> Result<()> {
        if interrupted() {
            bail!("{} stopped", self.name);
        }
        if start.elapsed() > limit {
            bail!("{} did not {what} within {} s", self.name, limit.as_secs());
        }
        std::thread::sleep(Duration::from_millis(20));
        Ok(())
    }
}

impl Drop for Guarded {
    fn drop(&mut self) {
        if !matches!(self.child.try_wait(), Ok(None)) {
            return;
        }
        let pid = Pid::from_raw(self.child.id() as i32);
        let _ = if self.group { killpg(pid, Signal::SIGKILL) } else { Ok(()) };
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// `program` in PID and mount namespaces of its own: when it ends, so does all it started, and
/// every mount it made is gone. Needs root.
pub fn namespaced(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new("unshare");
    command.args(["--pid", "--fork", "--kill-child", "--mount", "--mount-proc", "--"]);
    command.arg(program);
    command
}

/// [`namespaced`], with `root` as the root folder and a /proc in it.
pub fn namespaced_in(root: &Path, program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new("unshare");
    command.args(["--pid", "--fork", "--kill-child", "--mount"]);
    command.arg(format!("--mount-proc={}", root.join("proc").display()));
    command.args(["--", "chroot"]).arg(root).arg(program);
    command
}

/// Runs `command` to its end with its output in `log`, calling `tick` a few times a second with
/// the log's last line. An error carries the log's tail.
pub fn run_logged(
    command: &mut Command,
    log: &Path,
    limit: Duration,
    tick: &mut dyn FnMut(&str),
) -> Result<()> {
    let file = std::fs::File::create(log).with_context(|| format!("cannot write {log:?}"))?;
    command.stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file);
    let mut child = Guarded::spawn(command, Terminal::Own)?;
    let start = Instant::now();
    loop {
        match child.wait(Duration::from_millis(200)) {
            Ok(status) if status.success() => return Ok(()),
            Ok(status) => {
                bail!("{} failed ({status}); its last words:\n{}", child.name, tail(log, 30))
            }
            Err(error) if interrupted() => return Err(error),
            Err(error) if start.elapsed() > limit => return Err(error),
            Err(_) => tick(&tail(log, 1)),
        }
    }
}

/// Runs `command` and returns what it printed; an error carries what it complained of.
pub fn output_of(command: &mut Command) -> Result<String> {
    let name = command.get_program().to_string_lossy().into_owned();
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = Guarded::spawn(command, Terminal::Own)?;
    let (stdout, stderr) = child.take_output();
    let complaints = std::thread::spawn(move || read_all(stderr));
    let text = read_all(stdout);
    let status = child.wait(Duration::from_secs(60))?;
    let complaints = complaints.join().unwrap_or_default();
    if !status.success() {
        bail!("{name} failed ({status}): {}", complaints.trim());
    }
    Ok(text)
}

fn read_all(stream: Option<impl Read>) -> String {
    let mut bytes = Vec::new();
    if let Some(mut stream) = stream {
        let _ = stream.read_to_end(&mut bytes);
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// The last `lines` lines of a text file, without control characters.
pub fn tail(file: &Path, lines: usize) -> String {
    let bytes = std::fs::read(file).unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes);
    let all: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
    let chosen = &all[all.len().saturating_sub(lines)..];
    chosen
        .iter()
        .map(|line| line.chars().filter(|c| !c.is_control()).collect::<String>())
        .collect::<Vec<_>>()
        .join("\n")
}

/// Finds `program` in PATH or the system's administration folders.
pub fn find(program: &str) -> Option<std::path::PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin", "/sbin", "/usr/bin", "/bin"].map(Into::into))
        .map(|folder| folder.join(program))
        .find(|candidate| candidate.is_file())
}
