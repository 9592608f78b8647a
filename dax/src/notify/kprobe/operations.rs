//! Which operation a thread is in when it begins to wait.
//!
//! A thread that enters a file system on one of the known ways is remembered with what it wants;
//! when it then looks for pins, that is the operation. It looks again each time it is woken, and
//! some spin, so that one operation is told once for each file.

use std::ops::Range;

use super::meaning::Operation;
use crate::notify::Cause;

/// Threads remembered; with more under way at once, the oldest is forgotten, and its cause with it.
const THREADS: usize = 256;

/// How long, in microseconds, after it was last seen to wait, or was allowed to go on, a thread
/// that waits again is taken to be in the same operation.
const SAME: u64 = 1_000_000;

/// A file as the kernel knows it: `s_dev` and `i_ino`.
pub type Inode = (u32, u64);

/// What threads are about to do.
#[derive(Debug)]
pub struct Operations {
    threads: Vec<Thread>,
}

#[derive(Debug)]
struct Thread {
    tid: i32,
    files: [Side; 2],
    /// When it was last seen, in microseconds of CLOCK_MONOTONIC.
    seen: u64,
}

#[derive(Debug, Clone)]
struct Side {
    inode: Option<Inode>,
    cause: Cause,
    range: Option<Range<u64>>,
    told: bool,
}

impl Operations {
    /// None yet; all memory that is ever needed is allocated now.
    pub fn new() -> Self {
        Self { threads: Vec::with_capacity(THREADS) }
    }

    /// A thread begins this, on one file or two.
    pub fn begin(
        &mut self,
        tid: i32,
        micros: u64,
        files: [Option<Inode>; 2],
        operation: Operation,
    ) {
        let side = |inode, (cause, range)| Side { inode, cause, range, told: false };
        let [first, second] = files;
        let files = [side(first, operation.first), side(second, operation.second)];
        self.remember(Thread { tid, files, seen: micros });
    }

    /// A thread waits for a file's pins. Gives back the operation to tell of; none if that has
    /// been told.
    pub fn wait(
        &mut self,
        tid: i32,
        micros: u64,
        inode: Inode,
    ) -> Option<(Cause, Option<Range<u64>>)> {
        let found = self.threads.iter_mut().find(|thread| thread.tid == tid);
        if let Some(thread) = found
            && let Some(side) = thread.files.iter_mut().find(|side| side.inode == Some(inode))
        {
            let again = side.told && micros.saturating_sub(thread.seen) < SAME;
            thread.seen = thread.seen.max(micros);
            if again {
                return None;
            }
            if !side.told {
                side.told = true;
                return Some((side.cause, side.range.clone()));
            }
            // Another operation, whose beginning was not seen.
            side.cause = Cause::Unknown;
            side.range = None;
            return Some((Cause::Unknown, None));
        }
        let side = |inode| Side { inode, cause: Cause::Unknown, range: None, told: true };
        self.remember(Thread { tid, files: [side(Some(inode)), side(None)], seen: micros });
        Some((Cause::Unknown, None))
    }

    /// Those that wait for this file may go on: they will be seen looking for its pins once more.
    pub fn allow(&mut self, micros: u64, inode: Inode) {
        for thread in &mut self.threads {
            if thread.files.iter().any(|side| side.inode == Some(inode) && side.told) {
                thread.seen = thread.seen.max(micros);
            }
        }
    }

    fn remember(&mut self, thread: Thread) {
        if let Some(same) = self.threads.iter_mut().find(|other| other.tid == thread.tid) {
            *same = thread;
        } else if self.threads.len() < THREADS {
            self.threads.push(thread);
        } else if let Some(oldest) = self.threads.iter_mut().min_by_key(|other| other.seen) {
            *oldest = thread;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: Inode = (1, 10);
    const B: Inode = (1, 11);

    fn clone_a_to_b() -> Operation {
        Operation { first: (Cause::CloneFrom, Some(0..5)), second: (Cause::CloneOnto, Some(6..11)) }
    }

    fn punch() -> Operation {
        Operation { first: (Cause::PunchHole, Some(3..4)), second: (Cause::Unknown, None) }
    }

    #[test]
    fn an_operation_is_told_once_for_each_file() {
        let mut operations = Operations::new();
        operations.begin(7, 100, [Some(A), Some(B)], clone_a_to_b());
        assert_eq!(operations.wait(7, 101, A), Some((Cause::CloneFrom, Some(0..5))));
        assert_eq!(operations.wait(7, 102, A), None);
        assert_eq!(operations.wait(7, 103, B), Some((Cause::CloneOnto, Some(6..11))));
        assert_eq!(operations.wait(7, 104, B), None);
        // The next operation of the same thread.
        operations.begin(7, 105, [Some(A), None], punch());
        assert_eq!(operations.wait(7, 106, A), Some((Cause::PunchHole, Some(3..4))));
    }

    #[test]
    fn threads_are_told_apart() {
        let mut operations = Operations::new();
        operations.begin(7, 100, [Some(A), None], punch());
        operations.begin(8, 100, [Some(A), Some(B)], clone_a_to_b());
        assert_eq!(operations.wait(7, 101, A), Some((Cause::PunchHole, Some(3..4))));
        assert_eq!(operations.wait(8, 101, A), Some((Cause::CloneFrom, Some(0..5))));
    }

    #[test]
    fn whoever_comes_on_no_known_way_is_told_as_unknown() {
        let mut operations = Operations::new();
        operations.begin(7, 100, [Some(A), None], punch());
        assert_eq!(operations.wait(7, 101, B), Some((Cause::Unknown, None)), "another file");
        assert_eq!(operations.wait(9, 101, A), Some((Cause::Unknown, None)), "another thread");
        assert_eq!(operations.wait(9, 102, A), None);
    }

    #[test]
    fn a_long_wait_that_ends_is_still_the_same_operation() {
        let mut operations = Operations::new();
        operations.begin(7, 100, [Some(A), None], punch());
        assert!(operations.wait(7, 101, A).is_some());
        operations.allow(30 * SAME, A);
        assert_eq!(operations.wait(7, 30 * SAME + 5, A), None);
        // Long after, without having been seen to begin: something else.
        assert_eq!(operations.wait(7, 60 * SAME, A), Some((Cause::Unknown, None)));
    }

    #[test]
    fn more_threads_than_are_remembered_lose_their_cause_but_no_notice() {
        let mut operations = Operations::new();
        for tid in 0..THREADS as i32 + 1 {
            operations.begin(tid, tid as u64, [Some(A), None], punch());
        }
        assert_eq!(operations.wait(0, 999, A), Some((Cause::Unknown, None)));
        assert_eq!(operations.wait(THREADS as i32, 999, A), Some((Cause::PunchHole, Some(3..4))));
        assert_eq!(operations.threads.capacity(), THREADS);
    }
}
