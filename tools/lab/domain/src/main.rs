//! `lab-domain`: the IOMMU layer alone, against a real VFIO type1 container, a vIOMMU and a DMA
//! engine that does what it is told. It runs in a lab guest and prints one line for each check.
//!
//! Two of QEMU's devices play the engine. `iommu-testdev` writes at once, a register access each,
//! so a thread can keep it writing while addresses are exchanged under it. `edu` moves real data
//! both ways, through its own buffer, a tenth of a second each time.

mod basic;
mod edu;
mod exchange;
mod large;
mod limits;
mod testdev;

use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context as _, Result};
use clap::{Parser, ValueEnum};
use holdfast_iommu::{AddressSpace, Type1Domain};
use holdfast_lab_check::Report;
use holdfast_vfio::Device;
use holdfast_vfio::kernel::{self, KernelDevice};
use holdfast_vfio::pci::{Address, Tree};

/// Checks the IOMMU layer with one DMA engine.
#[derive(Parser)]
struct Cli {
    /// PCI address of the engine, bound to vfio-pci
    #[arg(value_parser = |text: &str| text.parse::<Address>().map_err(|error| error.to_string()))]
    address: Address,
    /// What to check
    #[arg(value_enum)]
    part: Part,
    /// Where to write measured numbers
    #[arg(long)]
    numbers: Option<std::path::PathBuf>,
}

/// A part of the suite.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Part {
    /// Mapping, unmapping, permissions, granules, huge pages, reserved ranges (`iommu-testdev`)
    Basic,
    /// Exchanging memory under an engine that keeps writing (`iommu-testdev`)
    Exchange,
    /// Taking a large region away, in either order (`iommu-testdev`)
    Large,
    /// The container's limit on mappings; set dma_entry_limit low first (`iommu-testdev`)
    Entries,
    /// The limit on pinned memory; run with a low RLIMIT_MEMLOCK and no CAP_IPC_LOCK
    Memlock,
    /// Maps memory at a fixed address, says so, and waits to be killed
    Hold,
    /// After the holder of a mapping was killed: nothing is left behind that address
    AfterKill,
    /// Data in both directions through mappings (`edu`)
    Edu,
}

fn main() -> ExitCode {
    match run(&Cli::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("lab-domain: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// An engine in an address space of its own.
struct Bench {
    device: Arc<KernelDevice>,
    space: Arc<AddressSpace>,
}

fn run(cli: &Cli) -> Result<bool> {
    let (container, device) = kernel::open(&Tree::system(), cli.address)
        .with_context(|| format!("cannot open {}", cli.address))?;
    kernel::enable_bus_master(&device)?;
    let domain = Arc::new(Type1Domain::new(container)?);
    let bench = Bench { device: Arc::new(device), space: AddressSpace::new(domain)? };
    let mut report = Report::default();
    match cli.part {
        Part::Basic => basic::run(&bench, &mut report)?,
        Part::Exchange => exchange::run(&bench, &mut report)?,
        Part::Large => large::run(&bench, &mut report)?,
        Part::Entries => limits::entries(&bench, &mut report),
        Part::Memlock => limits::memlock(&bench, &mut report),
        Part::Hold => basic::hold(&bench)?,
        Part::AfterKill => basic::after_kill(&bench, &mut report)?,
        Part::Edu => edu::run(&bench, &mut report)?,
    }
    if let Some(path) = &cli.numbers {
        std::fs::write(path, serde_json::to_vec_pretty(&report.numbers)?)?;
    }
    Ok(report.failed == 0)
}

impl Bench {
    fn device(&self) -> Arc<dyn Device> {
        Arc::clone(&self.device) as Arc<dyn Device>
    }
}
