//! `lab-dax`: files on persistent memory, on a real ext4 or xfs. It runs in a lab guest and prints
//! one line for each check.
//!
//! What a file turns out to be, where its blocks are and whether a window shows them, what the
//! layout pin promises, and, for every operation that may change a file's blocks, whether it waits
//! for the pin: [`expected`] has the table, and `lab-dax table` prints it.

mod case;
mod expected;
mod handover;
mod meeting;
mod notices;
mod operation;
mod operations;
mod pins;
mod raw;
mod sources;
mod synced;
mod worker;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};
use holdfast_dax::Source;
use holdfast_lab_check::Report;

use operation::{Operation, Way};

/// Checks files on persistent memory.
#[derive(Parser)]
struct Cli {
    #[command(subcommand)]
    part: Part,
}

#[derive(Subcommand)]
enum Part {
    /// Each operation against a pinned file, in a folder on a DAX mount
    Operations {
        /// The folder
        folder: PathBuf,
        /// Type of its file system
        fs_type: String,
        /// Only these
        #[arg(long, value_enum)]
        only: Vec<Operation>,
    },
    /// What a file turns out to be and where its bytes are, in a folder on a DAX mount
    Sources {
        /// The folder
        folder: PathBuf,
        /// Type of its file system
        fs_type: String,
    },
    /// A region source that must be refused, with these words
    Refused {
        /// The source
        source: Source,
        /// Words of the refusal
        words: String,
    },
    /// A file whose extents can be given no window, with these words of the refusal
    NoWindow {
        /// A file on a DAX mount
        path: PathBuf,
        /// Words of the refusal
        words: String,
    },
    /// A folder where pins are not proven, with these words of the refusal
    NoProof {
        /// The folder
        folder: PathBuf,
        /// Words of the refusal
        words: String,
    },
    /// A devdax device
    Devdax {
        /// The device
        path: PathBuf,
    },
    /// Which notifier says what of each operation, in a folder on a DAX mount
    Notices {
        /// The folder
        folder: PathBuf,
        /// Type of its file system
        fs_type: String,
    },
    /// What the layout pin promises, in a folder on a DAX mount
    Pins {
        /// The folder
        folder: PathBuf,
    },
    /// Prints the table of operations as Markdown
    Table,
    /// Does one operation when told (started by the others)
    #[command(hide = true)]
    Worker { folder: PathBuf, operation: Operation, way: Way },
    /// Pins a file, hands the pin over and waits (started by the others)
    #[command(hide = true)]
    OwnPin { folder: PathBuf },
    /// Pins a file over and over while operations come (started by the others)
    #[command(hide = true)]
    Meet { path: PathBuf },
}

fn main() -> ExitCode {
    match run(&Cli::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("lab-dax: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(cli: &Cli) -> Result<bool> {
    let mut report = Report::default();
    match &cli.part {
        Part::Operations { folder, fs_type, only } => {
            operations::run(&mut report, folder, fs_type, only)?;
        }
        Part::Sources { folder, fs_type } => sources::run(&mut report, folder, fs_type)?,
        Part::Notices { folder, fs_type } => notices::run(&mut report, folder, fs_type)?,
        Part::Refused { source, words } => sources::refused(&mut report, source, words),
        Part::NoWindow { path, words } => sources::no_window(&mut report, path, words),
        Part::NoProof { folder, words } => pins::no_proof(&mut report, folder, words),
        Part::Devdax { path } => sources::devdax(&mut report, path),
        Part::Pins { folder } => {
            let recent = expected::recent_kernel()?;
            pins::run(&mut report, folder, recent)?;
            synced::run(&mut report, folder, recent);
            meeting::run(&mut report, folder, recent);
        }
        Part::OwnPin { folder } => handover::serve(folder)?,
        Part::Meet { path } => meeting::serve(path)?,
        Part::Table => print!("{}", expected::markdown()),
        Part::Worker { folder, operation, way } => worker::serve(folder, *operation, *way)?,
    }
    Ok(report.failed == 0)
}
