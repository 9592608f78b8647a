//! One operation against one pin: does it wait, pass, or is it refused?

use std::collections::BTreeMap;
use std::os::fd::AsFd;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use holdfast_dax::{Memory, Pin, Populate, Source, layout};
use nix::errno::Errno;
use nix::sys::stat::fstat;

use crate::expected::Outcome;
use crate::operation::{AT, Files, Operation, PAGE, SIZE, Way, pattern};
use crate::worker::Worker;

/// How long an operation that was noticed must wait to count as waiting.
const HOLD: Duration = Duration::from_millis(300);
/// How long anything may take on a loaded machine.
const LIMIT: Duration = Duration::from_secs(20);

/// When the operation's descriptor was opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Opened {
    /// Before the pin was taken.
    Before,
    /// After it.
    After,
}

/// Where each page of the file has its block.
fn blocks(files: &Files) -> Result<BTreeMap<u64, u64>> {
    let segments = layout(files.file.as_fd(), 0, SIZE).context("FIEMAP")?;
    let pages = segments.iter().flat_map(|segment| {
        let start = segment.device_offset.unwrap_or(u64::MAX / 2);
        (0..segment.len / PAGE).map(move |n| (segment.offset + n * PAGE, start + n * PAGE))
    });
    Ok(pages.collect())
}

/// Does the operation from another process with the file pinned, and says what came of it. An
/// error is something that must never be: an operation that neither ends nor shows that it waits,
/// that does not end after the release, or that changes something while it waits.
pub fn pinned(folder: &Path, operation: Operation, way: Way, opened: Opened) -> Result<Outcome> {
    let files = Files::create(folder)?;
    let memory = Memory::open(&Source::fs_dax(&files.path), 0, Populate::Yes)?;
    let before = blocks(&files)?;
    let (fd, _) = memory.backing().context("a file without a descriptor")?;
    let (mut worker, mut pin) = match opened {
        Opened::Before => {
            let worker = Worker::start(folder, operation, way)?;
            (worker, Pin::take(fd, 0)?)
        }
        Opened::After => {
            let pin = Pin::take(fd, 0)?;
            (Worker::start(folder, operation, way)?, pin)
        }
    };
    ensure!(!pin.disturbed()?, "the pin is disturbed before the operation");
    worker.go()?;
    let start = Instant::now();
    let mut noticed = None;
    loop {
        if let Some(result) = worker.ended(Duration::from_millis(2))? {
            if let Err(errno) = result {
                return Ok(Outcome::Refused(errno));
            }
            let moved = blocks(&files)? != before;
            return Ok(match (moved, pin.disturbed()?) {
                (false, _) => Outcome::Passes,
                (true, true) => Outcome::Moves,
                (true, false) => Outcome::MovesUnseen,
            });
        }
        if noticed.is_none() && pin.disturbed()? {
            noticed = Some(Instant::now());
        }
        if noticed.is_some_and(|noticed| noticed.elapsed() > HOLD) {
            break;
        }
        ensure!(start.elapsed() < LIMIT, "it neither ends nor shows that it waits");
    }
    // It waits: nothing may have changed yet. No lock of the file may be asked for here.
    let size = fstat(&files.file).context("fstat")?.st_size;
    ensure!(size == SIZE as i64, "the size changed to {size} while it waits");
    let mut byte = [0];
    memory.read_at(AT as usize, &mut byte)?;
    ensure!(byte[0] == pattern(AT / PAGE), "a byte changed while it waits");
    pin.release()?;
    match worker.ended(LIMIT)? {
        Some(Ok(())) => Ok(Outcome::Waits),
        Some(Err(errno)) => bail!("after it waited for the pin it failed: {errno}"),
        None => bail!("it still waits {LIMIT:?} after the release"),
    }
}

/// Does the operation with nothing pinned: it must end, or be refused as it is with a pin.
pub fn unpinned(folder: &Path, operation: Operation, way: Way) -> Result<Option<Errno>> {
    let files = Files::create(folder)?;
    let _memory = Memory::open(&Source::fs_dax(&files.path), 0, Populate::Yes)?;
    let mut worker = Worker::start(folder, operation, way)?;
    worker.go()?;
    match worker.ended(LIMIT)? {
        Some(result) => Ok(result.err()),
        None => bail!("it does not end, though nothing is pinned"),
    }
}
