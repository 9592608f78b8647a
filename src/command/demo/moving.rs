//! The second half of the demo: the file moves while the peer goes on writing.
//!
//! One thread writes the region without pause, as a peer does that knows nothing. Another cuts the
//! file, punches a hole into it, empties it, and gives the freed space to another file at once,
//! every byte of which is then compared. What is measured: how long the file operation took, how
//! long from its start until the device was off the file, and what the peer noticed of it.

use std::fmt;
use std::fs::{File, OpenOptions};
use std::os::fd::AsFd as _;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use holdfast::coherence::{Events, Guard, RegionId};
use holdfast::{Completion, SendFlags};
use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, fallocate};
use serde::Serialize;

use super::BLOCK;
use crate::command::endpoints::{End, Session};
use crate::command::histogram::{human_bytes, human_ns};
use crate::command::interrupt;
use crate::command::restored::Tracker;

/// Requests under way at a time.
const DEPTH: u64 = 8;
/// How long the guard may take to tell of an operation, and the device to complete something; a
/// machine with other things to do may be slow.
const PATIENCE: Duration = Duration::from_secs(20);
/// What the peer writes, in every word; the other file never holds it.
const MARK: u64 = 0x5eed_0fd1_5a57_e12e;

/// What is done to the file, in turn.
const MOVES: [(&str, Move); 4] = [
    ("cut to half", Move::Cut { half: true }),
    ("a hole punched", Move::Punch),
    ("emptied", Move::Cut { half: false }),
    ("reopened with O_TRUNC", Move::Reopen),
];

#[derive(Debug, Clone, Copy)]
enum Move {
    Cut { half: bool },
    Punch,
    Reopen,
}

/// One operation on the file, and what came of it.
#[derive(Debug, Serialize)]
pub struct Moved {
    /// What was done.
    pub what: &'static str,
    /// How long the operation took its caller.
    pub stall_ns: u64,
    /// From its start until no access reached what was given up.
    pub to_scrap_ns: u64,
    /// Longest time in which an access found nothing behind its address.
    pub window_ns: u64,
    /// From its end until what is left of the file was behind the region again.
    pub to_restored_ns: u64,
    /// The cause that the event named.
    pub cause: String,
    /// Who told the guard.
    pub notifier: &'static str,
    /// Requests that the device completed between the operation's start and the region's return.
    pub writes_meanwhile: u64,
}

/// What came of all of it.
#[derive(Debug, Serialize)]
pub struct Moving {
    /// The operations.
    pub moves: Vec<Moved>,
    /// Requests completed in all.
    pub writes: u64,
    /// Requests that failed.
    pub failed: u64,
    /// Bytes of the other file that were compared.
    pub checked_bytes: u64,
    /// Those that were not as they were written.
    pub foreign_bytes: u64,
    /// Notifiers in force.
    pub notifiers: Vec<&'static str>,
}

impl fmt::Display for Moving {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let told: Vec<&str> = self.notifiers.clone();
        writeln!(f, "\nThe file moves under continuous WRITEs (told by {}):", told.join(", "))?;
        for moved in &self.moves {
            let ns = |ns: u64| human_ns(ns as f64);
            writeln!(
                f,
                "  {:<22} the call took {}; on scrap after {} ({}, {}); whole again after {}; \
                 {} WRITEs meanwhile",
                moved.what,
                ns(moved.stall_ns),
                ns(moved.to_scrap_ns),
                moved.cause,
                moved.notifier,
                ns(moved.to_restored_ns),
                moved.writes_meanwhile,
            )?;
        }
        writeln!(
            f,
            "  {} WRITEs in all: {} failed; {} of another file in the freed space compared: {} \
             foreign bytes",
            self.writes,
            self.failed,
            human_bytes(self.checked_bytes),
            self.foreign_bytes
        )
    }
}

