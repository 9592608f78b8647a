//! A mix of reads and writes in a given proportion, spread evenly and the same in every run.

/// Says which operation comes next.
#[derive(Debug, Clone, Copy)]
pub struct Mix {
    /// Of 100 operations, so many read.
    reads: u32,
    share: u32,
}

impl Mix {
    /// One with so many reads in 100.
    pub fn new(reads: u32) -> Self {
        Self { reads, share: 0 }
    }

    /// Whether the next operation is a read.
    #[inline(always)]
    pub fn next_reads(&mut self) -> bool {
        self.share += self.reads;
        let read = self.share >= 100;
        if read {
            self.share -= 100;
        }
        read
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_proportion_is_kept_all_along() {
        for reads in [0, 1, 30, 50, 99, 100] {
            let (mut mix, mut seen) = (Mix::new(reads), 0);
            for n in 1..=1000 {
                seen += u32::from(mix.next_reads());
                assert_eq!(seen, n * reads / 100, "{reads} in 100, after {n}");
            }
        }
    }
}
