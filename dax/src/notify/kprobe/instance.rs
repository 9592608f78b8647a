//! A tracing instance of our own: ring buffers, a clock and switches that nobody else uses, and
//! the probes that report to it.
//!
//! An instance is a folder, `instances/holdfast-PID-N`, and its probes are a group of the same
//! name (with `_`). Both outlive a process that is killed. So the living hold a lock (`flock`) on
//! their folder, and whoever comes next sweeps the folders that nobody has locked, whatever pid
//! namespace their makers lived in.

use std::fs::{self, File};
use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::sync::atomic::{AtomicU32, Ordering};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};

use super::tracefs::{TraceFs, failed};
use crate::notify::NotifyError;

const PREFIX: &str = "holdfast-";

/// Memory of the ring buffer of each processor, in KiB: some thousand events.
const BUFFER_KIB: u32 = 512;

/// Our own tracing instance; it and its probes go when it is dropped.
#[derive(Debug)]
pub struct Instance {
    tracefs: TraceFs,
    name: String,
    pipe: File,
    /// Tells others that we live.
    _lock: Flock<File>,
}

impl Instance {
    /// Makes one, after sweeping what the dead have left.
    pub fn new(tracefs: TraceFs) -> Result<Self, NotifyError> {
        sweep(&tracefs);
        static COUNT: AtomicU32 = AtomicU32::new(0);
        loop {
            let number = COUNT.fetch_add(1, Ordering::Relaxed);
            let name = format!("{PREFIX}{}-{number}", std::process::id());
            let folder = format!("instances/{name}");
            let path = tracefs.root().join(&folder);
            match fs::create_dir(&path) {
                Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => continue,
                made => made.map_err(|error| failed("mkdir", &folder, &error))?,
            }
            let Some(lock) = lock(&tracefs, &name) else { continue };
            let open = || {
                let set = |file: &str, text: &str| tracefs.write(&format!("{folder}/{file}"), text);
                set("buffer_size_kb", &BUFFER_KIB.to_string())?;
                // Wake readers at the first event, and stamp events with CLOCK_MONOTONIC.
                set("buffer_percent", "0")?;
                set("trace_clock", "mono")?;
                set("trace_options", "norecord-cmd")?;
                fs::OpenOptions::new()
                    .read(true)
                    .custom_flags(libc::O_NONBLOCK)
                    .open(path.join("trace_pipe"))
                    .map_err(|error| failed("open", &format!("{folder}/trace_pipe"), &error))
            };
            match open() {
                Ok(pipe) => return Ok(Self { tracefs, name, pipe, _lock: lock }),
                Err(error) => {
                    let _ = fs::remove_dir(&path);
                    return Err(error);
                }
            }
        }
    }

    /// Readable when events have come.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.pipe.as_fd()
    }

    /// Takes events as text; 0 when there are none. Never blocks.
    pub fn read(&mut self, buffer: &mut [u8]) -> Result<usize, Errno> {
        match self.pipe.read(buffer) {
            Ok(n) => Ok(n),
            Err(error) => match Errno::from_raw(error.raw_os_error().unwrap_or(0)) {
                Errno::EAGAIN | Errno::EINTR => Ok(0),
                errno => Err(errno),
            },
        }
    }

    /// The group of our probes.
    fn group(&self) -> String {
        group(&self.name)
    }

    /// Places a probe at the start of `symbol` (`MODULE:NAME` or `NAME`); it reports nothing yet.
    pub fn probe(&self, event: &str, symbol: &str, arguments: &str) -> Result<(), NotifyError> {
        let line = format!("p:{}/{event} {symbol} {arguments}", self.group());
        self.tracefs.write("kprobe_events", &line)
    }

    /// Chooses which of the probe's events are reported: those for which the filter holds.
    pub fn filter(&self, event: &str, filter: &str) -> Result<(), NotifyError> {
        let file = format!("instances/{}/events/{}/{event}/filter", self.name, self.group());
        self.tracefs.write(&file, filter)
    }

    /// Switches all probes on or off.
    pub fn enable(&self, on: bool) -> Result<(), NotifyError> {
        let file = format!("instances/{}/events/{}/enable", self.name, self.group());
        self.tracefs.write(&file, if on { "1" } else { "0" })
    }
}

