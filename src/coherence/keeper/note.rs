//! What the keeper has to say to people, on standard error: without allocating, and without
//! waiting for a reader that may be as dead as the driver.

use std::fmt::Write as _;
use std::io::stderr;
use std::os::fd::AsFd;
use std::time::Duration;

use arrayvec::ArrayString;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::unistd::write;

/// Longest note. A pipe takes so much at once or nothing (PIPE_BUF).
const NOTE: usize = 256;

/// Says things, each failure of a fence once.
#[derive(Debug, Default)]
pub(super) struct Notes {
    failed: Option<Errno>,
}

impl Notes {
    pub(super) fn driver_died(&self, containers: usize, pins: usize) {
        if pins == 0 {
            // It took its leave in good order.
            return;
        }
        say(format_args!(
            "the driver is gone: {containers} containers were emptied, then {pins} layout pins let go"
        ));
    }

    pub(super) fn driver_is_late(&self, pin: u64, waited: Duration) {
        let waited = waited.as_millis();
        say(format_args!(
            "a layout operation had waited {waited} ms for pin {pin}: all containers were emptied \
             and the pin let go"
        ));
    }

    pub(super) fn driver_killed(&self, killed: bool) {
        let end = if killed { "and was killed" } else { "and cannot be killed: its pins are held" };
        say(format_args!("the driver was late in the middle of mapping pinned memory {end}"));
    }

    pub(super) fn fence_failed(&mut self, errno: Errno) {
        if self.failed.replace(errno) != Some(errno) {
            say(format_args!(
                "a container cannot be emptied ({errno}): its pins are held until it can"
            ));
        }
    }

    pub(super) fn strange_message(&self) {
        say(format_args!("a message that is none of the protocol's was left aside"));
    }
}

fn say(what: std::fmt::Arguments<'_>) {
    let mut note = ArrayString::<NOTE>::new();
    // What does not fit is cut off.
    let _ = writeln!(note, "holdfast keeper: {what}");
    let stderr = stderr();
    let mut ready = [PollFd::new(stderr.as_fd(), PollFlags::POLLOUT)];
    if matches!(poll(&mut ready, PollTimeout::ZERO), Ok(1)) {
        let _ = write(&stderr, note.as_bytes());
    }
}
