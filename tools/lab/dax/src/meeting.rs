//! Pins that are taken at the very moment at which an operation comes. Whichever of the two is first,
//! an operation that waits must show at the pin that it waits for: else nobody would let it go.

use std::fs::File;
use std::os::fd::AsFd;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use holdfast_dax::{Error, Pin};
use holdfast_lab_check::Report;

use crate::operation::{Files, SIZE};

/// Pins, one after the other.
const PINS: u32 = 500;
/// The same of each of two processes, of which one often waits for the other.
const PINS_OF_TWO: u32 = 100;
/// How long the next operation may take to show on a loaded machine.
const LIMIT: Duration = Duration::from_secs(10);

/// Runs it in a folder on a DAX mount.
pub fn run(report: &mut Report, folder: &Path) {
    let name = "pins taken while operations come and go: each that waits shows at its pin";
    report.check(name, || {
        let files = Files::create(folder)?;
        beside_operations(&files, || pins(&files.file, PINS))
    });
    // An operation that waits for one of them may meet another, taken a moment later.
    let name = "the same in two processes that pin the file by the same page";
    report.check(name, || {
        let files = Files::create(folder)?;
        beside_operations(&files, || {
            let other = Command::new(std::env::current_exe()?).arg("meet").arg(&files.path).spawn();
            let mut other = other.context("cannot start the other process")?;
            let (ours, theirs) = (pins(&files.file, PINS_OF_TWO), other.wait()?);
            ensure!(theirs.success(), "the other process: {theirs}");
            ours
        })
    });
}

/// The other process.
pub fn serve(path: &Path) -> Result<()> {
    pins(&File::options().read(true).write(true).open(path)?, PINS_OF_TWO)
}

/// Does something while operations on the file come without pause.
fn beside_operations(files: &Files, what: impl FnOnce() -> Result<()>) -> Result<()> {
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let operations = scope.spawn(|| {
            // It looks for pinned pages whether the size changes or not.
            while !stop.load(Ordering::Relaxed) {
                files.file.set_len(SIZE)?;
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
