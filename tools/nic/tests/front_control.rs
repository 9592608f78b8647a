//! The control socket, and the sockets of a NIC process in general.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::{UnixListener, UnixStream};

use holdfast_nic::{NicOptions, NicProcess};
use holdfast_vfio::Device as _;
use holdfast_vfio::user::UserDevice;
use serde_json::Value;

fn ask(stream: &UnixStream, line: &str) -> Value {
    let mut writer = stream;
    writer.write_all(line.as_bytes()).unwrap();
    let mut answer = String::new();
    BufReader::new(stream).read_line(&mut answer).unwrap();
    serde_json::from_str(&answer).unwrap()
}

#[test]
fn counters_are_one_json_object_per_line() {
    let folder = tempfile::tempdir().unwrap();
    let control = folder.path().join("control");
    let options =
        NicOptions { extra_nics: 2, control: Some(control.clone()), ..Default::default() };
    let process = NicProcess::start(options).unwrap();
    let clients: Vec<_> = (0..3).map(|_| UnixStream::connect(&control).unwrap()).collect();
    for client in &clients {
        let counters = ask(client, "counters\n");
        assert_eq!(counters["nics"].as_array().unwrap().len(), 2);
        assert_eq!(counters["nics"][0]["engine"]["translation_misses"], 0);
        assert_eq!(counters["nics"][1]["engine"]["requests"]["rdma_write"], 0);
        assert_eq!(ask(client, "state\n")["nics"][0]["connected"], false);
        assert!(ask(client, "nonsense\n")["error"].is_string());
    }
    process.shutdown();
    assert!(!control.exists(), "the socket is removed");
}

#[test]
fn an_unplugged_nic_answers_nothing_and_the_others_go_on() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let sockets = vec![path("0"), path("1")];
    let control = Some(path("control"));
    let process = NicProcess::start(NicOptions { sockets, control, ..Default::default() }).unwrap();
    let connect = |name| UserDevice::connect(path(name));
    let (first, second) = (connect("0").unwrap(), connect("1").unwrap());
    let control = UnixStream::connect(path("control")).unwrap();
    assert!(ask(&control, "unplug 2\n")["error"].is_string());
    assert!(ask(&control, "unplug\n")["error"].is_string());
    assert_eq!(ask(&control, "unplug 0\n")["unplugged"], "0");
    assert_eq!(first.read_u32(1, 0).unwrap(), !0, "nobody answers");
    assert_eq!(first.read_u32(7, 0).unwrap(), !0, "not in configuration space either");
    first.write_u32(1, 0, 0).unwrap();
    drop(first);
    assert_eq!(connect("0").unwrap().read_u32(1, 0).unwrap(), !0, "and there is no way back");
    assert_eq!(second.read_u32(1, 0).unwrap(), 20, "the other one's version");
    process.shutdown();
}

#[test]
fn a_served_path_is_refused_and_a_stale_one_taken_over() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("nic");
    drop(UnixListener::bind(&path).unwrap());
    let start =
        || NicProcess::start(NicOptions { sockets: vec![path.clone()], ..Default::default() });
    let process = start().unwrap();
    let refused = start().unwrap_err().to_string();
    assert!(refused.contains("another server"), "{refused}");
    process.shutdown();
    start().unwrap().shutdown();
    assert!(!path.exists());
}

#[test]
fn two_processes_may_be_linked() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("link");
    let first = NicProcess::start(NicOptions {
        extra_nics: 1,
        link_listen: vec![path.clone().into()],
        ..Default::default()
    })
    .unwrap();
    let second = NicProcess::start(NicOptions {
        extra_nics: 1,
        link_connect: vec![path.into()],
        ..Default::default()
    })
    .unwrap();
    drop(second);
    first.shutdown();
}

#[test]
fn impossible_options_are_refused() {
    assert!(NicProcess::start(NicOptions::default()).is_err());
    let version = NicOptions { extra_nics: 1, version: 21, ..Default::default() };
    assert!(NicProcess::start(version).unwrap_err().to_string().contains("21"));
    let cpu = NicOptions { extra_nics: 1, cpu: Some(1023), ..Default::default() };
    assert!(NicProcess::start(cpu).unwrap_err().to_string().contains("1023"));
}
