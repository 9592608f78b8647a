//! QEMU 7.2's own PVRDMA devices, which want a host with RDMA: a preloaded library plays that host.
//!
//! The device drives an RDMA NIC of the host through libibverbs. `libholdfast_verbs.so`
//! (tools/verbs) stands in its place, with a NIC for each device, all joined to each other. QEMU
//! wants further: a vmxnet3 at function 0 of the slot, a chardev for management datagrams (one
//! that answers nothing does for RC and UD), and shared memory that it recognises as such.

use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::ExitStatus;

use anyhow::{Result, bail};
use nix::sys::signal::Signal;

use crate::cli::beside_us;

/// The library's name in the folder of our programs.
const LIBRARY: &str = "libholdfast_verbs.so";
/// GIDs of each device besides the one of its MAC address: fd00:0::SLOT, fd00:1::SLOT, ...
const EXTRA_GIDS: u32 = 4;

/// The devices of a guest, by the slots they sit in.
#[derive(Debug, Default)]
pub struct Pvrdma(Vec<usize>);

impl Pvrdma {
    /// One more, at function 1 of `slot`, whose function 0 is a vmxnet3.
    pub fn add(&mut self, slot: usize) -> Vec<String> {
        self.0.push(slot);
        let options = format!(
            "pvrdma,addr={slot:#x}.1,ibdev=hf{slot},netdev=net{slot},mad-chardev=mad{slot}"
        );
        ["-chardev".to_owned(), format!("null,id=mad{slot}"), "-device".to_owned(), options].into()
    }

    /// What QEMU needs once for all of them.
    pub fn arguments(&self) -> Vec<String> {
        if self.0.is_empty() {
            return Vec::new();
        }
        // The device looks for a shared backend of this kind and does not know memfd, which works.
        ["-object", "memory-backend-ram,id=pvrdma-shared,size=64K,share=on"]
            .map(str::to_owned)
            .into()
    }

    /// The library's settings: a NIC for each device, with the link-local GID of its vmxnet3's MAC
    /// address, which is the one that drivers bind, and some more to play with.
    pub fn environment(&self) -> Vec<(&'static str, String)> {
        if self.0.is_empty() {
            return Vec::new();
        }
        let list =
            |entry: fn(&usize) -> String| self.0.iter().map(entry).collect::<Vec<_>>().join(",");
        let gids = |slot: &usize| {
            let own = format!("hf{slot}=fe80::5054:ff:fe00:{slot:x}");
            let more = (0..EXTRA_GIDS).map(|n| format!("hf{slot}=fd00:{n:x}::{slot:x}"));
            std::iter::once(own).chain(more).collect::<Vec<_>>().join(",")
        };
        vec![
            ("HOLDFAST_VERBS_DEVICES", list(|slot| format!("hf{slot}"))),
            ("HOLDFAST_VERBS_GIDS", list(gids)),
            ("HOLDFAST_VERBS_LOG", "1".to_owned()),
        ]
    }

    /// The library, if it is needed.
    pub fn preload(&self) -> Result<Vec<PathBuf>> {
        if self.0.is_empty() {
            return Ok(Vec::new());
        }
        let library = beside_us(LIBRARY)?;
        if !library.is_file() {
            bail!(
                "no {library:?}, which stands in for the RDMA NIC that qemu-pvrdma needs: cargo \
                 build --release -p holdfast-verbs"
            );
        }
        Ok(vec![library])
    }
}

/// Whether QEMU with that many devices may end so when all went well: it frees its table of address
/// handles once for each of them, so with two it crashes after the guest has powered off.
pub fn may_end_so(devices: usize, status: ExitStatus) -> bool {
    let crashes = [Signal::SIGTRAP, Signal::SIGSEGV, Signal::SIGABRT];
    status.success()
        || devices > 1 && crashes.iter().any(|signal| status.signal() == Some(*signal as i32))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_device_has_a_nic_of_its_own_with_the_gid_of_its_slot() {
        let mut devices = Pvrdma::default();
        devices.add(0x10);
        devices.add(0x1f);
        let environment = devices.environment();
        assert_eq!(environment[0].1, "hf16,hf31");
        let gids = &environment[1].1;
        assert!(gids.starts_with("hf16=fe80::5054:ff:fe00:10,hf16=fd00:0::10,"), "{gids}");
        assert!(gids.contains(",hf31=fe80::5054:ff:fe00:1f,hf31=fd00:0::1f,"), "{gids}");
        assert_eq!(gids.split(',').count(), 10);
    }

    #[test]
    fn without_a_device_nothing_is_asked_of_qemu() {
        let none = Pvrdma::default();
        assert!(none.arguments().is_empty() && none.environment().is_empty());
        assert!(none.preload().unwrap().is_empty());
    }

    #[test]
    fn only_several_devices_excuse_a_crash() {
        let crash = ExitStatus::from_raw(Signal::SIGTRAP as i32);
        let killed = ExitStatus::from_raw(Signal::SIGKILL as i32);
        let well = ExitStatus::from_raw(0);
        let cases = [(1, crash, false), (2, crash, true), (2, killed, false), (0, well, true)];
        for (devices, status, may) in cases {
            assert_eq!(may_end_so(devices, status), may, "{devices} {status}");
        }
    }
}
