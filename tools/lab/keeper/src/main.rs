//! `lab-keeper`: the keeper with a real VFIO container and a pinned file on persistent memory. It
//! runs in a lab guest and prints one line for each check.
//!
//! The driver that is killed is this program as well (`lab-keeper drive`). It maps a page of the
//! file into the container, through /dev/mem, under a layout pin, and hands both to a keeper.

mod drive;
mod pinned;

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, ExitCode, Stdio};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context as _, Result, bail, ensure};
use clap::{Parser, Subcommand};
use holdfast_lab_check::Report;
use holdfast_vfio::pci::Address;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// How long a layout operation may wait for a driver that does not answer.
const DEADLINE: Duration = Duration::from_secs(1);
/// How long anything may take that does not wait for a deadline; guests are slow.
const SOON: Duration = Duration::from_secs(3);
/// How long something that must not happen is waited for.
const NEVER: Duration = Duration::from_secs(2);

/// Checks the keeper.
#[derive(Parser)]
struct Cli {
    /// The `holdfast` program
    #[arg(long)]
    holdfast: PathBuf,
    /// PCI address of a function bound to vfio-pci
    #[arg(long, value_parser = |text: &str| text.parse::<Address>().map_err(|error| error.to_string()))]
    device: Address,
    /// A file on an fs-dax mount; it is overwritten
    #[arg(long)]
    file: PathBuf,
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    /// Runs all checks
    Check {
        /// Drivers to kill
        #[arg(long, default_value_t = 20)]
        rounds: u32,
    },
    /// Is a driver, until it is killed
    Drive {
        /// Maps nothing, and hands its pin over when it is asked to
        #[arg(long)]
        unheld: bool,
    },
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let result = match cli.what {
        What::Check { rounds } => check(&cli, rounds),
        What::Drive { unheld } => {
            drive::run(&cli.holdfast, cli.device, &cli.file, unheld).map(|()| true)
        }
    };
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("lab-keeper: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// A check; it may kill so many drivers.
type Check = fn(&Cli, u32) -> Result<()>;

fn check(cli: &Cli, rounds: u32) -> Result<bool> {
    let checks: [(&str, Check); 5] = [
        ("a keeper that is stopped still holds the pin of a dead driver", held_by_the_keeper),
        ("a driver that releases its pin is enough, though the keeper has a guard page", released),
        (
            "a pin handed over while a truncate waits holds it up no longer than the driver",
            held_late,
        ),
        ("a late driver loses its mappings, and the truncate goes on", late),
        ("drivers killed at any moment hold no truncate up", killed),
    ];
    let mut report = Report::default();
    for (name, check) in checks {
        report.check(name, || check(cli, rounds));
    }
    Ok(report.failed == 0)
}

/// The pin and the guard page of the keeper alone keep a truncate waiting.
fn held_by_the_keeper(cli: &Cli, _: u32) -> Result<()> {
    let mut driver = Driver::start(cli, &[])?;
    kill(driver.keeper, Signal::SIGSTOP)?;
    driver.child.kill()?;
    driver.child.wait()?;
    let truncate = Truncate::start(&cli.file);
    thread::sleep(NEVER);
    let early = truncate.is_done();
    kill(driver.keeper, Signal::SIGCONT)?;
    ensure!(!early, "the truncate went on while the keeper was stopped");
    let took = truncate.wait(SOON)?;
    println!("     truncate after {took:?}, {:?} of them stopped", NEVER);
    Ok(())
}

/// The keeper's guard page does not count, whether it has been told of the release or not.
fn released(cli: &Cli, _: u32) -> Result<()> {
    let mut driver = Driver::start(cli, &[])?;
    let truncate = Truncate::start(&cli.file);
    thread::sleep(DEADLINE / 4);
    ensure!(!truncate.is_done(), "the truncate did not wait for the pin");
    driver.ask("retarget")?;
    let released = Instant::now();
    driver.ask("release")?;
    truncate.wait(DEADLINE / 2)?;
    println!("     truncate {:?} after the release", released.elapsed());
    driver.ask("let go")?;
    thread::sleep(2 * DEADLINE);
    ensure!(driver.child.try_wait()?.is_none(), "the driver did not live on");
    Ok(())
}

/// Handing a pin over touches its page again, which Linux 7.3 waits for until the pin is let go.
fn held_late(cli: &Cli, _: u32) -> Result<()> {
    let mut driver = Driver::start(cli, &["--unheld"])?;
    let truncate = Truncate::start(&cli.file);
    thread::sleep(DEADLINE / 4);
    ensure!(!truncate.is_done(), "the truncate did not wait for the pin");
    driver.ask("hold")?;
    driver.ask("release")?;
    thread::sleep(DEADLINE / 4);
    let early = truncate.is_done();
    driver.ask("let go")?;
    truncate.wait(DEADLINE / 2)?;
    println!("     before the keeper let go, the truncate was done: {early}");
    Ok(())
}

fn late(cli: &Cli, _: u32) -> Result<()> {
    let mut driver = Driver::start(cli, &[])?;
    let pid = Pid::from_raw(driver.child.id() as i32);
    kill(pid, Signal::SIGSTOP)?;
    let truncate = Truncate::start(&cli.file);
    let took = truncate.wait(DEADLINE + SOON)?;
    kill(pid, Signal::SIGCONT)?;
    ensure!(took >= DEADLINE, "the truncate went on after {took:?} already");
    let said = driver.ask("event")?;
    ensure!(said.contains("Revoked"), "the driver heard {said}");
    let said = driver.ask("retarget")?;
    ensure!(said.contains("chunks: 1, vanished: 1, holes: 0"), "the retarget did {said}");
    println!("     truncate after {took:?}, of which the deadline is {DEADLINE:?}");
    Ok(())
}

/// Kills drivers at any moment, before a truncate, while it waits, and shortly after it started.
fn killed(cli: &Cli, rounds: u32) -> Result<()> {
    let mut longest = Duration::ZERO;
    for round in 0..rounds {
        let mut driver = Driver::start(cli, &[])?;
        let random = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?.subsec_nanos();
        let delay = Duration::from_micros(u64::from(random % 200_000));
        let waiting = !round.is_multiple_of(4);
        let start = if waiting { Some(Truncate::start(&cli.file)) } else { None };
        thread::sleep(delay);
        let early = start.as_ref().is_some_and(Truncate::is_done);
        let killed = Instant::now();
        driver.child.kill()?;
        let truncate = start.unwrap_or_else(|| Truncate::start(&cli.file));
        truncate.wait(DEADLINE + SOON).with_context(|| format!("round {round}, {delay:?}"))?;
        longest = longest.max(killed.elapsed());
        ensure!(!early, "round {round}: the truncate did not wait for the pin");
        driver.child.wait()?;
    }
    println!("     longest time from the kill to the truncate's end: {longest:?}");
    Ok(())
}

/// A truncate on a thread of its own.
struct Truncate {
    start: Instant,
    thread: JoinHandle<std::io::Result<Instant>>,
}

impl Truncate {
    fn start(file: &Path) -> Self {
        let file = file.to_owned();
        let start = Instant::now();
        let thread = thread::spawn(move || {
            std::fs::OpenOptions::new().write(true).open(file)?.set_len(0)?;
            Ok(Instant::now())
        });
        Self { start, thread }
    }

    fn is_done(&self) -> bool {
        self.thread.is_finished()
    }

    /// Waits for its end and gives the time it took.
    fn wait(self, patience: Duration) -> Result<Duration> {
        let from = Instant::now();
        while !self.is_done() {
            ensure!(from.elapsed() < patience, "the truncate still waits after {patience:?}");
            thread::sleep(Duration::from_millis(1));
        }
        match self.thread.join() {
            Ok(end) => Ok(end?.duration_since(self.start)),
            Err(_) => bail!("the truncate's thread panicked"),
        }
    }
}

/// A driver process.
struct Driver {
    child: Child,
    stdin: ChildStdin,
    lines: BufReader<ChildStdout>,
    keeper: Pid,
}

impl Driver {
    /// Writes the file anew and starts a driver that has a page of it mapped and pinned.
    fn start(cli: &Cli, options: &[&str]) -> Result<Self> {
        std::fs::write(&cli.file, vec![0x5a; 2 << 20]).context("writing the file")?;
        let mut child = Command::new(std::env::current_exe()?)
            .arg("--holdfast")
            .arg(&cli.holdfast)
            .args(["--device", &cli.device.to_string(), "--file"])
            .arg(&cli.file)
            .arg("drive")
            .args(options)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let stdin = child.stdin.take().context("no pipe")?;
        let mut lines = BufReader::new(child.stdout.take().context("no pipe")?);
        let mut line = String::new();
        lines.read_line(&mut line)?;
        let keeper = line.trim().strip_prefix("keeper ").context("the driver did not get ready")?;
        let keeper = Pid::from_raw(keeper.parse()?);
        Ok(Self { child, stdin, lines, keeper })
    }

    fn ask(&mut self, what: &str) -> Result<String> {
        writeln!(self.stdin, "{what}")?;
        let mut line = String::new();
        self.lines.read_line(&mut line)?;
        Ok(line)
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        let _ = kill(self.keeper, Signal::SIGCONT);
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
