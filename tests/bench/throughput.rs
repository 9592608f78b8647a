//! What bandwidth and rate stand beside, in every form in which they are given out.

use serde_json::Value;

use super::{bench, json};

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
