//! Time per operation against the emulated NIC, beside what the hardware itself can do.
//!
//! The NIC runs in this process, its working thread polling on a processor of its own; the
//! measuring thread has another. In the same run, on the same two processors, a cache line goes
//! back and forth and a plain copy is made. Read the operations as multiples of these two: the
//! figures themselves differ several times between machines.
//!
//! ```text
//! cargo bench --bench latency              all of it
//! cargo bench --bench latency -- --quick   less exact, under a minute
//! cargo bench --bench latency -- write     only what has "write" in its name
//! ```

use std::hint::{black_box, spin_loop};
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use criterion::{Criterion, Throughput};
use holdfast::{
    Access, Completion, CompletionQueue, EmulatedNic, EmulatedOptions, Memory, MemoryRegion,
    Populate, QueuePair, QueuePairOptions, Remote, SendFlags, Slice, Source,
};
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;

/// Bytes of a large message.
const LARGE: usize = 64 << 10;
/// Requests posted with one doorbell.
const BATCH: u64 = 32;
/// One of so many unobserved requests is signalled.
const SIGNAL_INTERVAL: u64 = 16;
/// Looks at memory before a wait is given up: more than a second on any machine.
const PATIENCE: u64 = 1 << 28;

fn main() {
    let mut criterion = Criterion::default()
        .warm_up_time(Duration::from_secs(1))
        .measurement_time(Duration::from_secs(3))
        .configure_from_args();
    let cpus = Cpus::choose();
    // Before the NIC starts, whose thread never sleeps.
    baselines(&mut criterion, cpus);
    operations(&mut criterion, cpus);
    criterion.final_summary();
}

/// Where the measuring thread and the NIC run; `None` on a machine with one processor.
#[derive(Debug, Clone, Copy)]
struct Cpus(Option<(usize, usize)>);

impl Cpus {
    /// The last two that this process may use: the first ones tend to take the interrupts.
    fn choose() -> Self {
        let set = sched_getaffinity(Pid::from_raw(0)).expect("the processors allowed");
        let allowed: Vec<usize> =
            (0..CpuSet::count()).filter(|cpu| set.is_set(*cpu) == Ok(true)).collect();
        match *allowed.as_slice() {
            [.., nic, bench] => Self(Some((bench, nic))),
            _ => Self(None),
        }
    }
}

/// Binds the calling thread to one processor; gives the processors it could use before.
fn pin(cpu: usize) -> CpuSet {
    let before = sched_getaffinity(Pid::from_raw(0)).expect("the processors allowed");
    let mut set = CpuSet::new();
    set.set(cpu).expect("a processor's number");
    sched_setaffinity(Pid::from_raw(0), &set).expect("a processor that this process may use");
    before
}

/// What the hardware can do: a cache line's round trip between two processors, and a copy.
fn baselines(criterion: &mut Criterion, cpus: Cpus) {
    let Some((bench, nic)) = cpus.0 else {
        eprintln!("one processor: no cache line travels, and the NIC has none of its own");
        return;
    };
    let before = pin(bench);
    let mut group = criterion.benchmark_group("baseline");
    let line = Line(AtomicU64::new(0));
    let word = &line.0;
    thread::scope(|scope| {
        scope.spawn(move || {
            pin(nic);
            answer(word);
        });
        group.bench_function("cache line, round trip", |bencher| {
            bencher.iter(|| {
                let question = word.load(Ordering::Relaxed) + 1;
                word.store(question, Ordering::Release);
                wait_until(|| word.load(Ordering::Acquire) != question);
            });
        });
        word.store(LAST, Ordering::Release);
    });
    let (from, mut to) = (vec![0x5a_u8; LARGE], vec![0_u8; LARGE]);
    group.throughput(Throughput::Bytes(LARGE as u64));
    group.bench_function("memcpy 64 KiB", |bencher| {
        bencher.iter(|| black_box(&mut to[..]).copy_from_slice(black_box(&from)));
    });
    group.finish();
    sched_setaffinity(Pid::from_raw(0), &before).expect("the processors allowed before");
}

/// A cache line of its own.
#[repr(align(128))]
struct Line(AtomicU64);

/// No more questions.
const LAST: u64 = u64::MAX;

/// Answers every odd value with the next even one.
fn answer(word: &AtomicU64) {
    loop {
        match word.load(Ordering::Acquire) {
            LAST => return,
            question if question % 2 == 1 => word.store(question + 1, Ordering::Release),
            _ => spin_loop(),
        }
    }
}

