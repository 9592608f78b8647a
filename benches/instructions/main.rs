//! Instructions of the fast path, counted by callgrind: posting, ringing and polling, on real ring
//! memory and doorbell pages that are mapped.
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
mod rig;

#[path = "../../driver/tests/fake/mod.rs"]
mod fake;

use gungraun::prelude::*;
use gungraun::{Callgrind, CallgrindMetrics, EntryPoint, EventKind};

use figures::*;
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
main!(library_benchmark_groups = fast_path);
