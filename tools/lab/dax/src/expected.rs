//! What each operation does when it meets a pin, by file system and kernel: the one table that the
//! checks compare with what they see, and that the documentation prints.

use std::fmt;

use anyhow::{Context, Result};
use nix::errno::Errno;

use crate::operation::Operation;

/// What an operation does when it meets a pin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It waits until the pin is released, having changed nothing, and then succeeds.
    Waits,
    /// It succeeds at once, and every block stays the file's, where it was.
    Passes,
    /// It succeeds at once and changes the file's blocks, a hole of the pin; the guard page shows
    /// it afterwards.
    Moves,
    /// The same, and the guard page does not show it.
    MovesUnseen,
    /// The kernel refuses it, pin or no pin.
    Refused(Errno),
}

use Outcome::{Moves, MovesUnseen, Passes, Refused, Waits};

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Waits => f.write_str("waits"),
            Self::Passes => f.write_str("passes"),
            Self::Moves => f.write_str("**moves blocks**, which the guard page shows"),
            Self::MovesUnseen => f.write_str("**moves blocks** unseen"),
            Self::Refused(errno) => write!(f, "refused ({errno:?})"),
        }
    }
}

/// The columns of the table.
pub const COLUMNS: [&str; 4] = ["ext4, 6.1", "ext4, 7.3", "xfs, 6.1", "xfs, 7.3"];

/// What an operation does in each of [`COLUMNS`].
pub type Row = (Operation, [Outcome; 4]);

const NOT_SUPPORTED: Outcome = Refused(Errno::EOPNOTSUPP);
const NOT_KNOWN: Outcome = Refused(Errno::ENOTTY);

/// The table.
pub const TABLE: &[Row] = &[
    (Operation::FtruncateShrink, [Waits; 4]),
    (Operation::FtruncateGrow, [Waits; 4]),
    (Operation::TruncateShrink, [Waits; 4]),
    (Operation::OpenTrunc, [Waits; 4]),
    (Operation::FallocateInside, [Passes, Passes, Waits, Waits]),
    (Operation::FallocateGrow, [Passes, Passes, Waits, Waits]),
    (Operation::FallocateKeepSize, [Passes, Passes, Waits, Waits]),
    (Operation::PunchHole, [Waits; 4]),
    (Operation::CollapseRange, [Waits; 4]),
    (Operation::InsertRange, [Waits; 4]),
    (Operation::ZeroRange, [Waits; 4]),
    (Operation::UnshareRange, [NOT_SUPPORTED, NOT_SUPPORTED, Waits, Waits]),
    (Operation::CloneFrom, [NOT_SUPPORTED, NOT_SUPPORTED, Waits, Waits]),
    (Operation::CloneOnto, [NOT_SUPPORTED, NOT_SUPPORTED, Waits, Waits]),
    (Operation::CloneRangeFrom, [NOT_SUPPORTED, NOT_SUPPORTED, Waits, Waits]),
    (Operation::CloneRangeOnto, [NOT_SUPPORTED, NOT_SUPPORTED, Waits, Waits]),
    (Operation::DedupeFrom, [NOT_SUPPORTED, NOT_SUPPORTED, Waits, Waits]),
    (Operation::DedupeOnto, [NOT_SUPPORTED, NOT_SUPPORTED, Waits, Waits]),
    (Operation::ExchangeRange, [NOT_KNOWN, NOT_KNOWN, NOT_KNOWN, Waits]),
    (Operation::SwapExtents, [NOT_KNOWN, NOT_KNOWN, Moves, Moves]),
    (Operation::MoveExtents, [NOT_SUPPORTED, NOT_SUPPORTED, NOT_KNOWN, NOT_KNOWN]),
    (Operation::SwapBoot, [MovesUnseen, MovesUnseen, NOT_KNOWN, NOT_KNOWN]),
    (Operation::Write, [Passes; 4]),
    (Operation::WriteGrow, [Passes; 4]),
    (Operation::CopyFrom, [Passes, Passes, Waits, Waits]),
    (Operation::CopyOnto, [Passes, Passes, Waits, Waits]),
    (Operation::Fsync, [Passes; 4]),
    (Operation::RenameOver, [Passes; 4]),
    (Operation::Unlink, [Passes; 4]),
    (Operation::FlipDaxFlag, [Passes; 4]),
    (Operation::LoopDiscard, [Waits; 4]),
    (Operation::Unmount, [Refused(Errno::EBUSY); 4]),
    (Operation::RemountNever, [Refused(Errno::EINVAL), Refused(Errno::EINVAL), Passes, Passes]),
];

/// This kernel's version: two numbers.
fn kernel() -> Result<(u32, u32)> {
    let uname = nix::sys::utsname::uname()?;
    let release = uname.release().to_string_lossy().into_owned();
    let mut numbers = release.split('.').map_while(|number| number.parse().ok());
    numbers.next().zip(numbers.next()).with_context(|| format!("no version in {release:?}"))
}

/// Whether this kernel counts a DAX page's references as one that came with Linux 6.15 does.
pub fn recent_kernel() -> Result<bool> {
    Ok(kernel()? >= (6, 15))
}

/// The column of a file system on this kernel.
pub fn column(fs_type: &str) -> Result<usize> {
    let (major, minor) = kernel()?;
    let name = format!("{fs_type}, {major}.{minor}");
    let found = COLUMNS.iter().position(|column| **column == name);
    found.with_context(|| format!("the table has no column for {name}; there are {COLUMNS:?}"))
}

/// The table as Markdown.
pub fn markdown() -> String {
    let mut text =
        format!("| operation | {} |\n|---|{}\n", COLUMNS.join(" | "), "---|".repeat(COLUMNS.len()));
    for (operation, outcomes) in TABLE {
        let outcomes: Vec<_> = outcomes.iter().map(Outcome::to_string).collect();
        text += &format!("| {} | {} |\n", operation.title(), outcomes.join(" | "));
    }
    text
}

#[cfg(test)]
mod tests {
    use clap::ValueEnum;

    use super::*;

    #[test]
    fn every_operation_has_one_row() {
        for operation in Operation::value_variants() {
            let rows = TABLE.iter().filter(|(other, _)| other == operation).count();
            assert_eq!(rows, 1, "{operation:?}");
        }
    }

    #[test]
    fn the_documentation_has_this_table() {
        let page = include_str!("../../../../docs/coherence-table.md");
        let table = markdown();
        assert!(page.ends_with(&table), "docs/coherence-table.md should end with:\n{table}");
    }
}
