//! How a function leaves that the kernel has asked for: its group is let go of only afterwards.
//!
//! Closing the function lets the kernel go on and take it from the bus, and with the last
//! descriptor of a group it gives the group's other members back to their own domain. In Linux 6.1
//! nothing keeps these two apart when the group has other members: `iommu_release_device` frees
//! what `iommu_detach_group` is just using, and the kernel ends whoever asked for the removal in an
//! oops, with the lock of all PCI rescans held. (Of a group's last member VFIO itself takes the
//! group's lock, and later kernels release under the IOMMU group's.) So we wait, between the one
//! and the other, until the function is gone.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::sleep;
use std::time::{Duration, Instant};

use crate::pci::{Address, Tree};

/// How long the kernel may take to remove a function that nobody holds any more.
const REMOVED_WITHIN: Duration = Duration::from_secs(10);
/// How long after its driver a function may stay on the bus if it is to leave it: one whose driver
/// alone was asked to go stays for good.
const OFF_THE_BUS_WITHIN: Duration = Duration::from_secs(1);
/// How often to look.
const TICK: Duration = Duration::from_millis(1);

/// Waits when dropped, if the kernel has asked for the function: declare it between the function's
/// descriptor and the group's.
#[derive(Debug)]
pub(super) struct Departure {
    // The function's own folder, not the bus's link to it: that goes before the IOMMU is told.
    function: PathBuf,
    expected: AtomicBool,
}

impl Departure {
    pub(super) fn new(tree: &Tree, address: Address) -> Self {
        let link = tree.device(address);
        let function = link.canonicalize().unwrap_or(link);
        Self { function, expected: AtomicBool::new(false) }
    }

    /// The kernel has asked.
    pub(super) fn expect(&self) {
        self.expected.store(true, Ordering::Relaxed);
    }
}

impl Drop for Departure {
    fn drop(&mut self) {
        if !self.expected.load(Ordering::Relaxed) {
            return;
        }
        let start = Instant::now();
        let mut driverless = None;
        while self.function.exists() {
            if !self.function.join("driver").exists() {
                driverless.get_or_insert_with(Instant::now);
            }
            let stays = driverless.is_some_and(|since| since.elapsed() > OFF_THE_BUS_WITHIN);
            if stays || start.elapsed() > REMOVED_WITHIN {
                tracing::debug!(function = %self.function.display(), "stays on the bus");
                return;
            }
            sleep(TICK);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    /// A function's folder, with the bus's link to it.
    fn function(dir: &Path) -> (Departure, PathBuf, PathBuf) {
        let address: Address = "0000:03:00.0".parse().unwrap();
        let function = dir.join("sys/devices/pci0000:00").join(address.to_string());
        let bus = dir.join("sys/bus/pci/devices");
        std::fs::create_dir_all(function.join("driver")).unwrap();
        std::fs::create_dir_all(&bus).unwrap();
        let link = bus.join(address.to_string());
        std::os::unix::fs::symlink(&function, &link).unwrap();
        (Departure::new(&Tree::at(dir), address), function, link)
    }

    #[test]
    fn a_function_that_was_asked_for_is_gone_before_its_group_is_let_go_of() {
        let dir = tempfile::tempdir().unwrap();
        let (departure, path, link) = function(dir.path());
        departure.expect();
        let remover = std::thread::spawn({
            let path = path.clone();
            move || {
                std::fs::remove_dir(path.join("driver")).unwrap();
                std::fs::remove_file(link).unwrap();
                sleep(Duration::from_millis(50));
                std::fs::remove_dir(path).unwrap();
            }
        });
        drop(departure);
        assert!(!path.exists());
        remover.join().unwrap();
    }

    #[test]
    fn nobody_waits_for_a_function_that_stays() {
        let dir = tempfile::tempdir().unwrap();
        let (departure, path, _) = function(dir.path());
        let start = Instant::now();
        drop(departure);
        let unasked = start.elapsed();
        assert!(unasked < REMOVED_WITHIN, "{unasked:?}");

        // Only its driver was to go.
        let departure = Departure::new(&Tree::at(dir.path()), "0000:03:00.0".parse().unwrap());
        departure.expect();
        std::fs::remove_dir(path.join("driver")).unwrap();
        drop(departure);
        assert!(path.exists());
    }
}
