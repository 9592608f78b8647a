//! The emulated NIC as a child process: this very program, started as `holdfast nic`.
//!
//! The child lives no longer than its parent, however that ends: it is told to stop and waited
//! for when [`NicChild`] is dropped, and asks the kernel for a SIGTERM when the parent dies
//! without saying so (`--parent`, PR_SET_PDEATHSIG). Its sockets are in a folder of their own,
//! which the one who leaves last removes. It has its own process group, so that Ctrl-C at a
//! terminal reaches the parent alone, which then ends both in order.

use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

use super::interrupt;

/// How long the child may take to be ready, or to end after SIGTERM.
const PATIENCE: Duration = Duration::from_secs(10);
/// A socket's path must fit 108 bytes (unix(7)).
const MAX_SOCKET_PATH: usize = 107;

/// A running emulated NIC.
#[derive(Debug)]
pub struct NicChild {
    child: Child,
    folder: TempDir,
    sockets: Vec<PathBuf>,
}

impl NicChild {
    /// Starts a process with `nics` NICs that reach each other, its working thread on `cpu`, and
    /// waits until it is ready. With `poll` the NIC never sleeps.
    ///
    /// Call it on a thread that lives as long as the NIC is needed: the kernel counts the end of
    /// the starting thread as the parent's death.
    pub fn start(nics: usize, cpu: Option<usize>, poll: bool) -> anyhow::Result<Self> {
        let folder = folder()?;
        interrupt::remove_on_abort(folder.path());
        let sockets: Vec<PathBuf> =
            (0..nics).map(|nic| folder.path().join(format!("{nic}.sock"))).collect();
        let program = std::env::current_exe().context("cannot find this program's own file")?;
        let mut command = Command::new(program);
        command.arg("nic").arg("--json");
        command.args(["--parent", &std::process::id().to_string()]);
        // On a busy machine the guard may be as late as this with scrap.
        command.args(["--stall-bound", "5"]);
        for socket in &sockets {
            command.arg("--socket").arg(socket);
        }
        if let Some(cpu) = cpu {
            command.args(["--cpu", &cpu.to_string()]);
        }
        if poll {
            command.arg("--poll");
        }
        command.stdin(Stdio::null()).stdout(Stdio::piped()).process_group(0);
        let child = command.spawn().context("cannot start the emulated NIC's process")?;
        let mut nic = Self { child, folder, sockets };
        nic.wait_ready()?;
        Ok(nic)
    }

    /// The NICs' sockets.
    pub fn sockets(&self) -> &[PathBuf] {
        &self.sockets
    }

    fn wait_ready(&mut self) -> anyhow::Result<()> {
        let stdout = self.child.stdout.take().context("the NIC's output is not a pipe")?;
        let (ready, line) = mpsc::channel();
        thread::spawn(move || {
            let mut text = String::new();
            let read = BufReader::new(stdout).read_line(&mut text);
            let _ = ready.send(read.map(|_| text));
        });
        let deadline = Instant::now() + PATIENCE;
        loop {
            interrupt::check()?;
            match line.recv_timeout(Duration::from_millis(50)) {
                Ok(Ok(text)) if text.contains("\"ready\":true") => return Ok(()),
                Ok(_) => {
                    let status = self.child.wait().context("waiting for the NIC's process")?;
                    bail!("the emulated NIC's process ended before it was ready ({status})");
                }
                Err(_) if Instant::now() >= deadline => {
                    bail!("the emulated NIC was not ready within {PATIENCE:?}");
                }
                Err(_) => {}
            }
        }
    }

    /// Asks the child to end, and makes it end if it does not within the time.
    fn stop(&mut self) {
        let Ok(pid) = i32::try_from(self.child.id()) else { return };
        let _ = kill(Pid::from_raw(pid), Signal::SIGTERM);
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline {
            match self.child.try_wait() {
                Ok(None) => thread::sleep(Duration::from_millis(2)),
                Ok(Some(_)) | Err(_) => return,
            }
        }
        tracing::warn!(pid, "the emulated NIC did not end by itself and is killed");
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for NicChild {
    fn drop(&mut self) {
        self.stop();
        // The folder goes with `folder`; the child may have removed it already.
        tracing::debug!(folder = %self.folder.path().display(), "the emulated NIC has ended");
    }
}

/// A fresh folder whose path is short enough for sockets in it.
fn folder() -> anyhow::Result<TempDir> {
    let base = std::env::temp_dir();
    let short = |base: &Path| base.as_os_str().len() + "/holdfast-xxxxxx/00.sock".len();
    let base = if short(&base) <= MAX_SOCKET_PATH { base } else { PathBuf::from("/tmp") };
    tempfile::Builder::new()
        .prefix("holdfast-")
        .tempdir_in(&base)
        .with_context(|| format!("cannot make a folder in {}; set TMPDIR", base.display()))
}
