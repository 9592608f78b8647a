//! Linux's own PVRDMA driver, which no Debian kernel has: built out of tree from Debian's kernel
//! source against Debian's headers, with Debian's compiler of the same release, in a chroot.

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};

use super::apt::{Indices, unpack};
use super::tree::Depth;
use super::{Debian, KernelVersion};
use crate::cache::Recipe;
use crate::process;
use crate::progress::Progress;

const FOLDER: &str = "drivers/infiniband/hw/vmw_pvrdma";

impl Debian {
    /// `vmw_pvrdma.ko` for a kernel.
    pub fn vmw_pvrdma(&self, version: KernelVersion) -> Result<PathBuf> {
        let kernel = self.kernel(version)?;
        let name = format!("vmw_pvrdma-{}", version.name());
        let recipe =
            Recipe::new(&name).from(&kernel.item).with("packages", "headers,binutils,make");
        let item = self.cache.item(&recipe, |path| {
            let work = path.join("work");
            let indices = Indices::fetch(self, version.release(), &work.join("apt"))?;
            let source = format!("linux-source-{}", version.name());
            let packages =
                indices.download(std::slice::from_ref(&source), &work.join("packages"))?;
            let progress = Progress::spinner(&format!("unpacking {source}"));
            for package in &packages {
                unpack(package, &work.join("source"))?;
            }
            let archive = work.join(format!("source/usr/src/{source}.tar.xz"));
            let root = work.join("root");
            let unpacked = work.join("unpacked");
            fs::create_dir_all(&unpacked)?;
            let log = self.cache.log(&name);
            let mut tar = Command::new("tar");
            tar.arg("-xJf").arg(&archive).arg("-C").arg(&unpacked);
            tar.arg(format!("{source}/{FOLDER}"));
            process::run_logged(&mut tar, &log, Duration::from_secs(900), &mut |_| ())?;
            progress.done();

            let headers = format!("linux-headers-{}", kernel.release);
            let set = [headers.as_str(), "binutils", "make"];
            self.unpack_packages(&name, version.release(), Depth::Configured, &set, &root)
                .with_context(|| {
                    format!(
                        "the mirror may have moved on from Linux {}: `lab clean` and run again",
                        kernel.release
                    )
                })?;
            fs::rename(unpacked.join(&source).join(FOLDER), root.join("module"))?;

            let progress =
                Progress::spinner(&format!("compiling vmw_pvrdma for {}", kernel.release));
            let mut make = process::namespaced_in(&root, "make");
            make.args(["-j2", "-C"]);
            make.arg(format!("/usr/src/{headers}"));
            make.args(["M=/module", "CONFIG_INFINIBAND_VMWARE_PVRDMA=m", "modules"]);
            make.env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").env("LC_ALL", "C");
            let limit = Duration::from_secs(1800);
            process::run_logged(&mut make, &log, limit, &mut |line| progress.say(line))?;
            progress.done();
            fs::copy(root.join("module/vmw_pvrdma.ko"), path.join("vmw_pvrdma.ko"))?;
            fs::remove_dir_all(&work)?;
            Ok(kernel.release.clone())
        })?;
        Ok(item.file("vmw_pvrdma.ko"))
    }
}
