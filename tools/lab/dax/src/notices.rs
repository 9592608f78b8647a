//! Which notifier says what of each operation: the kprobe events exactly one thing with cause, range
//! and stage, the guard page that something waits, and what the lease, fanotify and inotify say of
//! those that they can see. With a notifier switched off, the same check must fail.

use std::ops::Range;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use holdfast_dax::notify::{
    Cause, Hold, Notice, NotifierKind, Notifiers, Options, Stage, WatchedFile,
};
use holdfast_dax::{Memory, Pin, Populate, Source};
use holdfast_lab_check::Report;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::expected::{COLUMNS, Outcome, TABLE, column};
use crate::operation::{AT, Files, LEN, Operation, PAGE, Ring, SIZE, Way};
use crate::worker::Worker;

/// How long anything may take on a loaded machine.
const LIMIT: Duration = Duration::from_secs(20);
/// How long to listen for what should not come, or comes late as a clone on xfs floods the buffer
/// while it waits.
const AFTER: Duration = Duration::from_secs(1);
/// How long to listen after an operation that did not wait has ended, before its pin is let go.
const ENDED: Duration = Duration::from_millis(150);

/// What the kprobe events must say.
type Says = (Cause, Option<Range<u64>>, Stage);

/// By operation and what it does when it meets a pin.
fn says(operation: Operation, outcome: Outcome) -> Option<Says> {
    use Operation as O;
    let part = Some(AT..AT + LEN);
    let grown = Some(SIZE..SIZE + LEN);
    let from = |at: u64| Some(at..u64::MAX);
    let announced = match operation {
        O::SwapExtents => Some(Cause::SwapExtents),
        O::SwapBoot => Some(Cause::SwapBoot),
        O::FlipDaxFlag => Some(Cause::Attributes),
        _ => None,
    };
    if let Some(cause) = announced {
        return Some((cause, None, Stage::Announced));
    }
    if outcome != Outcome::Waits {
        return None;
    }
    let (cause, range) = match operation {
        O::FtruncateShrink | O::TruncateShrink => (Cause::Truncate { size: AT }, Some(AT..SIZE)),
        O::FtruncateGrow => (Cause::Grow { size: SIZE + LEN }, grown),
        O::OpenTrunc => (Cause::OpenTruncate, Some(0..SIZE)),
        O::FallocateInside => (Cause::Allocate, part),
        O::FallocateGrow | O::FallocateKeepSize => (Cause::Allocate, grown),
        O::PunchHole | O::LoopDiscard => (Cause::PunchHole, part),
        O::CollapseRange => (Cause::CollapseRange, from(AT)),
        O::InsertRange => (Cause::InsertRange, from(AT)),
        O::ZeroRange => (Cause::ZeroRange, part),
        O::UnshareRange => (Cause::UnshareRange, part),
        O::CloneFrom => (Cause::CloneFrom, from(0)),
        O::CloneOnto => (Cause::CloneOnto, from(0)),
        O::CloneRangeFrom | O::CopyFrom => (Cause::CloneFrom, part),
        O::CloneRangeOnto | O::CopyOnto => (Cause::CloneOnto, part),
        O::DedupeFrom | O::DedupeOnto => (Cause::Dedupe, part),
        O::ExchangeRange => (Cause::ExchangeRange, part),
        _ => (Cause::Unknown, None),
    };
    Some((cause, range, Stage::Waiting))
}

/// Collects until a condition holds, or for as long as given.
fn listen(
    notifiers: &mut Notifiers,
    notices: &mut Vec<Notice>,
    limit: Duration,
    mut until: impl FnMut(&[Notice]) -> Result<bool>,
) -> Result<bool> {
    let end = Instant::now() + limit;
    loop {
        if until(notices)? {
            return Ok(true);
        }
        if Instant::now() >= end {
            return Ok(false);
        }
        {
            let fds = notifiers.in_force().map(|n| PollFd::new(n.fd(), PollFlags::POLLIN));
            poll(&mut fds.collect::<Vec<_>>(), PollTimeout::from(5u8))?;
        }
        notifiers.collect(&mut |notice| notices.push(notice))?;
    }
}

