//! What the layout pin promises, trap by trap: who keeps it alive, who lets it go, and what the
//! guard mapping is for.

use std::fs::{File, OpenOptions};
use std::os::fd::AsFd;
use std::path::Path;
use std::process::{Child, Command};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use holdfast_dax::{AdoptedPin, Error, GRANULE, Memory, Pin, Populate, Source, layout, prove};
use holdfast_lab_check::Report;
use nix::fcntl::{FallocateFlags, FcntlArg, fallocate, fcntl};
use nix::sys::resource::{UsageWho, getrusage};

use crate::handover;
use crate::operation::{AT, Files, Operation, PAGE, SIZE, Way};
use crate::raw;
use crate::worker::Worker;

/// How long an operation must not get anywhere to count as waiting.
const HOLD: Duration = Duration::from_millis(500);
/// How long anything may take on a loaded machine.
const LIMIT: Duration = Duration::from_secs(20);

/// A process that ends with us, at the latest.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A shrinking ftruncate by another process, started.
fn truncation(folder: &Path) -> Result<Worker> {
    let mut worker = Worker::start(folder, Operation::FtruncateShrink, Way::Call)?;
    worker.go()?;
    Ok(worker)
}

fn must_wait(worker: &Worker) -> Result<()> {
    match worker.ended(HOLD)? {
        None => Ok(()),
        Some(result) => bail!("it did not wait: {result:?}"),
    }
}

fn must_end(worker: &Worker) -> Result<()> {
    match worker.ended(LIMIT)? {
        Some(Ok(())) => Ok(()),
        Some(Err(errno)) => bail!("it failed: {errno}"),
        None => bail!("it still waits after {LIMIT:?}"),
    }
}

/// Runs all of them in a folder on a DAX mount. A `recent` kernel (since Linux 6.15) waits for pages
/// of a file that nobody maps as well, and waits until page tables too have let go of a page.
pub fn run(report: &mut Report, folder: &Path, recent: bool) -> Result<()> {
    let open = || -> Result<(Files, Memory)> {
        let files = Files::create(folder)?;
        let memory = Memory::open(&Source::fs_dax(&files.path), 0, Populate::Yes)?;
        Ok((files, memory))
    };
    let take = |files: &Files| Pin::take(files.file.as_fd(), 0);

    report.check("the proof holds on this mount", || {
        let proof = prove(folder)?;
        println!("     {proof}");
        Ok(())
    });

    report.check("dropping a pin releases it", || {
        let (files, _memory) = open()?;
        let pin = take(&files)?;
        let worker = truncation(folder)?;
        must_wait(&worker)?;
        drop(pin);
        must_end(&worker)
    });

    report.check("a pin is released once and may be released again", || {
        let (files, _memory) = open()?;
        let mut pin = take(&files)?;
        ensure!(pin.is_held()? && !pin.is_released() && !pin.disturbed()?, "it is not held");
        pin.release()?;
        pin.release()?;
        ensure!(!pin.is_held()? && pin.is_released() && pin.disturbed()?, "it is still held");
        must_end(&truncation(folder)?)
    });

    report.check("an operation waits for all pins of the file", || {
        let (files, _memory) = open()?;
        let (mut one, mut two) = (take(&files)?, Pin::take(files.file.as_fd(), AT)?);
        let worker = truncation(folder)?;
        must_wait(&worker)?;
        ensure!(one.disturbed()? && two.disturbed()?, "only one shows that it waits");
        one.release()?;
        must_wait(&worker)?;
        two.release()?;
        must_end(&worker)
    });

    report.check("a waiting operation that is killed has changed nothing", || {
        let (files, _memory) = open()?;
        let mut pin = take(&files)?;
        let worker = truncation(folder)?;
        must_wait(&worker)?;
        drop(worker);
        ensure!(files.file.metadata()?.len() == SIZE, "the file was truncated");
        ensure!(pin.disturbed()?, "the guard page forgot it");
        Ok(pin.release()?)
    });

    report.check("a child that inherited the pipe does not keep the pin", || {
        let (files, _memory) = open()?;
        let mut pin = take(&files)?;
        // As fork would: without close-on-exec, into a process that lives on.
        let parts = pin.parts();
        let copy = |fd| fcntl(fd, FcntlArg::F_DUPFD(100)).map(raw::own);
        let copies = [copy(parts.read)?, copy(parts.write)?];
        let _child = Killed(Command::new("sleep").arg("600").spawn()?);
        drop(copies);
        let worker = truncation(folder)?;
        must_wait(&worker)?;
        pin.release()?;
        must_end(&worker)
    });

    report.check("a hole is filled before it is pinned", || {
        let files = Files::create(folder)?;
        files.file.set_len(0)?;
        files.file.set_len(SIZE)?;
        let mut pin = Pin::take(files.file.as_fd(), AT)?;
        let worker = truncation_to_nothing(folder)?;
        must_wait(&worker)?;
        pin.release()?;
        must_end(&worker)?;
        files.file.set_len(SIZE)?;
        let _pin = Pin::take(files.file.as_fd(), AT)?;
        let found = layout(files.file.as_fd(), 0, SIZE)?;
        let only = found.len() == 1 && (found[0].offset, found[0].len) == (AT, PAGE);
        ensure!(only && !found[0].unwritten, "the pinned hole is {found:?}");
        Ok(())
    });

    report.check("a file mapped by huge pages is pinned like any other", || {
        let files = Files::create(folder)?;
        files.file.set_len(0)?;
        fallocate(&files.file, FallocateFlags::empty(), 0, 2 * GRANULE as i64)?;
        let memory = Memory::open(&Source::fs_dax(&files.path), 0, Populate::No)?;
        let faults = || getrusage(UsageWho::RUSAGE_THREAD).map(|usage| usage.minor_page_faults());
        let before = faults()?;
        memory.populate(0, 2 * GRANULE)?;
        let count = faults()? - before;
        ensure!(count < 100, "1024 pages took {count} faults: it is mapped by small pages");
        // In the middle of a huge page.
        let mut pin = Pin::take(files.file.as_fd(), GRANULE + 7 * PAGE)?;
        let worker = truncation(folder)?;
        must_wait(&worker)?;
        ensure!(pin.disturbed()?, "the guard page does not show it");
        pin.release()?;
        must_end(&worker)
    });

    report.check("nothing is pinned beyond the end of the file", || {
        let files = Files::create(folder)?;
        match Pin::take(files.file.as_fd(), SIZE) {
            Err(Error::Pin { call: "MADV_POPULATE_WRITE", .. }) => Ok(()),
            other => bail!("it gives {other:?}"),
        }
    });

    report.check("without a guard mapping an old kernel does not wait, a recent one does", || {
        let (_files, memory) = open()?;
        let pipe = raw::page_in_pipe(memory.as_ptr())?;
        drop(memory);
        let worker = truncation(folder)?;
        if recent {
            must_wait(&worker)?;
        }
        drop(pipe);
        must_end(&worker)
    });

    report.check(
        "a touch of the pinned page keeps a recent kernel waiting until forgotten",
        || {
            let (files, memory) = open()?;
            let mut pin = take(&files)?;
            let worker = truncation(folder)?;
            must_wait(&worker)?;
            memory.read_at(0, &mut [0])?;
            pin.release()?;
            if recent {
                must_wait(&worker)?;
            }
            memory.forget(0, PAGE)?;
            must_end(&worker)
        },
    );

    adoption(report, folder, &open);
    many(report, folder);
    Ok(())
}

