//! A `lab` whose processes, mounts and sockets can be told from those of any other: its cache
//! folder is a fresh one that borrows the images of the machine's, and an environment variable
//! marks every process that it starts.

// Each test program uses its part.
#![allow(dead_code)]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// Marks the processes; its value is the cache folder.
const MARK: &str = "HOLDFAST_LAB_TEST";

/// A folder for one test's `lab`s.
pub struct Lab {
    root: PathBuf,
}

impl Lab {
    /// With the images of the machine's cache, which are made if they are not there.
    pub fn new() -> Self {
        let prepared = Command::new(env!("CARGO_BIN_EXE_lab")).arg("prepare").output().unwrap();
        let complaints = String::from_utf8_lossy(&prepared.stderr);
        assert!(prepared.status.success(), "the lab has no images: {complaints}");
        let cache = PathBuf::from(String::from_utf8(prepared.stdout).unwrap().trim());
        let lab = Self::empty();
        std::os::unix::fs::symlink(cache.join("items"), lab.root.join("items")).unwrap();
        lab
    }

    /// With nothing in its cache.
    pub fn empty() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        // Not the folder for temporary files: its path may be too long for sockets.
        let root = PathBuf::from(format!("/tmp/lab-test-{}-{number}", std::process::id()));
        fs::create_dir_all(&root).unwrap();
        Self { root }
    }

    /// Its cache folder.
    pub fn folder(&self) -> &Path {
        &self.root
    }

    /// `program`, marked.
    pub fn marked(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.env(MARK, &self.root).env("HOLDFAST_LAB_CACHE", &self.root);
        // What cargo sets would make `lab test` build things.
        command.env_remove("CARGO");
        command
    }

    /// `lab` itself, marked.
    pub fn command(&self) -> Command {
        self.marked(env!("CARGO_BIN_EXE_lab"))
    }

    /// Lets `command` run a program of the test's, in Perl, in place of mmdebstrap, with no mirror.
    pub fn build_with(&self, command: &mut Command, program: &str) {
        let programs = self.root.join("bin");
        fs::create_dir_all(&programs).unwrap();
        script(&programs.join("mmdebstrap"), program);
        let path = std::env::var_os("PATH").unwrap();
        let folders = std::iter::once(programs).chain(std::env::split_paths(&path));
        command.env("PATH", std::env::join_paths(folders).unwrap());
        command.env("HOLDFAST_LAB_MIRROR", "http://localhost/none");
    }

    /// All there is of its processes, mounts, sockets and passing files.
    pub fn traces(&self) -> Vec<String> {
        let path = self.root.to_str().unwrap();
        let mark = format!("{MARK}={path}\0");
        let mut found = Vec::new();
        for process in processes() {
            let read = |file: &str| read_of(process, file);
            let command = String::from_utf8_lossy(&read("cmdline")).replace('\0', " ");
            if contains(&read("environ"), mark.as_bytes()) {
                found.push(format!("process {process}: {command}"));
            }
            if contains(&read("mountinfo"), path.as_bytes()) {
                found.push(format!("mount in the namespace of {process}: {command}"));
            }
        }
        let sockets = fs::read_to_string("/proc/net/unix").unwrap();
        let ours = sockets.lines().filter(|line| line.contains(path));
        found.extend(ours.map(|line| format!("socket: {line}")));
        for entry in fs::read_dir(self.root.join("run")).into_iter().flatten().flatten() {
            found.push(format!("file: {}", entry.path().display()));
        }
        found
    }

    /// Whether a trace of each of these kinds is there.
    pub fn shows(&self, words: &[&str]) -> bool {
        let traces = self.traces();
        words.iter().all(|word| traces.iter().any(|trace| trace.contains(word)))
    }

    /// What is still there some seconds after the end; the kernel takes a moment to end the
    /// children of a killed process.
    pub fn left(&self) -> Vec<String> {
        let start = Instant::now();
        loop {
            let traces = self.traces();
            if traces.is_empty() || start.elapsed() > Duration::from_secs(10) {
                return traces;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        // A test that failed should leave nothing either.
        let mark = format!("{MARK}={}\0", self.root.display());
        for process in processes().filter(|p| contains(&read_of(*p, "environ"), mark.as_bytes())) {
            let _ = kill(Pid::from_raw(process), Signal::SIGKILL);
        }
        // The link goes, not what it leads to.
        let _ = fs::remove_dir_all(&self.root);
    }
}

/// Writes a program.
pub fn script(path: &Path, text: &str) {
    fs::write(path, text).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
}

fn processes() -> impl Iterator<Item = i32> {
    let entries = fs::read_dir("/proc").unwrap().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

/// A file of a process; nothing if it is gone.
fn read_of(process: i32, file: &str) -> Vec<u8> {
    fs::read(format!("/proc/{process}/{file}")).unwrap_or_default()
}

fn contains(bytes: &[u8], part: &[u8]) -> bool {
    bytes.windows(part.len()).any(|window| window == part)
}

/// Waits until `done`, for as long as a guest may take to boot on a busy machine.
pub fn until(what: &str, mut done: impl FnMut() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < Duration::from_secs(300), "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}
