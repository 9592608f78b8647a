//! Sysfs, read: functions, their drivers, their IOMMU groups.

use std::fs;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

use super::{Address, known};
use crate::{Error, Result};

const DEVICES: &str = "sys/bus/pci/devices";

/// The file system as this module sees it: `/`, or a copy of a part of it elsewhere.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tree {
    root: PathBuf,
}

/// A PCI function.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Function {
    /// Where it sits.
    pub address: Address,
    /// Vendor id.
    pub vendor: u16,
    /// Device id.
    pub device: u16,
    /// Class code: base class, subclass and programming interface, a byte each.
    pub class: u32,
    /// The kernel driver that holds it.
    pub driver: Option<String>,
    /// Only this driver may take it (`driver_override`).
    pub driver_override: Option<String>,
    /// Its IOMMU group; `None` when no IOMMU is active.
    pub iommu_group: Option<u32>,
    /// Its network interfaces.
    pub interfaces: Vec<String>,
    /// Its RDMA devices as the kernel names them.
    pub rdma_devices: Vec<String>,
}

impl Function {
    /// Whether it is a bridge: such a member of a group stays with its driver.
    pub fn is_bridge(&self) -> bool {
        self.class >> 16 == 0x06
    }

    /// Whether it can do RDMA: by its class (0x0207, InfiniBand), by its ids, or because the
    /// kernel's RDMA stack has found it so.
    pub fn is_rdma(&self) -> bool {
        self.class >> 8 == 0x0207 || known(self).is_some() || !self.rdma_devices.is_empty()
    }
}

impl Tree {
    /// The running system.
    pub fn system() -> Self {
        Self::at("/")
    }

    /// A tree whose `sys`, `proc` and `dev` lie in `root`.
    pub fn at(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// A path in the tree; `relative` has no leading slash.
    pub fn path(&self, relative: impl AsRef<Path>) -> PathBuf {
        self.root.join(relative)
    }

    /// The directory of a function.
    pub fn device(&self, address: Address) -> PathBuf {
        self.path(DEVICES).join(address.to_string())
    }

    /// The NUMA node that a function is attached to; `None` where the firmware does not say.
    pub fn numa_node(&self, address: Address) -> Option<u32> {
        let text = fs::read_to_string(self.device(address).join("numa_node")).ok()?;
        // -1 where nobody knows.
        text.trim().parse().ok()
    }

    /// The text of a file in the tree.
    pub fn read(&self, relative: impl AsRef<Path>) -> Result<String> {
        let path = self.path(relative);
        fs::read_to_string(&path).map_err(|source| Error::Sysfs { path, source })
    }

    /// The names in a directory of the tree, in order; none when it does not exist.
    pub fn names(&self, relative: impl AsRef<Path>) -> Result<Vec<String>> {
        let path = self.path(relative);
        let fail = |source| Error::Sysfs { path: path.clone(), source };
        let entries = match fs::read_dir(&path) {
            Ok(entries) => entries,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(fail(error)),
        };
        let mut names = Vec::new();
        for entry in entries {
            names.extend(entry.map_err(fail)?.file_name().into_string().ok());
        }
        names.sort();
        Ok(names)
    }

    /// All PCI functions, by address.
    pub fn functions(&self) -> Result<Vec<Function>> {
        self.functions_in(DEVICES)
    }

    /// The functions that can do RDMA, by address.
    pub fn rdma_functions(&self) -> Result<Vec<Function>> {
        let mut functions = self.functions()?;
        functions.retain(Function::is_rdma);
        Ok(functions)
    }

    /// The PCI functions in an IOMMU group, bridges among them, by address.
    pub fn group(&self, number: u32) -> Result<Vec<Function>> {
        self.functions_in(format!("sys/kernel/iommu_groups/{number}/devices"))
    }

    /// One function.
    ///
    /// # Errors
    /// [`Error::NoFunction`] when there is none at that address.
    pub fn function(&self, address: Address) -> Result<Function> {
        let dir = self.device(address);
        if !dir.exists() {
            return Err(Error::NoFunction { address });
        }
        let hex = |name: &str| {
            let path = dir.join(name);
            let text = fs::read_to_string(&path).map_err(|source| sysfs(&path, source))?;
            let digits = text.trim().trim_start_matches("0x");
            u32::from_str_radix(digits, 16)
                .map_err(|_| sysfs(&path, io::Error::new(ErrorKind::InvalidData, "no hexadecimal")))
        };
        let id = |name: &str| {
            let narrow = |_| io::Error::new(ErrorKind::InvalidData, "an id has 16 bits");
            u16::try_from(hex(name)?).map_err(|error| sysfs(&dir.join(name), narrow(error)))
        };
        let relative = Path::new(DEVICES).join(address.to_string());
        Ok(Function {
            address,
            vendor: id("vendor")?,
            device: id("device")?,
            class: hex("class")?,
            driver: link_name(&dir.join("driver"))?,
            driver_override: read_override(&dir.join("driver_override"))?,
            iommu_group: link_name(&dir.join("iommu_group"))?.and_then(|name| name.parse().ok()),
            interfaces: self.names(relative.join("net"))?,
            rdma_devices: self.names(relative.join("infiniband"))?,
        })
    }

    /// The functions whose addresses stand in a directory. One that vanishes meanwhile is left out.
    fn functions_in(&self, relative: impl AsRef<Path>) -> Result<Vec<Function>> {
        let mut functions = Vec::new();
        for name in self.names(relative)? {
            let Ok(address) = name.parse() else { continue };
            match self.function(address) {
                Ok(function) => functions.push(function),
                Err(Error::NoFunction { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(functions)
    }
}

/// The last part of where a link points; `None` when there is no link.
fn link_name(path: &Path) -> Result<Option<String>> {
    match fs::read_link(path) {
        Ok(target) => Ok(target.file_name().and_then(|name| name.to_str()).map(str::to_owned)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(source) => Err(sysfs(path, source)),
    }
}

/// The kernel writes "(null)" when nothing is set.
fn read_override(path: &Path) -> Result<Option<String>> {
    match fs::read_to_string(path) {
        Ok(text) => {
            let text = text.trim();
            Ok((!text.is_empty() && text != "(null)").then(|| text.to_owned()))
        }
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(source) => Err(sysfs(path, source)),
    }
}

fn sysfs(path: &Path, source: io::Error) -> Error {
    Error::Sysfs { path: path.to_owned(), source }
}
