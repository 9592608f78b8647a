//! A chunk: what one call mapped, and so the unit in which memory can be taken away.

use std::time::Instant;

use crate::scrap::Use;
use crate::{IovaRange, Prot, Tenant};

/// The unit of mapping.
pub(crate) struct Chunk {
    /// Which [`crate::Mapping`] it belongs to: addresses are given out again, numbers are not.
    pub(crate) owner: u64,
    pub(crate) prot: Prot,
    /// Whose scrap may stand behind it.
    pub(crate) tenant: Option<Tenant>,
    pub(crate) on: On,
}

/// What a chunk stands on.
pub(crate) enum On {
    Memory,
    Scrap(Use),
    /// Nothing, and since when.
    Nothing(Instant),
}

/// What stands behind a chunk, for whoever asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Behind {
    /// The memory it was mapped with or restored to.
    Memory,
    /// Scrap.
    Scrap,
    /// Nothing: accesses fail.
    Nothing,
}

/// A chunk and what stands behind it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ChunkInfo {
    /// Its addresses.
    pub range: IovaRange,
    /// What stands behind them.
    pub behind: Behind,
}

impl Chunk {
    /// What stands behind it.
    pub(crate) fn behind(&self) -> Behind {
        match self.on {
            On::Memory => Behind::Memory,
            On::Scrap(_) => Behind::Scrap,
            On::Nothing(_) => Behind::Nothing,
        }
    }

    /// How many bytes one mapping of the domain takes of a chunk of `len` bytes.
    pub(crate) fn step(&self, len: u64) -> u64 {
        match &self.on {
            On::Scrap(scrap) => len.min(scrap.memory().len()),
            On::Memory | On::Nothing(_) => len,
        }
    }

    /// How many mappings of the domain a chunk of `len` bytes takes.
    pub(crate) fn mappings(&self, len: u64) -> u64 {
        match self.on {
            On::Nothing(_) => 0,
            On::Memory | On::Scrap(_) => len.div_ceil(self.step(len)),
        }
    }
}
