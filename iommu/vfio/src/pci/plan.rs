//! What a change of drivers will write, as data that can be shown before it is done.
//!
//! VFIO takes groups whole. A member is moved in three writes: say which driver may have it
//! (`driver_override`), unbind it from the one that has it, ask the bus to look for a driver
//! again (`drivers_probe`). Bridges stay: their driver starts no DMA, and VFIO permits it.

use std::fmt;

use super::{Address, Function, Tree, in_use};
use crate::{Error, Result};

/// The driver that hands functions to user space.
pub const VFIO_DRIVER: &str = "vfio-pci";

/// One write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Only this driver may take the function from now on; `None` lifts that.
    Override(Address, Option<String>),
    /// The driver lets go of the function.
    Unbind(Address, String),
    /// The bus finds the function a driver: this one if `expect` names one.
    Probe {
        /// The function.
        address: Address,
        /// The driver that must have it then.
        expect: Option<String>,
    },
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Override(address, Some(driver)) => {
                write!(f, "let only {driver} take {address}")
            }
            Self::Override(address, None) => write!(f, "let any driver take {address}"),
            Self::Unbind(address, driver) => write!(f, "unbind {address} from {driver}"),
            Self::Probe { address, expect: Some(driver) } => {
                write!(f, "bind {address} to {driver}")
            }
            Self::Probe { address, expect: None } => write!(f, "find a driver for {address}"),
        }
    }
}

/// A member of the group as it was when the plan was made, to go back to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// Where it sits.
    pub address: Address,
    /// The driver that had it.
    pub driver: Option<String>,
    /// Its `driver_override`.
    pub driver_override: Option<String>,
}

/// A change of drivers for one IOMMU group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BindPlan {
    /// The group.
    pub group: u32,
    /// The members that change, as they were.
    pub members: Vec<Member>,
    /// What to write, in order; nothing when all is as wanted.
    pub steps: Vec<Step>,
}

impl BindPlan {
    /// The whole group of `address` to vfio-pci. Reads only.
    ///
    /// # Errors
    /// [`Error::InUse`] with every reason, [`Error::NoGroup`] without an IOMMU,
    /// [`Error::DriverMissing`] when vfio-pci is not loaded.
    pub fn bind(tree: &Tree, address: Address) -> Result<Self> {
        let (group, members) = group_of(tree, address)?;
        if !tree.path("sys/bus/pci/drivers").join(VFIO_DRIVER).exists() {
            return Err(Error::DriverMissing { driver: VFIO_DRIVER });
        }
        let is_vfio = |member: &Function| member.driver.as_deref() == Some(VFIO_DRIVER);
        Self::make(tree, group, members.into_iter().filter(|member| !is_vfio(member)), |member| {
            let mut steps = vec![Step::Override(member.address, Some(VFIO_DRIVER.to_owned()))];
            steps.extend(member.driver.clone().map(|driver| Step::Unbind(member.address, driver)));
            let expect = Some(VFIO_DRIVER.to_owned());
            steps.push(Step::Probe { address: member.address, expect });
            steps
        })
    }

    /// The whole group of `address` back to the drivers the kernel would choose. Reads only.
    ///
    /// # Errors
    /// [`Error::InUse`] when a program has the group open, [`Error::NoGroup`] without an IOMMU.
    pub fn unbind(tree: &Tree, address: Address) -> Result<Self> {
        let (group, members) = group_of(tree, address)?;
        let ours = |member: &Function| {
            member.driver.as_deref() == Some(VFIO_DRIVER)
                || member.driver_override.as_deref() == Some(VFIO_DRIVER)
        };
        Self::make(tree, group, members.into_iter().filter(ours), |member| {
            let mut steps = vec![Step::Override(member.address, None)];
            steps.extend(member.driver.clone().map(|driver| Step::Unbind(member.address, driver)));
            steps.push(Step::Probe { address: member.address, expect: None });
            steps
        })
    }

    fn make(
        tree: &Tree,
        group: u32,
        members: impl Iterator<Item = Function>,
        steps: impl Fn(&Function) -> Vec<Step>,
    ) -> Result<Self> {
        let mut plan = Self { group, members: Vec::new(), steps: Vec::new() };
        let mut reasons = Vec::new();
        for member in members {
            let found = in_use(tree, &member)?;
            reasons.extend(found.iter().map(|reason| format!("{}: {reason}", member.address)));
            plan.steps.extend(steps(&member));
            let Function { address, driver, driver_override, .. } = member;
            plan.members.push(Member { address, driver, driver_override });
        }
        if reasons.is_empty() {
            Ok(plan)
        } else {
            Err(Error::InUse { group, reasons: reasons.join("; ") })
        }
    }
}

/// The group of a function and its members, bridges left out.
fn group_of(tree: &Tree, address: Address) -> Result<(u32, Vec<Function>)> {
    let function = tree.function(address)?;
    if function.is_bridge() {
        return Err(Error::usage(format!("{address} is a bridge, which stays with its driver")));
    }
    let group = function.iommu_group.ok_or(Error::NoGroup { address })?;
    let mut members = tree.group(group)?;
    members.retain(|member| !member.is_bridge());
    Ok((group, members))
}
