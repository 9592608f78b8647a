//! The machine's own apt, with package sources and indices apart from the machine's.
//!
//! Proxy, credentials and certificates come from the machine's apt configuration, and so does the
//! mirror: the repository that carries this Debian's own release, or the one named on the command
//! line. No host name stands in the code.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::{CannotHere, Debian, Release};
use crate::process;
use crate::progress::Progress;

/// Debian's mirror and, if known, that of its security updates.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mirror {
    main: String,
    security: Option<String>,
}

impl Debian {
    /// The mirror to use.
    pub fn mirror(&self) -> Result<Mirror> {
        if let Some(main) = &self.mirror {
            return Ok(Mirror { main: main.clone(), security: None });
        }
        let targets = process::output_of(Command::new("apt-get").args([
            "indextargets",
            "--format",
            "$(REPO_URI) $(RELEASE)",
            "Created-By: Packages",
        ]))?;
        let release = fs::read_to_string("/etc/os-release").unwrap_or_default();
        find_mirror(&targets, &release).ok_or_else(|| {
            let text = "this machine's apt has no source of Debian's packages (or is not \
                        Debian's): name one with --mirror URL, the folder that has dists/ and \
                        pool/ in it";
            CannotHere(text.to_owned()).into()
        })
    }

    /// The lines of a sources.list for `release`.
    pub fn sources(&self, release: Release) -> Result<String> {
        let mirror = self.mirror()?;
        let name = release.codename();
        let mut lines = format!("deb {} {name} main\n", mirror.main);
        if let Some(security) = mirror.security {
            lines += &format!("deb {security} {name}-security main\n");
        }
        if let Some(backports) = release.backports() {
            lines += &format!("deb {} {backports} main\n", mirror.main);
        }
        Ok(lines)
    }
}

fn find_mirror(targets: &str, os_release: &str) -> Option<Mirror> {
    let value = |key: &str| {
        let line = os_release.lines().find(|line| line.starts_with(key))?;
        Some(line[key.len()..].trim_matches('"'))
    };
    let codename = value("VERSION_CODENAME=").filter(|_| value("ID=") == Some("debian"))?;
    let serving = |release: &str| {
        targets.lines().find_map(|line| {
            let (uri, name) = line.split_once(' ')?;
            (name == release).then(|| uri.trim_end_matches('/').to_owned())
        })
    };
    let security = serving(&format!("{codename}-security"));
    serving(codename).map(|main| Mirror { main, security })
}

/// Package indices of one release, in a folder of their own.
#[derive(Debug)]
pub struct Indices {
    options: Vec<String>,
    target: Option<&'static str>,
}

impl Indices {
    /// Fetches the indices of `release` into `folder`.
    pub fn fetch(debian: &Debian, release: Release, folder: &Path) -> Result<Self> {
        for part in ["lists/partial", "archives/partial"] {
            fs::create_dir_all(folder.join(part))?;
        }
        let keyring = Path::new("/usr/share/keyrings/debian-archive-keyring.gpg");
        let sources = debian.sources(release)?;
        let sources = if keyring.exists() {
            sources.replace("deb ", &format!("deb [signed-by={}] ", keyring.display()))
        } else {
            sources
        };
        let list = folder.join("sources.list");
        fs::write(&list, sources)?;
        let options = [
            format!("Dir::Etc::sourcelist={}", list.display()),
            "Dir::Etc::sourceparts=/dev/null".to_owned(),
            "Dir::Etc::preferencesparts=/dev/null".to_owned(),
            format!("Dir::State::lists={}", folder.join("lists").display()),
            "Dir::State::status=/dev/null".to_owned(),
            format!("Dir::Cache={}", folder.display()),
            "APT::Architecture=amd64".to_owned(),
            "APT::Architectures::=amd64".to_owned(),
            "APT::Sandbox::User=root".to_owned(),
            "APT::Update::Post-Invoke-Success::=true".to_owned(),
        ];
        let options = options.iter().flat_map(|option| ["-o".to_owned(), option.clone()]).collect();
        let indices = Self { options, target: release.backports() };
        let progress = Progress::spinner(&format!("package lists of {}", release.codename()));
        let log = debian.cache.log(&format!("apt-{}", release.codename()));
        process::run_logged(
            indices.command("apt-get").args(["-q", "update"]),
            &log,
            Duration::from_secs(300),
            &mut |line| progress.say(line),
        )?;
        progress.done();
        Ok(indices)
    }

