//! Which processor runs what: the measuring thread on one, the NIC on another.

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
}