/// Moves the file at `path` under the traffic of the session's active end.
pub fn run(session: &mut Session, guard: &Guard, path: &Path) -> anyhow::Result<Moving> {
    let region = session.passive.as_ref().and_then(|end| end.region.id());
    let region = region.context("the region is not guarded")?;
    let size = session.passive.as_ref().map_or(0, |end| end.region.len() as u64);
    let end = session.active.as_mut().context("the active end is missing")?;
    let events = guard.events()?;
    let shared = Shared::default();
    let mover = Mover { path, size, region, events: &events, shared: &shared };
    let (moves, traffic) = std::thread::scope(|scope| {
        let mover = scope.spawn(|| {
            let moved = mover.run();
            shared.stop.store(true, Ordering::Release);
            moved
        });
        let traffic = write_on(end, size, &shared);
        shared.stop.store(true, Ordering::Release);
        let moves = mover.join().unwrap_or_else(|_| Err(anyhow::anyhow!("the mover died")));
        (moves, traffic)
    });
    interrupt::check()?;
    traffic?;
    let notifiers = guard.statement().in_force().map(|kind| kind.name()).collect();
    let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    Ok(Moving {
        moves: moves?,
        writes: count(&shared.writes),
        failed: count(&shared.failed),
        checked_bytes: count(&shared.checked),
        foreign_bytes: count(&shared.foreign),
        notifiers,
    })
}

/// What both threads see.
#[derive(Debug, Default)]
struct Shared {
    stop: AtomicBool,
    writes: AtomicU64,
    failed: AtomicU64,
    checked: AtomicU64,
    foreign: AtomicU64,
}

/// Writes the peer's region, page after page, until told to stop.
fn write_on(end: &mut End, size: u64, shared: &Shared) -> anyhow::Result<()> {
    let bytes: Vec<u8> = MARK.to_ne_bytes().iter().copied().cycle().take(BLOCK).collect();
    end.region.memory().write_at(0, &bytes)?;
    let blocks = size / BLOCK as u64;
    let (mut posted, mut done) = (0, 0);
    let mut completions = [Completion::default(); DEPTH as usize];
    let mut heard = Instant::now();
    while !shared.stop.load(Ordering::Acquire) || done < posted {
        let stop = shared.stop.load(Ordering::Acquire) || interrupt::requested();
        while !stop && posted - done < DEPTH {
            let remote = end.remote_at((posted % blocks) as usize * BLOCK);
            let local = [end.region.slice(0, BLOCK)?];
            end.qps[0].write(posted, &local, remote, SendFlags::SIGNALED)?;
            posted += 1;
        }
        end.qps[0].ring_sends();
        let count = end.send_cq.poll(&mut completions)?;
        for completion in &completions[..count] {
            done += 1;
            shared.writes.fetch_add(1, Ordering::Relaxed);
            if !completion.is_success() {
                shared.failed.fetch_add(1, Ordering::Relaxed);
            }
        }
        if count > 0 {
            heard = Instant::now();
        } else {
            ensure!(heard.elapsed() < PATIENCE, "the device completes nothing any more");
            std::thread::yield_now();
        }
        if interrupt::requested() && done == posted {
            return Ok(());
        }
        if shared.failed.load(Ordering::Relaxed) > 0 {
            // The queue pair is in error; what follows would only be flushed.
            return Ok(());
        }
    }
    Ok(())
}

/// Who moves the file.
struct Mover<'a> {
    path: &'a Path,
    size: u64,
    region: RegionId,
    events: &'a Events,
    shared: &'a Shared,
}

