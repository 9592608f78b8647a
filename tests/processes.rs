//! What may happen to the processes: clients that vanish, files cut short under the NIC, signals,
//! sockets left behind, and a NIC that has nothing to do.

mod support;

use std::io::Write;
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use holdfast::{Access, Completion, Memory, Populate, QueuePair, Remote, SendFlags, Source};
use support::{
    NicProcess, PATIENCE, Setting, Side, connect_with, entries, open, options, payload,
    short_retries, unconnected,
};

/// A NIC process with two NICs and a control socket, in a folder of its own.
struct Served {
    nic: NicProcess,
    folder: tempfile::TempDir,
}

impl Served {
    fn new(more: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name).display().to_string();
        let (a, b, control) = (path("a"), path("b"), path("control"));
        let mut args = vec!["--socket", &a, "--socket", &b, "--control", &control];
        args.extend(more);
        Self { nic: NicProcess::start(&args), folder }
    }

    fn path(&self, name: &str) -> String {
        self.folder.path().join(name).display().to_string()
    }

    /// What the control socket answers.
    fn ask(&self, what: &str) -> serde_json::Value {
        support::ask(self.path("control").as_ref(), what)
    }

    /// Processor time used so far.
    fn cpu_time(&self) -> Duration {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.nic.id())).unwrap();
        let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
        let ticks: u64 = fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap();
        Duration::from_millis(ticks * 10)
    }
}

/// A write from one NIC to the other that must work.
fn check_traffic(served: &Served) {
    let (at_a, at_b) = (open(&served.path("a")), open(&served.path("b")));
    let mut a = Side::new(&at_a, 1 << 16, Access::ALL, &options());
    let mut b = Side::new(&at_b, 1 << 16, Access::ALL, &options());
    QueuePair::connect_pair(&mut a.qp, &mut b.qp).unwrap();
    let bytes = payload(1, 5000);
    a.region.memory().write_at(0, &bytes).unwrap();
    let (local, remote) = (a.region.slice(0, 5000).unwrap(), b.at(7));
    a.qp.write(1, &[local], remote, SendFlags::SIGNALED).unwrap();
    a.qp.ring_sends();
    assert!(a.completion().is_success());
    assert_eq!(b.bytes(7, 5000), bytes);
}

#[test]
fn one_client_after_another_is_served_whatever_became_of_the_last() {
    let served = Served::new(&[]);
    for _ in 0..3 {
        check_traffic(&served);
        // A client in full traffic that is killed.
        let mut client = Command::new(env!("CARGO_BIN_EXE_holdfast"))
            .args(["bench", "write", "rate", "--duration", "60"])
            .args(["--device", &format!("vfio-user:{}", served.path("a"))])
            .args(["--device", &format!("vfio-user:{}", served.path("b"))])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let start = Instant::now();
        let writes = |served: &Served| served.ask("counters").to_string();
        let before = writes(&served);
        while writes(&served) == before {
            assert!(start.elapsed() < PATIENCE, "the client's traffic never showed");
            assert!(client.try_wait().unwrap().is_none(), "the client ended by itself");
            std::thread::sleep(Duration::from_millis(20));
        }
        client.kill().unwrap();
        client.wait().unwrap();
    }
    check_traffic(&served);
    // A client that speaks nonsense, and one that says nothing at all.
    let mut stream = UnixStream::connect(served.path("a")).unwrap();
    stream.write_all(&[0xff; 4096]).unwrap();
    drop(stream);
    drop(UnixStream::connect(served.path("a")).unwrap());
    check_traffic(&served);
}

#[test]
fn every_interface_version_and_every_way_of_commands_and_doorbells_works() {
    for version in ["17", "18", "19", "20"] {
        for more in [&[][..], &["--async-commands"], &["--doorbells", "trapped"], &["--poll"]] {
            let mut args = vec!["--interface", version];
            args.extend(more);
            check_traffic(&Served::new(&args));
        }
    }
}

