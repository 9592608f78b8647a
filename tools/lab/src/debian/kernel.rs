//! Guest kernels: Debian's own packages, as a kernel image, an image of its modules, and an
//! initramfs of a static busybox with the few modules that find the disks.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::ValueEnum;
use serde::Deserialize;

use super::apt::{Indices, unpack};
use super::{Debian, Release, initrd};
use crate::cache::{Item, Recipe};
use crate::process;
use crate::progress::Progress;

/// Which kernel a guest runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, ValueEnum, Deserialize)]
pub enum KernelVersion {
    /// Debian 12's.
    #[value(name = "6.1")]
    #[serde(rename = "6.1")]
    V6_1,
    /// Debian 13's backport.
    #[value(name = "7.3")]
    #[serde(rename = "7.3")]
    V7_3,
}

impl KernelVersion {
    /// The version as people write it.
    pub fn name(self) -> &'static str {
        match self {
            KernelVersion::V6_1 => "6.1",
            KernelVersion::V7_3 => "7.3",
        }
    }

    /// Where its packages are.
    pub fn release(self) -> Release {
        match self {
            KernelVersion::V6_1 => Release::Bookworm,
            KernelVersion::V7_3 => Release::TrixieBackports,
        }
    }

    /// The packages of the newest kernel of this version: the image first.
    fn packages(self, indices: &Indices) -> Result<Vec<String>> {
        match self {
            KernelVersion::V6_1 => Ok(vec![indices.newest("linux-image-6.1.", "-amd64")?]),
            KernelVersion::V7_3 => {
                let image = indices.newest("linux-binary-7.3.", "-amd64")?;
                let of = |part: &str| image.replacen("linux-binary", part, 1);
                Ok(vec![image.clone(), of("linux-modules"), of("linux-base")])
            }
        }
    }
}

/// A kernel that is ready to boot.
#[derive(Debug, Clone)]
pub struct Kernel {
    /// Its full version, as `uname -r` says it.
    pub release: String,
    /// The item with its files.
    pub item: Item,
    /// The initramfs.
    pub initrd: PathBuf,
}

impl Kernel {
    /// The kernel image.
    pub fn vmlinuz(&self) -> PathBuf {
        self.item.file("vmlinuz")
    }

    /// An image of `/usr/lib/modules`.
    pub fn modules(&self) -> PathBuf {
        self.item.file("modules.ext4")
    }
}

/// Modules that the initramfs loads, with what they depend on.
const EARLY: &[&str] = &["virtio_pci", "virtio_blk", "virtio_console", "ext4"];

/// Modules that no guest of ours has a use for; leaving them out halves the image.
const UNUSED: &[&str] =
    &["drivers/gpu", "drivers/media", "drivers/net/wireless", "drivers/staging", "sound"];

impl Debian {
    /// A kernel, fetched and prepared if it is not there yet.
    pub fn kernel(&self, version: KernelVersion) -> Result<Kernel> {
        let (_, tools) = self.tools()?;
        let name = format!("kernel-{}", version.name());
        let recipe =
            Recipe::new(&name).from(&tools).with("layout", "3").with("unused", UNUSED.join(","));
        let item = self.cache.item(&recipe, |path| self.fetch_kernel(version, path))?;
        let release = item.note.clone();

        let script = include_str!("../../guest/initramfs.sh");
        let init = include_str!("../../guest/init.sh");
        let recipe = Recipe::new(&format!("initrd-{}", version.name()))
            .from(&tools)
            .from(&item)
            .with("early", EARLY.join(","))
            .with("script", script)
            .with("init", init);
        let initrd = self.cache.item(&recipe, |path| {
            let modules = item.file("modules").join(&release);
            let busybox = self.tools()?.0.file("usr/bin/busybox");
            let mut archive = initrd::Archive::new();
            archive.file("bin/busybox", 0o755, &fs::read(&busybox)?);
            archive.file("init", 0o755, script.as_bytes());
            archive.file("lab-init", 0o755, init.as_bytes());
            let mut order = String::new();
            for module in load_order(&modules, EARLY)? {
                let file = module.file_name().unwrap_or_default().to_string_lossy().into_owned();
                let file = file.trim_end_matches(".xz").to_owned();
                archive.file(&format!("modules/{file}"), 0o644, &read_module(&module)?);
                order += &format!("{file}\n");
            }
            archive.file("modules/order", 0o644, order.as_bytes());
            fs::write(path.join("initrd"), archive.finish())?;
            Ok(String::new())
        })?;
        Ok(Kernel { release, item, initrd: initrd.file("initrd") })
    }

