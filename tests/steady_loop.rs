//! A turn of the poll loop allocates nothing and makes no system call, with its doorbells coalesced and
//! its counts in [`Stats`] for others to see.

#[path = "support/counting.rs"]
mod counting;
mod support;

use std::ops::ControlFlow::{Break, Continue};

use counting::{CountingAllocator, Counts, Watch};
use holdfast::cores::{PollLoop, Step};
use holdfast::stats::Stats;
use holdfast::{Access, DoorbellPolicy, Error, QueuePairOptions, SendFlags};
use support::{Pair, Setting, options};

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;

const NOTHING: Counts = Counts { allocations: 0, system_calls: 0, last_system_call: None };
const OPERATIONS: u64 = 20_000;
const OUTSTANDING: u64 = 16;

#[test]
fn a_turn_allocates_nothing_and_makes_no_system_call() {
    // A polling NIC needs no waking; one that sleeps is woken by a message.
    let options = QueuePairOptions { doorbells: DoorbellPolicy::Coalesced, ..options() };
    let mut pair = Pair::with(Setting::OneProcessPolling, 4096, Access::ALL, &options);
    let (a, remote) = (&mut pair.a, pair.b.at(0));
    let slice = a.region.slice(0, 64).unwrap();
    let stats = Stats::new("test");
    let mut poll = PollLoop::new();
    poll.add(&mut a.cq);
    poll.add(&mut pair.b.cq);
    poll.count_in(stats.turns("loop"));
    let (mut posted, mut done) = (0, 0);
    let mut operations = |poll: &mut PollLoop<_>, goal: u64| -> Result<(), Error> {
        poll.run(|step| {
            if let Step::Completion { completion, .. } = step {
                assert!(completion.is_success());
                done += 1;
            } else if done == goal {
                return Ok(Break(()));
            }
            // In the handler of a completion too: what it posts waits for the next turn's doorbell.
            while posted < goal && posted - done < OUTSTANDING {
                a.qp.write(posted, &[slice], remote, SendFlags::SIGNALED)?;
                posted += 1;
            }
            a.qp.ring_sends();
            Ok(Continue(()))
        })
    };
    // The first request that names a region makes the queue hold it, which may allocate.
    operations(&mut poll, 1000).unwrap();
    // The threads that answered the last commands may still be on their way back to sleep.
    std::thread::sleep(std::time::Duration::from_millis(200));
    let mut watch = Watch::new().expect("the kernel has syscall user dispatch (5.11 or later)");
    let counts = watch.count(|| operations(&mut poll, 1000 + OPERATIONS).unwrap());
    assert_eq!(counts, NOTHING, "over {OPERATIONS} operations");
    assert_eq!(poll.counts().completions, 1000 + OPERATIONS);
    // The counters do count: this would have failed the test.
    let counts = watch.count(|| {
        let late: Result<(), Error> = poll.run(|_| {
            drop(std::hint::black_box(Box::new(std::fs::metadata("/"))));
            Ok(Break(()))
        });
        late.unwrap();
    });
    assert!(counts.allocations >= 2 && counts.system_calls >= 1, "{counts:?}");
}
