//! A domain in memory, for tests: it records what is mapped, checks the callers' rules as a type1
//! container would, and fails on demand.
#![allow(dead_code)]

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use holdfast_iommu::{Backing, Domain, Error, IovaRange, Limits, Prot, Result};
use nix::errno::Errno;

/// What stands behind a mapping of the fake.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry {
    pub len: u64,
    pub va: usize,
    pub prot: Prot,
}

/// What the fake has been told to get wrong.
#[derive(Debug, Default)]
pub struct Faults {
    /// This many more maps succeed, then all fail with ENOSPC.
    pub maps_left: Option<usize>,
    /// Unmaps of ranges that hold this address fail.
    pub stuck: Option<u64>,
    /// Unmaps of ranges that hold this address report a page less than was there.
    pub short: Option<u64>,
    /// Each map takes so long.
    pub slow: Duration,
}

#[derive(Debug, Default)]
pub struct State {
    pub mapped: BTreeMap<u64, Entry>,
    pub faults: Faults,
    pub maps: usize,
    pub unmaps: usize,
}

#[derive(Debug)]
pub struct Fake {
    pub limits: Limits,
    pub state: Mutex<State>,
}

impl Fake {
    pub fn new(limits: Limits) -> Arc<Self> {
        Arc::new(Self { limits, state: Mutex::default() })
    }

    pub fn type1() -> Arc<Self> {
        Self::new(limits())
    }

    pub fn mapped(&self) -> Vec<(u64, Entry)> {
        self.state.lock().unwrap().mapped.iter().map(|(at, entry)| (*at, *entry)).collect()
    }

    pub fn faults(&self, change: impl FnOnce(&mut Faults)) {
        change(&mut self.state.lock().unwrap().faults);
    }

    /// The virtual address behind an address.
    pub fn translate(&self, iova: u64) -> Option<usize> {
        let state = self.state.lock().unwrap();
        let (start, entry) = state.mapped.range(..=iova).next_back()?;
        (iova - start < entry.len).then(|| entry.va + (iova - start) as usize)
    }
}

/// Limits like those of VT-d.
pub fn limits() -> Limits {
    Limits {
        ranges: vec![
            IovaRange::between(0, 0xfee0_0000).unwrap(),
            IovaRange::between(0xfef0_0000, 1 << 39).unwrap(),
        ],
        page_sizes: 0x4020_1000,
        max_mappings: Some(65535),
        needs_fd: false,
        unmap_spans: true,
    }
}

pub fn range(start: u64, len: u64) -> IovaRange {
    IovaRange::new(start, len).unwrap()
}

impl Domain for Fake {
    fn limits(&self) -> Result<Limits> {
        Ok(self.limits.clone())
    }

    fn map(&self, range: IovaRange, backing: &Backing<'_>, prot: Prot) -> Result<()> {
        let slow = self.state.lock().unwrap().faults.slow;
        std::thread::sleep(slow);
        let mut state = self.state.lock().unwrap();
        state.maps += 1;
        let fail = |errno| Err(Error::Map { range, errno });
        match &mut state.faults.maps_left {
            Some(0) => return fail(Errno::ENOSPC),
            Some(left) => *left -= 1,
            None => {}
        }
        if self.limits.max_mappings.is_some_and(|max| state.mapped.len() as u64 >= max) {
            return fail(Errno::ENOSPC);
        }
        let overlap = state.mapped.range(..range.end()).next_back();
        if overlap.is_some_and(|(start, entry)| start + entry.len > range.start()) {
            return fail(Errno::EEXIST);
        }
        if !self.limits.ranges.iter().any(|usable| usable.covers(&range)) {
            return fail(Errno::EINVAL);
        }
        let va = backing.va().unwrap_or(0);
        assert!(range.start().is_multiple_of(4096) && range.len().is_multiple_of(4096));
        state.mapped.insert(range.start(), Entry { len: range.len(), va, prot });
        Ok(())
    }

    fn unmap(&self, range: IovaRange) -> Result<u64> {
        let mut state = self.state.lock().unwrap();
        state.unmaps += 1;
        let hit = |at: Option<u64>| at.is_some_and(|at| range.contains(at));
        if hit(state.faults.stuck) {
            return Err(Error::Unmap { range, errno: Errno::EIO });
        }
        let end = |(start, entry): (&u64, &Entry)| start + entry.len;
        let cut_first = state.mapped.range(..range.start()).next_back().map(end);
        let cut_last = state.mapped.range(..range.end()).next_back().map(end);
        if cut_first.is_some_and(|end| end > range.start())
            || cut_last.is_some_and(|end| end > range.end())
        {
            return Err(Error::Unmap { range, errno: Errno::EINVAL });
        }
        let starts: Vec<u64> =
            state.mapped.range(range.start()..range.end()).map(|(start, _)| *start).collect();
        assert!(
            self.limits.unmap_spans || starts.len() <= 1,
            "this domain unmaps one mapping at a time, not {range}"
        );
        let lens = starts.into_iter().filter_map(|start| state.mapped.remove(&start));
        let unmapped: u64 = lens.map(|entry| entry.len).sum();
        Ok(if hit(state.faults.short) { unmapped.saturating_sub(4096) } else { unmapped })
    }
}
