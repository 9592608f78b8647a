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
    posted: u32,
}

#[derive(Debug)]
struct Hold<T> {
    what: Arc<T>,
    /// Count of requests posted when the last one that needs it had been posted.
    until: u32,
}

impl<T> Default for Holds<T> {
    fn default() -> Self {
        Self { entries: Vec::new(), last: 0, posted: 0 }
    }
}

impl<T> Holds<T> {
    /// The request about to be posted needs `what`. Allocates only when the list of things
    /// needed at the same time grows. `outstanding` counts requests posted and not retired.
    #[inline(always)]
    pub(crate) fn need(&mut self, what: &Arc<T>, outstanding: impl FnOnce() -> u32) {
        let until = self.posted.wrapping_add(1);
        match self.entries.get_mut(self.last) {
            Some(hold) if Arc::ptr_eq(&hold.what, what) => hold.until = until,
            _ => self.need_other(what, until, outstanding()),
        }
    }

    /// The request was posted. (One that was refused leaves its needs one request too long.)
    #[inline(always)]
    pub(crate) fn posted(&mut self) {
        self.posted = self.posted.wrapping_add(1);
    }

    #[cold]
    #[inline(never)]
    fn need_other(&mut self, what: &Arc<T>, until: u32, outstanding: u32) {
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

    /// Gives up what no outstanding request needs. A hold of the request being built (`need`
    /// before `posted`) stays.
    pub(crate) fn sweep(&mut self, outstanding: u32) {
        let retired = self.posted.wrapping_sub(outstanding);
        self.entries.retain(|hold| {
            // Positions lie within half the circle of each other: queues are far shallower.
            hold.until.wrapping_sub(retired) as i32 > 0
        });
        self.last = 0;
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
        let retired = self.posted.wrapping_sub(outstanding);
        let hold = self.entries.iter().find(|hold| Arc::ptr_eq(&hold.what, what));
        hold.map_or(0, |hold| hold.until.wrapping_sub(retired))
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
        holds.need(&a, || 0);
        holds.posted();
        holds.need(&b, || 1);
        holds.posted();
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
        holds.need(&region, || 0);
        holds.posted();
        drop(region);
        holds.sweep(1);
        assert!(watch.upgrade().is_some(), "still outstanding");
        holds.sweep(0);
        assert!(watch.upgrade().is_none());
    }

    proptest! {
        /// Against a model that keeps every outstanding request.
        #[test]
        fn nothing_an_outstanding_request_needs_is_given_up(
            start: u32,
            steps in prop::collection::vec((0usize..6, 0u32..4), 1..200),
        ) {
            let things: Vec<Arc<usize>> = (0..6).map(Arc::new).collect();
            let mut holds = Holds { posted: start, ..Holds::default() };
            let mut outstanding = std::collections::VecDeque::new();
            for (thing, retire) in steps {
                holds.need(&things[thing], || outstanding.len() as u32);
                holds.posted();
                outstanding.push_back(thing);
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
