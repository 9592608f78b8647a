//! What the lab takes from Debian: package indices, file trees, kernels and one kernel module.
//!
//! Nothing is installed on the host. [`apt`] runs the machine's own apt with indices of its own;
//! [`tree`] unpacks package sets into folders; programs from such a folder run in place through
//! its own dynamic loader ([`tree::Tree::program`]), so QEMU, mke2fs and depmod need no chroot.
//! [`kernel`], [`root`] and [`vmw_pvrdma`] turn packages into what a guest boots.

pub mod apt;
mod initrd;
pub mod kernel;
pub mod root;
pub mod tree;
pub mod vmw_pvrdma;

use std::process::Command;

pub use kernel::{Kernel, KernelVersion};

use crate::cache::Cache;
use crate::process;

/// Where packages come from and where what is made of them is kept.
#[derive(Debug)]
pub struct Debian {
    pub cache: Cache,
    mirror: Option<String>,
}

/// A Debian release, as a set of package sources.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Release {
    /// Debian 12: Linux 6.1, QEMU 7.2.
    Bookworm,
    /// Debian 13: the guests' user space.
    Trixie,
    /// Debian 13 with its backports preferred: Linux 7.3, QEMU 11.1.
    TrixieBackports,
}

impl Release {
    /// The release's code name, the suite that the base system comes from.
    pub fn codename(self) -> &'static str {
        match self {
            Release::Bookworm => "bookworm",
            Release::Trixie | Release::TrixieBackports => "trixie",
        }
    }

    fn backports(self) -> Option<&'static str> {
        (self == Release::TrixieBackports).then_some("trixie-backports")
    }
}

/// What this machine lacks to make the images; no attempt of ours will change that.
#[derive(Debug)]
pub struct CannotHere(pub String);

impl std::fmt::Display for CannotHere {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for CannotHere {}

impl Debian {
    /// Packages from `mirror`, or from where this machine's apt takes Debian's.
    pub fn new(cache: Cache, mirror: Option<String>) -> Self {
        Self { cache, mirror }
    }

    /// Checks that this machine can make images; the error lists all that is missing.
    pub fn check_host(&self) -> Result<(), CannotHere> {
        let mut missing = Vec::new();
        for (program, package, why) in [
            ("apt-get", "apt", "packages are fetched with it"),
            ("dpkg-deb", "dpkg", "packages are unpacked with it"),
            ("perl", "perl", "mmdebstrap is written in it"),
            ("unshare", "util-linux", "builds run in namespaces of their own"),
            ("xz", "xz-utils", "kernel modules are compressed with it"),
            ("tar", "tar", "the kernel source is unpacked with it"),
        ] {
            if process::find(program).is_none() {
                missing.push(format!("the command {program} ({why}): install {package}"));
            }
        }
        if !perl_has_its_modules() {
            missing.push("Perl's standard modules (mmdebstrap uses them): install perl".to_owned());
        }
        if !nix::unistd::geteuid().is_root() {
            missing.push(
                "root: packages are unpacked with their owners and configured in a chroot; run \
                 the same command under sudo, or in a privileged container"
                    .to_owned(),
            );
        }
        if cfg!(not(target_arch = "x86_64")) {
            missing.push("an x86-64 machine: guests, packages and QEMU are x86-64".to_owned());
        }
        if missing.is_empty() {
            return Ok(());
        }
        Err(CannotHere(format!(
            "this machine lacks what the lab needs to make its images:\n  - {}",
            missing.join("\n  - ")
        )))
    }
}

/// Whether a Perl that is there is more than Debian's minimal perl-base.
fn perl_has_its_modules() -> bool {
    let mut perl = Command::new("perl");
    process::find("perl").is_none()
        || process::output_of(perl.args(["-MEnglish", "-MPod::Usage", "-e", "1"])).is_ok()
}
