//! Once it runs, the fast path allocates nothing and makes no system call: both are counted, over
//! every operation, while the NIC polls on a thread of its own.

#[path = "support/counting.rs"]
mod counting;
mod support;

use counting::{CountingAllocator, Counts, Watch};
use holdfast::{
    Access, Completion, CompletionQueue, EmulatedNic, EmulatedOptions, QueuePair, SendFlags,
};
use support::{Side, options};

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;

const NOTHING: Counts = Counts { allocations: 0, system_calls: 0, last_system_call: None };
const ROUNDS: u64 = 2_000;

/// The next completion, with nothing on the way that would make a system call itself.
fn spin(cq: &mut CompletionQueue) -> Completion {
    let mut out = [Completion::default()];
    while cq.poll(&mut out).expect("the device writes sense") == 0 {
        std::hint::spin_loop();
    }
    out[0]
}

/// One of everything, on both sides.
fn round(a: &mut Side, b: &mut Side, round: u64) {
    let signaled = SendFlags::SIGNALED;
    let remote = b.at(512);
    let local = a.region.slice(64, 64).unwrap();
    let word = a.region.slice(256, 8).unwrap();
    let receive = [b.region.slice(1024, 64).unwrap()];
    for id in 0..4 {
        b.qp.receive(id, &receive).unwrap();
    }
    b.qp.ring_receives();
    let qp = &mut a.qp;
    qp.write(1, &[local], remote, SendFlags::NONE).unwrap();
    qp.write(2, &[local, local], remote, signaled).unwrap();
    qp.write_inline(3, &[round as u8; 64], remote, signaled).unwrap();
    qp.write_imm(4, &[local], remote, 7, signaled).unwrap();
    qp.read(5, &[local], remote, signaled).unwrap();
    qp.send(6, &[local], signaled).unwrap();
    qp.send_imm(7, &[local], 8, signaled).unwrap();
    qp.send_inline(8, &[1; 16], signaled).unwrap();
    qp.compare_swap(9, word, remote, 0, 1, signaled).unwrap();
    qp.fetch_add(10, word, remote, 1, signaled).unwrap();
    qp.ring_sends();
    for id in 2..=10 {
        let done = spin(&mut a.cq);
        assert!(done.is_success() && done.wr_id == id);
    }
    for id in 0..4 {
        let done = spin(&mut b.cq);
        assert!(done.is_success() && done.wr_id == id);
    }
}

#[test]
fn the_steady_state_allocates_nothing_and_makes_no_system_call() {
    // A polling NIC needs no waking; one that sleeps is woken by a message.
    let nics = EmulatedNic::start(EmulatedOptions { nics: 2, poll: true, ..Default::default() });
    let nics = nics.expect("emulated NICs start");
    let open = |index| nics.open(index).expect("an emulated NIC opens");
    let (at_a, at_b) = (open(0), open(1));
    let mut a = Side::new(&at_a, 1 << 16, Access::ALL, &options());
    let mut b = Side::new(&at_b, 1 << 16, Access::ALL, &options());
    QueuePair::connect_pair(&mut a.qp, &mut b.qp).unwrap();

    // The first request that names a region makes the queue hold it, which may allocate.
    for warm_up in 0..300 {
        round(&mut a, &mut b, warm_up);
    }
    // The threads that answered the last commands may still be on their way back to sleep.
    std::thread::sleep(std::time::Duration::from_millis(200));
    let mut watch = Watch::new().expect("the kernel has syscall user dispatch (5.11 or later)");
    let counts = watch.count(|| {
        for number in 0..ROUNDS {
            round(&mut a, &mut b, number);
        }
    });
    assert_eq!(counts, NOTHING, "over {ROUNDS} rounds of ten requests");

    // The counters do count: each of these would have failed the test.
    let counts = watch.count(|| drop(std::hint::black_box(Box::new(1))));
    assert_eq!((counts.allocations, counts.system_calls), (2, 0));
    let counts = watch.count(|| drop(std::hint::black_box(std::fs::metadata("/"))));
    assert!(counts.system_calls > 0, "{counts:?}");
}
