//! Suites as data: what to boot, what to run in it, what to expect.

use anyhow::{Context, Result};
use serde::Deserialize;

use crate::debian::KernelVersion;
use crate::guest::{Nic, QemuVersion};

/// A suite: rows that run the same script on different machines.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Suite {
    /// Its name on the command line.
    #[serde(skip)]
    pub name: String,
    /// One line for people.
    pub about: String,
    /// What the guest runs.
    #[serde(skip)]
    pub script_text: &'static str,
    pub qemu: QemuVersion,
    #[serde(default)]
    pub nics: Vec<Nic>,
    /// More arguments of `holdfast nic`.
    #[serde(default)]
    pub nic_options: Vec<String>,
    #[serde(default)]
    pub needs: Vec<Need>,
    #[serde(default)]
    pub faults: Faults,
    /// Seconds from power-on to power-off.
    pub limit: u64,
    #[serde(default = "default_memory")]
    pub memory_mib: u32,
    /// Kernel parameters.
    #[serde(default)]
    pub append: String,
    /// MiB of persistent memory.
    #[serde(default)]
    pub nvdimm_mib: u32,
    /// It runs only when it is named: it takes long.
    #[serde(default)]
    pub only_by_name: bool,
    /// Functions in which the suite provokes warnings of the kernel.
    #[serde(default)]
    pub warnings: Vec<String>,
    /// Checks whose failure stands, whatever another attempt would say.
    #[serde(default)]
    pub grave: Vec<String>,
    #[serde(rename = "row")]
    pub rows: Vec<Row>,
}

/// One guest of a suite.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Row {
    pub kernel: KernelVersion,
    /// What is special about it, if anything; the script sees it as ROW.
    #[serde(default)]
    pub name: String,
    /// In place of the suite's.
    pub nics: Option<Vec<Nic>>,
    /// In place of the suite's.
    pub nic_options: Option<Vec<String>>,
    /// In place of the suite's.
    pub append: Option<String>,
}

/// Something of ours that the guest gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Need {
    /// The `holdfast` command.
    Holdfast,
    /// The project's end-to-end tests, as programs.
    EndToEnd,
    /// The checker of the IOMMU layer.
    LabDomain,
    /// The checker of files on persistent memory.
    LabDax,
    /// The checker of the keeper.
    LabKeeper,
    /// The checker of Holdfast against Linux's driver.
    LabPeer,
    /// The storm of layout operations.
    LabStorm,
    /// Linux's PVRDMA driver, loaded.
    VmwPvrdma,
}

/// DMA faults in the guest's kernel log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Faults {
    /// None may be there.
    #[default]
    None,
    /// The suite provokes some.
    Provoked,
}

fn default_memory() -> u32 {
    2048
}

/// A suite's name, table and script.
type Entry = (&'static str, &'static str, &'static str);

const TABLES: &[Entry] = &[
    ("domain", include_str!("../../suites/domain.toml"), include_str!("../../suites/domain.sh")),
    ("dax", include_str!("../../suites/dax.toml"), include_str!("../../suites/dax.sh")),
    ("numa", include_str!("../../suites/numa.toml"), include_str!("../../suites/numa.sh")),
    ("keeper", include_str!("../../suites/keeper.toml"), include_str!("../../suites/keeper.sh")),
    ("causes", include_str!("../../suites/causes.toml"), include_str!("../../suites/causes.sh")),
    (
        "coherence",
        include_str!("../../suites/coherence.toml"),
        include_str!("../../suites/coherence.sh"),
    ),
    (
        "coherence-long",
        include_str!("../../suites/coherence-long.toml"),
        include_str!("../../suites/coherence.sh"),
    ),
    ("stall", include_str!("../../suites/stall.toml"), include_str!("../../suites/stall.sh")),
    (
        "vfio-user",
        include_str!("../../suites/vfio-user.toml"),
        include_str!("../../suites/vfio-user.sh"),
    ),
    ("judge", include_str!("../../suites/judge.toml"), include_str!("../../suites/judge.sh")),
    ("interop", include_str!("../../suites/interop.toml"), include_str!("../../suites/interop.sh")),
    ("qemu72", include_str!("../../suites/qemu72.toml"), include_str!("../../suites/qemu72.sh")),
    ("compare", include_str!("../../suites/compare.toml"), include_str!("../../suites/compare.sh")),
];

/// All suites, in the order in which they run.
pub fn all() -> Result<Vec<Suite>> {
    TABLES
        .iter()
        .map(|(name, table, script)| {
            let mut suite: Suite =
                toml::from_str(table).with_context(|| format!("the table of suite {name}"))?;
            suite.name = (*name).to_owned();
            suite.script_text = script;
            Ok(suite)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_table_is_read_and_has_rows() {
        let suites = all().unwrap();
        assert_eq!(suites.len(), TABLES.len());
        for suite in suites {
            assert!(!suite.rows.is_empty(), "{} has no rows", suite.name);
            assert!(!suite.script_text.is_empty(), "{} has no script", suite.name);
        }
    }
}
