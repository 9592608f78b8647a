//! Instructions of the fast path, counted by callgrind: posting, ringing and polling, on real ring
//! memory and doorbell pages that are mapped; and the emulated NIC's rounds, which serve them.
//!
//! What is counted is one call of a function in [`measured`], all of it: entry and exit as well as
//! what the driver inlines into it. Instruction counts do not depend on the machine's load, so
//! [`figures`] holds them to a limit; `docs/fast-path.md` says what they mean.
//!
//! ```text
//! cargo install --version 0.20.0 gungraun-runner      once; valgrind is needed too
//! cargo bench --bench instructions
//! ```

#![allow(missing_docs)] // what the macros make has none

mod figures;
mod measured;
mod nic;
mod rig;

#[path = "../../driver/tests/fake/mod.rs"]
mod fake;

use gungraun::prelude::*;
use gungraun::{Callgrind, CallgrindMetrics, EntryPoint, EventKind};

use figures::*;
use nic::Nic;
use rig::{Driver, Library};

/// Counts the function that a figure is about, and holds it to its limit.
fn hold(figure: Figure) -> LibraryBenchmarkConfig {
    let mut callgrind = Callgrind::default();
    callgrind
        .entry_point(EntryPoint::Custom(format!("*::measured::{}", figure.function)))
        .format([CallgrindMetrics::SingleEvent(EventKind::Ir)])
        .hard_limits([(EventKind::Ir, figure.limit())]);
    let mut config = LibraryBenchmarkConfig::default();
    config.tool(callgrind);
    config
}

#[library_benchmark(setup = Driver::new)]
#[bench::one(args = (0), config = hold(WRITE_ONE))]
fn driver_write(mut rig: Box<Driver>) -> Box<Driver> {
    measured::write_one(&mut rig.qp.send, 7, rig.sge, rig.remote);
    rig
}

#[library_benchmark(setup = Driver::new)]
#[bench::batch(args = (0), config = hold(WRITE_BATCH))]
fn driver_write_batch(mut rig: Box<Driver>) -> Box<Driver> {
    assert!(measured::write_batch(&mut rig.qp.send, BATCH, rig.sge, rig.remote));
    rig
}

#[library_benchmark(setup = Driver::new)]
#[bench::one(args = (1), config = hold(POLL_ONE))]
#[bench::batch(args = (COMPLETIONS), config = hold(POLL_BATCH))]
fn driver_poll(mut rig: Box<Driver>) -> Box<Driver> {
    let expected = rig.completions;
    assert_eq!(measured::poll(&mut rig.cq, &mut rig.out).ok(), Some(expected));
    rig
}

#[library_benchmark(setup = Driver::new)]
#[bench::batch(args = (0), config = hold(POLL_EMPTY))]
fn driver_poll_empty(mut rig: Box<Driver>) -> Box<Driver> {
    assert_eq!(measured::poll_empty(&mut rig.cq, &mut rig.out, POLLS), 0);
    rig
}

#[library_benchmark(setup = Library::new)]
#[bench::one(config = hold(LIBRARY_WRITE_ONE))]
fn library_write(mut rig: Box<Library>) -> Box<Library> {
    assert!(measured::library_write_one(&mut rig.qp, 7, rig.slice, rig.remote));
    rig
}

#[library_benchmark(setup = Library::new)]
#[bench::batch(config = hold(LIBRARY_WRITE_BATCH))]
fn library_write_batch(mut rig: Box<Library>) -> Box<Library> {
    assert!(measured::library_write_batch(&mut rig.qp, BATCH, rig.slice, rig.remote));
    rig
}

#[library_benchmark(setup = Nic::with_writes)]
#[bench::one(args = (1, 1), config = hold(NIC_ONE))]
#[bench::batch(args = (1, NIC_BATCH), config = hold(NIC_WRITE_BATCH))]
fn nic_write(nic: &'static mut Nic) -> &'static mut Nic {
    assert!(measured::nic_rounds(&mut nic.processor, 1));
    assert!(nic.completed() > 0);
    nic
}

#[library_benchmark(setup = Nic::with_inline)]
#[bench::one(args = (1), config = hold(NIC_INLINE))]
fn nic_write_inline(nic: &'static mut Nic) -> &'static mut Nic {
    assert!(measured::nic_rounds(&mut nic.processor, 1));
    assert_eq!(nic.completed(), 1);
    nic
}

#[library_benchmark(setup = Nic::new)]
#[bench::one_pair(args = (1), config = hold(NIC_IDLE))]
#[bench::many_pairs(args = (MANY_PAIRS), config = hold(NIC_IDLE_MANY))]
fn nic_idle(nic: &'static mut Nic) -> &'static mut Nic {
    assert!(!measured::nic_rounds(&mut nic.processor, nic::CLOCK_ROUNDS));
    nic
}

#[library_benchmark(setup = Nic::with_writes)]
#[bench::many_pairs(args = (MANY_PAIRS, 1), config = hold(NIC_SCAN))]
fn nic_until_idle(nic: &'static mut Nic) -> &'static mut Nic {
    assert!(measured::nic_until_idle(&mut nic.processor) > 1);
    assert_eq!(nic.completed(), 1);
    nic
}

library_benchmark_group!(
    name = fast_path,
    benchmarks = [
        driver_write,
        driver_write_batch,
        driver_poll,
        driver_poll_empty,
        library_write,
        library_write_batch
    ]
);
library_benchmark_group!(
    name = nic_path,
    benchmarks = [nic_write, nic_write_inline, nic_idle, nic_until_idle]
);
main!(library_benchmark_groups = [fast_path, nic_path]);
