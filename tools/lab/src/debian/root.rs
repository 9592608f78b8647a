//! The guests' user space: a Debian 13 base system with RDMA, NVDIMM and tracing tools, as a file
//! system image that every guest shares and none changes.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::Result;

use super::{Debian, Release};
use crate::cache::{Item, Recipe};
use crate::debian::tree::Depth;
use crate::process;
use crate::progress::Progress;

const PACKAGES: &[&str] = &[
    "e2fsprogs",
    "ibverbs-providers",
    "ibverbs-utils",
    "iproute2",
    "kmod",
    "ndctl",
    "pciutils",
    "perftest",
    "procps",
    "rdma-core",
    "strace",
    "udev",
    "util-linux",
    "xfsprogs",
];

/// Size of the guests' root file system; the image is sparse.
const ROOT_MIB: u64 = 3072;

impl Debian {
    /// The root image: `root.ext4` in the item.
    pub fn guest_root(&self) -> Result<Item> {
        let (_, tools) = self.tools()?;
        let recipe = Recipe::new("guest-root")
            .from(&tools)
            .with("packages", PACKAGES.join(","))
            .with("size", ROOT_MIB.to_string());
        self.cache.item(&recipe, |path| {
            let tree = path.join("root");
            let release = Release::Trixie;
            self.unpack_packages("guest-root", release, Depth::Configured, PACKAGES, &tree)?;
            for folder in ["usr/share/doc", "usr/share/man", "var/lib/apt", "var/cache"] {
                let _ = fs::remove_dir_all(tree.join(folder));
            }
            self.ext4(&tree, &path.join("root.ext4"), ROOT_MIB)?;
            fs::remove_dir_all(&tree)?;
            Ok(String::new())
        })
    }

    /// Makes a file system image of `mib` MiB that holds the contents of `folder`; mounts nothing.
    pub fn ext4(&self, folder: &Path, image: &Path, mib: u64) -> Result<()> {
        let (tools, _) = self.tools()?;
        let name = image.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let progress = Progress::spinner(&format!("image {name}"));
        let mut command = tools.program("usr/sbin/mke2fs", &[])?;
        command.args(["-q", "-F", "-t", "ext4", "-b", "4096", "-m", "0"]);
        command.args(["-O", "^has_journal", "-E", "root_owner=0:0,lazy_itable_init=1"]);
        command.arg("-d").arg(folder).arg(image).arg(format!("{mib}M"));
        command.env("MKE2FS_CONFIG", tools.file("etc/mke2fs.conf"));
        let log = self.cache.log(&format!("mke2fs-{name}"));
        process::run_logged(&mut command, &log, Duration::from_secs(900), &mut |_| ())?;
        progress.done();
        Ok(())
    }
}
