//! The guest's console, and our terminal's settings around it.

use std::io::{Read, Write};
use std::process::ChildStdout;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use nix::sys::termios::{SetArg, Termios, tcgetattr, tcsetattr};

use super::Console;

/// Printed by the guest's init before and after the job.
const BEGIN: &str = "@lab:begin@";
const END: &str = "@lab:end@";

/// A thread that copies the console to us.
pub struct Reader {
    thread: JoinHandle<String>,
    spoke: Arc<AtomicBool>,
}

impl Reader {
    /// Starts copying `pipe` until its end.
    pub fn start(pipe: ChildStdout, console: Console) -> Self {
        let spoke = Arc::new(AtomicBool::new(false));
        let heard = Arc::clone(&spoke);
        Self { thread: std::thread::spawn(move || copy(pipe, console, &heard)), spoke }
    }

    /// Whether the console has said anything yet.
    pub fn has_spoken(&self) -> bool {
        self.spoke.load(Ordering::Relaxed)
    }

    /// Everything the console said; call it when QEMU has ended.
    pub fn finish(self) -> String {
        self.thread.join().unwrap_or_default()
    }
}

fn copy(mut pipe: ChildStdout, console: Console, spoke: &AtomicBool) -> String {
    let mut filter = Filter::new(console);
    let mut all = Vec::new();
    let mut buffer = [0; 8192];
    while let Ok(count) = pipe.read(&mut buffer) {
        if count == 0 {
            break;
        }
        spoke.store(true, Ordering::Relaxed);
        all.extend(buffer[..count].iter().filter(|byte| **byte != b'\r'));
        let shown = filter.pass(&buffer[..count]);
        let mut stdout = std::io::stdout().lock();
        let _ = stdout.write_all(&shown).and_then(|()| stdout.flush());
    }
    String::from_utf8_lossy(&all).into_owned()
}

/// Lets through what stands between the two marks.
struct Filter {
    console: Console,
    inside: bool,
    line: Vec<u8>,
}

impl Filter {
    fn new(console: Console) -> Self {
        Self { console, inside: false, line: Vec::new() }
    }

    /// What to show of the next bytes. Inside the job, unfinished lines are passed on at once
    /// (prompts, progress) unless they may turn out to be the closing mark.
    fn pass(&mut self, bytes: &[u8]) -> Vec<u8> {
        let mut shown = Vec::new();
        match self.console {
            Console::Interactive => return shown,
            Console::StreamAll => {
                shown.extend(bytes.iter().filter(|byte| **byte != b'\r'));
                return shown;
            }
            Console::Stream => {}
        }
        for byte in bytes.iter().filter(|byte| **byte != b'\r') {
            self.line.push(*byte);
            if *byte != b'\n' {
                continue;
            }
            let line = std::mem::take(&mut self.line);
            let text = String::from_utf8_lossy(&line);
            match text.trim_end() {
                text if text.ends_with(BEGIN) => self.inside = true,
                END => self.inside = false,
                _ if self.inside => shown.extend(line),
                _ => {}
            }
        }
        let could_end = END.as_bytes().starts_with(&self.line);
        if self.inside && !could_end {
            shown.append(&mut self.line);
        }
        shown
    }
}

/// The last lines of a console's text.
pub fn tail(text: &str, lines: usize) -> String {
    let all: Vec<&str> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}

/// Our terminal's settings, put back on drop: a QEMU that was killed leaves it raw.
pub struct TerminalSettings(Option<Termios>);

impl TerminalSettings {
    /// Remembers them, if standard input is a terminal.
    pub fn save() -> Self {
        Self(tcgetattr(std::io::stdin()).ok())
    }
}

impl Drop for TerminalSettings {
    fn drop(&mut self) {
        if let Some(settings) = &self.0 {
            let _ = tcsetattr(std::io::stdin(), SetArg::TCSANOW, settings);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(console: Console, pieces: &[&str]) -> String {
        let mut filter = Filter::new(console);
        let bytes: Vec<u8> =
            pieces.iter().flat_map(|piece| filter.pass(piece.as_bytes())).collect();
        String::from_utf8(bytes).unwrap()
    }

    #[test]
    fn only_the_jobs_own_output_is_streamed() {
        let pieces =
            ["boot\r\nnoise@lab:be", "gin@\r\none\r\ntw", "o\r\n@lab:", "end@\r\nlate\r\n"];
        assert_eq!(shown(Console::Stream, &pieces), "one\ntwo\n");
        assert_eq!(shown(Console::Interactive, &pieces), "");
        assert!(shown(Console::StreamAll, &pieces).starts_with("boot\nnoise"));
    }

    #[test]
    fn an_unfinished_line_is_shown_at_once() {
        assert_eq!(shown(Console::Stream, &["@lab:begin@\n", "login: "]), "login: ");
    }
}
