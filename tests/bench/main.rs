//! `holdfast bench` as its users meet it: what it writes, two processes that agree, and a stall that
//! an open loop shows in proportion.

mod results;
#[path = "../support/mod.rs"]
mod support;
mod throughput;

use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use serde_json::Value;
use support::NicProcess;

fn command(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_holdfast"));
    command.arg("bench").args(args);
    command
}

fn bench(args: &[&str]) -> Output {
    command(args).output().expect("holdfast runs")
}

/// What a measurement that must succeed printed as JSON.
fn json(output: &Output) -> Value {
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{stderr}");
    serde_json::from_slice(&output.stdout).expect("one JSON object")
}

/// A process with two NICs, and a folder for its sockets.
struct Nics {
    process: NicProcess,
    folder: tempfile::TempDir,
}

impl Nics {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name).display().to_string();
        let (a, b, control) = (path("a"), path("b"), path("control"));
        let args = ["--socket", &a, "--socket", &b, "--control", &control];
        Self { process: NicProcess::start(&args), folder }
    }

    fn device(&self, name: &str) -> String {
        format!("vfio-user:{}", self.folder.path().join(name).display())
    }

    /// Requests that its NICs have completed.
    fn completed(&self) -> u64 {
        support::completed(&self.folder.path().join("control"))
    }

    fn signal(&self, name: &str) {
        let pid = self.process.id().to_string();
        assert!(Command::new("kill").args(["-s", name, &pid]).status().unwrap().success());
    }
}

