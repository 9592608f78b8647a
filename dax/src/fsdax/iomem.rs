//! Which physical addresses are ordinary memory: a device must never be given one of those for a
//! file's block. A hole that was read is mapped to the kernel's zero page, for one.

use std::ops::Range;

use crate::open::errno_of;
use crate::{Error, Result};

/// The "System RAM" ranges of /proc/iomem, sorted.
#[derive(Debug, Clone)]
pub struct SystemRam {
    ranges: Vec<Range<u64>>,
}

impl SystemRam {
    /// As the kernel says now.
    pub fn read() -> Result<Self> {
        let path = "/proc/iomem";
        let text = std::fs::read_to_string(path).map_err(|error| Error::File {
            call: "read",
            path: path.into(),
            errno: errno_of(&error),
        })?;
        let ram = Self::parse(&text);
        // Without CAP_SYS_ADMIN every address reads as zero.
        if ram.ranges.iter().all(|range| range.end <= 1) {
            return Err(Error::NoAddresses);
        }
        Ok(ram)
    }

    fn parse(text: &str) -> Self {
        let mut ranges: Vec<_> = text
            .lines()
            .filter_map(|line| {
                let (range, name) = line.split_once(" : ")?;
                let (start, last) = range.trim().split_once('-')?;
                let start = u64::from_str_radix(start, 16).ok()?;
                let last = u64::from_str_radix(last, 16).ok()?;
                (name.trim() == "System RAM").then(|| start..last.saturating_add(1))
            })
            .collect();
        ranges.sort_by_key(|range| range.start);
        Self { ranges }
    }

    /// Whether an address is ordinary memory.
    pub fn contains(&self, phys: u64) -> bool {
        let after = self.ranges.partition_point(|range| range.start <= phys);
        after > 0 && self.ranges[after - 1].contains(&phys)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "\
00001000-0009fbff : System RAM
000f0000-000fffff : System ROM
00100000-7ffdffff : System RAM
  01000000-01ffffff : Kernel code
100000000-13fffffff : Persistent Memory
  100000000-13fffffff : namespace0.0
140000000-17fffffff : System RAM
";

    #[test]
    fn ordinary_memory_is_told_from_persistent_memory() {
        let ram = SystemRam::parse(TEXT);
        for (phys, is_ram) in [
            (0, false),
            (0x1000, true),
            (0x9fbff, true),
            (0x9fc00, false),
            (0xf0000, false),
            (0x0150_0000, true),
            (0x7ffd_ffff, true),
            (0x1_0000_0000, false),
            (0x1_3fff_ffff, false),
            (0x1_4000_0000, true),
            (0x1_8000_0000, false),
        ] {
            assert_eq!(ram.contains(phys), is_ram, "{phys:#x}");
        }
    }

    #[test]
    fn hidden_addresses_are_not_taken_for_an_empty_machine() {
        let ram = SystemRam::parse("00000000-00000000 : System RAM\n");
        assert!(ram.ranges.iter().all(|range| range.end <= 1));
    }
}
