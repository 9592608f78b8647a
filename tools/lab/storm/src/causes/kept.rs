//! Memory that the kernel keeps by reference, of each kind: what its file gives up is told, after the
//! fact, and the device is given what the file has in its place.

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use holdfast::coherence::{EventKind, Part};
use holdfast::{Access, Memory, Populate, Source};
use holdfast_lab_check::Report;
use nix::fcntl::{FallocateFlags, fallocate};

use super::files::{BROKEN_AND_BACK, BROKEN_AND_LOST, PART, TAIL, arrives, create, grow};
use super::remove::remove;
use super::scene::{CHUNK, LEN, Scene, Stage};

/// A small page.
const PAGE: u64 = 4096;

/// Where a region's memory comes from.
enum Kind<'a> {
    Nameless(Source),
    /// A file in this folder.
    In(&'a Path),
}

/// The checks. `huge` is a folder on hugetlbfs, `disk` one on a file system with a disk.
pub fn run(scene: &Scene, report: &mut Report, huge: &Path, disk: &Path) {
    let kinds = [
        ("a file on tmpfs", Kind::In(Path::new("/dev/shm"))),
        ("a memfd", Kind::Nameless(Source::Memfd)),
        ("a file on hugetlbfs", Kind::In(huge)),
        ("a memfd of huge pages", Kind::Nameless(Source::Hugetlb)),
    ];
    for (what, kind) in &kinds {
        report.check(&format!("{what}, cut and grown again: lost, and back"), || cut(scene, kind));
        report.check(&format!("{what}, the same hole three times: told, and back"), || {
            again(scene, kind, punch)
        });
        report.check(&format!("{what}, MADV_REMOVE by another process, likewise"), || {
            again(scene, kind, remove_elsewhere)
        });
    }
    for (what, kind) in &kinds[2..] {
        report.check(&format!("{what}, a hole that is filled at once: told, and back"), || {
            again(scene, kind, punch_and_fill)
        });
    }
    for (what, kind) in &kinds[..2] {
        report.check(&format!("{what}, a page that another takes the place of, likewise"), || {
            let (file, mut stage) = on(scene, kind)?;
            for time in 1..=20 {
                replace(&file, &mut stage)
                    .and_then(|()| arrives_in_the_end(&mut stage, &file))
                    .with_context(|| format!("page {time} of 20"))?;
            }
            Ok(())
        });
        report.check(&format!("{what}, written by write: nothing is told"), || {
            let (file, mut stage) = on(scene, kind)?;
            for at in (0..LEN).step_by(65536) {
                file.write_all_at(&[1; 4096], at)?;
            }
            stage.nothing_told()?;
            arrives(&mut stage, &file)
        });
    }
    report.check(
        "a file in the page cache, for reading: a page replaced is told, and back",
        || {
            let (file, mut stage) = to_read(scene, disk)?;
            for time in 1..=5 {
                replace(&file, &mut stage).with_context(|| format!("page {time} of 5"))?;
                is_read(&mut stage, &file)?;
            }
            Ok(())
        },
    );
    report.check("a file in the page cache, for reading: a hole is told, and back", || {
        let (file, mut stage) = to_read(scene, disk)?;
        punch(&file)?;
        stage.told_among(BROKEN_AND_BACK, "punch-hole", PART)?;
        stage.nothing_told_but("punch-hole")?;
        is_read(&mut stage, &file)
    });
    report.check(
        "a file in the page cache, for reading, cut and grown again: lost, and back",
        || {
            let (file, mut stage) = to_read(scene, disk)?;
            file.set_len(CHUNK)?;
            stage.told_some_time(EventKind::Lost, TAIL)?;
            grow(&file)?;
            stage.told_some_time(EventKind::Restored, TAIL)?;
            is_read(&mut stage, &file)
        },
    );
}

/// A region, and its file.
fn on(scene: &Scene, kind: &Kind<'_>) -> Result<(File, Stage)> {
    let mut stage = match kind {
        Kind::Nameless(source) => scene.region(source)?,
        Kind::In(folder) => {
            let path = folder.join("region");
            create(&path)?;
            scene.region(&Source::file(path))?
        }
    };
    let file = stage.file()?;
    arrives(&mut stage, &file)?;
    Ok((file, stage))
}

