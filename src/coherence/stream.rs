//! The event stream: bounded, and without a gap.
//!
//! The guard must never wait for a reader, and a reader must never miss a loss. So a queue that is
//! full merges: two events of the same region and kind become one whose part holds both. A region
//! has four kinds of event, so a queue with room for four events of each region always finds two
//! to merge. A slow reader sees fewer events, and coarser ones, and [`Event::merged`] says so.

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};

use super::event::{Event, EventKind};
use crate::lock::lock;

/// Events published in this process so far, by kind.
static PUBLISHED: [AtomicU64; EventKind::COUNT] = [const { AtomicU64::new(0) }; EventKind::COUNT];

/// Events that the guards of this process have published so far, by kind, whoever read them.
pub fn event_counts() -> [(EventKind, u64); EventKind::COUNT] {
    let kinds = [EventKind::Breaking, EventKind::Broken, EventKind::Restored, EventKind::Lost];
    kinds.map(|kind| (kind, PUBLISHED[kind as usize].load(Ordering::Relaxed)))
}

/// Events that a queue holds at least before it merges.
const ROOM: usize = 1024;

/// A subscription to a guard's events. Each has a queue of its own, so two readers both see all.
/// May be read from any thread, without blocking ([`Events::try_next`]), by waiting
/// ([`Events::next_within`]), or when its descriptor is readable ([`AsFd`]; an eventfd, level
/// triggered: it is readable as long as there are events).
#[derive(Debug)]
pub struct Events {
    queue: Arc<Queue>,
}

#[derive(Debug)]
struct Queue {
    ready: EventFd,
    pending: Mutex<Pending>,
}

#[derive(Debug)]
struct Pending {
    events: VecDeque<Event>,
    room: usize,
}

/// All subscriptions; the guard publishes here.
#[derive(Debug, Default)]
pub(crate) struct Publisher {
    inner: Mutex<Subscribers>,
}

#[derive(Debug, Default)]
struct Subscribers {
    queues: Vec<Weak<Queue>>,
    regions: usize,
}

impl Publisher {
    /// A new subscription: it sees what is published from now on.
    pub fn subscribe(&self) -> Result<Events, Errno> {
        let ready = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
        let mut inner = lock(&self.inner);
        let room = room_for(inner.regions);
        let pending = Pending { events: VecDeque::with_capacity(room), room };
        let queue = Arc::new(Queue { ready, pending: Mutex::new(pending) });
        inner.queues.retain(|queue| queue.strong_count() > 0);
        inner.queues.push(Arc::downgrade(&queue));
        Ok(Events { queue })
    }

    /// Makes room for the events of `regions` regions, here and now, so that publishing need not.
    pub fn expect_regions(&self, regions: usize) {
        let mut inner = lock(&self.inner);
        inner.regions = regions;
        for queue in inner.queues.iter().filter_map(Weak::upgrade) {
            let mut pending = lock(&queue.pending);
            let room = room_for(regions).max(pending.room);
            let more = room.saturating_sub(pending.events.len());
            pending.events.reserve(more);
            pending.room = room;
        }
    }

    /// Hands an event to every subscription. Never waits for a reader.
    pub fn publish(&self, event: Event) {
        PUBLISHED[event.kind as usize].fetch_add(1, Ordering::Relaxed);
        let inner = lock(&self.inner);
        for queue in &inner.queues {
            if let Some(queue) = queue.upgrade() {
                lock(&queue.pending).push(event);
                // A full counter is readable all the same.
                let _ = queue.ready.write(1);
            }
        }
    }
}

impl Events {
    /// The oldest event, if there is one. Never blocks.
    pub fn try_next(&self) -> Option<Event> {
        let mut pending = lock(&self.queue.pending);
        let event = pending.events.pop_front();
        if pending.events.is_empty() {
            // Under the lock, so that no event is published in between.
            let _ = self.queue.ready.read();
        }
        event
    }

    /// The oldest event, waiting for one for at most `patience`.
    pub fn next_within(&self, patience: Duration) -> Option<Event> {
        let until = Instant::now() + patience;
        loop {
            if let Some(event) = self.try_next() {
                return Some(event);
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return None;
            }
            // Rounded up, or the last millisecond would be spent in a busy loop.
            let millis = left.as_millis().saturating_add(1);
            let timeout = PollTimeout::try_from(millis).unwrap_or(PollTimeout::MAX);
            let mut fds = [PollFd::new(self.as_fd(), PollFlags::POLLIN)];
            let _ = poll(&mut fds, timeout);
        }
    }

    /// Calls `each` for every event, on a thread of its own, until the guard is gone or `each`
    /// returns `false`.
    ///
    /// # Errors
    /// When no thread could be started.
    pub fn for_each(
        self,
        mut each: impl FnMut(Event) -> bool + Send + 'static,
    ) -> std::io::Result<std::thread::JoinHandle<()>> {
        std::thread::Builder::new().name("holdfast-events".to_owned()).spawn(move || {
            loop {
                match self.next_within(Duration::from_millis(200)) {
                    Some(event) if each(event) => {}
                    Some(_) => return,
                    None if Arc::weak_count(&self.queue) == 0 => return,
                    None => {}
                }
            }
        })
    }
}

impl AsFd for Events {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.queue.ready.as_fd()
    }
}

impl Pending {
    fn push(&mut self, event: Event) {
        if self.events.len() >= self.room {
            self.merge_one();
        }
        self.events.push_back(event);
    }

