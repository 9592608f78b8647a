//! What the system has of huge pages: size and counts, and the error that says how to get more.

use std::fs;

use nix::errno::Errno;

use crate::{Error, Result};

/// The system's default huge page size in bytes (`Hugepagesize` in /proc/meminfo).
pub fn default_page_size() -> Result<u64> {
    let meminfo = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    parse_hugepagesize(&meminfo).ok_or(Error::NoHugePages)
}

fn parse_hugepagesize(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("Hugepagesize:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024).filter(|size| size.is_power_of_two())
}

/// The error for `len` bytes that could not be had in huge pages of `page_size`.
pub fn shortage(len: u64, page_size: u64, errno: Errno) -> Error {
    let page_kib = page_size / 1024;
    let count = |name: &str| -> u64 {
        fs::read_to_string(format!("/sys/kernel/mm/hugepages/hugepages-{page_kib}kB/{name}"))
            .ok()
            .and_then(|text| text.trim().parse().ok())
            .unwrap_or(0)
    };
    let (free, total) = (count("free_hugepages"), count("nr_hugepages"));
    let reserved = count("resv_hugepages");
    let need = len.div_ceil(page_size);
    let free = free.saturating_sub(reserved);
    Error::HugePages {
        need,
        free,
        total,
        suggest: total + need.saturating_sub(free),
        page_kib,
        errno,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_size_is_read_from_meminfo() {
        assert_eq!(parse_hugepagesize("MemTotal: 1 kB\nHugepagesize:    2048 kB\n"), Some(2 << 20));
        assert_eq!(parse_hugepagesize("Hugepagesize: 1048576 kB"), Some(1 << 30));
        for nonsense in ["", "Hugepagesize: x kB", "Hugepagesize: 3 kB", "Hugepagesize: 2048"] {
            assert_eq!(parse_hugepagesize(nonsense), None, "{nonsense}");
        }
    }

    #[test]
    fn a_shortage_says_how_many_pages_would_do() {
        let text = shortage(5 << 20, 2 << 20, Errno::ENOMEM).to_string();
        assert!(text.starts_with("3 free huge pages of 2048 KiB are needed"), "{text}");
        assert!(text.contains("hugepages-2048kB/nr_hugepages"), "{text}");
    }
}