/// Operations between two NICs of this process.
fn operations(criterion: &mut Criterion, cpus: Cpus) {
    let mut ends = Ends::start(cpus);
    if let Some((bench, _)) = cpus.0 {
        // Only now: the NIC's threads would inherit it.
        pin(bench);
    }
    let mut group = criterion.benchmark_group("emulated");

    group.bench_function("write 8 B, post to visible", |bencher| {
        let mut round = 0;
        bencher.iter(|| {
            round += 1;
            ends.write_and_see(round);
        });
    });
    group.bench_function("write 8 B, batches of 32, per request", |bencher| {
        // Time of one request: what a batch takes, shared.
        bencher.iter_custom(|requests| {
            let batches = requests.div_ceil(BATCH);
            let start = Instant::now();
            for _ in 0..batches {
                ends.write_batch();
            }
            start.elapsed().mul_f64(requests as f64 / (batches * BATCH) as f64)
        });
    });
    group.bench_function("read 8 B, post to completion", |bencher| {
        bencher.iter(|| ends.run(8, QueuePair::read));
    });
    group.bench_function("fetch-add, post to completion", |bencher| {
        bencher.iter(|| {
            ends.run(8, |qp, id, local, remote, flags| {
                qp.fetch_add(id, local[0], remote, 1, flags)
            });
        });
    });
    group.throughput(Throughput::Bytes(LARGE as u64));
    group.bench_function("write 64 KiB, post to completion", |bencher| {
        bencher.iter(|| ends.run(LARGE, QueuePair::write));
    });
    group.finish();
}

/// Two connected ends; the first one acts.
struct Ends {
    qp: QueuePair,
    cq: CompletionQueue,
    local: MemoryRegion,
    target: MemoryRegion,
    remote: Remote,
    // Connected to `qp`, and does nothing itself.
    _peer: QueuePair,
}

impl Ends {
    fn start(cpus: Cpus) -> Self {
        let options =
            EmulatedOptions { nics: 2, cpu: cpus.0.map(|(_, nic)| nic), poll: cpus.0.is_some() };
        let nics = EmulatedNic::start(options).expect("NICs");
        let (here, there) = (nics.open(0).expect("a device"), nics.open(1).expect("another"));
        let memory = || Memory::open(&Source::Memfd, LARGE, Populate::Yes).expect("memory");
        let pd = here.protection_domain().expect("a protection domain");
        let local = pd.register(memory(), Access::LOCAL_WRITE).expect("a region");
        let pd_there = there.protection_domain().expect("a protection domain");
        let target = pd_there.register(memory(), Access::ALL).expect("a region");
        let remote = Remote { addr: target.remote().addr, rkey: target.rkey() };
        let cq = here.completion_queue(256).expect("a completion queue");
        let cq_there = there.completion_queue(256).expect("a completion queue");
        let options = QueuePairOptions { inline: 8, ..QueuePairOptions::default() };
        let mut qp = pd.queue_pair(&options, &cq, &cq).expect("a queue pair");
        let mut peer = pd_there.queue_pair(&options, &cq_there, &cq_there).expect("a queue pair");
        QueuePair::connect_pair(&mut qp, &mut peer).expect("a connection");
        Self { qp, cq, local, target, remote, _peer: peer }
    }

    /// Writes `value` and waits until it stands in the target's memory.
    fn write_and_see(&mut self, value: u64) {
        let signalled = value.is_multiple_of(SIGNAL_INTERVAL);
        let flags = if signalled { SendFlags::SIGNALED } else { SendFlags::NONE };
        let bytes = value.to_ne_bytes();
        self.qp.write_inline(value, &bytes, self.remote, flags).expect("room");
        self.qp.ring_sends();
        let word = self.target.memory().atomic_u64(0).expect("a word");
        wait_until(|| word.load(Ordering::Acquire) == value);
        if signalled {
            finish(&mut self.cq);
        }
    }

    /// Posts a batch with one doorbell and waits for its end.
    fn write_batch(&mut self) {
        for request in 1..=BATCH {
            let flags = if request == BATCH { SendFlags::SIGNALED } else { SendFlags::NONE };
            let local = [self.local.slice(0, 8).expect("inside")];
            self.qp.write(request, &local, self.remote, flags).expect("room");
        }
        self.qp.ring_sends();
        finish(&mut self.cq);
    }

    /// One operation on `len` bytes, from posting to its completion.
    fn run<E: std::fmt::Debug>(
        &mut self,
        len: usize,
        post: impl Fn(&mut QueuePair, u64, &[Slice<'_>], Remote, SendFlags) -> Result<(), E>,
    ) {
        let local = [self.local.slice(0, len).expect("inside")];
        post(&mut self.qp, 0, &local, self.remote, SendFlags::SIGNALED).expect("room");
        self.qp.ring_sends();
        finish(&mut self.cq);
    }
}

/// Takes one completion, which must be a success.
fn finish(cq: &mut CompletionQueue) {
    let mut done = [Completion::default()];
    wait_until(|| cq.poll(&mut done).expect("a sound queue") == 1);
    assert!(done[0].is_success(), "{:?}", done[0].status);
}

/// Spins until `done`.
#[inline(always)]
fn wait_until(mut done: impl FnMut() -> bool) {
    let mut looks = 0;
    while !done() {
        looks += 1;
        assert!(looks < PATIENCE, "nobody answered");
        spin_loop();
    }
}
