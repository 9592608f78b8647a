//! Eight threads post to one send queue: every request is carried out once, as it was posted, on a
//! NIC that polls and on one that sleeps.

mod support;

use std::sync::atomic::{AtomicUsize, Ordering};

use holdfast::{Access, PostError, Remote, SendFlags};
use support::{POLLING_AND_SLEEPING, Pair, options, settings};

const THREADS: usize = 8;
/// Requests of each thread; the ring goes round some thirty times.
const REQUESTS: usize = 500;

/// What a thread's request number carries.
fn word(thread: usize, request: usize) -> u64 {
    (thread as u64 + 1) << 32 | request as u64
}

#[test]
fn every_request_of_every_thread_is_carried_out_once() {
    for setting in settings(&POLLING_AND_SLEEPING) {
        let Pair { a, b, nics } =
            Pair::with(setting, THREADS * REQUESTS * 8, Access::ALL, &options());
        let (remote, mut cq) = (b.at(0), a.cq);
        for thread in 0..THREADS {
            for request in 0..REQUESTS {
                let at = (thread * REQUESTS + request) * 8;
                a.region.memory().write_at(at, &word(thread, request).to_ne_bytes()).unwrap();
            }
        }
        let qp = a.qp.share(&[&a.region]).unwrap();
        let (posted, region) = (AtomicUsize::new(0), &a.region);
        let one_thread = |thread: usize| {
            for request in 0..REQUESTS {
                let index = thread * REQUESTS + request;
                let local = [region.slice(index * 8, 8).unwrap()];
                let remote = Remote { addr: remote.addr + (index * 8) as u64, ..remote };
                // Some ask for no completion: they are retired by those behind them.
                let quiet = request % 3 == 0 && request + 1 < REQUESTS;
                let flags = if quiet { SendFlags::NONE } else { SendFlags::SIGNALED };
                loop {
                    match qp.write(index as u64, &local, remote, flags) {
                        Ok(()) => break,
                        Err(PostError::QueueFull { .. }) => std::thread::yield_now(),
                        Err(error) => panic!("{error}"),
                    }
                }
                posted.fetch_add(1, Ordering::Relaxed);
            }
        };
        // The last of each thread, and two of three before it.
        let expected = THREADS * (0..REQUESTS).filter(|r| r % 3 != 0 || r + 1 == REQUESTS).count();
        let mut seen = vec![false; THREADS * REQUESTS];
        let mut last = [None; THREADS];
        std::thread::scope(|scope| {
            let one_thread = &one_thread;
            for thread in 0..THREADS {
                scope.spawn(move || one_thread(thread));
            }
            for _ in 0..expected {
                let done = support::next_completion(&mut cq);
                assert!(done.is_success(), "{done:?}");
                let index = done.wr_id as usize;
                assert!(!std::mem::replace(&mut seen[index], true), "request {index} twice");
                let last = &mut last[index / REQUESTS];
                assert!(*last < Some(index), "{index} of a thread after {last:?}");
                *last = Some(index);
            }
        });
        assert_eq!(posted.load(Ordering::Relaxed), THREADS * REQUESTS);
        let mut arrived = vec![0; THREADS * REQUESTS * 8];
        b.region.memory().read_at(0, &mut arrived).unwrap();
        for (index, bytes) in arrived.chunks_exact(8).enumerate() {
            let expected = word(index / REQUESTS, index % REQUESTS);
            assert_eq!(bytes, expected.to_ne_bytes(), "request {index}");
        }
        drop((qp, b.qp, nics));
    }
}

#[test]
fn a_region_that_the_queue_was_not_given_is_refused() {
    let Pair { a, b, nics: _nics } = Pair::new(support::Setting::OneProcessPolling, 4096);
    let other = a.pd.register(support::memory(4096), Access::ALL).unwrap();
    let (remote, flags) = (b.at(0), SendFlags::SIGNALED);
    let qp = a.qp.share(&[&a.region]).unwrap();
    let refused = qp.write(1, &[other.slice(0, 8).unwrap()], remote, flags);
    assert_eq!(refused, Err(PostError::RegionNotHeld));
    assert_eq!(qp.outstanding_sends(), 0);
    assert!(a.region.clone().deregister().is_err(), "the queue holds what it was given");
}
