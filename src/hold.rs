//! Which regions a queue still needs: how a region outlives the requests that name it.
//!
//! A queue keeps a reference to every region that one of its outstanding requests names. A post
//! costs one comparison and one store for that, because a queue tends to name the region it named
//! last; only a change of region searches the (short) list. A reference is given up when the
//! completion queue has retired the last request that named the region, which is looked at when
//! another region comes along and when somebody asks. So dropping the last handle of a region
//! never takes memory from under a request: it is deregistered when the request is done.

use std::sync::Arc;

/// References that a queue holds, each with the position of the last request that needs it.
#[derive(Debug)]
pub(crate) struct Holds<T> {
    entries: Vec<Hold<T>>,
    last: usize,
    /// Wide enough never to wrap: an entry may stay for as long as nothing else comes along.
    posted: u64,
}

#[derive(Debug)]
struct Hold<T> {
    what: Arc<T>,
    /// Count of requests posted when the last one that needs it had been posted.
    until: u64,
}

impl<T> Default for Holds<T> {
    fn default() -> Self {
        Self { entries: Vec::new(), last: 0, posted: 0 }
    }
}

impl<T> Holds<T> {
    /// A request was posted. Call it before [`Holds::need`], and only when the queue has taken the
    /// request: one that was refused needs nothing.
    #[inline(always)]
    pub(crate) fn posted(&mut self) {
        self.posted += 1;
    }

    /// The request that was just posted needs `what`. Allocates only when the list of things
    /// needed at the same time grows. `outstanding` counts requests posted and not retired, this
    /// one among them.
    #[inline(always)]
    pub(crate) fn need(&mut self, what: &Arc<T>, outstanding: impl FnOnce() -> u32) {
        self.hold(what, self.posted, outstanding);
    }

    /// Holds `what` until [`Holds::clear`], for queues whose requests complete in any order.
    #[inline(always)]
    pub(crate) fn keep(&mut self, what: &Arc<T>) {
        self.hold(what, u64::MAX, || 0);
    }

    #[inline(always)]
    fn hold(&mut self, what: &Arc<T>, until: u64, outstanding: impl FnOnce() -> u32) {
        match self.entries.get_mut(self.last) {
            Some(hold) if Arc::ptr_eq(&hold.what, what) => hold.until = until,
            _ => self.hold_other(what, until, outstanding()),
        }
    }

    #[cold]
    #[inline(never)]
    fn hold_other(&mut self, what: &Arc<T>, until: u64, outstanding: u32) {
        let found = self.entries.iter().position(|hold| Arc::ptr_eq(&hold.what, what));
        if let Some(at) = found {
            self.entries[at].until = until;
            self.last = at;
            return;
        }
        // Make room first: what is not needed any more goes.
        if self.entries.len() == self.entries.capacity() {
            self.sweep(outstanding);
        }
        self.entries.push(Hold { what: Arc::clone(what), until });
        self.last = self.entries.len() - 1;
    }

    /// Gives up what no outstanding request needs.
    pub(crate) fn sweep(&mut self, outstanding: u32) {
        let retired = self.retired(outstanding);
        self.entries.retain(|hold| hold.until > retired);
        self.last = 0;
    }

    /// Requests that have been retired. (More may be outstanding than were posted through here:
    /// those name nothing that is held.)
    fn retired(&self, outstanding: u32) -> u64 {
        self.posted.saturating_sub(u64::from(outstanding))
    }

    /// Gives up everything: the queue has no outstanding requests and starts over.
    pub(crate) fn clear(&mut self) {
        self.entries.clear();
        self.last = 0;
        self.posted = 0;
    }

    /// Requests that may still need `what`, if it is held.
    pub(crate) fn needing(&mut self, what: &Arc<T>, outstanding: u32) -> u32 {
        self.sweep(outstanding);
        let retired = self.retired(outstanding);
        let hold = self.entries.iter().find(|hold| Arc::ptr_eq(&hold.what, what));
        hold.map_or(0, |hold| u32::try_from(hold.until - retired).unwrap_or(u32::MAX))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_thing_is_held_until_its_last_request_is_retired() {
        let mut holds = Holds::default();
        let (a, b) = (Arc::new('a'), Arc::new('b'));
        holds.posted();
        holds.need(&a, || 1);
        holds.posted();
        holds.need(&b, || 2);
        assert_eq!((Arc::strong_count(&a), Arc::strong_count(&b)), (2, 2));
        assert_eq!((holds.needing(&a, 2), holds.needing(&b, 2)), (1, 2));
        assert_eq!((holds.needing(&a, 1), holds.needing(&b, 1)), (0, 1));
        assert_eq!((Arc::strong_count(&a), Arc::strong_count(&b)), (1, 2));
        holds.sweep(0);
        assert_eq!(Arc::strong_count(&b), 1);
    }

    #[test]
    fn a_handle_that_is_dropped_lives_on_in_the_queue() {
        let mut holds = Holds::default();
        let region = Arc::new(());
        let watch = Arc::downgrade(&region);
        holds.posted();
        holds.need(&region, || 1);
        drop(region);
        holds.sweep(1);
        assert!(watch.upgrade().is_some(), "still outstanding");
        holds.sweep(0);
        assert!(watch.upgrade().is_none());
    }

    #[test]
    fn a_thing_used_once_is_not_needed_again_however_many_requests_follow() {
        let mut holds = Holds::default();
        let (once, often) = (Arc::new('a'), Arc::new('b'));
        for thing in [&once, &often] {
            holds.posted();
            holds.need(thing, || 1);
        }
        for passed in [1 << 31, 1 << 32, 1 << 40] {
            holds.posted = passed;
            holds.posted();
            holds.need(&often, || 1);
            assert_eq!((holds.needing(&often, 1), holds.needing(&once, 1)), (1, 0), "{passed}");
        }
    }

    #[test]
    fn what_is_kept_goes_only_with_everything() {
        let mut holds = Holds::default();
        let things: Vec<Arc<usize>> = (0..20).map(Arc::new).collect();
        for thing in things.iter().chain(&things) {
            holds.keep(thing);
        }
        holds.sweep(0);
        assert!(things.iter().all(|thing| Arc::strong_count(thing) == 2));
        holds.clear();
        assert!(things.iter().all(|thing| Arc::strong_count(thing) == 1));
    }

    proptest! {
        /// Against a model that keeps every outstanding request.
        #[test]
        fn nothing_an_outstanding_request_needs_is_given_up(
            start in 0..u64::MAX / 2,
            steps in prop::collection::vec((0usize..6, 0u32..4), 1..200),
        ) {
            let things: Vec<Arc<usize>> = (0..6).map(Arc::new).collect();
            let mut holds = Holds { posted: start, ..Holds::default() };
            let mut outstanding = std::collections::VecDeque::new();
            for (thing, retire) in steps {
                outstanding.push_back(thing);
                holds.posted();
                holds.need(&things[thing], || outstanding.len() as u32);
                for _ in 0..retire {
                    outstanding.pop_front();
                }
                for needed in &outstanding {
                    prop_assert!(Arc::strong_count(&things[*needed]) == 2);
                }
            }
            holds.sweep(outstanding.len() as u32);
            for (i, thing) in things.iter().enumerate() {
                let held = Arc::strong_count(thing) == 2;
                prop_assert_eq!(held, outstanding.contains(&i), "thing {}", i);
            }
        }
    }
}
