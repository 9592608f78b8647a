//! `holdfast watch`: what happens to a file is told as it happens, a JSON object for each event, and
//! the command leaves nothing behind.

mod support;

use std::fs::File;
use std::io::{BufRead, BufReader, Read as _};
use std::os::unix::fs::FileExt as _;
use std::process::{Child, ChildStderr, Command, Stdio};
use std::sync::mpsc;
use std::thread;

use serde_json::Value;
use support::PATIENCE;

const LEN: u64 = 64 << 10;
const HALF: u64 = LEN / 2;

/// The command, which watches; killed when dropped.
struct Watch {
    child: Child,
    stderr: BufReader<ChildStderr>,
}

impl Watch {
    /// Starts it, and returns when it watches.
    fn start(args: &[&str]) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_holdfast"))
            .arg("watch")
            .args(args)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stderr = BufReader::new(child.stderr.take().unwrap());
        let mut said = String::new();
        while !said.contains("watching;") {
            assert_ne!(stderr.read_line(&mut said).unwrap(), 0, "ended: {said}");
        }
        Self { child, stderr }
    }

    /// Its lines, as they come.
    fn lines(&mut self) -> mpsc::Receiver<String> {
        let stdout = BufReader::new(self.child.stdout.take().unwrap());
        let (sender, lines) = mpsc::channel();
        thread::spawn(move || {
            for line in stdout.lines() {
                if sender.send(line.unwrap()).is_err() {
                    return;
                }
            }
        });
        lines
    }

    /// Its exit code, and what else it said.
    fn end(mut self) -> (Option<i32>, String) {
        let mut said = String::new();
        self.stderr.read_to_string(&mut said).unwrap();
        (self.child.wait().unwrap().code(), said)
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn file_of(len: u64) -> (tempfile::TempDir, File, String) {
    let folder = tempfile::tempdir_in("/dev/shm").unwrap();
    let path = folder.path().join("data");
    let file = File::options().read(true).write(true).create_new(true).open(&path).unwrap();
    file.write_all_at(&vec![7; len as usize], 0).unwrap();
    (folder, file, path.to_str().unwrap().to_owned())
}

/// The next event of this kind, of this file; others may come before it.
fn event(lines: &mpsc::Receiver<String>, kind: &str, file: &str) -> Value {
    loop {
        let line = lines.recv_timeout(PATIENCE).unwrap_or_else(|_| panic!("no event {kind}"));
        let event: Value = serde_json::from_str(&line).unwrap();
        assert_eq!(event["file"], file, "{event}");
        if event["event"] == kind {
            return event;
        }
    }
}

#[test]
fn what_is_cut_off_is_told_as_json_and_that_it_is_back() {
    let (_folder, file, path) = file_of(LEN);
    let mut watch = Watch::start(&["--json", &path]);
    let lines = watch.lines();

    file.set_len(HALF).unwrap();
    let broken = event(&lines, "broken", &path);
    assert!(broken["start"].as_u64().unwrap() <= HALF && broken["end"] == LEN, "{broken}");
    assert!(broken["to_fence_ns"].as_u64().unwrap() > 0, "{broken}");
    assert!(!broken["notifier"].as_str().unwrap().is_empty(), "{broken}");
    let lost = event(&lines, "lost", &path);
    assert_eq!((&lost["start"], &lost["end"]), (&Value::from(HALF), &Value::from(LEN)), "{lost}");

    file.set_len(LEN).unwrap();
    let restored = event(&lines, "restored", &path);
    assert_eq!(restored["end"], LEN, "{restored}");
    assert!(restored["seconds"].as_f64() > broken["seconds"].as_f64(), "{restored}");
}

#[test]
fn it_ends_after_so_many_events_and_when_interrupted() {
    let (_folder, file, path) = file_of(LEN);
    let watch = Watch::start(&["--events", "1", &path]);
    file.set_len(HALF).unwrap();
    assert_eq!(watch.end(), (Some(0), String::new()));

    let watch = Watch::start(&[&path]);
    let signal = ["-s", "INT", &watch.child.id().to_string()];
    assert!(Command::new("kill").args(signal).status().unwrap().success());
    let (code, said) = watch.end();
    assert_eq!(code, Some(130), "{said}");

    // The file is nobody's any more: it can be cut and grown, and watched once more.
    file.set_len(0).unwrap();
    file.set_len(LEN).unwrap();
    let again = Watch::start(&["--events", "1", &path]);
    file.set_len(HALF).unwrap();
    assert_eq!(again.end().0, Some(0));
}

#[test]
fn what_is_no_file_is_refused_with_a_reason() {
    for (args, word) in [
        (vec!["/nonexistent/file"], "/nonexistent/file"),
        (vec!["--policy", "drop", "data"], "hold=50ms"),
        (vec!["anon"], "is no file"),
    ] {
        let output =
            Command::new(env!("CARGO_BIN_EXE_holdfast")).arg("watch").args(&args).output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(!output.status.success() && said.contains(word), "{args:?}: {said}");
        assert!(output.stdout.is_empty());
    }
}
