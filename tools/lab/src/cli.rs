//! The command line.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::{Args, Parser, Subcommand};

use crate::cache::Cache;
use crate::debian::{Debian, KernelVersion};
use crate::guest::{Accelerator, Console, Job, Machine, Nic, QemuVersion, RunDir, qemu_for};
use crate::{process, suite};

const EXAMPLES: &str = "\
Examples, as `cargo lab ...` in the project:
  lab up --nic holdfast                          a shell in a guest with an emulated NIC
  lab run --nic holdfast -- 'holdfast devices'   one command in a guest
  lab run --kernel 7.3 -- ./program ARG          a program of this machine's, on Linux 7.3
  lab test                                       every suite on every kernel
  lab test compare --json out.json               Holdfast and Linux's driver side by side

Exit status: the guest's command's, of `run` and `up`; of `test`, 0 if every check passed, else 1;
2 for an error; 3 if this machine lacks what it takes; 130 after Ctrl-C.";

/// Guests with a real VFIO, a real vIOMMU and a choice of QEMU, kernel and RDMA NIC.
#[derive(Parser)]
#[command(name = "lab", version, after_help = EXAMPLES)]
struct Cli {
    /// Where images and packages are kept [default: holdfast/lab in the user's cache folder]
    #[arg(long, global = true, value_name = "DIR", env = "HOLDFAST_LAB_CACHE")]
    cache: Option<PathBuf>,
    /// Debian mirror to fetch from [default: the one in this machine's apt configuration]
    #[arg(long, global = true, value_name = "URL", env = "HOLDFAST_LAB_MIRROR")]
    mirror: Option<String>,
    /// The `holdfast` command for guests and emulated NICs [default: the one beside this program]
    #[arg(long, global = true, value_name = "PATH")]
    holdfast: Option<PathBuf>,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// A shell in a guest; `holdfast` is in its PATH. Ctrl-D or `exit` powers it off
    Up {
        #[command(flatten)]
        guest: GuestArgs,
    },
    /// Runs one command in a guest and returns its exit status
    Run {
        #[command(flatten)]
        guest: GuestArgs,
        /// Shows the boot messages too
        #[arg(long)]
        verbose: bool,
        /// Puts the files that the command left in /job/out here, and the kernel log
        #[arg(long, value_name = "DIR")]
        out: Option<PathBuf>,
        /// The command; a file of this machine named first is taken along
        #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
        command: Vec<String>,
    },
    /// Runs the test suites, or the named ones
    Test(suite::TestArgs),
    /// Fetches and builds everything that the suites need, runs nothing, and prints the folder
    Prepare,
    /// Removes everything from the cache folder
    Clean,
}

/// What the guest is made of.
#[derive(Args)]
struct GuestArgs {
    /// Its kernel
    #[arg(long, value_enum, default_value = "6.1")]
    kernel: KernelVersion,
    /// The QEMU that runs it [default: the one that has the NICs, else 11.1]
    #[arg(long, value_enum)]
    qemu: Option<QemuVersion>,
    /// What executes its instructions
    #[arg(long, value_enum, default_value = "auto")]
    accel: Accelerator,
    /// A NIC or DMA engine, behind the vIOMMU; may be repeated
    /// (holdfast | socket=PATH | qemu-pvrdma | edu | iommu-testdev; the first two with +vmxnet3)
    #[arg(long, value_name = "NIC")]
    nic: Vec<Nic>,
    /// One more argument for `holdfast nic`; may be repeated
    #[arg(long, value_name = "ARG", allow_hyphen_values = true)]
    nic_option: Vec<String>,
    /// One more `-device` for QEMU; may be repeated
    #[arg(long, value_name = "DEVICE")]
    device: Vec<String>,
    /// Memory in MiB
    #[arg(long, default_value_t = 2048)]
    memory: u32,
    /// Processors
    #[arg(long, default_value_t = 2)]
    cpus: u32,
    /// Persistent memory in MiB
    #[arg(long, default_value_t = 0, value_name = "MIB")]
    nvdimm: u32,
    /// More kernel parameters
    #[arg(long, default_value = "", value_name = "TEXT", allow_hyphen_values = true)]
    append: String,
    /// Builds and loads Linux's vmw_pvrdma driver
    #[arg(long)]
    vmw_pvrdma: bool,
    /// Copies a file or folder to /job in the guest; may be repeated
    #[arg(long, short, value_name = "PATH")]
    file: Vec<PathBuf>,
    /// Seconds until a guest that has not ended is killed (`run`)
    #[arg(long, default_value_t = 600, value_name = "SECONDS")]
    timeout: u64,
}

impl GuestArgs {
    fn machine(&self) -> Result<Machine> {
        Ok(Machine {
            kernel: self.kernel,
            qemu: qemu_for(&self.nic, self.qemu)?,
            accelerator: self.accel,
            cpus: self.cpus,
            memory_mib: self.memory,
            nics: self.nic.clone(),
            nic_options: self.nic_option.clone(),
            devices: self.device.clone(),
            append: self.append.clone(),
            nvdimm_mib: self.nvdimm,
            limit: Duration::from_secs(self.timeout),
        })
    }