    /// Merges the oldest event that can be merged into the next of its region and kind. The later
    /// one keeps its place, so that what is read last of a region is what happened last.
    fn merge_one(&mut self) {
        let twin = |at: usize| {
            let first = self.events.get(at)?;
            let same = |e: &Event| e.region == first.region && e.kind == first.kind;
            (at + 1..self.events.len()).find(|&next| self.events.get(next).is_some_and(same))
        };
        let pair = (0..self.events.len()).find_map(|at| twin(at).map(|next| (at, next)));
        let Some((at, next)) = pair else { return };
        let Some(first) = self.events.get(at).copied() else { return };
        if let Some(second) = self.events.get_mut(next) {
            *second = first.merge(*second);
            self.events.remove(at);
        }
    }
}

/// More than every region's every kind, so that a full queue holds two that can be merged.
fn room_for(regions: usize) -> usize {
    ROOM.max(regions * EventKind::COUNT + 1)
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use holdfast_dax::notify::{Cause, NotifierKind};
    use proptest::prelude::*;

    use super::*;
    use crate::coherence::event::{Part, RegionId};

    fn event(region: u64, kind: EventKind, start: u64, end: u64) -> Event {
        Event {
            region: RegionId(region),
            kind,
            part: Part { start, end },
            named: None,
            cause: Cause::PunchHole,
            notifier: NotifierKind::GuardPage,
            pid: None,
            at: Instant::now(),
            timing: None,
            merged: 0,
        }
    }

    fn readable(events: &Events) -> bool {
        let mut fds = [PollFd::new(events.as_fd(), PollFlags::POLLIN)];
        poll(&mut fds, PollTimeout::ZERO).unwrap() == 1
    }

    #[test]
    fn the_descriptor_is_readable_while_there_are_events() {
        let publisher = Publisher::default();
        let events = publisher.subscribe().unwrap();
        assert!(!readable(&events));
        for start in 0..3 {
            publisher.publish(event(1, EventKind::Broken, start, start + 1));
        }
        for start in 0..3 {
            assert!(readable(&events));
            assert_eq!(events.try_next().unwrap().part.start, start);
        }
        assert!(!readable(&events));
        assert_eq!(events.try_next(), None);
        assert_eq!(events.next_within(Duration::from_millis(5)), None);
    }

    #[test]
    fn every_subscription_sees_every_event() {
        let publisher = Publisher::default();
        let (a, b) = (publisher.subscribe().unwrap(), publisher.subscribe().unwrap());
        let lost = || event_counts().iter().find(|(kind, _)| *kind == EventKind::Lost).map(|c| c.1);
        let before = lost();
        publisher.publish(event(1, EventKind::Lost, 0, 1));
        assert!(a.try_next().is_some() && b.try_next().is_some());
        // Other tests of this process may have published as well.
        assert!(lost() > before, "it is counted whoever reads it");
    }

    #[test]
    fn a_waiting_reader_and_a_callback_get_what_another_thread_publishes() {
        let publisher = Arc::new(Publisher::default());
        let events = publisher.subscribe().unwrap();
        let (send, receive) = std::sync::mpsc::channel();
        let seen = publisher.subscribe().unwrap().for_each(move |e| send.send(e).is_ok()).unwrap();
        let other = Arc::clone(&publisher);
        let thread = std::thread::spawn(move || {
            other.publish(event(7, EventKind::Breaking, 0, 1));
        });
        let patience = Duration::from_secs(10);
        assert_eq!(events.next_within(patience).unwrap().region, RegionId(7));
        assert_eq!(receive.recv_timeout(patience).unwrap().region, RegionId(7));
        thread.join().unwrap();
        drop(publisher);
        seen.join().unwrap();
    }

    #[test]
    fn different_causes_merge_to_several() {
        let first = event(1, EventKind::Broken, 0, 10);
        let later = Event { cause: Cause::CloneFrom, ..event(1, EventKind::Broken, 20, 30) };
        let both = first.merge(later);
        assert_eq!((both.part, both.merged), (Part { start: 0, end: 30 }, 1));
        assert_eq!(both.cause, Cause::Several);
        assert_eq!(first.merge(first).cause, Cause::PunchHole);
    }

    const KINDS: [EventKind; 4] =
        [EventKind::Breaking, EventKind::Broken, EventKind::Restored, EventKind::Lost];

    proptest! {
        /// However slowly it is read, a stream stays bounded, accounts for every event, and covers
        /// every part.
        #[test]
        fn a_slow_reader_sees_merged_parts_and_never_a_gap(
            pushes in proptest::collection::vec((0u64..3, 0usize..4, 0u64..1000), 0..200),
            room in 13usize..20,
        ) {
            let mut pending = Pending { events: VecDeque::new(), room };
            let mut covered: HashMap<(u64, EventKind), (u64, Part)> = HashMap::new();
            let mut last: HashMap<u64, Event> = HashMap::new();
            for (region, kind, start) in pushes {
                let event = event(region, KINDS[kind], start, start + 10);
                pending.push(event);
                prop_assert!(pending.events.len() <= room);
                let entry = covered.entry((region, event.kind)).or_insert((0, event.part));
                *entry = (entry.0 + 1, entry.1.hull(event.part));
                last.insert(region, event);
            }
            let mut seen: HashMap<(u64, EventKind), (u64, Part)> = HashMap::new();
            let mut newest: HashMap<u64, Event> = HashMap::new();
            for event in pending.events {
                let key = (event.region.0, event.kind);
                let entry = seen.entry(key).or_insert((0, event.part));
                *entry = (entry.0 + 1 + u64::from(event.merged), entry.1.hull(event.part));
                newest.insert(event.region.0, event);
            }
            prop_assert_eq!(covered, seen);
            for (region, event) in last {
                prop_assert_eq!(newest[&region].kind, event.kind, "the last word on {}", region);
            }
        }
    }
}