/// Starts one side of a measurement.
fn side(args: &[&str]) -> Child {
    command(args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

/// Until something is so, while the process runs.
fn wait_for(child: &mut Child, so: impl Fn() -> bool) {
    while !so() {
        assert!(child.try_wait().unwrap().is_none(), "it ended before");
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn signal(child: &Child, name: &str) {
    let pid = child.id().to_string();
    assert!(Command::new("kill").args(["-s", name, &pid]).status().unwrap().success());
}

/// The output of a process that must end by itself within ten seconds.
fn in_time(mut child: Child) -> Output {
    for _ in 0..1000 {
        if child.try_wait().unwrap().is_some() {
            return child.wait_with_output().unwrap();
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    child.kill().unwrap();
    panic!("it does not end");
}

#[test]
fn one_command_measures_several_sizes_and_writes_every_form() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).display().to_string();
    let (html, hdr) = (path("report.html"), path("latencies.hlog"));
    let output = bench(&[
        "write", "lat", "--size", "8,4K", "--repeat", "2", "--iters", "500", "--qps", "2",
        "--html", &html, "--hdr", &hdr, "--json",
    ]);
    let report = json(&output);
    assert_eq!(report["schema_version"], 2);
    let sizes: Vec<_> = report["runs"].as_array().unwrap().iter().map(|r| &r["size"]).collect();
    assert_eq!(sizes, [8, 4096, 8, 4096]);
    for run in report["runs"].as_array().unwrap() {
        assert_eq!((&run["iters"], &run["errors"]), (&500.into(), &0.into()));
        let slices = run["slices"].as_array().unwrap();
        assert_eq!(slices.iter().map(|s| s["count"].as_u64().unwrap()).sum::<u64>(), 500);
        assert_eq!(run["worst"][0]["ns"], run["max_ns"], "the longest is the longest");
        assert!(run["phases"]["phases"].as_array().unwrap().len() == 6, "{run}");
        assert!(run["overhead"]["in_each_latency_ns"].as_f64().unwrap() > 0.0);
        assert!(run["jitter"]["seconds"].as_f64().unwrap() > 0.0);
    }
    assert!(std::fs::read_to_string(html).unwrap().starts_with("<!doctype html>"));
    let log = std::fs::read_to_string(hdr).unwrap();
    assert!(log.contains("Tag=write-8B,") && log.contains("Tag=write-4096B,"));
}

#[test]
fn memory_that_may_be_locked_is_and_the_report_says_what_the_core_has() {
    let output = bench(&["write", "rate", "--iters", "5000", "--lock-memory", "--json"]);
    // Whoever has neither CAP_IPC_LOCK nor a high limit is told so: the next test.
    if output.status.code() == Some(1) {
        return;
    }
    let run = &json(&output)["runs"][0];
    assert_eq!(run["memory_locked"], true);
    let rings = &run["rings"];
    assert!(rings["bytes"].as_u64().unwrap() >= 2 << 20, "{rings}");
    let pages = ["ordinary", "transparent huge", "hugetlb"];
    assert!(pages.contains(&rings["pages"].as_str().unwrap()), "{rings}");
    let node = |cpu: u64| holdfast::cores::node_of(cpu as usize).map(u64::from);
    let pinned = run["cpu"].as_u64();
    assert_eq!(run["cpu_node"].as_u64(), pinned.and_then(node), "{run}");
    let counts = |name: &str| run["poll_loop"][name].as_u64().unwrap();
    // 5000 writes, of which the last of each 32 is signalled.
    assert_eq!(counts("completions"), 5000_u64.div_ceil(32), "{run}");
    assert!(counts("turns") >= counts("empty_turns") && counts("turns") > 0, "{run}");
}

#[test]
fn memory_that_may_not_be_locked_is_refused_with_the_limit() {
    use std::os::unix::fs::PermissionsExt as _;
    use std::os::unix::process::CommandExt as _;
    let folder = tempfile::tempdir().unwrap();
    std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    // Where somebody without a privilege can run it.
    let program = folder.path().join("holdfast");
    std::fs::copy(env!("CARGO_BIN_EXE_holdfast"), &program).unwrap();
    let mut limited = Command::new("sh");
    limited.args(["-c", "ulimit -l 64 && exec \"$0\" \"$@\""]).arg(program);
    limited.args(["bench", "write", "lat", "--iters", "50", "--lock-memory"]).current_dir("/");
    if nix::unistd::geteuid().is_root() {
        limited.uid(65534).gid(65534);
    }
    let output = limited.output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{text}");
    for words in ["--lock-memory: cannot lock", "may lock 64 KiB", "ulimit -l"] {
        assert!(text.contains(words), "{text}");
    }
}

#[test]
fn a_node_without_memory_is_refused_for_rings() {
    let output = bench(&["write", "lat", "--iters", "50", "--ring-node", "4000"]);
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains("no memory of NUMA node 4000"), "{text}");
}

#[test]
fn scripts_for_perftest_find_their_columns() {
    let output = bench(&["read", "lat", "--iters", "300", "--perftest-compat"]);
    assert_eq!(output.status.code(), Some(0));
    let text = String::from_utf8(output.stdout).unwrap();
    let row: Vec<f64> =
        text.lines().nth(1).unwrap().split_whitespace().map(|w| w.parse().unwrap()).collect();
    assert_eq!((row.len(), row[0], row[1]), (9, 8.0, 300.0), "{text}");
    assert!(row[2] <= row[4] && row[4] <= row[7] && row[7] <= row[3], "{text}");
}

#[test]
fn a_comparison_tells_by_its_exit_status_whether_it_knows() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, p50: &[f64]| {
        let run = |p50: &f64| {
            serde_json::json!({ "op": "write", "mode": "lat", "size": 8, "errors": 0,
            "p50_ns": p50, "p99_ns": p50 })
        };
        let report = serde_json::json!({ "schema_version": 2,
            "runs": p50.iter().map(run).collect::<Vec<_>>() });
        let path = folder.path().join(name);
        std::fs::write(&path, report.to_string()).unwrap();
        path.display().to_string()
    };
    let before = write("before", &[200.0, 201.0, 199.0]);
    for (after, expected) in [
        (&[200.0, 200.5, 199.5][..], 0),
        (&[100.0, 101.0, 99.0], 0),
        (&[300.0, 301.0, 299.0], 1),
        (&[300.0], 3),
    ] {
        let after = write("after", after);
        let output = bench(&["compare", &before, &after]);
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert_eq!(output.status.code(), Some(expected), "{text}");
    }
    let output = bench(&["compare", &before, "/nonexistent.json"]);
    assert!(String::from_utf8_lossy(&output.stderr).contains("/nonexistent.json"));
}

/// A port that was free a moment ago.
fn address() -> String {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string()
}

#[test]
fn two_processes_measure_together_and_only_what_both_were_told() {
    let nics = Nics::new();
    let (a, b) = (nics.device("a"), nics.device("b"));
    let both = |ours: &[&str], theirs: &[&str]| {
        let address = address();
        let server = ["--device", &a, "--server", &address, "--timeout", "60", "--json"];
        let client = ["--device", &b, "--connect", &address, "--timeout", "60", "--json"];
        let server = side(&[ours, &server].concat());
        let client = side(&[theirs, &client].concat());
        (server.wait_with_output().unwrap(), client.wait_with_output().unwrap())
    };
    for (args, of) in [
        (&["write", "lat", "--iters", "3000"][..], "half_round_trip"),
        (
            &["send", "lat", "--rate", "5K", "--duration", "0.5", "--qps", "3"],
            "round_trip_from_intended_start",
        ),
        (&["mixed", "lat", "--iters", "500"], "completion"),
        (&["mixed", "bw", "--duration", "0.2", "--bidirectional"], ""),
        (&["send", "rate", "--iters", "5000", "--bidirectional"], ""),
    ] {
        let (server, client) = both(args, args);
        let (server, client) = (json(&server), json(&client));
        let run = &client["runs"][0];
        assert!(run["errors"] == 0 && run["iters"].as_u64().unwrap() > 0, "{args:?}: {client}");
        assert_eq!(run["latency_of"].as_str().unwrap_or_default(), of, "{args:?}");
        // Where both send, both have a result; else the active side has it.
        assert_eq!(server["runs"][0]["elsewhere"] == true, !args.contains(&"--bidirectional"));
    }
    let (server, client) = both(&["write", "lat", "--qps", "2"], &["write", "lat"]);
    for output in [server, client] {
        let text = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{text}");
        assert!(text.contains("qps 2") && text.contains("qps 1"), "{text}");
    }
}

#[test]
fn a_rate_that_is_not_reached_is_given_up_between_two_processes_too() {
    let nics = Nics::new();
    let (a, b) = (nics.device("a"), nics.device("b"));
    let address = address();
    // All of these reads would take longer than the other side waits: 400 GB, in 5 seconds.
    let what = ["read", "lat", "--size", "1M", "--depth", "4"];
    let when = ["--rate", "400K", "--duration", "1", "--timeout", "3", "--json"];
    let args = [&what[..], &when].concat();
    let server = side(&[&args[..], &["--device", &a, "--server", &address]].concat());
    let client = side(&[&args[..], &["--device", &b, "--connect", &address]].concat());
    let (server, client) = (server.wait_with_output(), client.wait_with_output());
    let (server, client) = (json(&server.unwrap()), json(&client.unwrap()));
    assert_eq!(server["runs"][0]["elsewhere"], true);
    let run = &client["runs"][0];
    let unfinished = run["open"]["unfinished"].as_u64().unwrap();
    assert!(unfinished > 0 && run["seconds"].as_f64().unwrap() < 3.5, "{run}");
    assert_eq!(run["iters"].as_u64().unwrap() + unfinished, 400_000);
}

/// The NIC stands still for this long, while operations are meant to go on.
const STALL: Duration = Duration::from_millis(400);
/// Operations a second, and how many: four seconds.
const RATE: u64 = 3000;
const TOTAL: u64 = 12_000;

/// A run with so many operations during which the NIC is stopped, well after the warm-up.
fn stalled(args: &[&str]) -> Value {
    let nics = Nics::new();
    let (a, b) = (nics.device("a"), nics.device("b"));
    let begin = nics.completed();
    let more = ["--until", "completion", "--device", &a, "--device", &b, "--json"];
    let mut child = side(&[&["write", "lat"], args, &more].concat());
    // The warm-up has a twentieth of them.
    while nics.completed() - begin < TOTAL / 12 {
        assert!(child.try_wait().unwrap().is_none(), "it ended before a twelfth was done");
        std::thread::sleep(Duration::from_millis(5));
    }
    nics.signal("STOP");
    std::thread::sleep(STALL);
    nics.signal("CONT");
    json(&child.wait_with_output().unwrap())["runs"][0].clone()
}

#[test]
fn a_stall_of_the_nic_is_in_every_latency_that_it_kept_waiting() {
    let ms = |run: &Value, field: &str| run[field].as_f64().unwrap() / 1e6;
    let run = stalled(&["--rate", &RATE.to_string(), "--iters", &TOTAL.to_string()]);
    // All count, done or not: a machine with other things to do may not reach the rate.
    let unfinished = run["open"]["unfinished"].as_u64().unwrap();
    assert_eq!(run["iters"].as_u64().unwrap() + unfinished, TOTAL);
    // 1200 operations were meant to start meanwhile. One in a hundred of all is 120, which is what
    // the first 40 ms brought: they waited for 360 ms at least. None of that depends on how fast the
    // machine is.
    assert!(ms(&run, "max_ns") >= 399.0, "{run}");
    assert!(ms(&run, "p99_ns") >= 355.0, "{run}");
    // From the real start, no more than the queue was deep were long.
    let uncorrected = &run["open"]["uncorrected"];
    assert!(ms(uncorrected, "max_ns") >= 399.0, "{run}");
    assert!(ms(uncorrected, "p99_ns") < ms(&run, "p99_ns") / 2.0, "{run}");
}