    fn job(&self, debian: &Debian, holdfast: &Path, script: String) -> Result<Job> {
        let mut job = Job::script(script).module("vfio-pci").module("vfio_iommu_type1");
        if holdfast.is_file() {
            job = job.file(holdfast, "bin/holdfast");
        }
        for path in &self.file {
            job = job.file(path, base_name(path)?);
        }
        if self.vmw_pvrdma {
            job = job.file(debian.vmw_pvrdma(self.kernel)?, "vmw_pvrdma.ko");
            job = job.text("bin/lab-rdma", suite::LAB_RDMA);
        }
        Ok(job)
    }
}

/// Reads the command line, does what it says, and returns the exit status.
pub fn run() -> Result<u8> {
    let cli = Cli::parse();
    let cache = Cache::open(cli.cache)?;
    let run = RunDir::new(cache.root())?;
    process::catch_signals()?;
    let holdfast = match cli.holdfast {
        Some(path) => path,
        None => beside_us("holdfast")?,
    };
    let debian = Debian::new(cache, cli.mirror);
    match cli.verb {
        Verb::Up { guest } => {
            let setup = if guest.vmw_pvrdma { "lab-rdma\n" } else { "" };
            let terminal = terminal_setup();
            let script = format!("{terminal}{setup}cd /job; exec bash -i || exec sh -i");
            let job = guest.job(&debian, &holdfast, script)?;
            let outcome =
                guest.machine()?.run(&debian, &run, &job, &holdfast, Console::Interactive)?;
            Ok(outcome.status)
        }
        Verb::Run { guest, verbose, out, command } => {
            let setup = if guest.vmw_pvrdma { "lab-rdma || exit\n" } else { "" };
            let mut words = command;
            let mut taken = None;
            let first = PathBuf::from(&words[0]);
            if words[0].contains('/') && first.is_file() {
                let name = format!("bin/{}", base_name(&first)?);
                words[0] = format!("/job/{name}");
                taken = Some((first, name));
            }
            // One word is a shell line; several are a command and its arguments.
            let line = match &words[..] {
                [line] => line.clone(),
                words => {
                    words.iter().map(|word| crate::guest::quote(word)).collect::<Vec<_>>().join(" ")
                }
            };
            let mut job = guest.job(&debian, &holdfast, format!("{setup}{line}\n"))?;
            if let Some((path, name)) = taken {
                job = job.file(path, name);
            }
            let console = if verbose { Console::StreamAll } else { Console::Stream };
            let outcome = guest.machine()?.run(&debian, &run, &job, &holdfast, console)?;
            if let Some(folder) = out {
                copy_folder(&outcome.out, &folder)?;
            }
            Ok(outcome.status)
        }
        Verb::Test(arguments) => suite::test(&arguments, &debian, &run, &holdfast),
        Verb::Prepare => {
            suite::prepare(&debian)?;
            println!("{}", debian.cache.root().display());
            Ok(0)
        }
        Verb::Clean => {
            let freed = debian.cache.clean()?;
            println!("removed {} MB from {}", freed / 1_000_000, debian.cache.root().display());
            Ok(0)
        }
    }
}

/// Tells the guest's terminal the size of ours; a serial line does not carry it.
fn terminal_setup() -> String {
    let mut stty = std::process::Command::new("stty");
    // `output` alone would give it no standard input, and so no terminal.
    let size = stty.arg("size").stdin(std::process::Stdio::inherit()).output();
    let size = size.map(|output| String::from_utf8_lossy(&output.stdout).into_owned());
    let size = size.unwrap_or_default();
    match size.split_whitespace().collect::<Vec<_>>()[..] {
        [rows, columns] => format!("stty rows {rows} cols {columns}\n"),
        _ => String::new(),
    }
}

/// A program in the folder of ours.
pub fn beside_us(name: &str) -> Result<PathBuf> {
    let ours = std::env::current_exe().context("cannot tell where this program is")?;
    Ok(ours.with_file_name(name))
}

fn base_name(path: &Path) -> Result<String> {
    let path = path.canonicalize().with_context(|| format!("no such file: {path:?}"))?;
    let name = path.file_name().with_context(|| format!("{path:?} has no name"))?;
    Ok(name.to_string_lossy().into_owned())
}

/// Copies a folder of files and folders.
pub fn copy_folder(from: &Path, to: &Path) -> Result<()> {
    std::fs::create_dir_all(to).with_context(|| format!("cannot make {to:?}"))?;
    for entry in std::fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy_folder(&entry.path(), &target)?;
        } else if entry.file_type()?.is_file() {
            std::fs::copy(entry.path(), &target)?;
        } else {
            bail!("{:?} is neither a file nor a folder", entry.path());
        }
    }
    Ok(())
}