    /// The newest package whose name is `before`, a version of digits, dots and Debian's `+debN`
    /// or `~bpo` marks, and `after`.
    pub fn newest(&self, before: &str, after: &str) -> Result<String> {
        let names = process::output_of(self.command("apt-cache").args(["pkgnames", before]))?;
        newest_of(names.lines(), before, after)
            .with_context(|| format!("the mirror has no package {before}*{after}"))
    }

    /// Downloads packages into `folder`; returns their files in the order of the names.
    pub fn download(&self, names: &[String], folder: &Path) -> Result<Vec<PathBuf>> {
        fs::create_dir_all(folder)?;
        let plan = process::output_of(self.get().args(["download", "--print-uris"]).args(names))?;
        let files: Vec<(PathBuf, u64)> =
            plan.lines().filter_map(|line| plan_line(line, folder)).collect();
        if files.len() != names.len() {
            bail!(
                "apt plans {} files for {} packages ({names:?}):\n{plan}",
                files.len(),
                names.len()
            );
        }
        let total = files.iter().map(|(_, size)| size).sum();
        let progress = Progress::download(&format!("downloading {}", names.join(", ")), total);
        let log = folder.join("download.log");
        process::run_logged(
            self.get().args(["-q", "download"]).args(names).current_dir(folder),
            &log,
            Duration::from_secs(1800),
            &mut |_| {
                let have = files.iter().map(|(file, _)| file.metadata().map_or(0, |m| m.len()));
                progress.at(have.sum());
            },
        )?;
        progress.done();
        for (file, size) in &files {
            let found = file.metadata().map_or(0, |metadata| metadata.len());
            if found != *size {
                bail!("{file:?} has {found} bytes after its download, not {size}");
            }
        }
        let named = |name: &String| {
            let prefix = format!("{name}_");
            let mut paths = files.iter().map(|(file, _)| file);
            paths
                .find(|file| {
                    file.file_name().is_some_and(|n| n.to_string_lossy().starts_with(&prefix))
                })
                .cloned()
                .with_context(|| format!("apt downloaded no file of {name}"))
        };
        names.iter().map(named).collect()
    }

    fn get(&self) -> Command {
        let mut command = self.command("apt-get");
        if let Some(target) = self.target {
            command.args(["-t", target]);
        }
        command
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.args(&self.options);
        command
    }
}

/// Downloads one package of this machine's own release, with the machine's own indices.
pub fn download_for_host(name: &str, folder: &Path, log: &Path) -> Result<PathBuf> {
    let options = ["-q", "-o", "APT::Sandbox::User=root", "download", name];
    let run = || {
        process::run_logged(
            Command::new("apt-get").args(options).current_dir(folder),
            log,
            Duration::from_secs(300),
            &mut |_| (),
        )
    };
    if run().is_err() {
        let mut update = Command::new("apt-get");
        let limit = Duration::from_secs(300);
        process::run_logged(update.args(["-q", "update"]), log, limit, &mut |_| ())?;
        run()?;
    }
    let prefix = format!("{name}_");
    let mut files = fs::read_dir(folder)?.flatten().map(|entry| entry.path());
    files
        .find(|path| path.file_name().is_some_and(|n| n.to_string_lossy().starts_with(&prefix)))
        .with_context(|| format!("apt downloaded no file of {name}"))
}