/// Does the operation against a pinned file, and gives back all that was said of it.
fn pinned(
    folder: &Path,
    notifiers: &mut Notifiers,
    operation: Operation,
    way: Way,
) -> Result<Vec<Notice>> {
    let files = Files::create(folder)?;
    let memory = Memory::open(&Source::fs_dax(&files.path), 0, Populate::Yes)?;
    let (fd, _) = memory.backing().context("a file without a descriptor")?;
    let mut worker = Worker::start(folder, operation, way)?;
    let mut pin = Pin::take(fd, 0)?;
    let watched = WatchedFile::of(&fd)?.path(&files.path).probe(pin.sign());
    let id = watched.id;
    let (by, refusals) = notifiers.watch(&watched.into());
    ensure!(by.len() == notifiers.in_force().count(), "not watched by all: {refusals:?}");
    let mut notices = Vec::new();
    worker.go()?;
    let mut ended = false;
    // Until it has ended, or is seen to wait and had the time to be told of by all.
    let mut waits: Option<Instant> = None;
    let done = listen(notifiers, &mut notices, LIMIT, |_| {
        ended = ended || worker.ended(Duration::from_millis(1))?.is_some();
        if waits.is_none() && (ended || pin.disturbed()?) {
            waits = Some(Instant::now());
        }
        // What has ended without waiting may be told of a period later.
        let enough = if ended { ENDED } else { AFTER };
        Ok(waits.is_some_and(|since| since.elapsed() > enough))
    })?;
    ensure!(done, "it neither ends nor waits");
    pin.release()?;
    notifiers.allow(id.into());
    if !ended {
        let done = listen(notifiers, &mut notices, LIMIT, |_| {
            Ok(worker.ended(Duration::from_millis(1))?.is_some())
        })?;
        ensure!(done, "it does not end after the release");
    }
    listen(notifiers, &mut notices, AFTER, |_| Ok(false))?;
    notifiers.unwatch(id.into());
    notices.retain(|notice| notice.file() == Some(id));
    Ok(notices)
}

/// What the kprobe events said must be this, and nothing else.
fn judge_kprobe(notices: &[Notice], expected: Option<&Says>) -> Result<()> {
    let said: Vec<Says> = notices
        .iter()
        .filter(|notice| notice.notifier == NotifierKind::Kprobe)
        .map(|notice| (notice.cause, notice.range.clone(), notice.stage))
        .collect();
    ensure!(
        said.iter().collect::<Vec<_>>() == expected.into_iter().collect::<Vec<_>>(),
        "kprobe events say {said:?} and not {expected:?}"
    );
    let known = |notice: &Notice| notice.pid.is_some();
    let kprobe = |notice: &&Notice| notice.notifier == NotifierKind::Kprobe;
    ensure!(notices.iter().filter(kprobe).all(known), "a notice without a thread");
    Ok(())
}

/// The guard page must say once that something waits or moved, or nothing.
fn judge_guard_page(notices: &[Notice], expected: bool) -> Result<()> {
    let said = notices.iter().filter(|n| n.notifier == NotifierKind::GuardPage).count();
    ensure!(said == usize::from(expected), "the guard page says {said} things");
    Ok(())
}

fn notifiers(kinds: &[NotifierKind], hold: Hold) -> Result<Notifiers> {
    let options = Options { kinds: kinds.to_vec(), hold, ..Options::default() };
    let notifiers = Notifiers::available(&options);
    ensure!(notifiers.in_force().count() == kinds.len(), "{}", notifiers.statement());
    Ok(notifiers)
}

/// Runs all checks in a folder on a mount of type `fs_type`.
pub fn run(report: &mut Report, folder: &Path, fs_type: &str) -> Result<()> {
    let column = column(fs_type)?;
    let recent = crate::expected::recent_kernel()?;
    let mut both = notifiers(&[NotifierKind::Kprobe, NotifierKind::GuardPage], Hold::Lease)?;
    println!("{}", both.statement());
    for (operation, outcomes) in TABLE {
        let outcome = outcomes[column];
        if matches!(outcome, Outcome::Refused(_)) {
            continue;
        }
        let expected = says(*operation, outcome);
        let said = expected.as_ref().map_or("nothing", |(cause, ..)| cause.name());
        let name = format!("{}: {}: notice of {said}", COLUMNS[column], operation.title());
        report.check(&name, || {
            let old_ring = !recent && matches!(operation.ring(), Some(Ring::Ftruncate { .. }));
            let ways: &[_] = match operation.ring() {
                Some(_) if !old_ring => &[Way::Call, Way::Uring],
                _ => &[Way::Call],
            };
            for way in ways {
                let notices = pinned(folder, &mut both, *operation, *way)?;
                judge_kprobe(&notices, expected.as_ref()).with_context(|| format!("{way:?}"))?;
                let shows = matches!(outcome, Outcome::Waits | Outcome::Moves);
                judge_guard_page(&notices, shows).with_context(|| format!("{way:?}"))?;
            }
            Ok(())
        });
    }
    drop(both);
    let punch = says(Operation::PunchHole, Outcome::Waits);
    report.check("without the kprobe events, the check of what they say fails", || {
        let mut one = notifiers(&[NotifierKind::GuardPage], Hold::Lease)?;
        let notices = pinned(folder, &mut one, Operation::PunchHole, Way::Call)?;
        judge_guard_page(&notices, true)?;
        ensure!(judge_kprobe(&notices, punch.as_ref()).is_err(), "it passes");
        Ok(())
    });
    report.check("without the guard page, the check of what it says fails", || {
        let mut one = notifiers(&[NotifierKind::Kprobe], Hold::Lease)?;
        let notices = pinned(folder, &mut one, Operation::PunchHole, Way::Call)?;
        judge_kprobe(&notices, punch.as_ref())?;
        ensure!(judge_guard_page(&notices, true).is_err(), "it passes");
        Ok(())
    });
    report.check("probes and tracing instances are gone with their notifier", || {
        let events = std::fs::read_to_string("/sys/kernel/tracing/kprobe_events")?;
        ensure!(!events.contains("holdfast"), "{events}");
        let left = std::fs::read_dir("/sys/kernel/tracing/instances")?.count();
        ensure!(left == 0, "{left} instances are left");
        Ok(())
    });
    held(report, folder, recent);
    Ok(())
}

