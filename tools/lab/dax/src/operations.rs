//! Every operation of the table: from descriptors opened before and after the pin, from another
//! process, through io_uring, and with no pin at all.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use holdfast_lab_check::Report;

use crate::case::{Opened, pinned, unpinned};
use crate::expected::{COLUMNS, Outcome, TABLE, column};
use crate::operation::{Operation, Ring, Way};

/// Runs the table, or the named operations of it, in a folder on a mount of type `fs_type`.
pub fn run(report: &mut Report, folder: &Path, fs_type: &str, only: &[Operation]) -> Result<()> {
    let column = column(fs_type)?;
    for (operation, outcomes) in TABLE {
        if !only.is_empty() && !only.contains(operation) {
            continue;
        }
        let expected = outcomes[column];
        let name = format!("{}: {}: {expected}", COLUMNS[column], operation.title());
        report.check(&name, || row(folder, *operation, expected, column));
    }
    Ok(())
}

fn row(folder: &Path, operation: Operation, expected: Outcome, column: usize) -> Result<()> {
    let mut ways = vec![Way::Call];
    // Linux 6.9 gave io_uring ftruncate.
    let old = COLUMNS[column].ends_with("6.1");
    match operation.ring() {
        Some(Ring::Ftruncate { .. }) if old => {}
        Some(_) => ways.push(Way::Uring),
        None => {}
    }
    for way in ways {
        let refused =
            unpinned(folder, operation, way).with_context(|| format!("{way:?}, no pin"))?;
        let wanted = match expected {
            Outcome::Refused(errno) => Some(errno),
            _ => None,
        };
        ensure!(refused == wanted, "{way:?} with no pin: {refused:?} and not {wanted:?}");
        for opened in [Opened::Before, Opened::After] {
            if opened == Opened::Before && operation.is_by_name() {
                continue;
            }
            let seen = pinned(folder, operation, way, opened)
                .with_context(|| format!("{way:?}, opened {opened:?} the pin"))?;
            ensure!(seen == expected, "{way:?}, opened {opened:?} the pin: it {seen}");
        }
    }
    Ok(())
}
