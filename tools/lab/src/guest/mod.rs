//! A guest: a QEMU, a kernel, the shared root image, devices, and one job.
//!
//! The job travels as a tar on a disk of its own; the console is the guest's serial port; the
//! exit status and the files that the job left in `/job/out` come back through two virtio serial
//! ports. Every guest starts from the same images and changes none of them.

mod console;
mod job;
mod nic;
mod pvrdma;
mod qemu;
mod rundir;

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};

pub use job::{Job, quote};
pub use nic::{Nic, qemu_for};
pub use qemu::{Accelerator, QemuVersion};
pub use rundir::RunDir;

use crate::debian::{Debian, KernelVersion};
use crate::process::{self, Guarded, Terminal};

/// What a guest is made of.
#[derive(Debug, Clone)]
pub struct Machine {
    pub kernel: KernelVersion,
    pub qemu: QemuVersion,
    pub accelerator: Accelerator,
    pub cpus: u32,
    pub memory_mib: u32,
    /// RDMA NICs and DMA engines.
    pub nics: Vec<Nic>,
    /// More arguments of `holdfast nic`.
    pub nic_options: Vec<String>,
    /// More `-device` arguments, as QEMU takes them.
    pub devices: Vec<String>,
    /// More kernel parameters.
    pub append: String,
    /// MiB of persistent memory, 0 for none.
    pub nvdimm_mib: u32,
    /// From power-on to power-off.
    pub limit: Duration,
}

/// How the console of a guest is treated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Console {
    /// The terminal is the guest's console until it powers off.
    Interactive,
    /// What the job prints goes to our standard output as it comes.
    Stream,
    /// As `Stream`, with the boot messages.
    StreamAll,
}

/// A kernel says something within seconds, also without KVM. Now and then one does not, of some
/// hundred: it hangs before it has a console.
const SPEAKS_WITHIN: Duration = Duration::from_secs(120);

/// How a guest's job ended.
#[derive(Debug)]
pub struct Outcome {
    /// The command's exit status.
    pub status: u8,
    /// All that the console said.
    pub console: String,
    /// The folder with what the job left in `/job/out`, and `dmesg`, `console`, `qemu.log` and
    /// `nic.log`.
    pub out: PathBuf,
    /// What QEMU said.
    pub qemu_log: String,
    /// What the emulated NIC said.
    pub nic_log: String,
    /// Seconds from start to end.
    pub seconds: f64,
}

impl Machine {
    /// Boots the machine, runs the job and waits for the guest to power off.
    pub fn run(
        &self,
        debian: &Debian,
        run: &RunDir,
        job: &Job,
        holdfast: &Path,
        console: Console,
    ) -> Result<Outcome> {
        qemu_for(&self.nics, Some(self.qemu))?;
        let kernel = debian.kernel(self.kernel)?;
        let root = debian.guest_root()?;
        let qemu = debian.qemu(self.qemu)?;
        let start = Instant::now();
        let folder = run.fresh()?;
        job.write(&folder.join("job.tar"))?;

        let mut attached = nic::attach(&self.nics, holdfast, &self.nic_options, &folder)?;
        let mut command = qemu.command(self, &kernel, &root, &folder, &attached)?;
        let log = folder.join("qemu.log");
        let terminal = if console == Console::Interactive {
            command.args(["-serial", "mon:stdio"]);
            Terminal::Shared
        } else {
            command.args(["-serial", "stdio"]);
            command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(File::create(&log)?);
            Terminal::Own
        };
        let settings = console::TerminalSettings::save();
        let mut child = Guarded::spawn(&mut command, terminal)?.named("the guest");
        let reader = child.take_output().0.map(|pipe| console::Reader::start(pipe, console));
        let waited = self.wait(&mut child, console, reader.as_ref());
        drop(child);
        drop(settings);
        let text = reader.map(console::Reader::finish).unwrap_or_default();
        let served = attached.server.as_mut().map(Guarded::ended).transpose()?.flatten();
        drop(attached);

        let words = || {
            let mut words = format!("the console's last words:\n{}", console::tail(&text, 40));
            for (name, file) in [("QEMU", "qemu.log"), ("the NIC", "nic.log")] {
                let said = process::tail(&folder.join(file), 15);
                if !said.is_empty() {
                    words += &format!("\n{name} said:\n{said}");
                }
            }
            words
        };
        waited.map_err(|error| anyhow!("{error:#}; {}", words()))?;
        if let Some(status) = served {
            bail!("the emulated NIC ended before the guest, with {status}; {}", words());
        }
        let out = folder.join("out");
        fs::create_dir_all(&out)?;
        if let Ok(archive) = File::open(folder.join("out.tar")) {
            tar::Archive::new(archive).unpack(&out).context("cannot unpack what the guest sent")?;
        }
        fs::write(out.join("console"), &text)?;
        for name in ["nic.log", "qemu.log"] {
            if let Ok(said) = fs::read(folder.join(name)) {
                fs::write(out.join(name), said)?;
            }
        }
        let status = fs::read_to_string(folder.join("status")).unwrap_or_default();
        let Ok(status) = status.trim().parse() else {
            bail!("the guest ended without an exit status; {}", words());
        };
        let qemu_log = fs::read_to_string(folder.join("qemu.log")).unwrap_or_default();
        let nic_log = process::tail(&folder.join("nic.log"), 40);
        let seconds = start.elapsed().as_secs_f64();
        Ok(Outcome { status, console: text, out, qemu_log, nic_log, seconds })
    }

    fn wait(
        &self,
        child: &mut Guarded,
        console: Console,
        reader: Option<&console::Reader>,
    ) -> Result<()> {
        if let Some(reader) = reader {
            child.wait_until("say anything", SPEAKS_WITHIN, || reader.has_spoken())?;
        }
        let limit = if console == Console::Interactive { Duration::MAX } else { self.limit };
        let status = child.wait(limit)?;
        if !nic::may_end_so(&self.nics, status) {
            bail!("QEMU ended with {status}");
        }
        Ok(())
    }
}
