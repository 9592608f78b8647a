//! Back to the file: after an operation, what is left of it is put behind the same addresses.
//!
//! This runs on a thread of its own, because looking at the file waits for the operation that is
//! under way, and the guard must never wait. The steps, for a file that needs a pin:
//!
//! 1. Which parts have blocks (for this the file's lock is taken, so the operation is over; no pin of
//!    ours is in force, so it does not wait for us). They are faulted in for writing, which gives
//!    shared blocks copies of their own and turns unwritten ones into written ones.
//! 2. The pin is taken. From here on no layout operation passes. What an operation between 1 and 2
//!    took out of the page tables may have been read since, and stand there again as a block that a
//!    clone shares; so all is faulted in for writing once more.
//! 3. Their physical addresses are read from the page tables. A layout operation takes all pages of
//!    the file out of them, so one that came between 1 and 2 shows here, and all begins again.
//! 4. They are mapped, and `Restored` and `Lost` are published.
//!
//! What passes pins (see [`Cause::passes_pins`](holdfast_dax::notify::Cause::passes_pins)) may leave
//! the blocks that it took in page tables: after one, those are emptied before 1, and not before it
//! has surely begun.
//!
//! An operation that comes after 2 finds the pin and waits. The guard takes the regions away again,
//! which ends the permits under which 4 is done ([`holdfast_iommu::Permit`]): what was looked up
//! before is then not mapped any more.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use holdfast_dax::{GRANULE, Kind, allocated, others_to_pin, touch_small_pages};

use super::event::{EventKind, Part};
use super::file::{GuardedFile, Phase, State, publish};
use super::held::HeldPin;
use super::region::GuardedRegion;
use super::shared::Shared;
use crate::{Error, Result};

/// How often a file that would not be held is tried again before that is told.
const TRIES: u32 = 500;
/// Between two later attempts.
const SELDOM: Duration = Duration::from_secs(1);
/// How often the guard's end is looked for.
const LOOK: Duration = Duration::from_millis(200);
/// Between two early attempts, at most.
const PAUSE: Duration = Duration::from_millis(20);
/// The page that is pinned is the last of what there is: others are touched more.
const PAGE: u64 = 4096;

/// A file whose regions want back what is left of it.
#[derive(Debug)]
pub struct Follow {
    /// The file.
    pub file: Arc<GuardedFile>,
    /// Not before this: the operation may not have begun yet.
    pub not_before: Instant,
    /// How often it was tried in vain.
    pub tries: u32,
}

/// Restores files as they are handed over and their time has come, until the guard is gone. A file
/// that cannot be held yet is tried again; meanwhile it is the others' turn.
pub fn run(shared: &Arc<Shared>, files: &Receiver<Follow>) {
    let mut pending: Vec<Follow> = Vec::new();
    while !shared.stopping() {
        let due = pending.iter().map(|follow| follow.not_before).min();
        let wait = due.map_or(LOOK, |due| due.saturating_duration_since(Instant::now()).min(LOOK));
        match files.recv_timeout(wait) {
            Ok(new) => match pending.iter_mut().find(|follow| Arc::ptr_eq(&follow.file, &new.file))
            {
                Some(known) => {
                    known.not_before = known.not_before.min(new.not_before);
                    known.tries = 0;
                }
                None => pending.push(new),
            },
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return,
        }
        let now = Instant::now();
        while let Some(at) = pending.iter().position(|follow| follow.not_before <= now) {
            let mut follow = pending.swap_remove(at);
            if !attempt(shared, &follow.file) {
                follow.tries = follow.tries.saturating_add(1);
                if follow.tries == TRIES {
                    give_up_for_now(shared, &follow.file);
                }
                follow.not_before = Instant::now() + pause(follow.tries);
                pending.push(follow);
                continue;
            }
            let doubted = follow.file.lock().doubted();
            if let Some(not_before) = doubted {
                pending.push(Follow { not_before, tries: 0, ..follow });
            }
        }
    }
}

/// How long to leave a file alone that could not be held so often.
fn pause(tries: u32) -> Duration {
    if tries < TRIES { PAUSE.min(Duration::from_millis(u64::from(tries))) } else { SELDOM }
}

/// Restores what can be restored of a file's regions that want it; says whether that is settled.
fn attempt(shared: &Shared, file: &GuardedFile) -> bool {
    let _turn = file.turn();
    compare(shared, file);
    let (regions, epoch) = {
        let state = file.lock();
        let wants = state.regions.iter().filter(|region| region.wants_to_follow());
        let regions: Vec<Arc<GuardedRegion>> = wants.map(Arc::clone).collect();
        (regions, state.epoch)
    };
    let done = settle(shared, file, &regions, epoch, Tell::Everybody);
    done.unwrap_or_else(|error| {
        tracing::debug!(file = %file.subject, %error, "a file is not held yet");
        false
    })
}

