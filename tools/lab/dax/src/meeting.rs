//! Pins that are taken at the very moment at which an operation comes. Whichever of the two is first,
//! an operation that waits must show at the pin that it waits for: else nobody would let it go. And
//! what is pinned must be the file's alone, or the next write would exchange it under the pin.

use std::fs::File;
use std::os::fd::AsFd;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use holdfast_dax::{Error, Memory, Pin, Populate, Source};
use holdfast_lab_check::Report;

use crate::operation::{Files, Operation, PAGE, SIZE};

/// Pins, one after the other.
const PINS: u32 = 500;
/// The same of each of two processes, of which one often waits for the other.
const PINS_OF_TWO: u32 = 100;
/// The same, beside clones, each of which takes a while.
const PINS_BESIDE_CLONES: u32 = 60;
/// How long the next operation may take to show on a loaded machine.
const LIMIT: Duration = Duration::from_secs(10);

/// Runs it in a folder on a DAX mount. `recent`: on a kernel with which DAX files share extents, if
/// their file system does.
pub fn run(report: &mut Report, folder: &Path, recent: bool) {
    let name = "pins taken while operations come and go: each that waits shows at its pin";
    report.check(name, || {
        let files = Files::create(folder)?;
        beside(|| files.file.set_len(SIZE), || pins(&files.file, PINS))
    });
    let name = "pins taken while clones of the file are made: none is of a shared page";
    report.check(name, || {
        let files = Files::create(folder)?;
        let clone = || Ok(Operation::CloneFrom.perform(&files)?);
        if !recent || clone().is_err() {
            println!("     no clones here");
            return Ok(());
        }
        beside(clone, || written(&files))
    });
    // An operation that waits for one of them may meet another, taken a moment later.
    let name = "the same in two processes that pin the file by the same page";
    report.check(name, || {
        let files = Files::create(folder)?;
        beside(
            || files.file.set_len(SIZE),
            || {
                let other =
                    Command::new(std::env::current_exe()?).arg("meet").arg(&files.path).spawn();
                let mut other = other.context("cannot start the other process")?;
                let (ours, theirs) = (pins(&files.file, PINS_OF_TWO), other.wait()?);
                ensure!(theirs.success(), "the other process: {theirs}");
                ours
            },
        )
    });
}

/// The other process.
pub fn serve(path: &Path) -> Result<()> {
    pins(&File::options().read(true).write(true).open(path)?, PINS_OF_TWO)
}

/// Does something while operations on the file come without pause. (A `set_len` looks for pinned
/// pages whether the size changes or not.)
fn beside(
    operation: impl Fn() -> std::io::Result<()> + Sync,
    what: impl FnOnce() -> Result<()>,
) -> Result<()> {
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let operations = scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                operation()?;
            }
            std::io::Result::Ok(())
        });
        let done = what();
        stop.store(true, Ordering::Relaxed);
        operations.join().map_err(|_| anyhow::anyhow!("the other thread panicked"))??;
        done
    })
}

fn pins(file: &File, count: u32) -> Result<()> {
    (0..count).try_for_each(|number| shows(file, number))
}

/// Pins, and writes to what was pinned. A page that a clone has as well is exchanged for a copy then,
/// of which the kernel's log tells, since it is pinned.
fn written(files: &Files) -> Result<()> {
    let memory = Memory::open(&Source::fs_dax(&files.path), 0, Populate::No)?;
    let mut taken = 0;
    while taken < PINS_BESIDE_CLONES {
        let mut pin = match Pin::take(files.file.as_fd(), 0) {
            Err(Error::Restless { .. }) => continue,
            pin => pin?,
        };
        memory.populate(0, PAGE)?;
        // Linux 7.3 waits until no page table has it.
        memory.forget(0, PAGE)?;
        pin.release()?;
        taken += 1;
    }
    Ok(())
}

fn shows(file: &File, number: u32) -> Result<()> {
    let mut pin = loop {
        match Pin::take(file.as_fd(), 0) {
            // They come without pause.
            Err(Error::Restless { .. }) => {}
            taken => break taken?,
        }
    };
    let start = Instant::now();
    while !pin.disturbed()? {
        // Dropped, it lets the operation go.
        let shown = start.elapsed() < LIMIT;
        ensure!(shown, "pin {number} shows nothing, and an operation waits for it");
        std::thread::yield_now();
    }
    Ok(pin.release()?)
}