#[test]
fn a_file_cut_short_under_traffic_ends_neither_the_nic_nor_the_client() {
    for miss in ["fail", "stall"] {
        let served = Served::new(&["--miss", miss]);
        let path = served.folder.path().join("region");
        std::fs::write(&path, vec![0u8; 1 << 20]).unwrap();
        let (at_a, at_b) = (open(&served.path("a")), open(&served.path("b")));
        let mut a = Side::new(&at_a, 1 << 16, Access::ALL, &options());
        let mut b = Side::new(&at_b, 1 << 16, Access::ALL, &options());
        QueuePair::connect_pair(&mut a.qp, &mut b.qp).unwrap();
        let source: Source = path.display().to_string().parse().unwrap();
        let file = Memory::open(&source, 0, Populate::Yes).unwrap();
        let region = b.pd.register(file, Access::ALL).unwrap();
        let remote =
            |offset: u64| Remote { addr: region.remote().addr + offset, rkey: region.rkey() };

        // Writes all over the file, which loses its second half meanwhile.
        let mut out = [Completion::default(); 16];
        let (mut failed, mut rounds) = (None, 0u64);
        let start = Instant::now();
        while failed.is_none() {
            assert!(
                start.elapsed() < PATIENCE,
                "--miss {miss}: the missing half was never noticed"
            );
            if rounds == 50 {
                let file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
                file.set_len(1 << 19).unwrap();
            }
            let local = a.region.slice(0, 64).unwrap();
            if a.qp
                .write(rounds, &[local], remote(rounds * 4096 % (1 << 20)), SendFlags::SIGNALED)
                .is_ok()
            {
                a.qp.ring_sends();
                rounds += 1;
            }
            let count = a.cq.poll(&mut out).unwrap();
            failed = out[..count].iter().find(|done| !done.is_success()).copied();
        }
        let counters = served.ask("counters");
        let sum = |name: &str| -> u64 {
            let nics = counters["nics"].as_array().unwrap();
            nics.iter().map(|nic| nic["engine"][name].as_u64().unwrap()).sum()
        };
        assert!(sum("translation_misses") > 0, "--miss {miss}: {counters}");
        assert_eq!(sum("stalls") > 0, miss == "stall", "--miss {miss}: {counters}");
        drop((a, b, region, at_a, at_b));
        check_traffic(&served);
    }
}

#[test]
fn a_nic_process_that_is_killed_is_reported_after_the_retries() {
    let (mut nics, mut a, mut b) = unconnected(Setting::TwoProcesses, 1 << 16);
    connect_with(&mut a, &mut b, [nics.a.gid(), nics.b.gid()], short_retries());
    let remote = b.at(0);
    a.qp.write(8, &[a.region.slice(0, 64).unwrap()], remote, SendFlags::SIGNALED).unwrap();
    a.qp.ring_sends();
    assert!(a.completion().is_success());
    nics.processes[1].kill();
    a.qp.write(9, &[a.region.slice(0, 64).unwrap()], remote, SendFlags::SIGNALED).unwrap();
    a.qp.ring_sends();
    assert_eq!(a.completion().status, holdfast::Status::RetryExceeded);
}

#[test]
fn memory_comes_back_when_the_nic_is_gone() {
    let mut served = Served::new(&[]);
    let device = open(&served.path("a"));
    let side = Side::new(&device, 1 << 16, Access::ALL, &options());
    let other = side.pd.register(support::memory(4096), Access::ALL).unwrap();
    side.region.memory().write_at(5, b"kept").unwrap();
    served.nic.kill();
    let Side { qp, cq, region, pd } = side;
    // Its process has died and let go of everything, whatever it can still be asked.
    let memory = region.deregister().expect("the memory");
    let mut bytes = [0; 4];
    memory.read_at(5, &mut bytes).unwrap();
    assert_eq!(&bytes, b"kept");
    assert_eq!(other.deregister().expect("this one too").len(), 4096);
    assert!(pd.register(memory, Access::ALL).is_err(), "there is no device any more");
    drop((qp, cq, pd));
}

#[test]
fn an_unplugged_nic_is_missed_at_once_and_lets_go_of_everything() {
    let served = Served::new(&[]);
    let (at_a, at_b) = (open(&served.path("a")), open(&served.path("b")));
    let a = Side::new(&at_a, 1 << 16, Access::ALL, &options());
    let b = Side::new(&at_b, 1 << 16, Access::ALL, &options());
    served.ask("unplug 1");
    let start = Instant::now();
    let error = at_b.protection_domain().expect_err("the device is gone");
    // Whatever waits for a device waits for 10 s at least.
    assert!(start.elapsed() < Duration::from_secs(9), "{error}");
    assert!(error.to_string().contains("the device is gone"), "{error}");
    let Side { qp, cq, region, pd } = b;
    region.deregister().expect("the memory comes back");
    drop((qp, cq, pd, at_b));
    assert!(start.elapsed() < Duration::from_secs(9), "closing it waits for nothing");
    let state = served.ask("state");
    let nic =
        |number: usize| (&state["nics"][number]["mappings"], &state["nics"][number]["queue_pairs"]);
    assert_eq!(nic(1), (&0.into(), &0.into()), "{state}");
    assert_eq!(nic(0).1, 1, "the other one goes on: {state}");
    drop(a);
}