    fn fetch_kernel(&self, version: KernelVersion, path: &Path) -> Result<String> {
        self.check_host()?;
        let work = path.join("work");
        let indices = Indices::fetch(self, version.release(), &work.join("apt"))?;
        let packages = indices.download(&version.packages(&indices)?, &work.join("packages"))?;
        let progress = Progress::spinner(&format!("unpacking Linux {}", version.name()));
        let tree = work.join("tree");
        for package in &packages {
            unpack(package, &tree)?;
        }
        let modules = ["usr/lib/modules", "lib/modules"]
            .map(|folder| tree.join(folder))
            .into_iter()
            .find(|folder| folder.is_dir())
            .context("the kernel's packages have no modules")?;
        let mut releases = fs::read_dir(&modules)?.flatten();
        let release = releases.next().context("the kernel's packages have no modules")?;
        let release = release.file_name().to_string_lossy().into_owned();
        for folder in UNUSED {
            let _ = fs::remove_dir_all(modules.join(&release).join("kernel").join(folder));
        }
        let image =
            [modules.join(&release).join("vmlinuz"), tree.join(format!("boot/vmlinuz-{release}"))];
        let image = image.iter().find(|file| file.is_file()).context("no kernel image")?;
        fs::copy(image, path.join("vmlinuz"))?;
        let configuration =
            [modules.join(&release).join("config"), tree.join(format!("boot/config-{release}"))];
        if let Some(file) = configuration.iter().find(|file| file.is_file()) {
            fs::copy(file, path.join("config"))?;
        }

        // depmod wants lib/modules below its base.
        let base = work.join("base");
        fs::create_dir_all(base.join("usr/lib"))?;
        fs::rename(&modules, base.join("usr/lib/modules"))?;
        std::os::unix::fs::symlink("usr/lib", base.join("lib"))?;
        let (tools, _) = self.tools()?;
        let mut depmod = tools.program("usr/sbin/depmod", &[])?;
        depmod.arg("-b").arg(&base).arg(&release);
        let log = self.cache.log("depmod");
        process::run_logged(&mut depmod, &log, Duration::from_secs(300), &mut |_| ())?;
        progress.done();

        let modules = path.join("modules");
        fs::rename(base.join("usr/lib/modules"), &modules)?;
        let size = process::output_of(Command::new("du").arg("-sm").arg(&modules))?;
        let mib: u64 = size.split_whitespace().next().and_then(|n| n.parse().ok()).unwrap_or(900);
        self.ext4(&modules, &path.join("modules.ext4"), mib + mib / 4 + 32)?;
        fs::remove_dir_all(&work)?;
        Ok(release)
    }
}

/// The files of `names` and all they depend on, in the order in which they must be loaded.
/// Modules that are built into the kernel are left out.
fn load_order(modules: &Path, names: &[&str]) -> Result<Vec<PathBuf>> {
    let text = fs::read_to_string(modules.join("modules.dep"))?;
    let builtin = fs::read_to_string(modules.join("modules.builtin")).unwrap_or_default();
    let builtin: BTreeSet<String> = builtin.lines().map(module_name).collect();
    let mut needs = BTreeMap::new();
    for line in text.lines() {
        let Some((file, rest)) = line.split_once(':') else { continue };
        let rest: Vec<&str> = rest.split_whitespace().collect();
        needs.insert(module_name(file), (file, rest));
    }
    let mut order: Vec<PathBuf> = Vec::new();
    for name in names {
        if builtin.contains(*name) {
            continue;
        }
        let Some((file, rest)) = needs.get(*name) else {
            bail!("the kernel in {modules:?} has no module {name}");
        };
        // modules.dep lists the dependencies of a module with the deepest last.
        for file in rest.iter().rev().chain([file]) {
            let path = modules.join(file);
            if !order.contains(&path) {
                order.push(path);
            }
        }
    }
    // ext4 finds its checksum through the crypto API, by name.
    for helper in ["crc32c_generic", "crc32c", "crc32c_cryptoapi"] {
        if let Some((file, _)) = needs.get(helper)
            && !order.contains(&modules.join(file))
        {
            order.insert(0, modules.join(file));
        }
    }
    Ok(order)
}

/// The name the kernel knows a module by: no folder, no suffix, underscores.
fn module_name(file: &str) -> String {
    let file = file.rsplit('/').next().unwrap_or(file);
    file.split(".ko").next().unwrap_or(file).replace('-', "_")
}

/// A module's bytes, uncompressed.
fn read_module(file: &Path) -> Result<Vec<u8>> {
    if file.extension().is_none_or(|extension| extension != "xz") {
        return fs::read(file).with_context(|| format!("cannot read {file:?}"));
    }
    let output = Command::new("xz").arg("-dc").arg(file).output().context("cannot run xz")?;
    if !output.status.success() {
        bail!("cannot decompress {file:?}: {}", String::from_utf8_lossy(&output.stderr));
    }
    Ok(output.stdout)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modules_load_after_what_they_need_and_built_in_ones_not_at_all() {
        let folder = std::env::temp_dir().join(format!("lab-modules-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        fs::write(
            folder.join("modules.dep"),
            "kernel/fs/ext4.ko.xz: kernel/fs/jbd2.ko.xz kernel/lib/crc16.ko\n\
             kernel/fs/jbd2.ko.xz:\nkernel/lib/crc16.ko:\nkernel/block/virtio-blk.ko:\n",
        )
        .unwrap();
        fs::write(folder.join("modules.builtin"), "kernel/drivers/virtio/virtio_pci.ko\n").unwrap();
        let order = load_order(&folder, &["virtio_pci", "virtio_blk", "ext4"]).unwrap();
        let names: Vec<_> = order.iter().map(|path| module_name(&path.to_string_lossy())).collect();
        assert_eq!(names, ["virtio_blk", "crc16", "jbd2", "ext4"]);
        assert!(load_order(&folder, &["nosuch"]).is_err());
        fs::remove_dir_all(&folder).unwrap();
    }
}
