//! What can happen to memory, one thing at a time: each with the events that it must bring, and
//! what a write of the device's then reaches.
//!
//! The storm is about layout operations, in any order and at once. Here are the causes that it
//! leaves out: what a process does to its own memory, files that are no DAX files, the operations
//! that pass layout pins by, what only changes names, and in the end a file system that is shut
//! down.

mod exchanged;
mod files;
mod holding;
mod kept;
mod memory;
mod remove;
mod scene;

use std::path::Path;

use anyhow::Result;
use holdfast::DeviceAddress;
use holdfast_lab_check::Report;

pub use kept::remove_part;
use scene::Scene;

/// Runs all of it. Files in `dax`, a folder on a DAX mount, go, and its file system is shut down;
/// `disk` is a folder on an ordinary one, `huge` one on hugetlbfs.
pub fn run(device: &DeviceAddress, dax: &Path, disk: &Path, huge: &Path) -> Result<bool> {
    let mut report = Report::default();
    let scene = Scene::open(device)?;
    memory::run(&scene, &mut report);
    kept::run(&scene, &mut report, huge, disk);
    files::run(&scene, &mut report, dax, disk)?;
    Ok(report.failed == 0)
}
