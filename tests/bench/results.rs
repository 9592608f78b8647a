//! Results are kept, however a measurement ends, and take no more room than they need.

use serde_json::Value;

use super::{Nics, bench, in_time, side, signal, wait_for};

#[test]
fn a_signal_during_the_warm_up_ends_the_command_and_nothing_is_told_of_no_operations() {
    let folder = tempfile::tempdir().unwrap();
    let html = folder.path().join("report.html");
    let nics = Nics::new();
    let (a, b) = (nics.device("a"), nics.device("b"));
    let page = html.display().to_string();
    let begin = nics.completed();
    let args = ["write", "lat", "--duration", "60", "--device", &a, "--device", &b];
    let mut child = side(&[&args[..], &["--html", &page]].concat());
    wait_for(&mut child, || nics.completed() > begin);
    signal(&child, "TERM");
    let output = in_time(child);
    let text = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(130), "{output:?}");
    // Unless this test was kept from its signal for all of the warm-up.
    let nothing = text.contains("operations     0 in");
    assert_eq!(text.contains("nothing was measured"), nothing, "{text}");
    assert_eq!(text.contains("p50"), !nothing, "{text}");
    assert!(std::fs::read_to_string(html).unwrap().starts_with("<!doctype html>"));
}

#[test]
fn many_runs_take_no_more_memory_than_one() {
    use std::io::{BufRead as _, BufReader};
    let mut child = side(&["write", "lat", "--duration", "0.2", "--repeat", "8"]);
    let status = format!("/proc/{}/status", child.id());
    let most_kb = || -> u64 {
        let status = std::fs::read_to_string(&status).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
        line.trim().trim_end_matches(" kB").parse().unwrap()
    };
    // What it takes at most, when the first run is over, and before the last is.
    let lines = BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap);
    let mut heads = lines.filter(|line| line.starts_with("write lat, 8 B"));
    assert!(heads.next().is_some());
    let first = most_kb();
    assert!(heads.nth(5).is_some());
    let seventh = most_kb();
    assert!(heads.next().is_some());
    assert!(child.wait().unwrap().success());
    assert!(seventh < first + 60_000, "{first} kB after one run, {seventh} kB after seven");
}

#[test]
fn a_file_that_cannot_be_written_is_refused_before_anything_is_measured() {
    let folder = tempfile::tempdir().unwrap();
    let none = folder.path().join("none/report").display().to_string();
    for option in ["--html", "--hdr"] {
        // It would last an hour.
        let output = in_time(side(&["write", "lat", "--duration", "3600", option, &none]));
        let text = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{text}");
        assert!(text.contains(&format!("cannot write {none}")), "{text}");
    }
    // What fails before there is a result leaves files as they are.
    let (old, new) = (folder.path().join("old"), folder.path().join("new"));
    std::fs::write(&old, "a result").unwrap();
    let files = ["--html", old.to_str().unwrap(), "--hdr", new.to_str().unwrap()];
    let device = ["write", "lat", "--device", "vfio-user:/nonexistent.sock"];
    assert_eq!(bench(&[&device[..], &files].concat()).status.code(), Some(1));
    assert_eq!(std::fs::read_to_string(&old).unwrap(), "a result");
    assert!(!new.exists());
}

#[test]
fn a_result_is_printed_though_its_file_cannot_be_written_in_the_end() {
    let output = bench(&["write", "lat", "--iters", "100", "--html", "/dev/full", "--json"]);
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains("cannot write /dev/full"), "{text}");
    let report: Value = serde_json::from_slice(&output.stdout).expect("one JSON object");
    assert_eq!(report["runs"][0]["iters"], 100);
}

#[test]
fn a_run_that_fails_does_not_take_those_before_it_along() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).display().to_string();
    std::fs::write(path("region"), [0; 64 << 10]).unwrap();
    let region = format!("{}:0+64K", path("region"));
    let html = path("report.html");
    // The second does not fit.
    let args = ["write", "lat", "--size", "8,1M", "--iters", "100", "--region", &region];
    let output = bench(&[&args[..], &["--html", &html, "--json"]].concat());
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{text}");
    let report: Value = serde_json::from_slice(&output.stdout).expect(&text);
    let runs = report["runs"].as_array().unwrap();
    assert_eq!((runs.len(), &runs[0]["iters"]), (1, &100.into()));
    let failed = report["failed"].as_str().unwrap();
    assert!(text.contains(failed.split(':').next().unwrap()), "{failed}: {text}");
    assert!(std::fs::read_to_string(html).unwrap().contains("100"));
}

#[test]
fn a_signal_after_the_measurement_keeps_it() {
    const ITERS: u64 = 8000;
    let nics = Nics::new();
    let (a, b) = (nics.device("a"), nics.device("b"));
    // Long ones: 800 of them are taken apart, and the signal is to come meanwhile.
    let args = ["read", "lat", "--size", "1M", "--device", &a, "--device", &b];
    let more = ["--iters", &ITERS.to_string(), "--json"];
    // The end of the command may come before this test comes to its signal.
    for _ in 0..5 {
        let begin = nics.completed();
        let mut child = side(&[&args[..], &more].concat());
        // The warm-up has 800 as well.
        wait_for(&mut child, || nics.completed() - begin > ITERS + 820);
        signal(&child, "TERM");
        let output = in_time(child);
        if output.status.code() == Some(0) {
            continue;
        }
        assert_eq!(output.status.code(), Some(130), "{output:?}");
        let report: Value = serde_json::from_slice(&output.stdout).expect("one JSON object");
        let run = &report["runs"][0];
        assert_eq!((&run["iters"], &run["interrupted"]), (&ITERS.into(), &true.into()));
        return;
    }
    panic!("it was at its end each time");
}
