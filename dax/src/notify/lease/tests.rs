//! Against the running kernel, with another process that opens the file.

use std::fs::File;
use std::path::PathBuf;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::*;

struct Rig {
    leases: Leases,
    path: PathBuf,
    file: File,
    _folder: tempfile::TempDir,
}

fn rig() -> Rig {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("f");
    fs::write(&path, [1; 65536]).unwrap();
    let file = File::options().read(true).write(true).open(&path).unwrap();
    Rig { leases: Leases::new(Hold::Lease).unwrap(), path, file, _folder: folder }
}

impl Rig {
    fn watch(&mut self) -> Result<(), NotifyError> {
        let watched = WatchedFile::of(&self.file).unwrap().path(&self.path);
        self.leases.watch(&watched.into())
    }

    fn spawn(&self, command: &str) -> Child {
        Command::new("sh").args(["-c", command]).arg("sh").arg(&self.path).spawn().unwrap()
    }

    fn told(&mut self) -> Vec<Notice> {
        let end = Instant::now() + Duration::from_secs(30);
        let mut notices = Vec::new();
        while notices.is_empty() && Instant::now() < end {
            let mut fds = [PollFd::new(self.leases.fd(), PollFlags::POLLIN)];
            poll(&mut fds, PollTimeout::from(50u8)).unwrap();
            self.leases.collect(&mut |notice| notices.push(notice)).unwrap();
        }
        notices
    }
}

#[test]
fn whoever_opens_or_truncates_waits_until_the_lease_is_given_back() {
    let mut rig = rig();
    rig.watch().unwrap();
    let mut child = rig.spawn(": > \"$1\"");
    let notices = rig.told();
    let [notice] = &notices[..] else { panic!("{notices:?}") };
    assert_eq!((notice.cause, notice.stage), (Cause::OpenedByOther, Stage::Waiting));
    assert!(!rig.leases.holds(notice.file().unwrap()));
    std::thread::sleep(Duration::from_millis(100));
    assert_eq!(rig.file.metadata().unwrap().len(), 65536, "it did not wait");
    rig.leases.allow(notice.subject);
    assert!(child.wait().unwrap().success());
    assert_eq!(rig.file.metadata().unwrap().len(), 0);
    // And again, as the file is ours alone once more.
    rig.watch().unwrap();
    assert!(rig.leases.holds(notice.file().unwrap()));
    let mut child = rig.spawn("cat \"$1\" > /dev/null");
    assert_eq!(rig.told().len(), 1);
    rig.leases.unwatch(notice.subject);
    assert!(child.wait().unwrap().success(), "unwatching gives back");
}

#[test]
fn a_file_that_is_open_elsewhere_is_refused_with_who_has_it() {
    let mut rig = rig();
    let mut child =
        Command::new("sleep").arg("60").stdin(File::open(&rig.path).unwrap()).spawn().unwrap();
    let refusal = rig.watch().unwrap_err();
    assert!(
        matches!(refusal, NotifyError::NotSoleOpener { errno: Errno::EAGAIN, .. }),
        "{refusal}"
    );
    assert!(refusal.to_string().contains(&format!("{} with 1", child.id())), "{refusal}");
    child.kill().unwrap();
    child.wait().unwrap();
    rig.watch().unwrap();
}

/// Coreutils' `truncate` opens that way.
#[test]
fn whoever_does_not_want_to_wait_is_refused_and_told_of() {
    let mut rig = rig();
    rig.watch().unwrap();
    let status = rig.spawn("exec 2>/dev/null; truncate -s 4096 \"$1\"").wait().unwrap();
    assert!(!status.success());
    assert_eq!(rig.told().len(), 1);
    assert_eq!(rig.file.metadata().unwrap().len(), 65536);
}

#[test]
fn our_own_operations_pass() {
    let mut rig = rig();
    rig.watch().unwrap();
    rig.file.set_len(4096).unwrap();
    let id = FileId::of(rig.file.as_fd()).unwrap();
    assert!(rig.leases.holds(id));
}

#[test]
fn a_lease_that_is_not_broken_is_not_given_back() {
    let mut rig = rig();
    rig.watch().unwrap();
    let id = FileId::of(rig.file.as_fd()).unwrap();
    rig.leases.allow(id.into());
    assert!(rig.leases.holds(id));
    assert_eq!(sys::lease(rig.file.as_fd()), Ok(libc::F_WRLCK));
    drop(rig.leases);
    assert_eq!(sys::lease(rig.file.as_fd()), Ok(libc::F_UNLCK));
}

/// When its queue is full, the kernel sends SIGIO, which would end a process that does not expect
/// it.
#[test]
fn lost_signals_are_made_up_for_by_looking() {
    let mut rig = rig();
    rig.watch().unwrap();
    sys::set_signal(rig.file.as_fd(), libc::SIGIO).unwrap();
    let mut child = rig.spawn("cat \"$1\" > /dev/null");
    let notices = rig.told();
    assert_eq!(notices.len(), 1);
    rig.leases.allow(notices[0].subject);
    assert!(child.wait().unwrap().success());
}
