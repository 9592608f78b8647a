//! Addresses before memory: a range that is taken, and has nothing behind it yet.
//!
//! Whoever takes memory away must know of a range before memory can be put there. So a region on a
//! file that may change begins as a reservation, is made known, and gets its memory by
//! [`AddressSpace::retile`], as it would after a change.

use std::sync::Arc;
use std::time::Instant;

use crate::chunk::{Chunk, On};
use crate::{AddressSpace, Error, Mapping, Prot, Result};

impl AddressSpace {
    /// Takes addresses of this crate's choice, in chunks of `granule` bytes at most (by default in
    /// one), with nothing behind them: an access to them fails. No call to the domain is made.
    ///
    /// # Errors
    /// [`Error::IovaExhausted`], [`Error::Unaligned`], [`Error::Usage`] for no bytes.
    pub fn reserve(
        self: &Arc<Self>,
        len: u64,
        prot: Prot,
        granule: Option<u64>,
    ) -> Result<Mapping> {
        let granule = granule.unwrap_or(len);
        self.check_aligned("length", len)?;
        self.check_aligned("granule", granule)?;
        if len == 0 || granule == 0 {
            return Err(Error::usage("a reservation of no bytes was asked for"));
        }
        let mut state = self.lock();
        let range = self.find_room(&mut state, len)?;
        let owner = self.next_owner();
        for tile in range.steps(granule) {
            let chunk = Chunk { owner, prot, tenant: None, on: On::Nothing(Instant::now()) };
            if let Err(existing) = state.add(tile, chunk) {
                return Err(Error::Overlap { range, existing });
            }
        }
        drop(state);
        Ok(Mapping::new(Arc::clone(self), range, owner))
    }
}
