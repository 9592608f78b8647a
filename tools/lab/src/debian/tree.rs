//! Package sets unpacked into folders.
//!
//! mmdebstrap resolves and fetches a package set with apt and unpacks it; for a tree whose
//! programs we only run, that is all ([`Depth::Unpacked`], a few seconds); a tree that a guest
//! boots or a compiler runs in is configured as well ([`Depth::Configured`]).

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};

use super::{Debian, Release, apt};
use crate::cache::{Item, Recipe};
use crate::process;
use crate::progress::Progress;

/// How far a package set is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Depth {
    /// Files only.
    Unpacked,
    /// A working base system, packages configured.
    Configured,
}

/// A folder of unpacked packages.
#[derive(Debug, Clone)]
pub struct Tree {
    root: PathBuf,
}

/// A time limit for fetching and unpacking one package set on a slow link and two cores.
const LIMIT: Duration = Duration::from_secs(3600);

impl Debian {
    /// A cached tree of `packages`.
    pub fn tree(
        &self,
        name: &str,
        release: Release,
        depth: Depth,
        packages: &[&str],
    ) -> Result<(Tree, Item)> {
        let recipe = Recipe::new(name)
            .with("release", format!("{release:?}"))
            .with("depth", format!("{depth:?}"))
            .with("packages", packages.join(","));
        let item = self.cache.item(&recipe, |path| {
            self.unpack_packages(name, release, depth, packages, &path.join("root"))?;
            Ok(String::new())
        })?;
        Ok((Tree { root: item.file("root") }, item))
    }

    /// Programs for making images: mke2fs, depmod, and a static busybox for the guest.
    pub fn tools(&self) -> Result<(Tree, Item)> {
        let packages = ["busybox-static", "kmod", "e2fsprogs"];
        self.tree("tools", Release::Trixie, Depth::Unpacked, &packages)
    }

    /// Unpacks `packages` and all they depend on into the new folder `target`.
    pub fn unpack_packages(
        &self,
        name: &str,
        release: Release,
        depth: Depth,
        packages: &[&str],
        target: &Path,
    ) -> Result<()> {
        self.check_host()?;
        let mmdebstrap = self.mmdebstrap()?;
        let sources = self.sources(release)?;
        let mut command = process::namespaced("perl");
        command.arg(&mmdebstrap).args(["--mode=root", "--format=directory"]);
        command.args([
            "--aptopt=APT::Install-Recommends \"false\"",
            "--aptopt=APT::Sandbox::User \"root\"",
        ]);
        command.arg(match depth {
            Depth::Unpacked => "--variant=extract",
            Depth::Configured => "--variant=essential",
        });
        if let Some(backports) = release.backports() {
            command.arg(format!("--aptopt=APT::Default-Release \"{backports}\""));
        }
        command.arg(format!("--include={}", packages.join(",")));
        command.arg(release.codename()).arg(target);
        command.args(sources.lines().map(OsString::from));
        if let Some(folder) = mmdebstrap.parent() {
            let path = std::env::var_os("PATH").unwrap_or_default();
            let folders = std::iter::once(folder.to_owned()).chain(std::env::split_paths(&path));
            let system = ["/usr/local/sbin", "/usr/sbin", "/sbin"].map(PathBuf::from);
            command.env("PATH", std::env::join_paths(folders.chain(system))?);
        }
        let log = self.cache.log(name);
        let steps = if depth == Depth::Unpacked { 9 } else { 11 };
        let progress = Progress::steps(&format!("packages for {name}"), steps);
        process::run_logged(&mut command, &log, LIMIT, &mut |line| {
            let text = fs::read_to_string(&log).unwrap_or_default();
            progress.at(text.lines().filter(|line| line.starts_with("I: ")).count() as u64);
            progress.say(line);
        })?;
        progress.done();
        Ok(())
    }

    /// The mmdebstrap to run: the installed one, or this machine's package of it, unpacked.
    fn mmdebstrap(&self) -> Result<PathBuf> {
        if let Some(installed) = process::find("mmdebstrap") {
            return Ok(installed);
        }
        let item = self.cache.item(&Recipe::new("mmdebstrap"), |path| {
            let log = self.cache.log("mmdebstrap");
            let package = apt::download_for_host("mmdebstrap", path, &log).context(
                "mmdebstrap is neither installed nor to be had: apt-get install mmdebstrap",
            )?;
            apt::unpack(&package, path)?;
            fs::remove_file(package)?;
            Ok(String::new())
        })?;
        Ok(item.file("usr/bin/mmdebstrap"))
    }
}

impl Tree {
    /// A file in it.
    pub fn file(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    /// A command that runs the tree's program `path` with the tree's own libraries and dynamic
    /// loader, in our own file system. `preload` names libraries to put before them.
    pub fn program(&self, path: &str, preload: &[PathBuf]) -> Result<Command> {
        let folders = ["usr/lib/x86_64-linux-gnu", "lib/x86_64-linux-gnu"].map(|f| self.file(f));
        let loader = folders
            .iter()
            .map(|folder| folder.join("ld-linux-x86-64.so.2"))
            .find(|loader| loader.exists())
            .with_context(|| format!("{:?} has no dynamic loader", self.root))?;
        let mut command = Command::new(loader);
        command.arg("--library-path").arg(std::env::join_paths(&folders)?);
        if !preload.is_empty() {
            command.arg("--preload").arg(std::env::join_paths(preload)?);
        }
        let name = Path::new(path).file_name().unwrap_or_default();
        command.arg("--argv0").arg(name).arg(self.file(path));
        Ok(command)
    }
}