fn cut(scene: &Scene, kind: &Kind<'_>) -> Result<()> {
    let (file, mut stage) = on(scene, kind)?;
    file.set_len(CHUNK)?;
    stage.told(BROKEN_AND_LOST, "truncate", TAIL)?;
    stage.write(PART.start)?;
    ensure!(file.metadata()?.len() == CHUNK, "a write of the device's made the file grow");
    grow(&file)?;
    stage.told(&[EventKind::Restored], "grow", TAIL)?;
    arrives(&mut stage, &file)
}

/// The same is taken from the file three times, as soon as it is back.
fn again(scene: &Scene, kind: &Kind<'_>, take: fn(&File) -> Result<()>) -> Result<()> {
    let (file, mut stage) = on(scene, kind)?;
    for time in 1..=3 {
        take(&file)?;
        stage
            .told_among(BROKEN_AND_BACK, "punch-hole", PART)
            .and_then(|()| arrives_in_the_end(&mut stage, &file))
            .with_context(|| format!("hole {time} of 3"))?;
    }
    stage.nothing_told_but("punch-hole")
}

/// As [`arrives`]; but a look in the middle of an operation makes two breaks of one, and what is
/// written in the second goes to scrap.
fn arrives_in_the_end(stage: &mut Stage, file: &File) -> Result<()> {
    for _ in 0..3 {
        if arrives(stage, file).is_ok() {
            return Ok(());
        }
        stage.told_some_time(EventKind::Restored, PART).context("nothing arrives")?;
    }
    arrives(stage, file)
}

fn punch(file: &File) -> Result<()> {
    let punch = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
    fallocate(file.as_fd(), punch, PART.start as i64, PART.len() as i64).context("fallocate")
}

/// As who reads the file's memory all the time does it.
fn punch_and_fill(file: &File) -> Result<()> {
    punch(file)?;
    let fill = FallocateFlags::empty();
    fallocate(file.as_fd(), fill, PART.start as i64, PART.len() as i64).context("fallocate")
}

/// A page is punched and written at once. What is seen of it, if anything, depends on who looks first.
fn replace(file: &File, stage: &mut Stage) -> Result<()> {
    let punch = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
    fallocate(file.as_fd(), punch, PART.start as i64, PAGE as i64).context("fallocate")?;
    file.write_all_at(&[1; PAGE as usize], PART.start)?;
    let page = Part { start: PART.start, end: PART.start + PAGE };
    stage.told_some_time(EventKind::Broken, page)?;
    stage.told_some_time(EventKind::Restored, page)
}

fn remove_elsewhere(file: &File) -> Result<()> {
    let path = format!("/proc/{}/fd/{}", std::process::id(), file.as_raw_fd());
    let program = std::env::current_exe()?;
    let status = Command::new(program).arg("remove").arg(path).status()?;
    ensure!(status.success(), "the other process failed");
    Ok(())
}

/// What the other process does.
pub fn remove_part(path: PathBuf) -> Result<()> {
    let memory = Memory::open(&Source::file(path), 0, Populate::No)?;
    remove(&memory, PART)
}

/// A file on a disk, and a region on it that the device may only read.
fn to_read(scene: &Scene, folder: &Path) -> Result<(File, Stage)> {
    let path = folder.join("region");
    let file = create(&path)?;
    let mut stage = scene.region_for(&Source::file(&path), Access::REMOTE_READ)?;
    is_read(&mut stage, &file)?;
    Ok((file, stage))
}

/// What is written to the file is what the device reads.
fn is_read(stage: &mut Stage, file: &File) -> Result<()> {
    for word in [0x5eed_0001_u64, 0x5eed_0002] {
        file.write_all_at(&word.to_ne_bytes(), PART.start)?;
        let read = stage.read(PART.start)?;
        ensure!(read == word, "{word:#x} was written, and the device read {read:#x}");
    }
    Ok(())
}
