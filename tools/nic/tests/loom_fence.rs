//! Model check of the unmap fence: `RUSTFLAGS="--cfg loom" cargo test --release -p holdfast-nic
//! --test loom_fence`.
//!
//! The page is a loom cell, which fails the model when the reader's access and the write that the
//! writer makes after `synchronize` are not ordered. `SLOT` stands for a translation entry.
#![cfg(loom)]

use std::sync::Arc as StdArc;

use holdfast_nic::memory::fence::{Fence, Quiescer};
use loom::cell::UnsafeCell;
use loom::sync::atomic::{AtomicUsize, Ordering};
use loom::thread;

const PAGE_A: usize = 1;
const PAGE_B: usize = 2;
const NOTHING: usize = 0;

struct World {
    slot: AtomicUsize,
    pages: [UnsafeCell<u32>; 2],
}

// SAFETY (of the model): loom itself watches every access to the cells.
#[allow(unsafe_code)]
unsafe impl Sync for World {}
#[allow(unsafe_code)]
// SAFETY: as above.
unsafe impl Send for World {}

impl World {
    fn new() -> StdArc<Self> {
        StdArc::new(Self {
            slot: AtomicUsize::new(PAGE_A),
            pages: [UnsafeCell::new(0), UnsafeCell::new(0)],
        })
    }

    /// One access through whatever the slot says: what a copy does.
    fn access(&self) {
        match self.slot.load(Ordering::Acquire) {
            NOTHING => {}
            page => self.pages[page - 1].with(|_| {}),
        }
    }

    /// The old page goes back to its owner, who writes it.
    fn reuse(&self, page: usize) {
        self.pages[page - 1].with_mut(|_| {});
    }
}

fn model(run: impl Fn() + Send + Sync + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(3);
    builder.check(run);
}

fn against_reader(reader: fn(&World, Quiescer), writer: fn(&World, &Fence)) {
    model(move || {
        let world = World::new();
        let (fence, quiescer) = Fence::new();
        let thread = {
            let world = world.clone();
            thread::spawn(move || reader(&world, quiescer))
        };
        writer(&world, &fence);
        thread.join().unwrap();
    });
}

fn polling_reader(world: &World, mut quiescer: Quiescer) {
    quiescer.online();
    for _ in 0..2 {
        world.access();
        quiescer.quiesce();
    }
    world.access();
}

fn sleeping_reader(world: &World, mut quiescer: Quiescer) {
    quiescer.online();
    world.access();
    quiescer.offline();
    quiescer.online();
    world.access();
}

fn unmap(world: &World, fence: &Fence) {
    world.slot.store(NOTHING, Ordering::Release);
    fence.synchronize();
    world.reuse(PAGE_A);
}

fn unmap_without_waiting(world: &World, _fence: &Fence) {
    world.slot.store(NOTHING, Ordering::Release);
    world.reuse(PAGE_A);
}

fn retarget_twice(world: &World, fence: &Fence) {
    world.slot.store(PAGE_B, Ordering::Release);
    fence.synchronize();
    world.reuse(PAGE_A);
    world.slot.store(NOTHING, Ordering::Release);
    fence.synchronize();
    world.reuse(PAGE_B);
}

#[test]
fn after_unmap_no_polling_reader_touches_the_old_page() {
    against_reader(polling_reader, unmap);
}

#[test]
fn after_unmap_no_reader_that_slept_touches_the_old_page() {
    against_reader(sleeping_reader, unmap);
}

#[test]
fn two_remaps_in_a_row_each_wait_for_themselves() {
    against_reader(polling_reader, retarget_twice);
}

// The same models without the wait: loom must find the access that is still in flight. If these
// two ever pass, the models above prove nothing.

#[test]
#[should_panic(expected = "Causality violation")]
fn without_the_wait_a_polling_reader_is_caught() {
    against_reader(polling_reader, unmap_without_waiting);
}

#[test]
#[should_panic(expected = "Causality violation")]
fn without_the_wait_a_sleeping_reader_is_caught() {
    against_reader(sleeping_reader, unmap_without_waiting);
}