#[test]
fn a_nic_with_nothing_to_do_uses_no_processor() {
    let served = Served::new(&[]);
    let measure = |what: &str| {
        std::thread::sleep(Duration::from_millis(500));
        let (start, before) = (Instant::now(), served.cpu_time());
        std::thread::sleep(Duration::from_secs(3));
        let used = (served.cpu_time() - before).as_secs_f64() / start.elapsed().as_secs_f64();
        assert!(used < 0.03, "{what}: {:.1} % of a core", used * 100.0);
    };
    measure("without clients");
    let (at_a, at_b) = (open(&served.path("a")), open(&served.path("b")));
    let mut a = Side::new(&at_a, 1 << 16, Access::ALL, &options());
    let mut b = Side::new(&at_b, 1 << 16, Access::ALL, &options());
    QueuePair::connect_pair(&mut a.qp, &mut b.qp).unwrap();
    for _ in 0..1000 {
        let (local, remote) = (a.region.slice(0, 8).unwrap(), b.at(0));
        a.qp.write(1, &[local], remote, SendFlags::SIGNALED).unwrap();
        a.qp.ring_sends();
        assert!(a.completion().is_success());
    }
    measure("with clients that rest");
    // And it wakes up.
    let (local, remote) = (a.region.slice(0, 8).unwrap(), b.at(0));
    a.qp.write(1, &[local], remote, SendFlags::SIGNALED).unwrap();
    a.qp.ring_sends();
    assert!(a.completion().is_success());
}

#[test]
fn sockets_are_removed_at_the_end_and_taken_over_only_from_the_dead() {
    for signal in ["INT", "TERM"] {
        let mut served = Served::new(&[]);
        assert_eq!(entries(served.folder.path()).len(), 3);
        let status = served.nic.end_by(signal);
        assert!(status.success() || status.code() == Some(130), "{signal}: {status}");
        assert!(entries(served.folder.path()).is_empty(), "{signal} left something behind");
    }
    let mut served = Served::new(&[]);
    let socket = served.path("a");
    let second = Command::new(env!("CARGO_BIN_EXE_holdfast"))
        .args(["nic", "--socket", &socket])
        .output()
        .unwrap();
    assert_eq!(second.status.code(), Some(1), "the socket is in use");
    check_traffic(&served);
    served.nic.kill();
    assert_eq!(entries(served.folder.path()).len(), 3, "kill -9 leaves them");
    let _nic = NicProcess::start(&["--socket", &socket]);
    open(&socket);
}

#[test]
fn the_demo_is_right_and_leaves_nothing_behind() {
    let folder = tempfile::tempdir().unwrap();
    let demo = |args: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_holdfast"));
        command.arg("demo").args(args).current_dir(folder.path()).env("TMPDIR", folder.path());
        command
    };
    let output = demo(&["--seconds", "1", "--size", "4M", "--json"]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let result: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(result["errors"], 0, "{result}");
    let moving = &result["moving"];
    assert_eq!((&moving["failed"], &moving["foreign_bytes"]), (&0.into(), &0.into()), "{result}");
    assert_eq!(moving["moves"].as_array().map(Vec::len), Some(4), "each way of moving: {result}");
    assert!(moving["checked_bytes"].as_u64().unwrap() >= 4 << 20, "{result}");
    assert!(entries(folder.path()).is_empty(), "{:?}", entries(folder.path()));

    let mut child =
        demo(&["--seconds", "60"]).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let start = Instant::now();
    while entries(folder.path()).is_empty() {
        assert!(start.elapsed() < PATIENCE);
        std::thread::sleep(Duration::from_millis(5));
    }
    std::thread::sleep(Duration::from_millis(300));
    let pid = child.id().to_string();
    assert!(Command::new("kill").args(["-s", "INT", &pid]).status().unwrap().success());
    assert_eq!(child.wait().unwrap().code(), Some(130));
    assert!(entries(folder.path()).is_empty(), "{:?}", entries(folder.path()));
    let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"));
    assert!(children.is_err(), "the process is gone, and its NIC with it");
}
