//! However `lab` ends, nothing of it is left: no QEMU, no NIC, no mount, no socket, no file.
//!
//! Boots guests, so it needs what guests need (docs/lab.md); `tools/test lab` runs it.

mod support;

use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Output, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::Pid;
use support::{Lab, script, until};

/// What stands while a guest with an emulated NIC runs.
const RUNNING: [&str; 3] = ["qemu-system-x86_64", "holdfast nic", "socket: "];

fn assert_clean(lab: &Lab, after: &str) {
    let left = lab.left();
    assert!(left.is_empty(), "after {after} there is still:\n{}", left.join("\n"));
}

fn is_nic(trace: &str) -> bool {
    trace.starts_with("process") && trace.contains("holdfast nic")
}

fn text(output: &Output) -> String {
    let (stdout, stderr) = (&output.stdout, &output.stderr);
    String::from_utf8_lossy(&[&stdout[..], stderr].concat()).into_owned()
}

/// Starts `lab` in a process group of its own, with a guest that does not end, and waits until
/// the guest's command runs.
fn running_guest(lab: &Lab) -> Child {
    let mut command = lab.command();
    command.args(["run", "--nic", "holdfast", "--", "echo here; sleep 1000"]);
    command.process_group(0).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut child = command.spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    assert!(lines.any(|line| line.unwrap() == "here"), "the guest's command did not run");
    // The reader must stay: a closed pipe would end lab in another way.
    std::thread::spawn(move || lines.count());
    let traces = lab.traces().join("\n");
    let folder = lab.shows(&["mount in"]) || lab.shows(&["file: "]);
    assert!(
        folder && lab.shows(&RUNNING),
        "the guest runs, but this is all that is seen:\n{traces}"
    );
    child
}

#[test]
fn a_command_that_fails_leaves_nothing() {
    let lab = Lab::new();
    let mut command = lab.command();
    command.args(["run", "--nic", "holdfast", "--", "exit 7"]);
    let output = command.output().unwrap();
    assert_eq!(output.status.code(), Some(7), "{}", text(&output));
    assert_clean(&lab, "a command's failure");
}

#[test]
fn a_guest_that_does_not_end_shows_its_consoles_tail_and_leaves_nothing() {
    let lab = Lab::new();
    let mut command = lab.command();
    command.args(["run", "--nic", "holdfast", "--timeout", "40", "--"]);
    let output = command.arg("echo its last thing; sleep 1000").output().unwrap();
    assert_eq!(output.status.code(), Some(2), "{}", text(&output));
    let complaint = String::from_utf8_lossy(&output.stderr);
    let (_, words) = complaint.split_once("the console's last words:").expect(&complaint);
    assert!(words.contains("its last thing"), "{complaint}");
    assert_clean(&lab, "the time limit");
}

#[test]
fn a_suite_that_fails_leaves_nothing() {
    let lab = Lab::new();
    // A `holdfast` that is a NIC on the host and good for nothing in the guest.
    let real = Path::new(env!("CARGO_BIN_EXE_lab")).with_file_name("holdfast");
    let broken = lab.folder().join("broken");
    script(
        &broken,
        &format!("#!/bin/sh\n[ $1 = nic ] || exit 1\nexec {} \"$@\"\n", real.display()),
    );
    let mut command = lab.command();
    command.arg("--holdfast").arg(&broken).args(["test", "interop"]);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut most = 0;
    while child.try_wait().unwrap().is_none() {
        let traces = lab.traces();
        most = most.max(traces.iter().filter(|trace| is_nic(trace)).count());
        std::thread::sleep(Duration::from_millis(100));
    }
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{}", text(&output));
    let failures = text(&output).matches("FAIL Holdfast's NIC goes to vfio-pci").count();
    assert_eq!(failures, 2, "two rows: {}", text(&output));
    assert_eq!(most, 1, "the NIC of a row must be gone before the next row has its own");
    assert_clean(&lab, "a suite's failure");
}

#[test]
fn a_signal_leaves_nothing() {
    let lab = Lab::new();
    for (signal, to_group, status) in [
        (Signal::SIGINT, true, Some(130)),
        (Signal::SIGINT, false, Some(130)),
        (Signal::SIGTERM, false, Some(130)),
        (Signal::SIGHUP, true, Some(130)),
        (Signal::SIGKILL, false, None),
    ] {
        let mut child = running_guest(&lab);
        let pid = Pid::from_raw(child.id().cast_signed());
        let sent = if to_group { killpg(pid, signal) } else { kill(pid, signal) };
        sent.unwrap();
        let ended = child.wait().unwrap();
        assert_eq!(ended.code(), status, "{signal}");
        let to = if to_group { "the process group" } else { "lab alone" };
        assert_clean(&lab, &format!("{signal} to {to}"));
    }
}

#[test]
fn an_interrupted_build_leaves_no_process() {
    for signal in [Signal::SIGINT, Signal::SIGKILL] {
        let lab = Lab::empty();
        // A builder that puts a child into a session of its own.
        let child = "POSIX::setsid(); fork && exit; exec 'sleep', '1000';";
        let daemon = format!("use POSIX;\nif (!fork) {{ {child} }}\n");
        let mut command = lab.command();
        lab.build_with(command.arg("prepare"), &format!("{daemon}wait; sleep 1000;\n"));
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let mut child = command.process_group(0).spawn().unwrap();
        until("the build", || lab.shows(&["sleep 1000"]));
        kill(Pid::from_raw(child.id().cast_signed()), signal).unwrap();
        child.wait().unwrap();
        assert_clean(&lab, &format!("{signal} in a build"));
    }
}