/// Takes away what the file has other pages for than those that were pinned, if that is in doubt.
fn compare(shared: &Shared, file: &GuardedFile) {
    let start = Instant::now();
    let (regions, epoch) = {
        let mut state = file.lock();
        match state.doubted() {
            Some(from) if from <= start => state.compare(),
            _ => return,
        }
    };
    let replaced: Vec<_> = regions.iter().flat_map(|region| region.replaced()).collect();
    let replaced = close(replaced);
    file.lock().compared(epoch, start.elapsed(), replaced, &shared.publisher);
}

/// Ranges in order; those that are less than a chunk apart, as one.
fn close(mut ranges: Vec<Range<u64>>) -> Vec<Range<u64>> {
    ranges.sort_by_key(|range| range.start);
    let mut joined: Vec<Range<u64>> = Vec::new();
    for range in ranges {
        match joined.last_mut() {
            Some(last) if range.start < last.end + GRANULE => last.end = last.end.max(range.end),
            _ => joined.push(range),
        }
    }
    joined
}

/// Tells that a file's regions are on scrap for longer; they are tried again all the same.
fn give_up_for_now(shared: &Shared, file: &GuardedFile) {
    tracing::warn!(file = %file.subject, "the file cannot be held: its regions stay on scrap");
    let state = file.lock();
    for region in state.regions.iter().filter(|region| region.policy.follow) {
        for part in region.off_file() {
            if region.lose(part) {
                publish(&shared.publisher, region, EventKind::Lost, part, &state.why, None);
            }
        }
    }
}

/// Puts memory behind a region that is new to the guard; all of it, or it fails. Blocks while
/// operations on the file's layout are under way.
pub fn bring_in(shared: &Shared, file: &GuardedFile, region: &Arc<GuardedRegion>) -> Result<()> {
    let mut last = None;
    for attempt in 0..TRIES {
        // A file with holes gets blocks for them; elsewhere there is nothing to do, and not before
        // an operation that is under way has ended.
        if !region.faults_on_its_own() {
            let parts = present_parts(region)?;
            touch_small(region, &[region.whole()]);
            for gap in gaps(region.whole(), &parts) {
                region.memory.populate(gap.start, gap.len())?;
            }
        }
        let turn = file.turn();
        let epoch = file.lock().epoch;
        let done = settle(shared, file, std::slice::from_ref(region), epoch, Tell::Nobody);
        drop(turn);
        match done {
            Ok(true) => {
                // Under the lock, so that no break comes between: from here on it is told of.
                let _state = file.lock();
                if region.off_file().is_empty() {
                    region.known.store(true, Ordering::Release);
                    return Ok(());
                }
            }
            Ok(_) => {}
            Err(error @ Error::Memory(holdfast_dax::Error::Absent { .. })) => last = Some(error),
            Err(error) => return Err(error),
        }
        std::thread::sleep(PAUSE.min(Duration::from_millis(u64::from(attempt))));
    }
    Err(last.unwrap_or_else(|| {
        Error::Guard(format!("{} changes without pause: try again later", region.memory.source()))
    }))
}

/// Who hears what became of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Tell {
    Everybody,
    Nobody,
}

/// One attempt; `Ok(false)` when another operation came in between.
fn settle(
    shared: &Shared,
    file: &GuardedFile,
    regions: &[Arc<GuardedRegion>],
    epoch: u64,
    tell: Tell,
) -> Result<bool> {
    if regions.is_empty() {
        return Ok(true);
    }
    let (later, stale) = file.lock().passed();
    if later {
        return Ok(false);
    }
    let mut present = Vec::with_capacity(regions.len());
    for region in regions {
        present.push(present_parts(region)?);
    }
    // That took the file's lock, so the operation is over, unless there was another break meanwhile.
    // Before it is, no page may be faulted in: it may be the one that the operation waits for.
    if !file.lock().over(epoch) {
        return Ok(false);
    }
    for (region, parts) in regions.iter().zip(&present) {
        if !region.faults_on_its_own() {
            if stale {
                region.memory.forget(0, region.whole().len())?;
            }
            touch_small(region, parts);
            for part in parts {
                region.memory.populate(part.start, part.len())?;
                if !region.needs_pin() {
                    shared.filled(file, region, *part);
                }
            }
        }
    }
    let needs_pin = regions.iter().any(|region| region.needs_pin());
    let anchor = regions.iter().zip(&present).find_map(|(region, parts)| {
        let offset = region.file_offset();
        let has = |at: u64| {
            let at = at.checked_sub(offset);
            at.is_some_and(|at| parts.iter().any(|part| (part.start..part.end).contains(&at)))
        };
        let last = offset + parts.last()?.end - PAGE;
        Some((last, others_to_pin(last, has)))
    });
    let pinned = file.lock().pin.is_some();
    let pin = match anchor.as_ref().filter(|_| needs_pin && !pinned) {
        Some((offset, others)) => Some(shared.pin(file, *offset, others)?),
        None => None,
    };
    let mut permits = Vec::with_capacity(regions.len());
    let held = {
        let mut state = file.lock();
        if state.epoch != epoch || matches!(state.phase, Phase::Holding { .. }) {
            return Ok(false);
        }
        if needs_pin && anchor.is_some() && state.pin.is_none() && pin.is_none() {
            return Ok(false);
        }
        if state.phase == Phase::Open || state.pin.is_none() && pin.is_some() {
            install(shared, file, &mut state, pin);
        }
        for (region, parts) in regions.iter().zip(&present) {
            // Only what was not deregistered meanwhile.
            if state.region(region.id).is_none() {
                continue;
            }
            for run in region.off_file() {
                if let Some(permit) = region.permit(run)? {
                    permits.push((region, permit, run, clipped(parts, run)));
                }
            }
        }
        state.pin.clone()
    };
    // Whoever takes a region away from here on ends its permit.
    for (region, permit, run, parts) in permits {
        let restored = match held.as_ref().filter(|_| region.needs_pin()) {
            Some(pin) => region
                .make_own(&parts, pin.offset())
                .and_then(|()| pin.in_turn(|| region.to_file(&permit, &parts))),
            None => region.to_file(&permit, &parts),
        };
        let state = file.lock();
        if permit.has_ended() {
            return Ok(false);
        }
        restored?;
        if tell == Tell::Nobody {
            continue;
        }
        let publisher = &shared.publisher;
        for part in joined(&parts) {
            publish(publisher, region, EventKind::Restored, part, &state.why, None);
        }
        for part in gaps(run, &parts) {
            if region.lose(part) {
                publish(publisher, region, EventKind::Lost, part, &state.why, None);
            }
        }
    }
    if tell == Tell::Everybody {
        file.lock().looked_up(epoch);
    }
    Ok(true)
}

