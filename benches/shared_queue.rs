//! Several threads that post 8-byte WRITEs: to one shared queue, to one queue under a mutex, and each
//! to a queue of its own, with a doorbell page of its own. In the same run, on the same emulated NIC; one more thread polls the one
//! completion queue.
//!
//! Read the three as ratios: on a machine with fewer processors than threads (posters, the poller,
//! the NIC) all of them mostly measure the scheduler.
//!
//! ```text
//! cargo bench --bench shared_queue -- --quick
//! ```

use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use criterion::{BenchmarkId, Criterion, Throughput};
use holdfast::{
    Access, Completion, CompletionQueue, Device, DoorbellPage, EmulatedNic, EmulatedOptions,
    Memory, MemoryRegion, Populate, PostError, ProtectionDomain, QueuePair, QueuePairOptions,
    Remote, SendFlags, Source,
};

/// Sends that a queue may have outstanding.
const DEPTH: u32 = 256;

fn main() {
    let mut criterion = Criterion::default()
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_secs(2))
        .sample_size(10)
        .configure_from_args();
    let mut group = criterion.benchmark_group("post from threads");
    group.throughput(Throughput::Elements(1));
    for threads in [1, 2, 4] {
        let mut ends = Ends::start();
        let shared = ends.queue_pairs(1).remove(0).share(&[]).expect("it is connected");
        group.bench_function(BenchmarkId::new("shared queue", threads), |bencher| {
            bencher.iter_custom(|requests| {
                let post = |_, id, remote| shared.write_inline(id, &PAYLOAD, remote, SIGNALED);
                ends.run(threads, requests, post)
            });
        });
        let mut ends = Ends::start();
        let locked = Mutex::new(ends.queue_pairs(1).remove(0));
        group.bench_function(BenchmarkId::new("mutex", threads), |bencher| {
            bencher.iter_custom(|requests| {
                ends.run(threads, requests, post_locked(&[&locked], false))
            });
        });
        let mut ends = Ends::start();
        let own: Vec<Mutex<QueuePair>> = ends.own(threads).into_iter().map(Mutex::new).collect();
        let own: Vec<&Mutex<QueuePair>> = own.iter().collect();
        // Its mutex is never contended, which costs little beside a doorbell.
        group.bench_function(BenchmarkId::new("queue of its own", threads), |bencher| {
            bencher.iter_custom(|requests| ends.run(threads, requests, post_locked(&own, true)));
        });
    }
    group.finish();
    criterion.final_summary();
}

const PAYLOAD: [u8; 8] = [0x5a; 8];
const SIGNALED: SendFlags = SendFlags::SIGNALED;

/// Posts under a lock: each thread to its own queue pair, or all to the first.
fn post_locked<'a>(
    queues: &'a [&'a Mutex<QueuePair>],
    own: bool,
) -> impl Fn(usize, u64, Remote) -> Result<(), PostError> + Sync + 'a {
    move |thread, id, remote| {
        let queue = queues[if own { thread } else { 0 }];
        let mut queue = queue.lock().unwrap_or_else(PoisonError::into_inner);
        queue.write_inline(id, &PAYLOAD, remote, SIGNALED)?;
        queue.ring_sends();
        Ok(())
    }
}

/// A device that writes to its own memory.
struct Ends {
    cq: CompletionQueue,
    // Its own, so that the peers' room is not taken from the other.
    peers_cq: CompletionQueue,
    peers: Vec<QueuePair>,
    target: MemoryRegion,
    pd: ProtectionDomain,
    device: Device,
}

impl Ends {
    fn start() -> Self {
        let options = EmulatedOptions { poll: true, ..EmulatedOptions::default() };
        let device = EmulatedNic::start(options).expect("a NIC").open(0).expect("a device");
        let pd = device.protection_domain().expect("a protection domain");
        let memory = Memory::open(&Source::Memfd, 4096, Populate::Yes).expect("memory");
        let target = pd.register(memory, Access::ALL).expect("a region");
        let cq = device.completion_queue(4096).expect("a completion queue");
        let peers_cq = device.completion_queue(4096).expect("another");
        Self { cq, peers_cq, peers: Vec::new(), target, pd, device }
    }

    /// Connected queue pairs that complete into `cq`.
    fn queue_pairs(&mut self, count: usize) -> Vec<QueuePair> {
        (0..count).map(|_| self.queue_pair(None)).collect()
    }

    /// The same, each with a doorbell page of its own.
    fn own(&mut self, count: usize) -> Vec<QueuePair> {
        let page = |_| self.device.doorbell_page().expect("a doorbell page");
        let pages: Vec<DoorbellPage> = (0..count).map(page).collect();
        pages.iter().map(|page| self.queue_pair(Some(page))).collect()
    }

    fn queue_pair(&mut self, page: Option<&DoorbellPage>) -> QueuePair {
        let options = QueuePairOptions {
            send_depth: DEPTH,
            recv_depth: 1,
            inline: 8,
            page,
            ..QueuePairOptions::default()
        };
        let make = |cq| self.pd.queue_pair(&options, cq, cq).expect("a queue pair");
        let (mut qp, mut peer) = (make(&self.cq), make(&self.peers_cq));
        QueuePair::connect_pair(&mut qp, &mut peer).expect("a connection");
        self.peers.push(peer);
        qp
    }

    /// Time until so many requests, shared among the threads, are posted and have completed.
    fn run(
        &mut self,
        threads: usize,
        requests: u64,
        post: impl Fn(usize, u64, Remote) -> Result<(), PostError> + Sync,
    ) -> Duration {
        let remote = Remote { addr: self.target.remote().addr, rkey: self.target.rkey() };
        let each = requests.div_ceil(threads as u64);
        let mut out = [Completion::default(); 32];
        let start = Instant::now();
        thread::scope(|scope| {
            let post = &post;
            for thread in 0..threads {
                scope.spawn(move || {
                    let remote = Remote { addr: remote.addr + 64 * thread as u64, ..remote };
                    for id in 0..each {
                        while let Err(error) = post(thread, id, remote) {
                            assert!(matches!(error, PostError::QueueFull { .. }), "{error}");
                            thread::yield_now();
                        }
                    }
                });
            }
            let mut left = each * threads as u64;
            while left > 0 {
                let count = self.cq.poll(&mut out).expect("a sound queue");
                assert!(out[..count].iter().all(Completion::is_success));
                left -= count as u64;
                if count == 0 {
                    thread::yield_now();
                }
            }
        });
        start.elapsed().mul_f64(requests as f64 / (each * threads as u64) as f64)
    }
}
