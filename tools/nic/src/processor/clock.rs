//! A clock without system calls: the time stamp counter, scaled to nanoseconds.
//!
//! On machines whose kernel clock is not the time stamp counter, reading `CLOCK_MONOTONIC` is a
//! system call; the processor needs only a clock that runs steadily and never back.
#![allow(unsafe_code)]

use std::arch::x86_64::_rdtsc;
use std::time::{Duration, Instant};

/// How long the scale is measured.
const CALIBRATION: Duration = Duration::from_millis(2);

/// Nanoseconds since it was made.
#[derive(Debug)]
pub struct Clock {
    start: u64,
    // Nanoseconds per tick, with 32 binary places.
    scale: u64,
    last: u64,
}

fn ticks() -> u64 {
    // SAFETY: every x86-64 processor has the instruction.
    unsafe { _rdtsc() }
}

impl Clock {
    /// Measures the counter's rate, which takes two milliseconds.
    pub fn new() -> Self {
        let (start, began) = (ticks(), Instant::now());
        while began.elapsed() < CALIBRATION {
            std::hint::spin_loop();
        }
        let (nanos, passed) = (began.elapsed().as_nanos(), ticks().wrapping_sub(start));
        let scale = ((nanos << 32) / u128::from(passed.max(1))).clamp(1, 1 << 40) as u64;
        Self { start, scale, last: 0 }
    }

    /// The time now, in nanoseconds; never less than it was.
    #[inline]
    pub fn now(&mut self) -> u64 {
        let passed = ticks().wrapping_sub(self.start);
        let now = ((u128::from(passed) * u128::from(self.scale)) >> 32) as u64;
        // Counters of different sockets may differ a little.
        self.last = self.last.max(now);
        self.last
    }
}
