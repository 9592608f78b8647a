//! QEMU 7.2 realises its pvrdma devices over the preloaded library, with no RDMA on the host.
//!
//! No guest runs: QEMU stands still before its first instruction. What a guest does with the
//! devices is for the lab's `qemu72` suite.
#![allow(missing_docs, clippy::macro_metavars_in_unsafe)]

mod rig;

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// The tree that QEMU's package was unpacked in.
fn root() -> PathBuf {
    if let Some(root) = std::env::var_os("HOLDFAST_QEMU_7_2") {
        return root.into();
    }
    let home = std::env::var("HOME").expect("a home");
    let items = Path::new(&home).join(".cache/holdfast/lab/items");
    let found = std::fs::read_dir(items).ok().and_then(|mut items| {
        let is_qemu = |name: &str| name.starts_with("qemu-7.2-");
        items.find_map(|item| {
            Some(item.ok()?.path())
                .filter(|p| p.file_name().and_then(|n| n.to_str()).is_some_and(is_qemu))
        })
    });
    found.expect("QEMU 7.2 in the lab's cache").join("root")
}

/// A QEMU with its monitor on standard input and output.
struct Qemu {
    child: Child,
    output: BufReader<std::process::ChildStdout>,
}

impl Qemu {
    /// With this many pvrdma devices, each beside its vmxnet3.
    fn start(devices: usize, settings: &[(&str, &str)]) -> Self {
        let root = root();
        let at = |path: &str| root.join(path);
        let binary = at("usr/bin/qemu-system-x86_64");
        let libraries = ["usr/lib/x86_64-linux-gnu", "lib/x86_64-linux-gnu"].map(at);
        let pulse = at("usr/lib/x86_64-linux-gnu/pulseaudio");
        let path = std::env::join_paths(libraries.iter().chain([&pulse])).expect("paths");
        // A complete tree has a loader of its own, which goes with its C library.
        let loader = at("lib64/ld-linux-x86-64.so.2");
        let mut command = match loader.exists() {
            true => {
                let mut command = Command::new(loader);
                command.arg("--library-path").arg(&path).arg("--preload").arg(rig::library());
                command.arg(binary);
                command
            }
            false => {
                let mut command = Command::new(binary);
                command.env("LD_LIBRARY_PATH", &path).env("LD_PRELOAD", rig::library());
                command
            }
        };
        command.envs(settings.iter().copied());
        for folder in ["usr/share/qemu", "usr/share/seabios", "usr/lib/ipxe/qemu"] {
            command.arg("-L").arg(at(folder));
        }
        command
            .args("-accel tcg -machine q35,memory-backend=ram0 -m 64M -S".split(' '))
            .args("-nodefaults -display none -nic none -monitor stdio".split(' '))
            .args(["-object", "memory-backend-memfd,id=ram0,size=64M,share=on"])
            .args(["-object", "memory-backend-ram,id=zz,size=64K,share=on"]);
        for n in 0..devices {
            let slot = 10 + n;
            let nic = format!("vmxnet3,bus=pcie.0,addr={slot}.0,multifunction=on");
            let rdma = format!(
                "pvrdma,bus=pcie.0,addr={slot}.1,ibdev=hf{n},netdev=eth{n},mad-chardev=mad{n}"
            );
            command.args(["-chardev", &format!("null,id=mad{n}")]);
            command.args(["-device", &nic, "-device", &rdma]);
        }
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .spawn()
            .expect("QEMU starts");
        let output = BufReader::new(child.stdout.take().expect("its output"));
        Self { child, output }
    }

    fn tell(&mut self, line: &str) {
        let input = self.child.stdin.as_mut().expect("its input");
        writeln!(input, "{line}").expect("QEMU reads");
    }

    /// Reads up to a line that holds `end`; `None` when the output ends before.
    fn read_to(&mut self, end: &str) -> Option<String> {
        let mut all = String::new();
        loop {
            let mut line = Vec::new();
            if self.output.read_until(b'\n', &mut line).expect("QEMU writes") == 0 {
                return None;
            }
            let line = String::from_utf8_lossy(&line).into_owned();
            all += &line;
            if line.contains(end) {
                return Some(all);
            }
        }
    }

    fn wait(&mut self) -> ExitStatus {
        let start = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().expect("a child") {
                return status;
            }
            assert!(start.elapsed() < Duration::from_secs(20), "QEMU does not end");
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Qemu {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
#[ignore = "needs QEMU 7.2, in the lab's cache or in the tree that HOLDFAST_QEMU_7_2 names"]
fn a_device_is_realised_and_taken_down() {
    let mut qemu = Qemu::start(1, &[]);
    qemu.tell("info rdma");
    let report = qemu.read_to("CEQ_CTXs").expect("QEMU lives and reports");
    assert!(report.contains("pvrdma, 10.1"), "{report}");
    qemu.tell("quit");
    assert!(qemu.wait().success());
}

/// They are not taken down: QEMU 7.2 frees its table of address handles once for each device.
#[test]
#[ignore = "needs QEMU 7.2, in the lab's cache or in the tree that HOLDFAST_QEMU_7_2 names"]
fn two_devices_are_realised_side_by_side() {
    let mut qemu = Qemu::start(2, &[("HOLDFAST_VERBS_GIDS", "hf0=fe80::1,hf1=fe80::2")]);
    qemu.tell("info rdma");
    for device in ["pvrdma, 11.1", "pvrdma, 10.1"] {
        let report = qemu.read_to("CEQ_CTXs").expect("QEMU lives and reports");
        assert!(report.contains(device), "{report}");
    }
}

/// QEMU crashes where the library gives it no devices; here it must not get that far unnoticed.
#[test]
#[ignore = "needs QEMU 7.2, in the lab's cache or in the tree that HOLDFAST_QEMU_7_2 names"]
fn settings_that_cannot_be_meant_end_in_no_device() {
    let mut qemu = Qemu::start(1, &[("HOLDFAST_VERBS_DEVICES", "a,a")]);
    assert!(!qemu.wait().success());
}