impl Mover<'_> {
    fn run(&self) -> anyhow::Result<Vec<Moved>> {
        let mut moves = Vec::new();
        for (what, step) in MOVES {
            if self.shared.stop.load(Ordering::Acquire) || interrupt::requested() {
                break;
            }
            if let Some(moved) = self.step(what, step)? {
                moves.push(moved);
            }
        }
        Ok(moves)
    }

    /// One operation, the other file in the freed space, and back. `None` where the file system
    /// has no such operation.
    fn step(&self, what: &'static str, step: Move) -> anyhow::Result<Option<Moved>> {
        let file = OpenOptions::new().read(true).write(true).open(self.path)?;
        let mut tracker = Tracker::new(self.events, self.region, self.size, PATIENCE);
        let writes = self.shared.writes.load(Ordering::Relaxed);
        let start = Instant::now();
        match self.change(&file, step) {
            Err(Errno::EOPNOTSUPP) => return Ok(None),
            other => other.with_context(|| format!("{what}: {}", self.path.display()))?,
        }
        let stall = start.elapsed();
        let broken = tracker.broken(what)?;
        self.other_file()?;
        // Room for the whole region again; the guard follows.
        file.set_len(self.size).context("growing the file again")?;
        match fallocate(file.as_fd(), FallocateFlags::empty(), 0, self.size as i64) {
            Ok(()) | Err(Errno::EOPNOTSUPP) => {}
            Err(errno) => return Err(errno).context("allocating the file again"),
        }
        let grown = Instant::now();
        let back = tracker.whole(what)?;
        let ns = |time: Duration| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        let timing = broken.timing.unwrap_or_default();
        let fenced = broken.at + timing.to_fence;
        Ok(Some(Moved {
            what,
            stall_ns: ns(stall),
            to_scrap_ns: ns(fenced.saturating_duration_since(start)),
            window_ns: ns(timing.window),
            to_restored_ns: ns(back.saturating_duration_since(grown)),
            cause: broken.cause.to_string(),
            notifier: broken.notifier.name(),
            writes_meanwhile: self.shared.writes.load(Ordering::Relaxed) - writes,
        }))
    }

    fn change(&self, file: &File, step: Move) -> Result<(), Errno> {
        let raw = |error: std::io::Error| Errno::from_raw(error.raw_os_error().unwrap_or(0));
        match step {
            Move::Cut { half } => {
                let size = if half { self.size / 2 / BLOCK as u64 * BLOCK as u64 } else { 0 };
                file.set_len(size).map_err(raw)
            }
            Move::Punch => {
                let mode =
                    FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
                let quarter = (self.size / 4).max(BLOCK as u64) as i64;
                fallocate(file.as_fd(), mode, 0, quarter)
            }
            Move::Reopen => {
                let open = OpenOptions::new().write(true).truncate(true).open(self.path);
                open.map(drop).map_err(raw)
            }
        }
    }

    /// Gives the freed space to another file, and compares every byte of it after the peer has
    /// had time to write where it should not.
    fn other_file(&self) -> anyhow::Result<()> {
        let mut name = self.path.as_os_str().to_owned();
        name.push(".other");
        let other = Removed(PathBuf::from(name));
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .open(&other.0)
            .with_context(|| format!("cannot make {}", other.0.display()))?;
        let words = |block: u64| -> Vec<u8> {
            (0..BLOCK as u64 / 8).flat_map(|word| (block << 16 | word).to_ne_bytes()).collect()
        };
        let blocks = (self.size / 4 / BLOCK as u64).max(1);
        for block in 0..blocks {
            file.write_all_at(&words(block), block * BLOCK as u64)?;
        }
        file.sync_all()?;
        std::thread::sleep(Duration::from_millis(20));
        let mut bytes = vec![0; BLOCK];
        for block in 0..blocks {
            file.read_exact_at(&mut bytes, block * BLOCK as u64)?;
            let wrong = bytes.iter().zip(words(block)).filter(|(is, should)| **is != *should);
            self.shared.foreign.fetch_add(wrong.count() as u64, Ordering::Relaxed);
            self.shared.checked.fetch_add(BLOCK as u64, Ordering::Relaxed);
        }
        Ok(())
    }
}

/// A file that goes away.
struct Removed(PathBuf);

impl Drop for Removed {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}
