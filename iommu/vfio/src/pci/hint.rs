//! What to do next with a function, so that Holdfast can drive it.

use std::fmt;

use super::plan::VFIO_DRIVER;
use super::{Address, Function, Reason, Tree, in_use, known};
use crate::Result;
use crate::kernel::{blockers, refuse_noiommu};

/// What to do next with a function.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NextStep {
    /// The function and its whole group belong to vfio-pci.
    Ready,
    /// Holdfast has no driver for it.
    Unsupported,
    /// No IOMMU is active.
    EnableIommu,
    /// Its group has no IOMMU behind it, which Holdfast refuses.
    NoIommu,
    /// vfio-pci is not loaded.
    LoadVfio,
    /// It, or a member of its group, is in use.
    Release(Vec<(Address, Reason)>),
    /// A program has it open already.
    Busy(Vec<Reason>),
    /// Nothing stands in the way of `holdfast bind`.
    Bind(Address),
}

impl fmt::Display for NextStep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ready => f.write_str("ready to open"),
            Self::Unsupported => f.write_str("no driver for this device yet"),
            Self::EnableIommu => f.write_str(
                "enable the IOMMU: VT-d or AMD-Vi in the firmware, and intel_iommu=on on the \
                 kernel command line",
            ),
            Self::NoIommu => f.write_str("this group has no IOMMU, and noiommu mode is refused"),
            Self::LoadVfio => f.write_str("modprobe vfio-pci"),
            Self::Release(reasons) => {
                f.write_str("release first: ")?;
                for (i, (address, reason)) in reasons.iter().enumerate() {
                    let separator = if i == 0 { "" } else { "; " };
                    write!(f, "{separator}{address}: {reason}")?;
                }
                Ok(())
            }
            Self::Busy(reasons) => {
                let texts: Vec<String> = reasons.iter().map(Reason::to_string).collect();
                write!(f, "in use: {}", texts.join("; "))
            }
            Self::Bind(address) => write!(f, "holdfast bind {address}"),
        }
    }
}

/// What to do next with a function. Reads only.
pub fn next_step(tree: &Tree, function: &Function) -> Result<NextStep> {
    if !known(function).is_some_and(|known| known.supported) {
        return Ok(NextStep::Unsupported);
    }
    let Some(group) = function.iommu_group else { return Ok(NextStep::EnableIommu) };
    if refuse_noiommu(tree, group).is_err() {
        return Ok(NextStep::NoIommu);
    }
    let members = tree.group(group)?;
    if function.driver.as_deref() == Some(VFIO_DRIVER) && blockers(&members).is_empty() {
        let reasons = in_use(tree, function)?;
        return Ok(if reasons.is_empty() { NextStep::Ready } else { NextStep::Busy(reasons) });
    }
    if !tree.path("sys/bus/pci/drivers").join(VFIO_DRIVER).exists() {
        return Ok(NextStep::LoadVfio);
    }
    let mut reasons = Vec::new();
    for member in members.iter().filter(|member| !member.is_bridge()) {
        let found = in_use(tree, member)?;
        reasons.extend(found.into_iter().map(|reason| (member.address, reason)));
    }
    Ok(if reasons.is_empty() {
        NextStep::Bind(function.address)
    } else {
        NextStep::Release(reasons)
    })
}