impl Drop for Instance {
    fn drop(&mut self) {
        remove(&self.tracefs, &self.name, Some(&mut self.pipe));
    }
}

fn group(name: &str) -> String {
    name.replace('-', "_")
}

/// Locks an instance's folder, if nobody else has, and if it is still there afterwards.
fn lock(tracefs: &TraceFs, name: &str) -> Option<Flock<File>> {
    let path = tracefs.root().join("instances").join(name);
    let folder = File::open(&path).ok()?;
    let lock = Flock::lock(folder, FlockArg::LockExclusiveNonblock).ok()?;
    let (ours, there) = (lock.metadata().ok()?, fs::metadata(&path).ok()?);
    (ours.ino() == there.ino()).then_some(lock)
}

/// Removes the instances and probes of those who hold no lock on them any more.
fn sweep(tracefs: &TraceFs) {
    let Ok(folders) = fs::read_dir(tracefs.root().join("instances")) else { return };
    for folder in folders.flatten() {
        let Ok(name) = folder.file_name().into_string() else { continue };
        if !name.starts_with(PREFIX) {
            continue;
        }
        if let Some(_lock) = lock(tracefs, &name) {
            tracing::info!(name, "removing a tracing instance whose process is gone");
            remove(tracefs, &name, None);
        }
    }
}

/// Removes an instance's probes, then the instance: its folder is what the next one sweeps by.
fn remove(tracefs: &TraceFs, name: &str, pipe: Option<&mut File>) {
    let group = group(name);
    // Probes that are in use cannot be removed.
    let _ = tracefs.write(&format!("instances/{name}/events/{group}/enable"), "0");
    let events = tracefs.read("kprobe_events").unwrap_or_default();
    for event in events.lines().filter_map(|line| event_of(line, &group)) {
        if let Err(error) = tracefs.write("kprobe_events", &format!("-:{group}/{event}")) {
            tracing::warn!(%error, "a probe could not be removed");
        }
    }
    if let Some(pipe) = pipe {
        // An instance whose files are open cannot be removed.
        if let Ok(other) = File::open("/dev/null") {
            *pipe = other;
        }
    }
    let path = tracefs.root().join("instances").join(name);
    if let Err(error) = fs::remove_dir(&path) {
        tracing::warn!(%error, name, "a tracing instance could not be removed");
    }
}

/// The name of the event that a line of kprobe_events defines, if it is of this group.
fn event_of<'a>(line: &'a str, group: &str) -> Option<&'a str> {
    let (_, definition) = line.split_once(':')?;
    let (found, rest) = definition.split_once('/')?;
    (found == group).then(|| rest.split(' ').next())?
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folders() -> Vec<String> {
        let tracefs = TraceFs::find().unwrap();
        let entries = fs::read_dir(tracefs.root().join("instances")).unwrap();
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    }

    #[test]
    fn an_instance_is_swept_when_its_lock_is_gone_and_not_before() {
        let alive = Instance::new(TraceFs::find().unwrap()).unwrap();
        assert!(folders().contains(&alive.name));
        let tracefs = TraceFs::find().unwrap();
        // As a killed process leaves it.
        let dead = format!("{PREFIX}1-999");
        fs::create_dir(tracefs.root().join("instances").join(&dead)).unwrap();
        let second = Instance::new(tracefs).unwrap();
        let now = folders();
        assert!(!now.contains(&dead), "{now:?}");
        assert!(now.contains(&alive.name) && now.contains(&second.name), "{now:?}");
        let names = [alive.name.clone(), second.name.clone()];
        drop((alive, second));
        let left = folders();
        assert!(names.iter().all(|name| !left.contains(name)), "{left:?}");
    }

    #[test]
    fn an_instance_without_events_has_nothing_to_read() {
        let mut instance = Instance::new(TraceFs::find().unwrap()).unwrap();
        assert_eq!(instance.read(&mut [0; 4096]), Ok(0));
    }

    #[test]
    fn probes_are_known_by_their_group() {
        let line = "p:holdfast_7_0/wait dax_layout_busy_page_range ino=+0($arg1):x64";
        assert_eq!(event_of(line, "holdfast_7_0"), Some("wait"));
        assert_eq!(event_of(line, "holdfast_7_1"), None);
        assert_eq!(event_of("r4:g/e f", "g"), Some("e"));
    }
}
