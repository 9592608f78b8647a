//! What happens to the files under regions: to one in the page cache that a device would write, and to
//! DAX files what the storm leaves out.

use std::fs::{self, File, OpenOptions};
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use holdfast::Source;
use holdfast::coherence::{EventKind, Part, Policy};
use holdfast_lab_check::{Report, ioctl};
use nix::fcntl::{FallocateFlags, fallocate};

use super::scene::{CHUNK, LEN, Scene, Stage};
use super::{exchanged, holding};

/// The part that something happens to.
pub const PART: Part = Part { start: CHUNK, end: 2 * CHUNK };
/// What is behind it, and it.
pub const TAIL: Part = Part { start: CHUNK, end: LEN };
pub const WHOLE: Part = Part { start: 0, end: LEN };
pub const BROKEN_AND_BACK: &[EventKind] = &[EventKind::Broken, EventKind::Restored];
pub const BROKEN_AND_LOST: &[EventKind] = &[EventKind::Broken, EventKind::Lost];

/// One check for each thing; the last shuts the DAX file system down.
pub fn run(scene: &Scene, report: &mut Report, dax: &Path, disk: &Path) -> Result<()> {
    report.check(
        "a file in the page cache: refused for writing, or told of, cut and grown again",
        || {
            match cut_on_disk(scene, disk) {
                // Since Linux 6.5 no device may write pages of files that are written back.
                Err(error) if format!("{error:#}").contains("refused since Linux 6.5") => Ok(()),
                other => other,
            }
        },
    );
    let ext4 = fs_type(dax)? == "ext2/ext3";
    report.check("a DAX file that loses its name: nothing is told, and writes arrive", || {
        let (file, mut stage) = on(scene, dax)?;
        fs::rename(dax.join("other"), dax.join("region")).or_else(|_| rename_over(dax))?;
        fs::remove_file(dax.join("region"))?;
        stage.nothing_told()?;
        arrives(&mut stage, &file)
    });
    holding::run(scene, report, dax);
    exchanged::run(scene, report, dax, ext4);
    report.check("a file system that is shut down: told, and lost for good", || {
        let (_file, mut stage) = on(scene, dax)?;
        ioctl::shut_down(&File::open(dax)?).context("shutting it down")?;
        stage.told(BROKEN_AND_LOST, "shutdown", WHOLE)?;
        stage.write(PART.start)?;
        stage.nothing_told()
    });
    Ok(())
}

fn fs_type(folder: &Path) -> Result<String> {
    let out = std::process::Command::new("stat").args(["-f", "-c", "%T"]).arg(folder).output()?;
    ensure!(out.status.success(), "stat -f {} failed", folder.display());
    Ok(String::from_utf8(out.stdout)?.trim().to_owned())
}

/// A new file with blocks everywhere.
pub fn create(path: &Path) -> Result<File> {
    let _ = fs::remove_file(path);
    let file = OpenOptions::new().read(true).write(true).create_new(true).open(path)?;
    grow(&file)?;
    Ok(file)
}

/// Gives it blocks where it has none.
pub fn grow(file: &File) -> Result<()> {
    fallocate(file.as_fd(), FallocateFlags::empty(), 0, LEN as i64).context("fallocate")
}

fn rename_over(folder: &Path) -> std::io::Result<()> {
    fs::write(folder.join("other"), "")?;
    fs::rename(folder.join("other"), folder.join("region"))
}

/// A file of the folder, and a region on it.
fn on(scene: &Scene, folder: &Path) -> Result<(File, Stage)> {
    on_with(scene, folder, Policy::FOLLOW)
}

/// The same with a policy.
pub fn on_with(scene: &Scene, folder: &Path, policy: Policy) -> Result<(File, Stage)> {
    let path: PathBuf = folder.join("region");
    let file = create(&path)?;
    let mut stage = scene.region_with(&Source::file(&path), policy)?;
    arrives(&mut stage, &file)?;
    Ok((file, stage))
}

/// What the device writes is in the file.
pub fn arrives(stage: &mut Stage, file: &File) -> Result<()> {
    let written = stage.write(PART.start)?;
    let mut word = [0; 8];
    file.read_exact_at(&mut word, PART.start)?;
    let found = u64::from_ne_bytes(word);
    ensure!(found == written, "the device wrote {written:#x}, and the file has {found:#x}");
    Ok(())
}

/// On a disk, the file's size and its blocks go at two times, and each is told.
fn cut_on_disk(scene: &Scene, folder: &Path) -> Result<()> {
    let (file, mut stage) = on(scene, folder)?;
    file.set_len(CHUNK)?;
    stage.told_some_time(EventKind::Lost, TAIL)?;
    stage.write(PART.start)?;
    grow(&file)?;
    stage.told_some_time(EventKind::Restored, TAIL)
}