/// That pins are not proven in a folder, and that the refusal has these words.
pub fn no_proof(report: &mut Report, folder: &Path, words: &str) {
    report.check(&format!("no proof in {}: {words}", folder.display()), || match prove(folder) {
        Err(error) if error.to_string().contains(words) => Ok(()),
        Err(error) => bail!("it says: {error}"),
        Ok(proof) => bail!("it is given: {proof}"),
    });
}

fn truncation_to_nothing(folder: &Path) -> Result<Worker> {
    let mut worker = Worker::start(folder, Operation::OpenTrunc, Way::Call)?;
    worker.go()?;
    Ok(worker)
}

type Open<'a> = dyn Fn() -> Result<(Files, Memory)> + 'a;

/// Pins that outlive the process that took them.
fn adoption(report: &mut Report, folder: &Path, open: &Open<'_>) {
    report.check("an adopted pin holds when its owner is killed", || {
        let files = Files::create(folder)?;
        let (owner, parts) = handover::owner(folder)?;
        let mut owner = Killed(owner);
        let adopted = AdoptedPin::adopt(parts)?;
        let worker = truncation(folder)?;
        must_wait(&worker)?;
        owner.0.kill()?;
        owner.0.wait()?;
        must_wait(&worker)?;
        ensure!(adopted.is_held()?, "the pipe is empty");
        ensure!(files.file.metadata()?.len() == SIZE, "the file was truncated");
        adopted.release()?;
        ensure!(!adopted.is_held()?, "the pipe is not empty");
        must_end(&worker)
    });

    report.check("with no adopted pin the operation goes on when the owner is killed", || {
        let _files = Files::create(folder)?;
        let (owner, parts) = handover::owner(folder)?;
        let mut owner = Killed(owner);
        drop(parts);
        let worker = truncation(folder)?;
        must_wait(&worker)?;
        owner.0.kill()?;
        owner.0.wait()?;
        must_end(&worker)
    });

    report.check("an adopted pin does not keep an operation that the owner let go", || {
        let (files, _memory) = open()?;
        let mut pin = Pin::take(files.file.as_fd(), 0)?;
        let adopted = AdoptedPin::adopt(handover::copy(&pin.parts())?)?;
        let worker = truncation(folder)?;
        must_wait(&worker)?;
        pin.release()?;
        must_end(&worker)?;
        ensure!(!adopted.is_held()?, "the pipe is not empty");
        Ok(())
    });
}

/// As many pins as a driver with many regions has.
fn many(report: &mut Report, folder: &Path) {
    report.check("a thousand files are pinned at once", || {
        let folder = folder.join("many");
        std::fs::create_dir_all(&folder)?;
        let mut pins = Vec::new();
        for index in 0..1000 {
            let path = folder.join(index.to_string());
            let file: File =
                OpenOptions::new().read(true).write(true).create(true).truncate(true).open(path)?;
            file.set_len(PAGE)?;
            let pin = Pin::take(file.as_fd(), 0).with_context(|| format!("file {index}"))?;
            pins.push(pin);
        }
        for pin in &pins {
            ensure!(pin.is_held()? && !pin.disturbed()?, "{} is not held", pin.file_id());
        }

        drop(pins);
        Ok(std::fs::remove_dir_all(&folder)?)
    });
}
