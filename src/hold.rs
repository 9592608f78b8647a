//! Which regions a queue still needs: how a region outlives the requests that name it.
//!
//! A queue keeps a reference to every region that one of its outstanding requests names. A post
//! costs one comparison and one count for that, because a queue tends to name the region it named
//! last: how long that one is needed is only written down when another comes along, which searches
//! the (short) list. A reference is given up when the completion queue has retired the last request
//! that named the region, which is looked at when another region comes along and when somebody
//! asks. So dropping the last handle of a region never takes memory from under a request: it is
//! deregistered when the request is done.

use std::sync::Arc;

/// References that a queue holds, each with the position of the last request that needs it.
#[derive(Debug)]
pub(crate) struct Holds<T> {
    /// Address of what every request named since another one was named; it is in the list. 0 if
    /// the last request named nothing, or several.
    current: usize,
    /// Wide enough never to wrap: an entry may stay for as long as nothing else comes along.
    posted: u64,
    entries: Vec<Hold<T>>,
}

#[derive(Debug)]
struct Hold<T> {
    what: Arc<T>,
    /// Count of requests posted when the last one that needs it had been posted. Not up to date
    /// for the current one.
    until: u64,
}

impl<T> Default for Holds<T> {
    fn default() -> Self {
        Self { current: 0, posted: 0, entries: Vec::new() }
    }
}

fn address<T>(what: &Arc<T>) -> usize {
    Arc::as_ptr(what).addr()
}

impl<T> Holds<T> {
    /// A request was posted that needs `what`. Call this only when the queue has taken the request:
    /// one that was refused needs nothing. Allocates only when the list of things needed at the
    /// same time grows. `outstanding` counts requests posted and not retired, this one among them.
    #[inline(always)]
    pub(crate) fn posted(&mut self, what: &Arc<T>, outstanding: impl FnOnce() -> u32) {
        if address(what) != self.current {
            self.switch(what, outstanding());
        }
        self.posted += 1;
    }

    /// A request was posted that needs nothing.
    #[inline(always)]
    pub(crate) fn posted_alone(&mut self) {
        if self.current != 0 {
            self.settle();
        }
        self.posted += 1;
    }

    /// A request was posted that needs all these.
    #[inline(never)]
    pub(crate) fn posted_all<'a>(&mut self, all: impl Iterator<Item = &'a Arc<T>>, outstanding: u32)
    where
        T: 'a,
    {
        self.posted_alone();
        for what in all {
            self.hold(what, self.posted, outstanding);
        }
    }

    /// Holds `what` until [`Holds::clear`], for queues whose requests complete in any order.
    #[inline(always)]
    pub(crate) fn keep(&mut self, what: &Arc<T>) {
        if address(what) != self.current {
            self.settle();
            self.hold(what, u64::MAX, 0);
            self.current = address(what);
        }
    }

    /// The request that is about to be counted names another thing than the one before.
    #[cold]
    #[inline(never)]
    fn switch(&mut self, what: &Arc<T>, outstanding: u32) {
        self.settle();
        self.posted += 1;
        self.hold(what, self.posted, outstanding);
        self.posted -= 1;
        self.current = address(what);
    }

    /// Writes down how long the current thing is needed, as far as is known.
    fn settle(&mut self) {
        let current = std::mem::take(&mut self.current);
        let hold = self.entries.iter_mut().find(|hold| address(&hold.what) == current);
        if let Some(hold) = hold {
            hold.until = hold.until.max(self.posted);
        }
    }

    fn hold(&mut self, what: &Arc<T>, until: u64, outstanding: u32) {
        let found = self.entries.iter_mut().find(|hold| Arc::ptr_eq(&hold.what, what));
        if let Some(hold) = found {
            hold.until = until;
            return;
        }
        // Make room first: what is not needed any more goes.
        if self.entries.len() == self.entries.capacity() {
            self.sweep(outstanding);
        }
        self.entries.push(Hold { what: Arc::clone(what), until });
    }

    /// Gives up what no outstanding request needs.
    pub(crate) fn sweep(&mut self, outstanding: u32) {
        self.settle();
        let retired = self.retired(outstanding);
        self.entries.retain(|hold| hold.until > retired);
    }

    /// Requests that have been retired. (More may be outstanding than were posted through here:
    /// those name nothing that is held.)
    fn retired(&self, outstanding: u32) -> u64 {
        self.posted.saturating_sub(u64::from(outstanding))
    }

    /// Gives up everything: the queue has no outstanding requests and starts over.
    pub(crate) fn clear(&mut self) {
        self.entries.clear();
        (self.current, self.posted) = (0, 0);
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
        holds.posted(&a, || 1);
        holds.posted(&b, || 2);
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
        holds.posted(&region, || 1);
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
            holds.posted(thing, || 1);
        }
        for passed in [1 << 31, 1 << 32, 1 << 40] {
            holds.posted = passed;
            holds.posted(&often, || 1);
            assert_eq!((holds.needing(&often, 1), holds.needing(&once, 1)), (1, 0), "{passed}");
        }
    }

    #[test]
    fn requests_that_name_nothing_do_not_prolong_what_the_one_before_named() {
        let mut holds = Holds::default();
        let region = Arc::new(());
        holds.posted(&region, || 1);
        holds.posted_alone();
        holds.posted_alone();
        assert_eq!((holds.needing(&region, 3), holds.needing(&region, 2)), (1, 0));
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
        fn what_is_held_is_what_an_outstanding_request_needs(
            start in 0..u64::MAX / 2,
            steps in prop::collection::vec((prop::collection::vec(0usize..6, 0..4), 0u32..4), 1..200),
        ) {
            let things: Vec<Arc<usize>> = (0..6).map(Arc::new).collect();
            let mut holds = Holds { posted: start, ..Holds::default() };
            let mut outstanding = std::collections::VecDeque::new();
            for (named, retire) in steps {
                outstanding.push_back(named.clone());
                let count = outstanding.len() as u32;
                match named.as_slice() {
                    [] => holds.posted_alone(),
                    [one] => holds.posted(&things[*one], || count),
                    all => holds.posted_all(all.iter().map(|one| &things[*one]), count),
                }
                for _ in 0..retire {
                    outstanding.pop_front();
                }
                for needed in outstanding.iter().flatten() {
                    prop_assert!(Arc::strong_count(&things[*needed]) == 2);
                }
            }
            holds.sweep(outstanding.len() as u32);
            for (i, thing) in things.iter().enumerate() {
                let held = Arc::strong_count(thing) == 2;
                let needed = outstanding.iter().flatten().any(|one| *one == i);
                prop_assert_eq!(held, needed, "thing {}", i);
            }
        }
    }
}
