//! Which processor runs what: the measuring thread on one, the NIC on another.

use anyhow::Context as _;
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;

/// Processors this process may run on, in order.
pub fn allowed() -> Vec<usize> {
    let Ok(set) = sched_getaffinity(Pid::from_raw(0)) else { return Vec::new() };
    (0..CpuSet::count()).filter(|cpu| set.is_set(*cpu) == Ok(true)).collect()
}

/// Binds the calling thread to one processor.
pub fn pin(cpu: usize) -> anyhow::Result<()> {
    let mut set = CpuSet::new();
    set.set(cpu)
        .and_then(|()| sched_setaffinity(Pid::from_raw(0), &set))
        .with_context(|| format!("cannot run on cpu {cpu}; this process may use {:?}", allowed()))
}

/// The processors that a thread might use before it was bound to one.
#[derive(Debug)]
pub struct Unbound(CpuSet);

impl Unbound {
    /// Those of the calling thread.
    pub fn remember() -> Self {
        Self(sched_getaffinity(Pid::from_raw(0)).unwrap_or_else(|_| CpuSet::new()))
    }

    /// Lets the calling thread use them again.
    pub fn restore(&self) -> anyhow::Result<()> {
        sched_setaffinity(Pid::from_raw(0), &self.0).context("cannot leave one processor again")
    }
}

/// Where the measuring thread and the NIC run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Placement {
    /// Processor of the measuring thread.
    pub bench: Option<usize>,
    /// Processor of the NIC's thread.
    pub nic: Option<usize>,
}

impl Placement {
    /// Fills in what was not asked for: two different processors where there are two, the
    /// measuring thread on the last one and the NIC on the one before it (the first processors
    /// tend to take the interrupts).
    pub fn choose(bench: Option<usize>, nic: Option<usize>, allowed: &[usize]) -> Self {
        if allowed.len() < 2 {
            return Self { bench, nic };
        }
        let other =
            |taken: Option<usize>| allowed.iter().rev().copied().find(|c| Some(*c) != taken);
        let bench = bench.or_else(|| other(nic));
        let nic = nic.or_else(|| other(bench));
        Self { bench, nic }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nic_gets_a_processor_of_its_own_where_there_are_two() {
        let choose = |bench, nic, allowed: &[usize]| {
            let placement = Placement::choose(bench, nic, allowed);
            (placement.bench, placement.nic)
        };
        assert_eq!(choose(None, None, &[0, 1]), (Some(1), Some(0)));
        assert_eq!(choose(None, None, &[2, 5, 9]), (Some(9), Some(5)));
        assert_eq!(choose(Some(0), None, &[0, 1]), (Some(0), Some(1)));
        assert_eq!(choose(None, Some(1), &[0, 1]), (Some(0), Some(1)));
        assert_eq!(choose(Some(1), Some(1), &[0, 1]), (Some(1), Some(1)));
        assert_eq!(choose(None, None, &[0]), (None, None));
        assert_eq!(choose(None, None, &[]), (None, None));
    }

    #[test]
    fn a_thread_that_was_bound_is_free_again() {
        let before = allowed();
        let whole = Unbound::remember();
        pin(before[0]).unwrap();
        assert_eq!(allowed(), before[..1]);
        whole.restore().unwrap();
        assert_eq!(allowed(), before);
    }

    #[test]
    fn a_processor_that_is_not_there_is_refused() {
        let error = pin(CpuSet::count() - 1).unwrap_err().to_string();
        assert!(error.contains("cannot run on cpu"), "{error}");
    }
}
