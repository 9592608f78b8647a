//! What the end-to-end tests share: two endpoints that reach each other, on NICs of one process or
//! of two, and bytes that tell where they came from.
//!
//! With `HOLDFAST_TEST_DEVICES="ADDRESS ADDRESS"` in the environment the tests that can use any two
//! devices use those, one test at a time: the lab runs them so on two PCI functions behind the
//! kernel's VFIO.

#![allow(dead_code)] // every test uses a part of it

use std::io::{BufRead, BufReader, Read as _, Write as _};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use holdfast::{
    Access, Completion, CompletionQueue, Device, DeviceAddress, EmulatedNic, EmulatedOptions,
    Memory, MemoryRegion, Options, Populate, ProtectionDomain, QueuePair, QueuePairOptions, Remote,
    Slice, Source,
};
use holdfast_driver as driver;

/// How long anything may take before a test gives up.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Names two devices to test on, in place of NICs that the tests start.
const DEVICES: &str = "HOLDFAST_TEST_DEVICES";

/// Where the two NICs are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Setting {
    /// On threads of the test's own process; they sleep when there is nothing to do.
    OneProcess,
    /// The same, and they never sleep: doorbells are found in another way.
    OneProcessPolling,
    /// Each in a process of its own, joined by a Unix socket.
    TwoProcesses,
    /// Somebody else's, named in the environment.
    Given,
}

/// What most tests go through.
pub const SETTINGS: [Setting; 2] = [Setting::OneProcess, Setting::TwoProcesses];
/// Where it matters how the NIC learns of work.
pub const POLLING_AND_SLEEPING: [Setting; 2] = [Setting::OneProcessPolling, Setting::OneProcess];

/// The settings to test in: these, or the devices that the environment names.
pub fn settings(ours: &[Setting]) -> Vec<Setting> {
    match std::env::var_os(DEVICES) {
        Some(_) => vec![Setting::Given],
        None => ours.to_vec(),
    }
}

/// The setting of a test to which the place of the NICs makes no difference.
pub fn any_setting() -> Setting {
    settings(&[Setting::OneProcess])[0]
}

/// A `holdfast nic` process; ended when dropped.
pub struct NicProcess {
    child: Child,
}

impl NicProcess {
    /// Starts it with these arguments and waits until clients can connect.
    pub fn start(args: &[&str]) -> Self {
        let child = Command::new(env!("CARGO_BIN_EXE_holdfast"))
            .arg("nic")
            .args(args)
            .stdout(Stdio::piped())
            .spawn()
            .expect("holdfast nic starts");
        Self::ready(child).0
    }

