//! A group: what the IOMMU cannot tell apart, and so what one owner must have whole.

use std::fs::{File, OpenOptions};
use std::mem::offset_of;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use vfio_bindings::bindings::vfio::{
    VFIO_GROUP_FLAGS_CONTAINER_SET, VFIO_GROUP_FLAGS_VIABLE, vfio_group_status,
};

use super::container::Container;
use super::ioctl::{self, Sized};
use crate::pci::{Address, Function, Tree};
use crate::{Error, Result};

/// Kernel drivers that may hold a member of a group that VFIO uses, because they never start DMA.
const HARMLESS: [&str; 2] = ["pci-stub", "pcieport"];

/// An open group, in its container.
#[derive(Debug)]
pub struct Group {
    file: Arc<File>,
    number: u32,
    // The group must not outlive the container it was put in.
    _container: Arc<Container>,
}

impl Group {
    /// Opens group `number` for the sake of `address`, checks that all of it belongs to VFIO, and
    /// puts it in `container`, which becomes a type1 container if it was empty.
    pub fn open(
        tree: &Tree,
        number: u32,
        address: Address,
        container: Arc<Container>,
    ) -> Result<Self> {
        refuse_noiommu(tree, number)?;
        let path = tree.path(format!("dev/vfio/{number}"));
        let file =
            OpenOptions::new().read(true).write(true).open(&path).map_err(|source| match source
                .raw_os_error()
            {
                Some(libc::EBUSY) => Error::GroupBusy { group: number },
                Some(libc::ENOENT) => Error::NotBound { address },
                _ => Error::Open { path, source },
            })?;
        let mut status = [0; size_of::<vfio_group_status>()];
        ioctl::sized(file.as_fd(), Sized::GroupGetStatus, &mut status)?;
        check_status(tree, number, address, &status)?;
        ioctl::set_container(file.as_fd(), container.as_fd())?;
        container.set_type1(number)?;
        let file = Arc::new(file);
        container.hold(Arc::clone(&file));
        Ok(Self { file, number, _container: container })
    }

    /// The kernel's number of the group.
    pub fn number(&self) -> u32 {
        self.number
    }
}

impl AsFd for Group {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// Refuses a group that has no IOMMU: `/dev/vfio/noiommu-N`, or `vfio-noiommu` as its name.
pub fn refuse_noiommu(tree: &Tree, number: u32) -> Result<()> {
    let node = tree.path(format!("dev/vfio/noiommu-{number}"));
    let name = tree.read(format!("sys/kernel/iommu_groups/{number}/name")).unwrap_or_default();
    if node.exists() || name.trim() == "vfio-noiommu" {
        return Err(Error::NoIommu { group: number });
    }
    Ok(())
}

/// The members that keep a group from VFIO: those with a kernel driver that may start DMA.
pub fn blockers(members: &[Function]) -> Vec<&Function> {
    let blocks = |driver: &str| !HARMLESS.contains(&driver) && !driver.starts_with("vfio");
    members.iter().filter(|member| member.driver.as_deref().is_some_and(blocks)).collect()
}

fn check_status(tree: &Tree, number: u32, address: Address, status: &[u8]) -> Result<()> {
    let offset = offset_of!(vfio_group_status, flags);
    let flags = status.get(offset..).and_then(|rest| rest.first_chunk()).copied();
    let flags = u32::from_ne_bytes(flags.unwrap_or_default());
    if flags & VFIO_GROUP_FLAGS_CONTAINER_SET != 0 {
        return Err(Error::GroupBusy { group: number });
    }
    if flags & VFIO_GROUP_FLAGS_VIABLE != 0 {
        return Ok(());
    }
    let members = tree.group(number).unwrap_or_default();
    Err(Error::NotViable { group: number, address, members: describe(&members) })
}

/// "0000:03:00.1 is bound to igb and ...", for the error.
fn describe(members: &[Function]) -> String {
    let blockers = blockers(members);
    if blockers.is_empty() {
        return "a member that is no PCI function has a kernel driver".to_owned();
    }
    let lines = blockers.iter().map(|member| {
        format!("{} is bound to {}", member.address, member.driver.as_deref().unwrap_or("?"))
    });
    lines.collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_group_that_is_not_viable_names_who_holds_it_and_the_cure() {
        let dir = tempfile::tempdir().unwrap();
        let tree = Tree::at(dir.path());
        let devices = dir.path().join("sys/bus/pci/devices");
        let group = dir.path().join("sys/kernel/iommu_groups/12/devices");
        std::fs::create_dir_all(&group).unwrap();
        for (name, driver) in
            [("0000:03:00.0", "vfio-pci"), ("0000:03:00.1", "igb"), ("0000:00:01.0", "pcieport")]
        {
            let device = devices.join(name);
            std::fs::create_dir_all(&device).unwrap();
            for (file, text) in [("vendor", "0x8086"), ("device", "0x1"), ("class", "0x020000")] {
                std::fs::write(device.join(file), text).unwrap();
            }
            let drivers = dir.path().join("sys/bus/pci/drivers").join(driver);
            std::fs::create_dir_all(&drivers).unwrap();
            std::os::unix::fs::symlink(drivers, device.join("driver")).unwrap();
            std::os::unix::fs::symlink(&device, group.join(name)).unwrap();
        }
        let address = "0000:03:00.0".parse().unwrap();
        let error = check_status(&tree, 12, address, &[8, 0, 0, 0, 0, 0, 0, 0]).unwrap_err();
        assert_eq!(
            error.to_string(),
            "group 12 is not viable: 0000:03:00.1 is bound to igb; run `holdfast bind 0000:03:00.0`"
        );
        check_status(&tree, 12, address, &[8, 0, 0, 0, 1, 0, 0, 0]).unwrap();
        let busy = check_status(&tree, 12, address, &[8, 0, 0, 0, 3, 0, 0, 0]).unwrap_err();
        assert!(matches!(busy, Error::GroupBusy { group: 12 }));
    }
}
