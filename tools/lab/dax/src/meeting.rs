//! Pins that are taken at the very moment at which an operation comes. Whichever of the two is first,
//! an operation that waits must show at the pin that it waits for: else nobody would let it go.

use std::os::fd::AsFd;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use holdfast_dax::{Error, Pin};
use holdfast_lab_check::Report;

use crate::operation::{Files, SIZE};

/// Pins, one after the other.
const PINS: u32 = 500;
/// How long the next operation may take to show on a loaded machine.
const LIMIT: Duration = Duration::from_secs(10);

/// Runs it in a folder on a DAX mount.
pub fn run(report: &mut Report, folder: &Path) {
    let name = "pins taken while operations come and go: each that waits shows at its pin";
    report.check(name, || {
        let files = Files::create(folder)?;
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let operations = scope.spawn(|| {
                // It looks for pinned pages whether the size changes or not.
                while !stop.load(Ordering::Relaxed) {
                    files.file.set_len(SIZE)?;
                }
                std::io::Result::Ok(())
            });
            let shown = (0..PINS).try_for_each(|number| shows(&files, number));
            stop.store(true, Ordering::Relaxed);
            operations.join().map_err(|_| anyhow::anyhow!("the other thread panicked"))??;
            shown
        })
    });
}

fn shows(files: &Files, number: u32) -> Result<()> {
    let mut pin = loop {
        match Pin::take(files.file.as_fd(), 0) {
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
