//! `holdfast top` and the socket behind it: what running processes do is seen, and seen to go.

mod support;

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use holdfast::stats::{fetch, sockets};
use serde_json::Value;
use support::{PATIENCE, entries};

fn holdfast(folder: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_holdfast"));
    command.args(args).env("HOLDFAST_STATS_DIR", folder);
    command
}

fn top(folder: &Path) -> Value {
    let args = ["top", "--interval", "0.2", "--count", "1", "--json"];
    let output = holdfast(folder, &args).output().unwrap();
    assert!(output.status.success());
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn a_running_benchmark_and_its_nic_are_shown_with_rates_and_gone_when_they_are() {
    let parent = tempfile::tempdir().unwrap();
    let folder = parent.path().join("stats");
    assert_eq!(top(&folder)["processes"], serde_json::json!([]));
    let mut child = holdfast(&folder, &["bench", "write", "lat", "--duration", "600"])
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let start = Instant::now();
    let (rate, nic) = loop {
        assert!(start.elapsed() < PATIENCE, "never seen: {}", top(&folder));
        let look = top(&folder);
        let processes = look["processes"].as_array().unwrap();
        let by = |word: &str| {
            processes.iter().find(|p| p["command"].as_str().unwrap().starts_with(word)).cloned()
        };
        let (Some(bench), Some(nic)) = (by("bench write lat"), by("nic")) else { continue };
        let rate = bench["lanes"][0]["operations_per_s"].as_f64().unwrap_or(0.0);
        let latency = bench["lanes"][0]["latency"]["p50_ns"].as_u64().unwrap_or(0);
        if rate > 0.0 && latency > 0 {
            break (rate, nic);
        }
    };
    let counters = nic["counters"].as_array().unwrap();
    let named = |name: &str| counters.iter().any(|c| c["name"] == name && c["value"] != 0);
    assert!(rate > 0.0 && named("nic_bytes_sent{nic=0}"), "{nic}");

    // The same, as Prometheus' text and by the process that counts.
    let pid = child.id();
    let path = sockets(&folder).into_iter().find(|(other, _)| *other == pid).unwrap().1;
    let state: Value = serde_json::from_str(&fetch(&path).unwrap()).unwrap();
    assert_eq!(state["pid"], pid);
    assert!(state["lanes"][0]["latency"]["count"].as_u64().unwrap() > 0, "{state}");

    let signal = ["-s", "INT", &pid.to_string()];
    assert!(Command::new("kill").args(signal).status().unwrap().success());
    assert_eq!(child.wait().unwrap().code(), Some(130));
    assert!(entries(&folder).is_empty(), "{:?}", entries(&folder));
}
