//! What bandwidth and rate stand beside, in every form in which they are given out.

use std::time::Duration;

use serde_json::Value;

use super::{Nics, bench, json, side, wait_for};

/// The modes, with what makes them short.
const MODES: [&[&str]; 2] =
    [&["write", "bw", "--duration", "0.3"], &["write", "rate", "--duration", "0.3"]];

/// The table of a measurement, and its page.
fn forms(args: &[&str]) -> (String, String) {
    let folder = tempfile::tempdir().unwrap();
    let html = folder.path().join("report.html").display().to_string();
    let output = bench(&[args, &["--html", &html]].concat());
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    (String::from_utf8(output.stdout).unwrap(), std::fs::read_to_string(html).unwrap())
}

/// The run of a measurement.
fn run(args: &[&str]) -> Value {
    json(&bench(&[args, &["--json"]].concat()))["runs"][0].clone()
}

#[test]
fn throughput_stands_beside_what_the_core_alone_does() {
    for args in MODES {
        let run = run(args);
        let number = |field: &str| run["jitter"][field].as_f64().unwrap();
        // An eighth of the time is less than the least.
        assert!(number("seconds") >= 0.1 && number("quiet_ns") > 0.0, "{run}");
        assert!(number("over_1us_per_s") >= number("over_1ms_per_s"), "{run}");
        let (table, html) = forms(args);
        for words in ["core alone     away for up to", "meanwhile      "] {
            assert!(table.contains(words), "{words}: {table}");
        }
        assert!(!table.contains("(operations of"), "none is timed: {table}");
        for words in
            ["the core alone was away for up to", "10.0 us and more, a second: core alone<"]
        {
            assert!(html.contains(words), "{words}: {html}");
        }
    }
}

/// Operations of each slice, of a run that has slices.
fn counts(run: &Value) -> Vec<u64> {
    let slices = run["slices"].as_array().unwrap_or_else(|| panic!("{run}"));
    slices.iter().map(|slice| slice["count"].as_u64().unwrap()).collect()
}

#[test]
fn throughput_is_told_as_it_went() {
    let both = ["send", "rate", "--bidirectional", "--iters", "20000"];
    for args in [MODES[0], MODES[1], &both] {
        let run = run(args);
        let counts = counts(&run);
        assert_eq!(counts.iter().sum::<u64>(), run["iters"].as_u64().unwrap(), "{run}");
        assert!(!counts.is_empty() && counts.len() <= 104, "{run}");
        // What the slices have a second is, over all of their time, what the run has.
        let number = |value: &Value| value.as_f64().unwrap();
        let (width, end) = (number(&run["slice_s"]), number(&run["seconds"]));
        let slices = run["slices"].as_array().unwrap();
        for figure in ["mops", "gbit_per_s"] {
            let sum = slices.iter().enumerate().map(|(at, slice)| {
                let ends = if at + 1 == slices.len() { end } else { (at + 1) as f64 * width };
                number(&slice[figure]) * (ends - number(&slice["at_s"]))
            });
            let mean = sum.sum::<f64>() / end;
            assert!((mean / number(&run[figure]) - 1.0).abs() < 1e-6, "{figure} {mean}: {run}");
        }
    }
    let (table, html) = forms(MODES[1]);
    let line = table.lines().find(|line| line.contains("over time")).expect(&table);
    assert!(line.ends_with("in slices of 3.00 ms"), "{line}");
    assert!(html.contains("Throughput over time") && html.contains("<polyline"), "{html}");
}

#[test]
fn a_stall_of_the_nic_is_where_it_was() {
    const STALL: Duration = Duration::from_millis(400);
    let nics = Nics::new();
    let (a, b) = (nics.device("a"), nics.device("b"));
    let begin = nics.completed();
    let args = ["write", "rate", "--duration", "2", "--device", &a, "--device", &b, "--json"];
    let mut child = side(&args);
    wait_for(&mut child, || nics.completed() > begin);
    // Beyond the warm-up.
    std::thread::sleep(Duration::from_millis(600));
    nics.signal("STOP");
    std::thread::sleep(STALL);
    nics.signal("CONT");
    let run = json(&child.wait_with_output().unwrap())["runs"][0].clone();
    let counts = counts(&run);
    let longest = counts.split(|count| *count > 0).map(<[u64]>::len).max().unwrap();
    // Those at both ends of it had some.
    let still = (longest + 2) as f64 * run["slice_s"].as_f64().unwrap();
    assert!(still >= STALL.as_secs_f64(), "still for {still} s: {counts:?}");
    assert!(counts.iter().filter(|count| **count > 0).count() > 20, "{counts:?}");
}

#[test]
fn throughput_stands_beside_the_most_that_the_tool_could_measure() {
    for args in MODES {
        let run = run(args);
        let number = |value: &Value| value.as_f64().unwrap_or_else(|| panic!("{run}"));
        let most = number(&run["overhead"]["highest_mops"]);
        let each = number(&run["overhead"]["per_operation_ns"]);
        assert!((most * each / 1e3 - 1.0).abs() < 1e-9 && most > number(&run["mops"]), "{run}");
        let (table, html) = forms(args);
        let line = table.lines().find(|line| line.starts_with("  measuring")).expect(&table);
        for words in ["ns a message is the tool's own, so it can measure up to", " million/s"] {
            assert!(line.contains(words), "{line}");
        }
        for words in ["the tool's time for each message", "which lets it measure up to"] {
            assert!(html.contains(words), "{words} is missing");
        }
    }
}