    /// Waits until clients can connect to one that was started, its output piped; gives the line
    /// that said so as well.
    pub fn ready(mut child: Child) -> (Self, String) {
        let stdout = child.stdout.take().expect("its output is piped");
        let process = Self { child };
        let mut line = String::new();
        BufReader::new(stdout).read_line(&mut line).expect("it prints a ready line");
        assert!(!line.is_empty(), "holdfast nic ended before it was ready");
        (process, line)
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

/// Opens the first (0) or the second (1) with these options.
type Opener = Box<dyn Fn(usize, &Options) -> Device>;

/// Two NICs, opened, and whatever keeps them alive.
pub struct Nics {
    pub a: Device,
    pub b: Device,
    open: Opener,
    pub processes: Vec<NicProcess>,
    folder: Option<tempfile::TempDir>,
    // Last: the next test may open the given devices when these are closed.
    turn: Option<MutexGuard<'static, ()>>,
}

/// Whose turn it is on the given devices, each of which has one owner at a time.
static TURN: Mutex<()> = Mutex::new(());

impl Nics {
    pub fn new(setting: Setting) -> Self {
        Self::with(setting, &Options::default())
    }

    /// With options for the driver of the second.
    pub fn with(setting: Setting, options: &Options) -> Self {
        let (mut processes, mut folder, mut turn) = (Vec::new(), None, None);
        let open: Opener = match setting {
            Setting::OneProcess | Setting::OneProcessPolling => {
                let poll = setting == Setting::OneProcessPolling;
                let nics = EmulatedOptions { nics: 2, poll, ..Default::default() };
                let nics = EmulatedNic::start(nics).expect("emulated NICs start");
                Box::new(move |number, options| {
                    nics.open_with(number, options.clone()).expect("an emulated NIC opens")
                })
            }
            Setting::TwoProcesses => {
                let folder = folder.insert(tempfile::tempdir().expect("a temporary folder"));
                let path = |name: &str| folder.path().join(name).display().to_string();
                let (sockets, link) = ([path("a"), path("b")], path("link"));
                processes = vec![
                    NicProcess::start(&["--socket", &sockets[0], "--link-listen", &link]),
                    NicProcess::start(&["--socket", &sockets[1], "--link-connect", &link]),
                ];
                Box::new(move |number, options| {
                    open_with(&format!("vfio-user:{}", sockets[number]), options)
                })
            }
            Setting::Given => {
                // A test that failed in its turn has closed its devices as it unwound.
                turn = Some(TURN.lock().unwrap_or_else(PoisonError::into_inner));
                let names = std::env::var(DEVICES).expect("the names of two devices");
                let names: Vec<String> = names.split_whitespace().map(str::to_owned).collect();
                assert_eq!(names.len(), 2, "{DEVICES} must name two devices: {names:?}");
                Box::new(move |number, options| open_with(&names[number], options))
            }
        };
        let (a, b) = (open(0, &Options::default()), open(1, options));
        Self { a, b, open, processes, folder, turn }
    }

    /// Closes both, if nothing else holds them, and opens them again.
    pub fn reopened(self) -> Self {
        let Self { a, b, open, processes, folder, turn } = self;
        drop((a, b));
        let (a, b) = (open(0, &Options::default()), open(1, &Options::default()));
        Self { a, b, open, processes, folder, turn }
    }
}

/// Opens the NIC that listens at `path`.
pub fn open(path: &str) -> Device {
    open_with(&format!("vfio-user:{path}"), &Options::default())
}

/// Opens the device of that address.
pub fn open_with(address: &str, options: &Options) -> Device {
    let address: DeviceAddress = address.parse().expect("a device address");
    Device::open_with(&address, options.clone())
        .unwrap_or_else(|error| panic!("{address} does not open: {error}"))
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
        Self::on(Nics::new(setting), len, access, options)
    }

    /// On NICs that are open already.
    pub fn on(nics: Nics, len: usize, access: Access, options: &QueuePairOptions<'_>) -> Self {
        let mut a = Side::new(&nics.a, len, Access::ALL, options);
        let mut b = Side::new(&nics.b, len, access, options);
        QueuePair::connect_pair(&mut a.qp, &mut b.qp).expect("they connect");
        Self { a, b, nics }
    }
}

/// Two endpoints that are not connected yet, with `len` bytes each.
pub fn unconnected(setting: Setting, len: usize) -> (Nics, Side, Side) {
    let nics = Nics::new(setting);
    let a = Side::new(&nics.a, len, Access::ALL, &options());
    let b = Side::new(&nics.b, len, Access::ALL, &options());
    (nics, a, b)
}

/// Connects like the library, with retries of the test's choice.
pub fn connect_with(
    pair_a: &mut Side,
    pair_b: &mut Side,
    gids: [[u8; 16]; 2],
    rts: driver::ReadyToSend,
) {
    let qpns = [pair_a.qp.info().qpn, pair_b.qp.info().qpn];
    for (side, peer, gid) in [(pair_a, qpns[1], gids[1]), (pair_b, qpns[0], gids[0])] {
        let control = &side.qp.driver().control;
        let path = driver::Path::new(gid, 0);
        let rtr = driver::ReadyToReceive {
            path,
            path_mtu: 5,
            dest_qpn: peer,
            rq_psn: 0,
            max_dest_rd_atomic: 4,
            min_rnr_timer: 1,
        };
        control.to_rtr(&rtr).unwrap();
        control.to_rts(&rts).unwrap();
    }
}

/// Retries that are over within a second.
pub fn short_retries() -> driver::ReadyToSend {
    driver::ReadyToSend { sq_psn: 0, timeout: 12, retry_cnt: 2, ..Default::default() }
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

/// What a NIC process' control socket answers.
pub fn ask(control: &Path, what: &str) -> serde_json::Value {
    let mut stream = UnixStream::connect(control).expect("the control socket is served");
    writeln!(stream, "{what}").expect("it reads");
    stream.shutdown(Shutdown::Write).expect("it is connected");
    let mut text = String::new();
    stream.read_to_string(&mut text).expect("it answers");
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

/// Requests that the NICs of a process have completed, as its control socket tells.
pub fn completed(control: &Path) -> u64 {
    let counters = ask(control, "counters");
    let nics = counters["nics"].as_array().expect("NICs").iter();
    nics.map(|nic| nic["engine"]["completions"].as_u64().expect("a count")).sum()
}

/// Every entry of a folder, for checks that nothing was left there.
pub fn entries(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).expect("the folder can be read");
    entries.map(|entry| entry.expect("an entry").path()).collect()
}
