//! The command line: what makes no sense is refused with exit status 2 and a way out.

use std::process::{Command, Output};

fn holdfast(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_holdfast")).args(args).output().expect("holdfast runs")
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn wrong_usage_ends_with_status_2_and_says_what_to_do() {
    // (arguments, words of the message)
    let cases: &[(&[&str], &str)] = &[
        (&[], "Usage"),
        (&["frobnicate"], "unrecognized subcommand"),
        (&["bench"], "<OP>"),
        (&["bench", "write"], "<MODE>"),
        (&["bench", "scribble", "lat"], "possible values: write, read, send, cas, faa, mixed"),
        (&["bench", "write", "fast"], "possible values: lat, bw, rate"),
        (&["bench", "write", "lat", "--size", "8Q"], "'8Q' is not a size"),
        (&["bench", "write", "lat", "--size", "0"], "at least 1"),
        (&["bench", "write", "bw", "--size", "2G"], "1 GiB"),
        (&["bench", "write", "bw", "--size", "513M"], "give at most 512M"),
        (&["bench", "cas", "lat", "--size", "16"], "works on 8 bytes"),
        (&["bench", "write", "lat", "--depth", "4"], "one operation under way"),
        (&["bench", "write", "lat", "--rate", "0"], "not a number a second"),
        (&["bench", "write", "bw", "--rate", "1K"], "--rate is for lat"),
        (&["bench", "write", "bw", "--hdr", "x"], "--hdr is for lat"),
        (&["bench", "write", "lat", "--bidirectional"], "--bidirectional is for bw and rate"),
        (&["bench", "send", "lat", "--until", "completion"], "--until is for write lat"),
        (&["bench", "write", "bw", "--reads", "30"], "--reads is for mixed"),
        (
            &["bench", "write", "lat", "--rate", "1K", "--size", "1M", "--depth", "1024"],
            "a smaller --depth",
        ),
        (&["cores", "--cpu", "1000"], "this machine has none"),
        (&["bench", "write", "lat", "--cpu", "1000"], "--cpu 1000: cannot run on cpu 1000"),
        (&["bench", "compare"], "<BEFORE>"),
        (&["bench", "compare", "a", "b", "--confidence", "100"], "from 50 to 99.99"),
        (&["bench", "write", "rate", "--depth", "8", "--batch", "9"], "--depth 8"),
        (&["bench", "write", "lat", "--iters", "0"], "0 is not in"),
        (&["bench", "write", "lat", "--iters", "5", "--duration", "1"], "cannot be used with"),
        (&["bench", "write", "lat", "--duration", "never"], "number of seconds"),
        (&["bench", "write", "lat", "--region", "f:12"], "not a range of a file"),
        (&["bench", "write", "lat", "--region", "anon"], "use memfd"),
        (&["bench", "write", "lat", "--device", "mlx5_0"], "'mlx5_0' names no device"),
        (&["bench", "write", "lat", "--server", "a:1", "--connect", "b:1"], "cannot be used with"),
        (&["bench", "write", "lat", "--server", "127.0.0.1:1"], "holdfast nic --socket"),
        (
            &["bench", "write", "lat", "--device", "emulated", "--device", "emulated"],
            "give it alone",
        ),
        (&["pingpong", "--size", "2G"], "1 GiB"),
        (&["pingpong", "--size", "513M"], "give at most 512M"),
        (&["pingpong", "--iters", "0"], "0 is not in"),
        (&["demo", "--size", "5000"], "whole pages"),
        (&["demo", "--seconds", "0"], "number of seconds"),
        (&["bind"], "<BDF>"),
        (&["bind", "eth0"], "eth0"),
        (&["unbind", "0000:00:00"], "0000:00:00"),
        (&["nic"], "--socket"),
        (&["nic", "--socket", "/tmp/x", "--interface", "16"], "17..=20"),
        (
            &["nic", "--socket", "/tmp/x", "--miss", "fail", "--stall-bound", "1"],
            "means nothing with --miss fail",
        ),
        (&["nic", "--socket", "/tmp/x", "--poll", "--spin", "5"], "cannot be used with"),
    ];
    for (args, words) in cases {
        let output = holdfast(args);
        let text = stderr(&output);
        assert_eq!(output.status.code(), Some(2), "{args:?}: {text}");
        assert!(text.contains(words), "{args:?} does not say '{words}':\n{text}");
        assert!(output.stdout.is_empty(), "{args:?}");
    }
}

#[test]
fn what_fails_ends_with_status_1_and_one_line() {
    let dir = tempfile::tempdir().unwrap();
    let absent = format!("vfio-user:{}/absent.sock", dir.path().display());
    let region = dir.path().join("short");
    std::fs::write(&region, [0; 100]).unwrap();
    let region = region.display().to_string();
    let cases: &[(&[&str], &str)] = &[
        (&["bench", "write", "lat", "--device", &absent], "absent.sock"),
        (&["pingpong", "--device", &absent], "absent.sock"),
        (&["demo", "--file", "/nonexistent/folder/file"], "/nonexistent/folder/file"),
        (&["bench", "write", "lat", "--region", &region], "not a multiple of its page size"),
        (&["nic", "--socket", "/nonexistent/folder/nic.sock"], "/nonexistent/folder/nic.sock"),
    ];
    for (args, words) in cases {
        let output = holdfast(args);
        let text = stderr(&output);
        assert_eq!(output.status.code(), Some(1), "{args:?}: {text}");
        assert!(text.contains(words), "{args:?} does not say '{words}':\n{text}");
        assert_eq!(text.lines().count(), 1, "{args:?}:\n{text}");
    }
}

#[test]
fn help_teaches_with_examples() {
    for command in ["bench", "top", "cores", "nic", "demo", "pingpong", "devices", "bind", "unbind"]
    {
        let output = holdfast(&[command, "--help"]);
        assert_eq!(output.status.code(), Some(0), "{command}");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(text.contains("Examples:\n  "), "{command} has no examples:\n{text}");
    }
    let output = holdfast(&["bench", "compare", "--help"]);
    assert!(String::from_utf8_lossy(&output.stdout).contains("Exit status: 0 the second is not"));
    let output = holdfast(&["--help"]);
    assert!(String::from_utf8_lossy(&output.stdout).contains("Exit status: 0 success; 1"));
}

#[test]
fn help_says_what_overwrites_a_file() {
    for command in ["bench", "pingpong", "demo"] {
        let output = holdfast(&[command, "--help"]);
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(text.contains("overwritten"), "{command}:\n{text}");
    }
}

#[test]
fn bench_counts_no_errors_where_there_are_none() {
    // Numbers that are no multiple of the slots, and payloads of one byte.
    for args in [
        &["send", "rate", "--iters", "1005", "--qps", "3"][..],
        &["send", "bw", "--iters", "77", "--size", "1"],
        &["write", "rate", "--iters", "3", "--qps", "2"],
        &["read", "bw", "--iters", "1005", "--qps", "3", "--size", "5000"],
    ] {
        let output = holdfast(&[&["bench"][..], args, &["--json"]].concat());
        assert_eq!(output.status.code(), Some(0), "{args:?}: {}", stderr(&output));
        let json: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        let run = &json["runs"][0];
        assert_eq!(run["errors"], 0, "{args:?}");
        assert_eq!(run["iters"].to_string(), args[3], "{args:?}");
    }
}

#[test]
fn output_that_nobody_reads_is_an_error_and_no_panic() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir_all(folder.path().join("sys/bus/pci/devices")).unwrap();
    let root = folder.path().to_str().unwrap();
    for args in [
        &["devices", "--root", root][..],
        &["bench", "write", "lat", "--iters", "10"],
        &["bench", "write", "lat", "--iters", "10", "--json"],
        &["pingpong", "--iters", "2"],
        &["demo", "--size", "4K", "--seconds", "0.01"],
    ] {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let output = Command::new(env!("CARGO_BIN_EXE_holdfast"))
            .args(args)
            .current_dir(folder.path())
            .stdout(writer)
            .output()
            .unwrap();
        let text = stderr(&output);
        assert_eq!(output.status.code(), Some(1), "{args:?}: {text}");
        assert!(text.contains("cannot write to standard output"), "{args:?}: {text}");
        assert_eq!(text.lines().count(), 1, "{args:?}: {text}");
    }
}

#[test]
fn a_machine_without_pci_has_no_devices() {
    let root = tempfile::tempdir().unwrap();
    std::fs::create_dir_all(root.path().join("sys/bus/pci/devices")).unwrap();
    let root = root.path().to_str().unwrap();
    let output = holdfast(&["devices", "--json", "--root", root]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let json: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(json, serde_json::json!({ "devices": [] }));
    let output = holdfast(&["devices", "--root", root]);
    assert!(String::from_utf8_lossy(&output.stdout).contains("holdfast demo"));
}
