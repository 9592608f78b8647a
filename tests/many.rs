//! Many queue pairs, several threads, and doorbells that overwrite each other: everything posted
//! is carried out, by a NIC that polls and by one that sleeps.

mod support;

use holdfast::{Access, DoorbellPage, QueuePair, QueuePairOptions, SendFlags};
use support::{Nics, POLLING_AND_SLEEPING, memory, next_completion, payload, settings};

const THREADS: usize = 4;
const QUEUE_PAIRS: usize = 64;
const ROUNDS: usize = 20;
const LEN: usize = 300;

#[test]
fn threads_that_ring_the_same_page_lose_nothing() {
    for setting in settings(&POLLING_AND_SLEEPING) {
        let nics = Nics::new(setting);
        std::thread::scope(|scope| {
            for thread in 0..THREADS {
                let (here, there) = (&nics.a, &nics.b);
                scope.spawn(move || one_thread(here, there, thread, None));
            }
        });
    }
}

#[test]
fn threads_with_a_page_each_ring_no_other() {
    let nics = Nics::new(support::Setting::OneProcessPolling);
    let pages: Vec<DoorbellPage> = (0..THREADS).map(|_| nics.a.doorbell_page().unwrap()).collect();
    let mut numbers: Vec<u32> = pages.iter().map(DoorbellPage::number).collect();
    numbers.sort_unstable();
    numbers.dedup();
    assert_eq!(numbers.len(), THREADS, "each its own");
    std::thread::scope(|scope| {
        for (thread, page) in pages.iter().enumerate() {
            let (here, there) = (&nics.a, &nics.b);
            scope.spawn(move || one_thread(here, there, thread, Some(page)));
        }
    });
}

/// Each queue pair writes to a place of its own, in rounds of all at once.
fn one_thread(
    here: &holdfast::Device,
    there: &holdfast::Device,
    thread: usize,
    page: Option<&DoorbellPage>,
) {
    let (pd_here, pd_there) =
        (here.protection_domain().unwrap(), there.protection_domain().unwrap());
    let options = QueuePairOptions { send_depth: 4, recv_depth: 1, ..Default::default() };
    let own = QueuePairOptions { page, ..options };
    let mut cq = match page {
        Some(page) => here.completion_queue_on(page, 1024).unwrap(),
        None => here.completion_queue(1024).unwrap(),
    };
    let cq_there = there.completion_queue(1024).unwrap();
    let source = pd_here.register(memory(QUEUE_PAIRS * LEN), Access::LOCAL_READ).unwrap();
    let target = pd_there.register(memory(QUEUE_PAIRS * LEN), Access::REMOTE_WRITE).unwrap();
    let mut pairs: Vec<(QueuePair, QueuePair)> = (0..QUEUE_PAIRS)
        .map(|_| {
            let mut qp = pd_here.queue_pair(&own, &cq, &cq).unwrap();
            let mut peer = pd_there.queue_pair(&options, &cq_there, &cq_there).unwrap();
            QueuePair::connect_pair(&mut qp, &mut peer).unwrap();
            (qp, peer)
        })
        .collect();
    for round in 0..ROUNDS {
        let bytes = payload((thread * ROUNDS + round) as u64, QUEUE_PAIRS * LEN);
        source.memory().write_at(0, &bytes).unwrap();
        for (index, (qp, _)) in pairs.iter_mut().enumerate() {
            let local = source.slice(index * LEN, LEN).unwrap();
            let addr = target.remote().addr + (index * LEN) as u64;
            let remote = holdfast::Remote { addr, rkey: target.rkey() };
            qp.write(index as u64, &[local], remote, SendFlags::SIGNALED).unwrap();
            qp.ring_sends();
        }
        let mut seen = [false; QUEUE_PAIRS];
        for _ in 0..QUEUE_PAIRS {
            let done = next_completion(&mut cq);
            assert!(done.is_success(), "{done:?}");
            assert!(!std::mem::replace(&mut seen[done.wr_id as usize], true), "{done:?}");
        }
        let mut arrived = vec![0; QUEUE_PAIRS * LEN];
        target.memory().read_at(0, &mut arrived).unwrap();
        assert!(arrived == bytes, "round {round}: a payload differs");
    }
}
