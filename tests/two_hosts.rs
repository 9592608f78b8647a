//! NICs of two hosts, joined over TCP: each host is a network namespace of its own, with one wire
//! between them. Without the right to make namespaces, both are this one's loopback.

mod support;

use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use serde_json::Value;
use support::{NicProcess, PATIENCE};

const WIRE: &str = "wire";

/// Two hosts; gone when dropped.
struct Hosts {
    namespaces: Option<[String; 2]>,
}

impl Hosts {
    fn new() -> Self {
        static RIGS: AtomicU32 = AtomicU32::new(0);
        let (process, rig) = (std::process::id(), RIGS.fetch_add(1, Ordering::Relaxed));
        let name = |host| format!("holdfast-{process}-{rig}{host}");
        let hosts = Self { namespaces: Some([name("a"), name("b")]) };
        if hosts.set_up() {
            return hosts;
        }
        eprintln!("no network namespaces here: both hosts are this one");
        Self { namespaces: None }
    }

    fn set_up(&self) -> bool {
        let Some([a, b]) = &self.namespaces else { return false };
        let host = |name: &str, host| {
            let address = format!("{}/24", self.address(host));
            ip(&["-n", name, "address", "add", &address, "dev", WIRE])
                && ip(&["-n", name, "link", "set", WIRE, "up"])
        };
        let wire = ["link", "add", WIRE, "type", "veth", "peer", "name", WIRE, "netns", b];
        ip(&["netns", "add", a])
            && ip(&["netns", "add", b])
            && ip(&[&["-n", a][..], &wire].concat())
            && host(a, 0)
            && host(b, 1)
    }

    fn address(&self, host: usize) -> String {
        let network = if self.namespaces.is_some() { "10.73.0" } else { "127.0.0" };
        format!("{network}.{}", host + 1)
    }

    /// A port of the host's that is free.
    fn port(&self, host: usize) -> u16 {
        match self.namespaces {
            // Nobody else is there.
            Some(_) => 7480,
            None => {
                let socket = TcpListener::bind((self.address(host), 0)).unwrap();
                socket.local_addr().unwrap().port()
            }
        }
    }

    /// A `holdfast` that runs there.
    fn holdfast(&self, host: usize, args: &[&str]) -> Child {
        let holdfast = env!("CARGO_BIN_EXE_holdfast");
        let mut command = match &self.namespaces {
            Some(names) => {
                let mut command = Command::new("ip");
                command.args(["netns", "exec", &names[host], holdfast]);
                command
            }
            None => Command::new(holdfast),
        };
        command.args(args).stdout(Stdio::piped()).stderr(Stdio::piped());
        command.spawn().expect("holdfast runs")
    }
}

impl Drop for Hosts {
    fn drop(&mut self) {
        for name in self.namespaces.iter().flatten() {
            ip(&["netns", "delete", name]);
        }
    }
}

fn ip(args: &[&str]) -> bool {
    let output = Command::new("ip").args(args).output();
    output.is_ok_and(|output| output.status.success())
}

/// Two hosts with a NIC each, joined.
struct Rig {
    sockets: [String; 2],
    /// Of the second host's NIC.
    control: PathBuf,
    _nics: [NicProcess; 2],
    _folder: tempfile::TempDir,
    hosts: Hosts,
}

impl Rig {
    fn new() -> Self {
        let (hosts, folder) = (Hosts::new(), tempfile::tempdir().expect("a temporary folder"));
        let sockets =
            ["a", "b"].map(|name| folder.path().join(name).to_str().expect("UTF-8").to_owned());
        let listen = format!("tcp:{}:0", hosts.address(0));
        let control = folder.path().join("control");
        let name = control.to_str().expect("UTF-8");
        let a = ["nic", "--json", "--socket", &sockets[0], "--link-listen", &listen];
        let (a, ready) = NicProcess::ready(hosts.holdfast(0, &a));
        let ready: Value = serde_json::from_str(&ready).expect("a JSON object");
        let link = ready["link_listen"][0].as_str().expect("an address");
        assert!(!link.ends_with(":0"), "the port that was found: {link}");
        let b = ["nic", "--socket", &sockets[1], "--control", name, "--link-connect", link];
        let (b, _) = NicProcess::ready(hosts.holdfast(1, &b));
        Self { sockets, control, _nics: [a, b], _folder: folder, hosts }
    }

    /// The same measurement on both, the first of which waits for the second.
    fn bench(&self, args: &[&str]) -> [Child; 2] {
        let address = format!("{}:{}", self.hosts.address(0), self.hosts.port(0));
        let [a, b] = ["--server", "--connect"];
        [(0, a), (1, b)].map(|(host, role)| {
            let device = format!("vfio-user:{}", self.sockets[host]);
            let common = ["--device", &device, role, &address, "--timeout", "60", "--json"];
            self.hosts.holdfast(host, &[&["bench"], args, &common].concat())
        })
    }
}

fn ended(child: Child) -> Output {
    child.wait_with_output().expect("it can be waited for")
}

#[test]
fn every_operation_is_measured_between_two_hosts() {
    let rig = Rig::new();
    for args in [
        &["send", "lat", "--iters", "300"][..],
        &["read", "lat", "--iters", "300", "--size", "64K"],
        &["faa", "lat", "--iters", "300"],
        &["write", "bw", "--duration", "0.3", "--bidirectional"],
    ] {
        for output in rig.bench(args).map(ended) {
            let stderr = String::from_utf8_lossy(&output.stderr);
            assert_eq!(output.status.code(), Some(0), "{args:?}: {stderr}");
            let result: Value = serde_json::from_slice(&output.stdout).expect("one JSON object");
            let run = &result["runs"][0];
            assert!(run["errors"] == 0, "{args:?}: {result}");
            assert!(run["elsewhere"] == true || run["iters"].as_u64() > Some(0), "{result}");
        }
    }
}

#[test]
fn a_wire_that_is_cut_is_an_error_and_no_wait_without_end() {
    let rig = Rig::new();
    // Nobody can cut loopback.
    let Some([name, _]) = &rig.hosts.namespaces else { return };
    let [mut server, client] = rig.bench(&["read", "lat", "--duration", "100"]);
    let start = Instant::now();
    while support::completed(&rig.control) < 100 {
        assert!(start.elapsed() < PATIENCE, "it does not begin");
        std::thread::sleep(Duration::from_millis(20));
    }
    assert!(ip(&["-n", name, "link", "set", WIRE, "down"]));
    let start = Instant::now();
    let output = ended(client);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(stderr.contains("RetryExceeded"), "{stderr}");
    assert!(start.elapsed() < PATIENCE, "{:?}: {stderr}", start.elapsed());
    let _ = server.kill();
    let _ = server.wait();
}
