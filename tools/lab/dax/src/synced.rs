//! Pins beside fsync. A page that is just being written back is not looked at by Linux before 6.15
//! when it looks for pinned ones, so an operation goes past a pin of one page; a pin of several
//! pages holds.

use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Result, anyhow, ensure};
use holdfast_dax::{GRANULE, Memory, Pin, Populate, Source, others_to_pin};
use holdfast_lab_check::Report;
use nix::fcntl::{FallocateFlags, fallocate};

use crate::operation::{Files, Operation, PAGE, Way};
use crate::worker::Worker;

/// How long an operation is left to go past a pin before it is killed.
const MOMENT: Duration = Duration::from_millis(30);

/// Huge pages of a file that is mapped with them on any kernel.
const HUGE: u64 = 8;

/// Runs them in a folder on a DAX mount.
pub fn run(report: &mut Report, folder: &Path, recent: bool) {
    let huge = |count: u64| (0..count).map(|page| page * GRANULE).collect::<Vec<u64>>();
    if !recent {
        report.check("beside fsync, an operation goes past a pin of one huge page", || {
            let past = passes(folder, HUGE, &huge(1), 1500)?;
            println!("     it did so in attempt {past:?}");
            ensure!(past.is_some(), "it never did: this kernel may need no pins of several pages");
            Ok(())
        });
    }
    let pages = if recent { 1 } else { HUGE };
    report.check(&format!("beside fsync, operations wait for a pin of {pages} huge pages"), || {
        let past = passes(folder, HUGE, &huge(pages), 100)?;
        ensure!(past.is_none(), "attempt {past:?} went past it");
        Ok(())
    });
    report.check("beside fsync, operations wait for the pin of a region of 2 MiB", || {
        let last = GRANULE - PAGE;
        let mut offsets = vec![last];
        offsets.extend(others_to_pin(last, |_| true));
        let past = passes(folder, 1, &offsets, if recent { 50 } else { 300 })?;
        ensure!(past.is_none(), "attempt {past:?} went past it");
        Ok(())
    });
}

/// Holes punched into a file of so many huge pages whose pinned pages, at `offsets`, are written and
/// synced all the time: the number of the first that did not wait, of so many at most.
fn passes(folder: &Path, huge: u64, offsets: &[u64], attempts: u32) -> Result<Option<u32>> {
    let files = Files::create(folder)?;
    files.file.set_len(0)?;
    // Huge ones, for writing one back takes long.
    fallocate(&files.file, FallocateFlags::empty(), 0, (huge * GRANULE) as i64)?;
    let memory = Memory::open(&Source::fs_dax(&files.path), 0, Populate::Yes)?;
    let mut pin = Pin::take_several(files.file.as_fd(), offsets[0], &offsets[1..])?;
    let blocks = files.file.metadata()?.blocks();
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let syncer = scope.spawn(|| -> Result<()> {
            let mut value = 0_u8;
            while !stop.load(Ordering::Relaxed) {
                value = value.wrapping_add(1);
                for offset in offsets {
                    memory.write_at(*offset as usize, &[value])?;
                }
                files.file.sync_data()?;
            }
            Ok(())
        });
        let attempt = || -> Result<bool> {
            let mut worker = Worker::start(folder, Operation::PunchHole, Way::Call)?;
            worker.go()?;
            let ended = worker.ended(MOMENT)?.is_some();
            drop(worker);
            Ok(ended || files.file.metadata()?.blocks() < blocks)
        };
        let mut result = Ok(None);
        for number in 1..=attempts {
            match attempt() {
                Ok(false) => {}
                Ok(true) => result = Ok(Some(number)),
                Err(error) => result = Err(error),
            }
            if !matches!(result, Ok(None)) {
                break;
            }
        }
        stop.store(true, Ordering::Relaxed);
        syncer.join().map_err(|_| anyhow!("the thread that syncs panicked"))??;
        pin.release()?;
        result
    })
}
