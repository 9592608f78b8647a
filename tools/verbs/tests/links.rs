//! Two processes with the library, joined by a socket.
#![allow(unsafe_code, missing_docs, clippy::macro_metavars_in_unsafe)]

mod rig;

use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rig::*;

/// Starts this program again as one end of the link.
fn end(role: &str, socket: &str) -> Child {
    let (gid, link) =
        if role == "receiver" { ("fe80::b", "listen") } else { ("fe80::a", "connect") };
    Command::new(std::env::current_exe().expect("a path"))
        .args(["--ignored", "--exact", "one_end_of_a_link", "--nocapture"])
        .env("LINK_TEST_ROLE", role)
        .env("HOLDFAST_VERBS_DEVICES", "only")
        .env("HOLDFAST_VERBS_GIDS", format!("only={gid}"))
        .env("HOLDFAST_VERBS_LINKS", format!("{link}:{socket}"))
        .stdin(Stdio::piped())
        .spawn()
        .expect("a process")
}

#[test]
fn processes_reach_each_other_over_a_link() {
    let folder = tempfile::tempdir().expect("a folder");
    let socket = folder.path().join("link");
    let path = socket.to_str().expect("a path");
    let mut receiver = end("receiver", path);
    let start = Instant::now();
    while !socket.exists() {
        assert!(start.elapsed() < Duration::from_secs(20), "nobody listens");
        std::thread::sleep(Duration::from_millis(2));
    }
    let sent = end("sender", path).wait().expect("a process");
    // It waits for its input to end.
    drop(receiver.stdin.take());
    let received = receiver.wait().expect("a process");
    assert!(sent.success() && received.success());
}

#[test]
#[ignore = "a part of the test above, which starts it"]
fn one_end_of_a_link() {
    let Ok(role) = std::env::var("LINK_TEST_ROLE") else { return };
    let side = Side::new(0, &Options::default());
    let mut peer = side.gid;
    peer[15] ^= 1;
    // Both processes number their queue pairs alike.
    side.connect(side.qp, &peer, side.number(), &Options::default());
    if role == "receiver" {
        side.recv(1, &mut [side.sge(0, 64)]);
        assert_eq!((side.next().status, side.bytes(0, 4)), (0, b"link".to_vec()));
        let _ = std::io::stdin().read_line(&mut String::new());
    } else {
        side.fill(0, b"link");
        side.send(1, &mut [side.sge(0, 4)], |_| {});
        assert_eq!(side.next().status, 0);
    }
}
