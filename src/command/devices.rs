//! `holdfast devices`: which functions could do RDMA, who has them, and what to do next.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::Args;
use holdfast_vfio::pci::{Function, NextStep, Tree, known, next_step};
use serde::Serialize;

use super::print;

const EXAMPLES: &str = "\
Examples:
  holdfast devices          a table for people
  holdfast devices --json   one object, {\"devices\": [...]}, for programs

A machine without such a function can still run everything on the emulated NIC: holdfast demo.";

/// Arguments of `holdfast devices`.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct DevicesOptions {
    /// Print one JSON object
    #[arg(long)]
    json: bool,

    /// Look under this folder instead of / (for tests)
    #[arg(long, hide = true, default_value = "/")]
    root: PathBuf,
}

#[derive(Debug, Serialize)]
struct Listing {
    devices: Vec<Row>,
}

/// One function.
#[derive(Debug, Serialize)]
struct Row {
    address: String,
    vendor_id: String,
    device_id: String,
    name: Option<&'static str>,
    /// Whether this driver knows it.
    supported: bool,
    /// The driver that has it now.
    driver: Option<String>,
    iommu_group: Option<u32>,
    /// The other members of its group.
    group_members: Vec<GroupMember>,
    /// RDMA devices that the kernel made of it.
    rdma_devices: Vec<String>,
    /// Network interfaces of it.
    interfaces: Vec<String>,
    ready: bool,
    next_step: String,
}

#[derive(Debug, Serialize)]
struct GroupMember {
    address: String,
    driver: Option<String>,
    bridge: bool,
}

/// Lists the functions.
pub fn run(options: &DevicesOptions) -> anyhow::Result<ExitCode> {
    let tree = Tree::at(&options.root);
    let functions = tree.rdma_functions().context("cannot list PCI functions")?;
    let devices = functions
        .iter()
        .map(|function| row(&tree, function))
        .collect::<holdfast_vfio::Result<Vec<_>>>()?;
    if options.json {
        print(format_args!("{}\n", serde_json::to_string_pretty(&Listing { devices })?))?;
    } else {
        print(table(&devices))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn row(tree: &Tree, function: &Function) -> holdfast_vfio::Result<Row> {
    let members = match function.iommu_group {
        Some(group) => tree.group(group)?,
        None => Vec::new(),
    };
    let others = members.iter().filter(|member| member.address != function.address);
    let step = next_step(tree, function)?;
    let known = known(function);
    Ok(Row {
        address: function.address.to_string(),
        vendor_id: format!("{:04x}", function.vendor),
        device_id: format!("{:04x}", function.device),
        name: known.as_ref().map(|known| known.name),
        supported: known.is_some_and(|known| known.supported),
        driver: function.driver.clone(),
        iommu_group: function.iommu_group,
        group_members: others
            .map(|member| GroupMember {
                address: member.address.to_string(),
                driver: member.driver.clone(),
                bridge: member.is_bridge(),
            })
            .collect(),
        rdma_devices: function.rdma_devices.clone(),
        interfaces: function.interfaces.clone(),
        ready: step == NextStep::Ready,
        next_step: step.to_string(),
    })
}

fn table(rows: &[Row]) -> String {
    use std::fmt::Write as _;

    if rows.is_empty() {
        return "No RDMA-capable PCI function here. Everything runs on the emulated NIC too:\n  \
                holdfast demo\n"
            .to_owned();
    }
    let mut text = String::new();
    for row in rows {
        let name = row.name.unwrap_or("RDMA device");
        let _ = writeln!(text, "{}  {name} [{}:{}]", row.address, row.vendor_id, row.device_id);
        let driver = row.driver.as_deref().unwrap_or("none");
        let kernel: Vec<&str> =
            row.rdma_devices.iter().chain(&row.interfaces).map(String::as_str).collect();
        let kernel = match kernel.as_slice() {
            [] => String::new(),
            names => format!(" ({})", names.join(", ")),
        };
        let _ = writeln!(text, "    driver       {driver}{kernel}");
        let group = row.iommu_group.map_or_else(|| "none".to_owned(), |group| group.to_string());
        let _ = writeln!(text, "    IOMMU group  {group}");
        for member in &row.group_members {
            let what = match (&member.driver, member.bridge) {
                (_, true) => "a bridge, which stays",
                (Some(driver), false) => driver.as_str(),
                (None, false) => "no driver",
            };
            let _ = writeln!(text, "      with       {} ({what})", member.address);
        }
        let _ = writeln!(text, "    next         {}", row.next_step);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_tells_driver_group_and_what_to_do() {
        let member = |address: &str, driver: Option<&str>, bridge| GroupMember {
            address: address.to_owned(),
            driver: driver.map(str::to_owned),
            bridge,
        };
        let row = Row {
            address: "0000:03:00.1".to_owned(),
            vendor_id: "15ad".to_owned(),
            device_id: "0820".to_owned(),
            name: Some("VMware PVRDMA"),
            supported: true,
            driver: Some("vmw_pvrdma".to_owned()),
            iommu_group: Some(7),
            group_members: vec![
                member("0000:00:01.0", None, true),
                member("0000:03:00.0", Some("vmxnet3"), false),
            ],
            rdma_devices: vec!["vmw_pvrdma0".to_owned()],
            interfaces: Vec::new(),
            ready: false,
            next_step: "holdfast bind 0000:03:00.1".to_owned(),
        };
        let table = table(&[row]);
        for words in [
            "0000:03:00.1  VMware PVRDMA [15ad:0820]",
            "driver       vmw_pvrdma (vmw_pvrdma0)",
            "IOMMU group  7",
            "with       0000:00:01.0 (a bridge, which stays)",
            "with       0000:03:00.0 (vmxnet3)",
            "next         holdfast bind 0000:03:00.1",
        ] {
            assert!(table.contains(words), "{words}\n{table}");
        }
    }

    #[test]
    fn a_machine_without_one_is_pointed_to_the_demo() {
        assert!(table(&[]).contains("holdfast demo"));
    }
}
