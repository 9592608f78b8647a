//! Doing what a plan says, and taking it back when a step fails.

use std::fs::OpenOptions;
use std::io::{self, Write};
use std::path::Path;

use super::plan::{BindPlan, Member, Step};
use super::{Address, Tree};
use crate::{Error, Result};

/// Who writes to sysfs.
pub trait SysfsWrite {
    /// One write of `text` to an existing file; blocks for as long as the kernel's drivers take.
    fn write(&mut self, path: &Path, text: &str) -> io::Result<()>;
}

/// Writes to files.
#[derive(Debug, Clone, Copy, Default)]
pub struct FileWriter;

impl SysfsWrite for FileWriter {
    fn write(&mut self, path: &Path, text: &str) -> io::Result<()> {
        // One write call: the kernel takes each as a command of its own.
        OpenOptions::new().write(true).open(path)?.write_all(text.as_bytes())
    }
}

impl BindPlan {
    /// Does all steps in order. When one fails, puts every member that was touched back as it was.
    /// Blocks for as long as drivers take to let go and to start.
    ///
    /// # Errors
    /// [`Error::Bind`] with the step that failed and whether everything is back in place.
    pub fn execute(&self, tree: &Tree, writer: &mut dyn SysfsWrite) -> Result<()> {
        let mut touched: Vec<Address> = Vec::new();
        for step in &self.steps {
            let address = step.address();
            if !touched.contains(&address) {
                touched.push(address);
            }
            if let Err(source) = perform(tree, writer, step) {
                let left = self.roll_back(tree, writer, &touched);
                return Err(Error::Bind { step: step.to_string(), left, source });
            }
        }
        Ok(())
    }

    /// Puts members back, the last first; gives what could not be put back, as text.
    fn roll_back(&self, tree: &Tree, writer: &mut dyn SysfsWrite, touched: &[Address]) -> String {
        let mut left = Vec::new();
        for address in touched.iter().rev() {
            let Some(member) = self.members.iter().find(|member| member.address == *address) else {
                continue;
            };
            if let Err(error) = put_back(tree, writer, member) {
                left.push(format!("{address} could not be put back: {error}"));
            }
        }
        if left.is_empty() { "everything is as it was before".to_owned() } else { left.join("; ") }
    }
}

impl Step {
    /// The function it concerns.
    pub fn address(&self) -> Address {
        match self {
            Self::Override(address, _) | Self::Unbind(address, _) | Self::Probe { address, .. } => {
                *address
            }
        }
    }
}

fn perform(tree: &Tree, writer: &mut dyn SysfsWrite, step: &Step) -> io::Result<()> {
    match step {
        Step::Override(address, driver) => set_override(tree, writer, *address, driver.as_deref()),
        Step::Unbind(address, driver) => driver_file(tree, writer, driver, "unbind", *address),
        Step::Probe { address, expect } => {
            let path = tree.path("sys/bus/pci/drivers_probe");
            writer.write(&path, &address.to_string())?;
            let Some(expect) = expect else { return Ok(()) };
            // The write succeeds whether or not a driver took the function.
            let found = tree.function(*address).map_err(io::Error::other)?.driver;
            if found.as_deref() == Some(expect) {
                return Ok(());
            }
            let found = found.unwrap_or_else(|| "no driver".to_owned());
            Err(io::Error::other(format!("{found} has it; the kernel log may say why")))
        }
    }
}

fn put_back(tree: &Tree, writer: &mut dyn SysfsWrite, member: &Member) -> io::Result<()> {
    let now = tree.function(member.address).map_err(io::Error::other)?;
    if now.driver != member.driver
        && let Some(driver) = &now.driver
    {
        driver_file(tree, writer, driver, "unbind", member.address)?;
    }
    // Before the old driver is asked: it may not take what another driver has been promised.
    if now.driver_override != member.driver_override {
        set_override(tree, writer, member.address, member.driver_override.as_deref())?;
    }
    match &member.driver {
        Some(driver) if now.driver != member.driver => {
            driver_file(tree, writer, driver, "bind", member.address)
        }
        _ => Ok(()),
    }
}

fn set_override(
    tree: &Tree,
    writer: &mut dyn SysfsWrite,
    address: Address,
    driver: Option<&str>,
) -> io::Result<()> {
    let path = tree.device(address).join("driver_override");
    // An empty line lifts the override.
    writer.write(&path, driver.unwrap_or("\n"))
}

fn driver_file(
    tree: &Tree,
    writer: &mut dyn SysfsWrite,
    driver: &str,
    file: &str,
    address: Address,
) -> io::Result<()> {
    let path = tree.path("sys/bus/pci/drivers").join(driver).join(file);
    writer.write(&path, &address.to_string())
}
