//! The figures as they were when this file was last changed, and what they may be at most.
//!
//! Whoever makes one better writes it down here, so that it stays so: the bench fails when a figure
//! is above what is allowed, or more than [`GROWTH`] percent above what stands here. Another
//! compiler may count differently; then these are taken anew, with the compiler's version.

/// What a figure may grow by before the bench fails, in percent.
const GROWTH: u64 = 5;

/// Requests of a batch that is counted.
pub const BATCH: u64 = 33;
/// Polls of an empty ring that are counted.
pub const POLLS: u64 = 32;
/// Completions of a batch that is counted.
pub const COMPLETIONS: usize = 32;

/// Instructions of one call of a function in `measured`.
pub struct Figure {
    /// The function.
    pub function: &'static str,
    /// Counted with rustc 1.95.0 on x86-64.
    pub counted: u64,
    /// Never to be exceeded, where there is such a limit.
    pub most: Option<u64>,
}

impl Figure {
    /// Above this, the bench fails.
    pub fn limit(&self) -> u64 {
        let grown = self.counted + self.counted * GROWTH / 100;
        self.most.map_or(grown, |most| most.min(grown))
    }
}

/// One signalled WRITE with its doorbell: 40.
pub const WRITE_ONE: Figure = Figure { function: "write_one", counted: 40, most: Some(40) };
/// So many with one doorbell: 25 for each further one.
pub const WRITE_BATCH: Figure =
    Figure { function: "write_batch", counted: 803, most: Some(40 + 25 * (BATCH - 1)) };
/// So many looks at a ring with nothing in it: 12 each.
pub const POLL_EMPTY: Figure =
    Figure { function: "poll_empty", counted: 346, most: Some(12 * POLLS) };
/// One completion, which carries all that a batch shares.
pub const POLL_ONE: Figure = Figure { function: "poll", counted: 134, most: None };
/// A batch: 20 for each.
pub const POLL_BATCH: Figure =
    Figure { function: "poll", counted: 630, most: Some(20 * COMPLETIONS as u64) };
/// The same through the library, whose queues keep regions alive.
pub const LIBRARY_WRITE_ONE: Figure =
    Figure { function: "library_write_one", counted: 49, most: None };
/// A batch through the library.
pub const LIBRARY_WRITE_BATCH: Figure =
    Figure { function: "library_write_batch", counted: 968, most: None };

/// Requests of a batch that the emulated NIC serves in one round.
pub const NIC_BATCH: u64 = 32;
/// Pairs of queue pairs of a NIC that has many.
pub const MANY_PAIRS: usize = 32;

/// The emulated NIC's round that finds one 8-byte WRITE: all of it, to the completion.
pub const NIC_ONE: Figure = Figure { function: "nic_rounds", counted: 3373, most: None };
/// The same with a batch.
pub const NIC_WRITE_BATCH: Figure = Figure { function: "nic_rounds", counted: 56136, most: None };
/// The round that finds one WRITE whose 8 bytes lie in the ring.
pub const NIC_INLINE: Figure = Figure { function: "nic_rounds", counted: 3255, most: None };
/// Rounds with nothing to do, as many as lie between two looks at the clock: two queue pairs.
pub const NIC_IDLE: Figure = Figure { function: "nic_rounds", counted: 5920, most: None };
/// The same with 64 queue pairs.
pub const NIC_IDLE_MANY: Figure = Figure { function: "nic_rounds", counted: 7616, most: None };
/// All rounds that one WRITE causes with 64 queue pairs, the search for lost doorbells included.
pub const NIC_SCAN: Figure = Figure { function: "nic_until_idle", counted: 14809, most: None };
