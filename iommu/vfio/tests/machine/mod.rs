//! A machine made of files: sysfs, procfs and /dev as far as this crate reads them, and a writer
//! that answers to writes as the kernel does.
#![allow(dead_code)]

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use holdfast_vfio::pci::{Address, SysfsWrite, Tree};

pub struct Machine {
    dir: tempfile::TempDir,
    pub tree: Tree,
}

/// A function to plug in.
pub struct Card {
    pub address: &'static str,
    pub ids: (u16, u16),
    pub class: u32,
    pub driver: Option<&'static str>,
    pub group: Option<u32>,
}

impl Machine {
    pub fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let tree = Tree::at(dir.path());
        let machine = Self { dir, tree };
        machine.write("sys/bus/pci/drivers_probe", "");
        machine
    }

    pub fn path(&self, relative: &str) -> PathBuf {
        self.dir.path().join(relative)
    }

    pub fn write(&self, relative: &str, text: &str) {
        let path = self.path(relative);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    pub fn link(&self, relative: &str, target: impl AsRef<Path>) {
        let path = self.path(relative);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        symlink(target, path).unwrap();
    }

    pub fn driver(&self, name: &str) {
        for file in ["bind", "unbind"] {
            self.write(&format!("sys/bus/pci/drivers/{name}/{file}"), "");
        }
    }

    pub fn plug(&self, card: Card) -> Address {
        let Card { address, ids, class, driver, group } = card;
        let real = format!("sys/devices/pci0000:00/{address}");
        self.write(&format!("{real}/vendor"), &format!("{:#06x}\n", ids.0));
        self.write(&format!("{real}/device"), &format!("{:#06x}\n", ids.1));
        self.write(&format!("{real}/class"), &format!("{class:#08x}\n"));
        self.write(&format!("{real}/driver_override"), "(null)\n");
        self.link(&format!("sys/bus/pci/devices/{address}"), self.path(&real));
        if let Some(driver) = driver {
            self.driver(driver);
            let target = self.path(&format!("sys/bus/pci/drivers/{driver}"));
            self.link(&format!("{real}/driver"), target);
        }
        if let Some(group) = group {
            let dir = format!("sys/kernel/iommu_groups/{group}");
            self.link(&format!("{dir}/devices/{address}"), self.path(&real));
            self.link(&format!("{real}/iommu_group"), self.path(&dir));
        }
        address.parse().unwrap()
    }

    /// A program with a file open.
    pub fn process(&self, pid: u32, name: &str, open: &str) {
        self.write(&format!("proc/{pid}/comm"), &format!("{name}\n"));
        self.link(&format!("proc/{pid}/fd/7"), open);
    }

    pub fn driver_of(&self, address: Address) -> Option<String> {
        self.tree.function(address).unwrap().driver
    }

    pub fn override_of(&self, address: Address) -> Option<String> {
        self.tree.function(address).unwrap().driver_override
    }
}

/// The kernel's side of the writes.
pub struct Kernel<'a> {
    pub machine: &'a Machine,
    /// The driver that a function without an override gets.
    pub natural: Vec<(Address, &'static str)>,
    /// Functions that vfio-pci fails to take.
    pub broken: BTreeSet<Address>,
    /// Writes seen: the file's last two names and the text.
    pub log: Vec<(String, String)>,
}

impl<'a> Kernel<'a> {
    pub fn new(machine: &'a Machine) -> Self {
        Self { machine, natural: Vec::new(), broken: BTreeSet::new(), log: Vec::new() }
    }

    fn bind(&self, address: Address, driver: &str) {
        let real = format!("sys/devices/pci0000:00/{address}/driver");
        self.machine.link(&real, self.machine.path(&format!("sys/bus/pci/drivers/{driver}")));
    }
}

impl SysfsWrite for Kernel<'_> {
    fn write(&mut self, path: &Path, text: &str) -> io::Result<()> {
        // The file must be there, as in sysfs.
        fs::metadata(path)?;
        let file = path.file_name().unwrap().to_str().unwrap();
        let dir = path.parent().unwrap().file_name().unwrap().to_str().unwrap();
        self.log.push((format!("{dir}/{file}"), text.to_owned()));
        let invalid = || io::Error::from_raw_os_error(libc::EINVAL);
        let nodev = || io::Error::from_raw_os_error(libc::ENODEV);
        if file == "driver_override" {
            let text = if text == "\n" { "(null)\n" } else { text };
            return fs::write(path, text);
        }
        let address: Address = text.parse().map_err(|_| invalid())?;
        let allowed = self.machine.override_of(address);
        match file {
            "unbind" => {
                if self.machine.driver_of(address).as_deref() != Some(dir) {
                    return Err(nodev());
                }
                fs::remove_file(self.machine.tree.device(address).join("driver"))
            }
            "bind" => {
                if self.machine.driver_of(address).is_some()
                    || allowed.is_some_and(|driver| driver != dir)
                {
                    return Err(nodev());
                }
                self.bind(address, dir);
                Ok(())
            }
            "drivers_probe" => {
                let natural = self.natural.iter().find(|(found, _)| *found == address);
                let driver = allowed.or(natural.map(|(_, driver)| (*driver).to_owned()));
                if let Some(driver) =
                    driver.filter(|d| d != "vfio-pci" || !self.broken.contains(&address))
                {
                    self.bind(address, &driver);
                }
                Ok(())
            }
            other => panic!("nobody should write to {other}"),
        }
    }
}
