//! Model check of the combiner: `RUSTFLAGS="--cfg loom" cargo test --release -p holdfast-driver
//! --test loom_combiner`.
//!
//! Slots and the doorbell page are loom cells, which fail the model when two accesses that must not
//! meet are not ordered: two producers in a slot, the device in a slot that is not written, two
//! threads at the tail.
#![cfg(loom)]

use std::sync::Arc as StdArc;

use holdfast_driver::testing::Combiner;
use loom::cell::UnsafeCell;
use loom::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use loom::thread;

/// A ring, its producers and its device.
struct World {
    combiner: Combiner,
    slots: Vec<UnsafeCell<u32>>,
    /// What the device sees.
    tail: AtomicU32,
    /// Held by whoever stores the tail.
    doorbell: UnsafeCell<u32>,
    completed: AtomicU32,
    busy: AtomicBool,
}

// SAFETY (of the model): loom itself watches every access to the cells.
#[allow(unsafe_code)]
unsafe impl Sync for World {}
#[allow(unsafe_code)]
// SAFETY: as above.
unsafe impl Send for World {}

impl World {
    fn new(slots: u32) -> StdArc<Self> {
        StdArc::new(Self {
            combiner: Combiner::new(slots, 0),
            slots: (0..slots).map(|_| UnsafeCell::new(0)).collect(),
            tail: AtomicU32::new(0),
            doorbell: UnsafeCell::new(0),
            completed: AtomicU32::new(0),
            busy: AtomicBool::new(false),
        })
    }

    fn slot(&self, position: u32) -> &UnsafeCell<u32> {
        &self.slots[position as usize % self.slots.len()]
    }

    /// Reserves a slot and writes it, if there is one.
    fn write(&self) -> bool {
        let depth = self.slots.len() as u32;
        let completed = || self.completed.load(Ordering::Acquire);
        let Some(position) = self.combiner.reserve(depth, completed) else { return false };
        self.slot(position).with_mut(|_| {});
        self.combiner.written(position);
        true
    }

    fn show(&self, position: u32) {
        self.doorbell.with_mut(|_| {});
        let before = self.tail.load(Ordering::Relaxed);
        assert!(position > before, "the tail went from {before} to {position}");
        self.tail.store(position, Ordering::Release);
    }

    fn post(&self) -> bool {
        let posted = self.write();
        if posted {
            self.combiner.combine(|position| self.show(position));
        }
        posted
    }

    /// The device looks once, carries out what it sees, and completes it.
    fn carry_out(&self) {
        let done = self.completed.load(Ordering::Relaxed);
        let tail = self.tail.load(Ordering::Acquire);
        (done..tail).for_each(|position| self.slot(position).with(|_| {}));
        self.completed.store(tail, Ordering::Release);
    }
}

fn model(run: impl Fn() + Send + Sync + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(3);
    builder.check(run);
}

/// Runs one thread for each of `threads`, and says how the world is then.
fn among(world: &StdArc<World>, threads: &[fn(&World)]) {
    let (first, others) = threads.split_first().unwrap();
    let others: Vec<_> = others
        .iter()
        .map(|run| {
            let (world, run) = (world.clone(), *run);
            thread::spawn(move || run(&world))
        })
        .collect();
    first(world);
    others.into_iter().for_each(|thread| thread.join().unwrap());
}

fn post(world: &World) {
    assert!(world.post());
}

#[test]
fn everything_posted_is_shown_whoever_shows_it() {
    model(|| {
        let world = World::new(4);
        among(&world, &[post, post, post]);
        assert_eq!(world.tail.load(Ordering::Relaxed), 3);
    });
}

#[test]
fn two_posts_in_a_row_lose_nothing_either() {
    model(|| {
        let world = World::new(4);
        let twice = |world: &World| (0..2).for_each(|_| post(world));
        among(&world, &[twice, twice]);
        assert_eq!(world.tail.load(Ordering::Relaxed), 4);
    });
}

#[test]
fn the_device_sees_only_what_is_written_and_slots_are_not_used_before_it_is_done() {
    model(|| {
        let world = World::new(2);
        let device = |world: &World| (0..2).for_each(|_| world.carry_out());
        // The ring has room for two; whether there is any for a third depends on the device.
        let producer = |world: &World| {
            post(world);
            world.post();
        };
        let other = |world: &World| {
            world.post();
        };
        among(&world, &[producer, other, device]);
        let posted = world.combiner.reserved();
        assert!((2..=3).contains(&posted));
        assert_eq!(world.tail.load(Ordering::Relaxed), posted);
    });
}

// The same with what the combiner does left out: loom must find what goes wrong. If these ever
// pass, the models above prove nothing.

/// Each shows its own request, without regard for others.
fn careless(world: &World) {
    let position = world.combiner.reserve(4, || 0).unwrap();
    world.slot(position).with_mut(|_| {});
    world.combiner.written(position);
    world.tail.store(position + 1, Ordering::Release);
}

#[test]
#[should_panic(expected = "Causality violation")]
fn without_order_the_device_sees_what_is_not_written() {
    model(|| {
        let world = World::new(4);
        among(&world, &[careless, careless, World::carry_out]);
    });
}

/// Leaves when somebody else is at it, who does not look again.
fn hasty(world: &World) {
    assert!(world.write());
    if !world.busy.swap(true, Ordering::AcqRel) {
        let before = world.tail.load(Ordering::Relaxed);
        let position = world.combiner.ready_from(before);
        if position != before {
            world.show(position);
        }
        world.busy.store(false, Ordering::Release);
    }
}

#[test]
#[should_panic(expected = "left lying")]
fn without_a_second_look_a_request_is_left_lying() {
    model(|| {
        let world = World::new(4);
        among(&world, &[hasty, hasty]);
        assert_eq!(world.tail.load(Ordering::Relaxed), 2, "left lying");
    });
}
