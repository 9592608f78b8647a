//! `lab up` on a real terminal: the shell is the guest's, Ctrl-C is the guest's, the exit status
//! is ours, and the terminal is left as it was.
//!
//! Boots a guest, so it needs what guests need (docs/lab.md); `tools/test lab` runs it.

mod support;

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};

use nix::pty::{Winsize, openpty};
use nix::sys::signal::{Signal, kill};
use nix::sys::termios::{LocalFlags, Termios, tcgetattr};
use nix::unistd::Pid;
use support::{Lab, until};

const SIZE: Winsize = Winsize { ws_row: 37, ws_col: 101, ws_xpixel: 0, ws_ypixel: 0 };

/// A terminal with `lab up` on it, and somebody who types and reads.
struct Terminal {
    keyboard: File,
    screen: Arc<Mutex<Vec<u8>>>,
    line: OwnedFd,
    before: Termios,
    lab: Child,
}

impl Terminal {
    /// Runs `setsid lab up`; `setsid` is given, with its environment.
    fn up(mut setsid: Command) -> Self {
        let pty = openpty(&SIZE, None).unwrap();
        let before = tcgetattr(&pty.slave).unwrap();
        // A session of its own, with the terminal as its controlling one: keys make signals.
        setsid.args(["--ctty", env!("CARGO_BIN_EXE_lab"), "up", "--nic", "holdfast"]);
        let line = || Stdio::from(pty.slave.try_clone().unwrap());
        let child = setsid.stdin(line()).stdout(line()).stderr(line()).spawn().unwrap();
        let screen = Arc::new(Mutex::new(Vec::new()));
        let (mut reader, seen) = (File::from(pty.master.try_clone().unwrap()), screen.clone());
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(count @ 1..) = reader.read(&mut buffer) {
                seen.lock().unwrap().extend_from_slice(&buffer[..count]);
            }
        });
        Self { keyboard: File::from(pty.master), screen, line: pty.slave, before, lab: child }
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.screen.lock().unwrap()).into_owned()
    }

    /// Waits until the screen shows `text`, and clears it.
    fn sees(&self, text: &str) {
        let start = std::time::Instant::now();
        while !self.text().contains(text) {
            let (seconds, seen) = (start.elapsed().as_secs(), self.text());
            assert!(seconds < 300, "waited in vain for {text:?} on a screen with:\n{seen}");
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
        self.screen.lock().unwrap().clear();
    }

    fn types(&mut self, keys: &str) {
        self.keyboard.write_all(keys.as_bytes()).unwrap();
    }

    /// Whether `lab` still runs.
    fn runs(&mut self) -> bool {
        self.lab.try_wait().unwrap().is_none()
    }

    fn assert_as_before(&self) {
        let now = tcgetattr(&self.line).unwrap();
        assert_eq!(now.local_flags, self.before.local_flags, "echo, lines and signals");
        assert_eq!(now.input_flags, self.before.input_flags);
        assert_eq!(now.output_flags, self.before.output_flags);
        assert_eq!(now.control_chars, self.before.control_chars);
        assert!(now.local_flags.contains(LocalFlags::ECHO | LocalFlags::ICANON | LocalFlags::ISIG));
    }
}

#[test]
fn a_shell_in_a_guest_is_a_shell_and_leaves_the_terminal_as_it_was() {
    let lab = Lab::new();
    let mut terminal = Terminal::up(lab.marked("setsid"));
    terminal.sees("/job# ");
    let while_up = tcgetattr(&terminal.line).unwrap();
    assert!(!while_up.local_flags.contains(LocalFlags::ISIG), "Ctrl-C would be ours");

    terminal.types("echo size=$(stty size), kernel=$(uname -n)\r");
    terminal.sees("size=37 101, kernel=lab");
    terminal.types("holdfast devices\r");
    terminal.sees("0000:00:10.0");

    // The words on the screen are not those typed, which are echoed.
    terminal.types("echo sle''eps; sleep 1000\r");
    terminal.sees("sleeps");
    terminal.types("\x03");
    terminal.sees("/job# ");
    terminal.types("echo status=$?.\r");
    terminal.sees("status=130.");
    assert!(terminal.runs(), "Ctrl-C ended lab");

    terminal.types("exit 5\r");
    let status = terminal.lab.wait().unwrap();
    assert_eq!(status.code(), Some(5));
    terminal.assert_as_before();
    let left = lab.left();
    assert!(left.is_empty(), "after `exit` there is still:\n{}", left.join("\n"));
}

#[test]
fn a_killed_shell_in_a_guest_leaves_the_terminal_as_it_was() {
    let lab = Lab::new();
    let mut terminal = Terminal::up(lab.marked("setsid"));
    terminal.sees("/job# ");
    kill(Pid::from_raw(terminal.lab.id().cast_signed()), Signal::SIGTERM).unwrap();
    let status = terminal.lab.wait().unwrap();
    assert_eq!(status.code(), Some(130));
    terminal.assert_as_before();
    let left = lab.left();
    assert!(left.is_empty(), "after SIGTERM there is still:\n{}", left.join("\n"));
}

#[test]
fn ctrl_c_is_for_lab_until_the_guest_has_the_terminal() {
    let lab = Lab::empty();
    let mut command = lab.marked("setsid");
    lab.build_with(&mut command, "print \"building\\n\"; sleep 1000;\n");
    let mut terminal = Terminal::up(command);
    until("the build", || lab.shows(&["mmdebstrap"]));
    terminal.types("\x03");
    assert_eq!(terminal.lab.wait().unwrap().code(), Some(130), "{}", terminal.text());
    terminal.assert_as_before();
    let left = lab.left();
    assert!(left.is_empty(), "after Ctrl-C there is still:\n{}", left.join("\n"));
}