/// Unpacks a package into `folder`.
pub fn unpack(package: &Path, folder: &Path) -> Result<()> {
    process::output_of(Command::new("dpkg-deb").arg("-x").arg(package).arg(folder))
        .with_context(|| format!("cannot unpack {package:?}"))
        .map(drop)
}

/// One line of `--print-uris`: 'URI' FILE SIZE HASH.
fn plan_line(line: &str, folder: &Path) -> Option<(PathBuf, u64)> {
    let mut words = line.strip_prefix('\'')?.split_once("' ")?.1.split(' ');
    let file = words.next()?;
    Some((folder.join(file), words.next()?.parse().ok()?))
}

fn newest_of<'a>(
    names: impl Iterator<Item = &'a str>,
    before: &str,
    after: &str,
) -> Option<String> {
    let version = |name: &'a str| {
        let middle = name.strip_prefix(before)?.strip_suffix(after)?;
        let middle = middle.trim_start_matches(['.', '-']);
        let plain = middle.split("+deb").all(|part| {
            part.chars().all(|c| c.is_ascii_digit() || c == '.' || c == '-' || c == '~')
        });
        plain.then(|| (numbers(middle), name))
    };
    names.filter_map(version).max().map(|(_, name)| name.to_owned())
}

/// The runs of digits in a version, for comparison.
fn numbers(version: &str) -> Vec<u64> {
    version.split(|c: char| !c.is_ascii_digit()).filter_map(|run| run.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mirror_is_the_repository_of_the_machines_own_release() {
        let targets = "http://other/repo/ nodistro\nhttp://m/debian/ bookworm\n\
                       http://m/debian/ bookworm-updates\nhttp://s/sec/ bookworm-security\n";
        let os = "ID=debian\nVERSION_CODENAME=bookworm\n";
        let mirror = find_mirror(targets, os).unwrap();
        assert_eq!(mirror.main, "http://m/debian");
        assert_eq!(mirror.security.as_deref(), Some("http://s/sec"));
        assert_eq!(find_mirror(targets, "ID=ubuntu\nVERSION_CODENAME=bookworm\n"), None);
        assert_eq!(find_mirror("", os), None);
    }

    #[test]
    fn the_newest_kernel_is_a_plain_one_and_compared_by_number() {
        let cases: [(&[&str], &str, &str, Option<&str>); 4] = [
            (
                &[
                    "linux-image-6.1.0-9-amd64",
                    "linux-image-6.1.0-56-amd64",
                    "linux-image-6.1.0-60-rt-amd64",
                ],
                "linux-image-6.1.",
                "-amd64",
                Some("linux-image-6.1.0-56-amd64"),
            ),
            (
                &["linux-binary-7.3.4+deb13-amd64", "linux-binary-7.3.4+deb13-cloud-amd64"],
                "linux-binary-7.3",
                "-amd64",
                Some("linux-binary-7.3.4+deb13-amd64"),
            ),
            (
                &["linux-binary-7.3.10+deb13-amd64", "linux-binary-7.3.4+deb13-amd64"],
                "linux-binary-7.3",
                "-amd64",
                Some("linux-binary-7.3.10+deb13-amd64"),
            ),
            (&["linux-image-6.12-amd64"], "linux-image-6.1.", "-amd64", None),
        ];
        for (names, before, after, expected) in cases {
            assert_eq!(newest_of(names.iter().copied(), before, after).as_deref(), expected);
        }
    }

    #[test]
    fn a_download_plan_gives_file_and_size() {
        let line = "'http://m/pool/a_1%3a2_amd64.deb' a_1%3a2_amd64.deb 955 SHA256:00";
        assert_eq!(
            plan_line(line, Path::new("/f")),
            Some((PathBuf::from("/f/a_1%3a2_amd64.deb"), 955))
        );
        assert_eq!(plan_line("Reading package lists...", Path::new("/f")), None);
    }
}
