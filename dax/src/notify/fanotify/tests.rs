//! Against the running kernel, with another process that changes the file. On kernels before 6.14
//! the reason is checked instead; the lab runs both.

use std::fs::{self, File};
use std::path::PathBuf;
use std::process::{Child, Command};
use std::time::Instant;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::statfs::{BTRFS_SUPER_MAGIC, EXT4_SUPER_MAGIC, XFS_SUPER_MAGIC};

use super::*;
use crate::notify::{Cause, Stage, WatchedFile};

struct Rig {
    fanotify: Fanotify,
    path: PathBuf,
    file: File,
    _folder: tempfile::TempDir,
}

/// Version of the running kernel.
fn kernel() -> (u32, u32) {
    let name = nix::sys::utsname::uname().unwrap();
    let release = name.release().to_str().unwrap();
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|n| n.parse().unwrap_or(0));
    (numbers.next().unwrap(), numbers.next().unwrap())
}

/// A watched file of 64 KiB on the file system of the sources; none on an older kernel.
fn rig(deadline: Duration) -> Option<Rig> {
    let mut fanotify = match Fanotify::new(deadline) {
        Ok(fanotify) => fanotify,
        Err(error) => {
            assert!(error.to_string().contains("6.14") && kernel() < (6, 14), "{error}");
            return None;
        }
    };
    let folder = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
    let path = folder.path().join("f");
    fs::write(&path, [1; 65536]).unwrap();
    let file = File::options().read(true).write(true).open(&path).unwrap();
    match fanotify.watch(&WatchedFile::of(&file).unwrap().path(&path).into()) {
        Ok(()) => Some(Rig { fanotify, path, file, _folder: folder }),
        Err(error) => {
            let fs = nix::sys::statfs::fstatfs(&file).unwrap().filesystem_type();
            let able = [EXT4_SUPER_MAGIC, XFS_SUPER_MAGIC, BTRFS_SUPER_MAGIC];
            assert!(matches!(error, NotifyError::Unsuited { .. }), "{error}");
            assert!(!able.contains(&fs), "{error}");
            None
        }
    }
}

impl Rig {
    fn spawn(&self, command: &str) -> Child {
        Command::new("sh").args(["-c", command]).arg("sh").arg(&self.path).spawn().unwrap()
    }

    fn told(&mut self, within: Duration) -> Vec<Notice> {
        let end = Instant::now() + within;
        let mut notices = Vec::new();
        while notices.is_empty() && Instant::now() < end {
            let mut fds = [PollFd::new(self.fanotify.fd(), PollFlags::POLLIN)];
            poll(&mut fds, PollTimeout::from(50u8)).unwrap();
            self.fanotify.collect(&mut |notice| notices.push(notice)).unwrap();
        }
        notices
    }

    fn len(&self) -> u64 {
        self.file.metadata().unwrap().len()
    }
}

const LONG: Duration = Duration::from_secs(60);

#[test]
fn another_process_waits_with_its_truncation_until_it_is_allowed() {
    let Some(mut rig) = rig(LONG) else { return };
    let mut child = rig.spawn("truncate -s 4096 \"$1\"");
    let notices = rig.told(LONG);
    let [notice] = &notices[..] else { panic!("{notices:?}") };
    assert_eq!(notice.cause, Cause::Truncate { size: 4096 });
    assert_eq!((notice.stage, notice.range.clone()), (Stage::Waiting, Some(4096..65536)));
    assert!(notice.pid.is_some());
    std::thread::sleep(Duration::from_millis(100));
    assert_eq!(rig.len(), 65536, "it did not wait");
    rig.fanotify.allow(notice.subject);
    assert!(child.wait().unwrap().success());
    assert_eq!(rig.len(), 4096);
}

#[test]
fn punching_a_hole_is_told_with_its_range_and_reading_is_not() {
    let Some(mut rig) = rig(LONG) else { return };
    let mut child = rig.spawn("cat \"$1\" >/dev/null && fallocate -p -o 8192 -l 4096 \"$1\"");
    let notices = rig.told(LONG);
    let [notice] = &notices[..] else { panic!("{notices:?}") };
    assert_eq!((notice.cause, notice.range.clone()), (Cause::PunchHole, Some(8192..12288)));
    rig.fanotify.allow(notice.subject);
    assert!(child.wait().unwrap().success());
}

#[test]
fn an_open_that_truncates_waits_too() {
    let Some(mut rig) = rig(LONG) else { return };
    let mut child = rig.spawn(": > \"$1\"");
    let notices = rig.told(LONG);
    assert_eq!(notices[0].cause, Cause::OpenTruncate);
    assert_eq!(rig.len(), 65536);
    rig.fanotify.unwatch(notices[0].subject);
    assert!(child.wait().unwrap().success(), "unwatching lets go");
    assert_eq!(rig.len(), 0);
}

#[test]
fn our_own_operations_are_told_and_not_held() {
    let Some(mut rig) = rig(LONG) else { return };
    // Whoever answers would be waiting for itself.
    rig.file.set_len(8192).unwrap();
    let notices = rig.told(LONG);
    assert_eq!(notices[0].cause, Cause::Truncate { size: 8192 });
    assert_eq!(notices[0].stage, Stage::Announced);
}

#[test]
fn nobody_is_held_beyond_the_deadline_or_by_a_dropped_notifier() {
    let Some(mut first) = rig(Duration::from_millis(200)) else { return };
    let mut child = first.spawn("truncate -s 0 \"$1\"");
    assert_eq!(first.told(LONG).len(), 1);
    assert!(child.wait().unwrap().success());
    let Some(mut second) = rig(LONG) else { return };
    let mut child = second.spawn("truncate -s 0 \"$1\"");
    assert_eq!(second.told(LONG).len(), 1);
    drop(second.fanotify);
    assert!(child.wait().unwrap().success());
}

#[test]
fn files_in_memory_are_refused_with_the_reason() {
    let Ok(mut fanotify) = Fanotify::new(LONG) else { return };
    let memfd = nix::sys::memfd::memfd_create(c"t", nix::sys::memfd::MFdFlags::empty()).unwrap();
    let refusal = fanotify.watch(&WatchedFile::of(&memfd).unwrap().into()).unwrap_err();
    assert!(refusal.to_string().contains("ext4, xfs and btrfs"), "{refusal}");
}
