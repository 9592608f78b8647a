//! `holdfast bind` and `unbind`: a whole IOMMU group to vfio-pci, and back.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::Args;
use holdfast_vfio::pci::{Address, BindPlan, FileWriter, Tree};

use super::{interrupt, print};

const EXAMPLES: &str = "\
Examples:
  holdfast bind 0000:03:00.1 --dry-run   say what would be written, write nothing
  sudo holdfast bind 0000:03:00.1        do it
  sudo holdfast unbind 0000:03:00.1      and back

VFIO takes IOMMU groups whole, so all members change; 'holdfast devices' lists them. Nothing is
touched while a member is in use (an interface that is up, a mounted disk, a program that has the
group open): the reasons are listed instead.";

/// Arguments of `holdfast bind` and `holdfast unbind`.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct BindOptions {
    /// PCI address, such as 0000:03:00.1 or 03:00.1
    #[arg(value_name = "BDF", value_parser = address)]
    address: Address,

    /// Only say what would be done
    #[arg(long)]
    dry_run: bool,

    /// Look under this folder instead of / (for tests)
    #[arg(long, hide = true, default_value = "/")]
    root: PathBuf,
}

fn address(text: &str) -> Result<Address, String> {
    text.parse().map_err(|error: holdfast_vfio::Error| error.to_string())
}

/// Gives the group to vfio-pci.
pub fn bind(options: &BindOptions) -> anyhow::Result<ExitCode> {
    let tree = Tree::at(&options.root);
    let plan = BindPlan::bind(&tree, options.address)
        .with_context(|| format!("{} stays as it is", options.address))?;
    carry_out(&tree, &plan, options, "belongs to vfio-pci")
}

/// Gives the group back to the kernel's drivers.
pub fn unbind(options: &BindOptions) -> anyhow::Result<ExitCode> {
    let tree = Tree::at(&options.root);
    let plan = BindPlan::unbind(&tree, options.address)
        .with_context(|| format!("{} stays as it is", options.address))?;
    carry_out(&tree, &plan, options, "belongs to the kernel's drivers")
}

fn carry_out(
    tree: &Tree,
    plan: &BindPlan,
    options: &BindOptions,
    outcome: &str,
) -> anyhow::Result<ExitCode> {
    let (address, group) = (options.address, plan.group);
    if plan.steps.is_empty() {
        print(format_args!(
            "Nothing to do: IOMMU group {group} of {address} {outcome} already.\n"
        ))?;
        return Ok(ExitCode::SUCCESS);
    }
    for step in &plan.steps {
        print(format_args!("{step}\n"))?;
    }
    if options.dry_run {
        print("Nothing was changed (--dry-run).\n")?;
        return Ok(ExitCode::SUCCESS);
    }
    interrupt::check()?;
    {
        // A group must not be left half changed, however impatient the user is.
        let _whole = interrupt::finish_first();
        plan.execute(tree, &mut FileWriter).context("IOMMU group not changed")?;
    }
    print(format_args!("IOMMU group {group} of {address} {outcome} now.\n"))?;
    Ok(ExitCode::SUCCESS)
}