/// Has the small pages that a pin will be on faulted in as such, before a huge one is made of them.
fn touch_small(region: &GuardedRegion, parts: &[Part]) {
    if let (Some(part), Some((file, offset))) = (parts.last(), region.memory.backing())
        && region.needs_pin()
    {
        touch_small_pages(file, offset + part.start..offset + part.end);
    }
}

/// The pin is in force: the file is held from here on.
fn install(shared: &Shared, file: &GuardedFile, state: &mut State, pin: Option<Arc<HeldPin>>) {
    shared.watch(file, pin.as_ref());
    // Whoever was noticed after the pin began to be taken may wait for it.
    state.held_since = pin.as_ref().map_or_else(Instant::now, |pin| pin.since());
    if pin.is_some() {
        state.pin = pin;
    }
    state.phase = Phase::Held;
}

/// The parts of a region that its file has, whole pages. A device in another process faults on its
/// own, so all before the file's end will do, and holes stay holes until they are written. For one
/// of the kernel it is what has blocks. Waits for an operation that is under way.
fn present_parts(region: &GuardedRegion) -> Result<Vec<Part>> {
    let memory = &region.memory;
    if region.faults_on_its_own() {
        let end = region.file_end()?.min(region.whole().end);
        return Ok((end > 0).then_some(Part { start: 0, end }).into_iter().collect());
    }
    let parts: Vec<Part> = match memory.kind() {
        Kind::Anon | Kind::DevDax => vec![region.whole()],
        _ => allocated(memory)?.into_iter().map(Part::from).collect(),
    };
    Ok(parts)
}

/// What of `parts` lies in `run`.
fn clipped(parts: &[Part], run: Part) -> Vec<Part> {
    let clip = |part: &Part| Part { start: part.start.max(run.start), end: part.end.min(run.end) };
    parts.iter().map(clip).filter(|part| !part.is_empty()).collect()
}

/// Parts that touch, as one.
fn joined(parts: &[Part]) -> Vec<Part> {
    let mut joined: Vec<Part> = Vec::new();
    for &part in parts {
        match joined.last_mut() {
            Some(last) if last.end == part.start => last.end = part.end,
            _ => joined.push(part),
        }
    }
    joined
}

/// What of `whole` lies outside of `parts`.
fn gaps(whole: Part, parts: &[Part]) -> Vec<Part> {
    let mut gaps = Vec::new();
    let mut at = whole.start;
    for part in parts {
        if part.start > at {
            gaps.push(Part { start: at, end: part.start });
        }
        at = part.end;
    }
    if whole.end > at {
        gaps.push(Part { start: at, end: whole.end });
    }
    gaps
}

#[cfg(test)]
mod tests {
    use super::*;

    fn part(start: u64, end: u64) -> Part {
        Part { start, end }
    }

    #[test]
    fn what_is_not_restored_is_lost() {
        let whole = part(0, 4 * GRANULE);
        let parts = [part(0, 4096), part(4096, 8192), part(16384, GRANULE)];
        assert_eq!(joined(&parts), [part(0, 8192), part(16384, GRANULE)]);
        assert_eq!(gaps(whole, &parts), [part(8192, 16384), part(GRANULE, 4 * GRANULE)]);
        assert_eq!(gaps(whole, &[whole]), []);
        assert_eq!(gaps(whole, &[]), [whole]);
        assert_eq!(joined(&[]), []);
        assert_eq!(clipped(&parts, part(8000, 20000)), [part(8000, 8192), part(16384, 20000)]);
    }
}
