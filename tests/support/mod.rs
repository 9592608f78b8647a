//! What the end-to-end tests share: two endpoints that reach each other, on NICs of one process or
//! of two, and bytes that tell where they came from.

#![allow(dead_code)] // every test uses a part of it

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use holdfast::{
    Access, Completion, CompletionQueue, Device, EmulatedNic, EmulatedOptions, Memory,
    MemoryRegion, Populate, ProtectionDomain, QueuePair, QueuePairOptions, Remote, Slice, Source,
};

/// How long anything may take before a test gives up.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Where the two NICs are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Setting {
    /// On threads of the test's own process.
    OneProcess,
    /// Each in a process of its own, joined by a Unix socket.
    TwoProcesses,
}

pub const SETTINGS: [Setting; 2] = [Setting::OneProcess, Setting::TwoProcesses];

/// A `holdfast nic` process; ended when dropped.
pub struct NicProcess {
    child: Child,
}

impl NicProcess {
    /// Starts it with these arguments and waits until clients can connect.
    pub fn start(args: &[&str]) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_holdfast"))
            .arg("nic")
            .args(args)
            .stdout(Stdio::piped())
            .spawn()
            .expect("holdfast nic starts");
        let mut line = String::new();
        let stdout = child.stdout.take().expect("its output is piped");
        BufReader::new(stdout).read_line(&mut line).expect("it prints a ready line");
        assert!(!line.is_empty(), "holdfast nic {args:?} ended before it was ready");
        Self { child }
    }

    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Ends it as kill -9 does.
    pub fn kill(&mut self) {
        self.child.kill().expect("the NIC's process is alive");
        self.child.wait().expect("it can be waited for");
    }

    /// Sends a signal and waits for its end.
    pub fn end_by(&mut self, signal: &str) -> std::process::ExitStatus {
        let pid = self.child.id().to_string();
        let sent = Command::new("kill").args(["-s", signal, &pid]).status().expect("kill runs");
        assert!(sent.success());
        self.child.wait().expect("it can be waited for")
    }
}

impl Drop for NicProcess {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Two NICs, opened, and whatever keeps them alive.
pub struct Nics {
    pub a: Device,
    pub b: Device,
    pub processes: Vec<NicProcess>,
    pub folder: Option<tempfile::TempDir>,
}

impl Nics {
    pub fn new(setting: Setting) -> Self {
        match setting {
            Setting::OneProcess => {
                let nics = EmulatedNic::start(EmulatedOptions { nics: 2, ..Default::default() })
                    .expect("emulated NICs start");
                let open = |index| nics.open(index).expect("an emulated NIC opens");
                Self { a: open(0), b: open(1), processes: Vec::new(), folder: None }
            }
            Setting::TwoProcesses => {
                let folder = tempfile::tempdir().expect("a temporary folder");
                let path = |name: &str| folder.path().join(name).display().to_string();
                let (a, b, link) = (path("a"), path("b"), path("link"));
                let processes = vec![
                    NicProcess::start(&["--socket", &a, "--link-listen", &link]),
                    NicProcess::start(&["--socket", &b, "--link-connect", &link]),
                ];
                Self { a: open(&a), b: open(&b), processes, folder: Some(folder) }
            }
        }
    }
}

/// Opens the NIC that listens at `path`.
pub fn open(path: &str) -> Device {
    let address = format!("vfio-user:{path}").parse().expect("a device address");
    Device::open(&address).expect("the NIC opens")
}

/// One endpoint.
pub struct Side {
    // In the order in which they go.
    pub qp: QueuePair,
    pub cq: CompletionQueue,
    pub region: MemoryRegion,
    pub pd: ProtectionDomain,
}

impl Side {
    /// An endpoint with `len` bytes of memory, not yet connected.
    pub fn new(
        device: &Device,
        len: usize,
        access: Access,
        options: &QueuePairOptions<'_>,
    ) -> Self {
        let pd = device.protection_domain().expect("a protection domain");
        let cq = device.completion_queue(1024).expect("a completion queue");
        let qp = pd.queue_pair(options, &cq, &cq).expect("a queue pair");
        let region = pd.register(memory(len), access).expect("a region");
        Self { qp, cq, region, pd }
    }

    /// What the peer may aim at, `offset` bytes into the region.
    pub fn at(&self, offset: usize) -> Remote {
        Remote { addr: self.region.remote().addr + offset as u64, rkey: self.region.rkey() }
    }

    /// The next completion.
    pub fn completion(&mut self) -> Completion {
        next_completion(&mut self.cq)
    }

    /// A copy of part of the region.
    pub fn bytes(&self, offset: usize, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.region.memory().read_at(offset, &mut bytes).expect("inside the region");
        bytes
    }
}

pub fn next_completion(cq: &mut CompletionQueue) -> Completion {
    let start = Instant::now();
    let mut out = [Completion::default()];
    while cq.poll(&mut out).expect("the device writes sense") == 0 {
        assert!(start.elapsed() < PATIENCE, "no completion came");
        std::thread::yield_now();
    }
    out[0]
}

/// Polls `cq` for `time` and expects that nothing completes.
pub fn expect_silence(cq: &mut CompletionQueue, time: Duration) {
    let start = Instant::now();
    let mut out = [Completion::default()];
    while start.elapsed() < time {
        assert_eq!(cq.poll(&mut out).expect("the device writes sense"), 0, "{:?}", out[0]);
        std::thread::yield_now();
    }
}

/// Two connected endpoints.
pub struct Pair {
    pub a: Side,
    pub b: Side,
    pub nics: Nics,
}

impl Pair {
    pub fn new(setting: Setting, len: usize) -> Self {
        Self::with(setting, len, Access::ALL, &options())
    }

    pub fn with(
        setting: Setting,
        len: usize,
        access: Access,
        options: &QueuePairOptions<'_>,
    ) -> Self {
        let nics = Nics::new(setting);
        let mut a = Side::new(&nics.a, len, Access::ALL, options);
        let mut b = Side::new(&nics.b, len, access, options);
        QueuePair::connect_pair(&mut a.qp, &mut b.qp).expect("they connect");
        Self { a, b, nics }
    }
}

/// Queue pairs with room for scattered requests and inline data.
pub fn options() -> QueuePairOptions<'static> {
    QueuePairOptions { max_sge: 4, inline: 64, ..Default::default() }
}

pub fn memory(len: usize) -> Memory {
    Memory::open(&Source::Memfd, len, Populate::Yes).expect("memory")
}

/// The byte that stands at `index` of a payload that was made with `seed`.
fn byte(seed: u64, index: usize) -> u8 {
    let mixed = (seed << 32 ^ index as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (mixed >> 56) as u8
}

/// A payload in which every byte depends on its place and on `seed`.
pub fn payload(seed: u64, len: usize) -> Vec<u8> {
    (0..len).map(|index| byte(seed, index)).collect()
}

/// Cuts `[offset, offset + len)` of a region into up to `parts` uneven slices.
pub fn scattered(region: &MemoryRegion, offset: usize, len: usize, parts: usize) -> Vec<Slice<'_>> {
    let mut slices = Vec::new();
    let (mut at, end) = (offset, offset + len);
    for part in 0..parts {
        let rest = end - at;
        let take = if part + 1 == parts { rest } else { (rest / 3).max(1).min(rest) };
        slices.push(region.slice(at, take).expect("inside the region"));
        at += take;
        if at == end {
            break;
        }
    }
    slices
}

/// Every entry of a folder, for checks that nothing was left there.
pub fn entries(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).expect("the folder can be read");
    entries.map(|entry| entry.expect("an entry").path()).collect()
}