/// One operation from a file opened after it was watched: it must wait for the notifier's answer.
fn held_by(
    folder: &Path,
    kind: NotifierKind,
    hold: Hold,
    operation: Operation,
) -> Result<Vec<Notice>> {
    Files::create(folder)?;
    let mut one = notifiers(&[kind], hold)?;
    // The only open file description, as a lease wants it.
    let path = folder.join("file");
    let file = std::fs::File::options().read(true).write(true).open(&path)?;
    let watched = WatchedFile::of(&file)?.path(&path);
    let id = watched.id;
    let (by, refusals) = one.watch(&watched.into());
    ensure!(by == [kind], "{refusals:?}");
    let before = file.metadata()?.len();
    let folder = folder.to_owned();
    // Its start waits already, where it opens the file.
    let worker = std::thread::spawn(move || -> Result<bool> {
        let mut worker = Worker::start(&folder, operation, Way::Call)?;
        worker.go()?;
        Ok(matches!(worker.ended(LIMIT)?, Some(Ok(()))))
    });
    let mut notices = Vec::new();
    listen(&mut one, &mut notices, LIMIT, |notices| Ok(!notices.is_empty()))?;
    std::thread::sleep(AFTER);
    let waited = !worker.is_finished() && file.metadata()?.len() == before;
    one.allow(id.into());
    let done = worker.join().map_err(|_| anyhow::anyhow!("the worker's thread panicked"))??;
    ensure!(done, "it failed");
    ensure!(notices.iter().all(|notice| notice.stage == Stage::Waiting) && waited, "{notices:?}");
    Ok(notices)
}

/// What leases, delegations and fanotify hold, and what inotify says afterwards.
fn held(report: &mut Report, folder: &Path, recent: bool) {
    report.check("whoever opens a file with a lease waits until it is given back", || {
        let by = held_by(folder, NotifierKind::Lease, Hold::Lease, Operation::PunchHole)?;
        ensure!(by.len() == 1 && by[0].cause == Cause::OpenedByOther, "{by:?}");
        Ok(())
    });
    report.check("a delegation is held, or a lease where there are none", || {
        let by = held_by(folder, NotifierKind::Lease, Hold::Delegation, Operation::FtruncateGrow)?;
        ensure!(by.len() == 1 && by[0].cause == Cause::OpenedByOther, "{by:?}");
        Ok(())
    });
    let name = "fanotify holds a punch until it is allowed, or says that Linux 6.14 has it";
    report.check(name, || {
        let by = held_by(folder, NotifierKind::Fanotify, Hold::Lease, Operation::PunchHole);
        match (recent, by) {
            (true, by) => {
                let by = by?;
                let range = Some(AT..AT + LEN);
                let told = by.len() == 1 && by[0].cause == Cause::PunchHole && by[0].range == range;
                ensure!(told, "{by:?}");
                Ok(())
            }
            (false, Err(error)) if error.to_string().contains("6.14") => Ok(()),
            (false, other) => bail!("{other:?}"),
        }
    });
    report.check("inotify says afterwards what became of a DAX file", || {
        let files = Files::create(folder)?;
        let mut one = notifiers(&[NotifierKind::Inotify], Hold::Lease)?;
        one.watch(&WatchedFile::of(&files.file)?.into());
        let mut notices = Vec::new();
        let mut causes = |one: &mut Notifiers| -> Result<Vec<Cause>> {
            notices.clear();
            listen(one, &mut notices, LIMIT, |notices| Ok(!notices.is_empty()))?;
            Ok(notices.iter().map(|notice| notice.cause).collect())
        };
        files.file.set_len(PAGE)?;
        ensure!(causes(&mut one)? == [Cause::Truncate { size: PAGE }]);
        std::fs::remove_file(&files.path)?;
        ensure!(causes(&mut one)? == [Cause::Unlink]);
        Ok(())
    });
}
