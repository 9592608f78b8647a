//! QEMU: which one, with what accelerator, and its command line.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::Result;
use clap::ValueEnum;
use serde::Deserialize;

use super::Machine;
use super::nic::Attached;
use crate::cache::Item;
use crate::debian::tree::{Depth, Tree};
use crate::debian::{Debian, Kernel, Release};
use crate::process::{Guarded, Terminal};

/// Which QEMU runs the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, ValueEnum, Deserialize)]
pub enum QemuVersion {
    /// Debian 12's: the last with a PVRDMA device of its own.
    #[value(name = "7.2")]
    #[serde(rename = "7.2")]
    V7_2,
    /// Debian 13's backport: has `vfio-user-pci`.
    #[value(name = "11.1")]
    #[serde(rename = "11.1")]
    V11_1,
}

impl QemuVersion {
    /// The version as people write it.
    pub fn name(self) -> &'static str {
        match self {
            QemuVersion::V7_2 => "7.2",
            QemuVersion::V11_1 => "11.1",
        }
    }
}

/// What executes the guest's instructions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Accelerator {
    /// KVM if it works here, else emulation.
    Auto,
    /// Hardware virtualisation.
    Kvm,
    /// Emulation.
    Tcg,
}

/// A QEMU that is ready to run.
#[derive(Debug, Clone)]
pub struct Qemu {
    tree: Tree,
}

impl Debian {
    /// A QEMU, fetched if it is not there yet.
    pub fn qemu(&self, version: QemuVersion) -> Result<Qemu> {
        let release = match version {
            QemuVersion::V7_2 => Release::Bookworm,
            QemuVersion::V11_1 => Release::TrixieBackports,
        };
        let packages = ["qemu-system-x86", "qemu-system-data", "seabios"];
        let name = format!("qemu-{}", version.name());
        let (tree, _) = self.tree(&name, release, Depth::Unpacked, &packages)?;
        Ok(Qemu { tree })
    }
}

impl Qemu {
    fn program(&self, preload: &[std::path::PathBuf]) -> Result<Command> {
        let mut command = self.tree.program("usr/bin/qemu-system-x86_64", preload)?;
        command.env("QEMU_MODULE_DIR", self.tree.file("usr/lib/x86_64-linux-gnu/qemu"));
        for folder in ["usr/share/qemu", "usr/share/seabios"] {
            command.arg("-L").arg(self.tree.file(folder));
        }
        Ok(command)
    }

    /// Whether KVM works here: the processor has it, and a QEMU with it starts.
    fn kvm_works(&self) -> bool {
        let processor = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let mut flags = processor.lines().filter(|line| line.starts_with("flags")).take(1);
        let capable =
            flags.any(|line| line.split_whitespace().any(|flag| flag == "vmx" || flag == "svm"));
        if !capable {
            return false;
        }
        let Ok(mut command) = self.program(&[]) else { return false };
        command.args(["-machine", "none,accel=kvm", "-display", "none", "-monitor", "stdio"]);
        // An empty standard input ends the monitor and QEMU with it.
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let Ok(mut child) = Guarded::spawn(&mut command, Terminal::Own) else { return false };
        match child.wait(Duration::from_secs(2)) {
            Ok(status) => status.success(),
            Err(_) => true,
        }
    }

    /// The command line of a guest, all but its console.
    pub fn command(
        &self,
        machine: &Machine,
        kernel: &Kernel,
        root: &Item,
        folder: &Path,
        attached: &Attached,
    ) -> Result<Command> {
        let kvm = match machine.accelerator {
            Accelerator::Kvm => true,
            Accelerator::Tcg => false,
            Accelerator::Auto => self.kvm_works(),
        };
        let mut command = self.program(&attached.preload)?;
        command.envs(attached.environment.iter().map(|(name, value)| (name, value)));
        let memory = machine.memory_mib;
        let irqchip = if kvm { "split" } else { "off" };
        let accelerator = if kvm { "kvm" } else { "tcg,thread=multi" };
        command.args(["-accel", accelerator, "-cpu", if kvm { "host" } else { "max" }]);
        command.args(["-smp", &machine.cpus.to_string()]);
        command.args(["-m", &format!("{memory}M,slots=4,maxmem=32G")]);
        command.args([
            "-machine",
            &format!("q35,nvdimm=on,kernel-irqchip={irqchip},memory-backend=ram0"),
            // A device in another process maps the guest's memory by its file descriptor.
            "-object",
            &format!("memory-backend-memfd,id=ram0,size={memory}M,share=on"),
            "-device",
            "intel-iommu,intremap=on,caching-mode=on",
        ]);
        command.arg("-kernel").arg(kernel.vmlinuz()).arg("-initrd").arg(&kernel.initrd);
        // no_timer_check: on a loaded machine a guest's timer comes so late that the kernel's check
        // of its interrupt at boot gives up, which with interrupt remapping is a panic.
        let parameters = "console=ttyS0 quiet intel_iommu=on iomem=relaxed panic=-1 \
                          mitigations=off no_timer_check";
        command.args(["-append", &format!("{parameters} {}", machine.append)]);

        let disks = [
            ("root", root.file("root.ext4"), "snapshot=on"),
            ("modules", kernel.modules(), "readonly=on"),
            ("job", folder.join("job.tar"), "readonly=on"),
        ];
        for (index, (name, file, mode)) in disks.iter().enumerate() {
            let file = file.display().to_string().replace(',', ",,");
            let drive = format!("id=lab-{name},file={file},if=none,format=raw,{mode}");
            command.args(["-drive", &drive]);
            let slot = 2 + index;
            let device =
                format!("virtio-blk-pci,drive=lab-{name},serial=lab-{name},addr={slot:#x}");
            command.args(["-device", &device]);
        }
        command.args(["-device", "virtio-serial-pci,addr=0x6"]);
        for (name, file) in [("status", "status"), ("out", "out.tar")] {
            let path = folder.join(file).display().to_string().replace(',', ",,");
            command.args(["-chardev", &format!("file,id={name},path={path}")]);
            command.args(["-device", &format!("virtserialport,chardev={name},name=lab.{name}")]);
        }
        if machine.nvdimm_mib > 0 {
            let size = machine.nvdimm_mib;
            command
                .args(["-object", &format!("memory-backend-memfd,id=nv0,size={size}M,share=on")]);
            command.args(["-device", "nvdimm,id=nvd0,memdev=nv0"]);
        }
        command.args(&attached.arguments);
        for device in &machine.devices {
            command.args(["-device", device]);
        }
        command.args(["-nodefaults", "-no-user-config", "-display", "none", "-vga", "none"]);
        command.arg("-no-reboot");
        Ok(command)
    }
}
