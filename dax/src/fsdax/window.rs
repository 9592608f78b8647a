//! A mapping of physical extents through /dev/mem: the one form of persistent memory under a file
//! system that VFIO's type1 backend takes (its pages are looked up by frame number and, being
//! reserved, not pinned: `follow_fault_pfn` and `is_invalid_reserved_pfn`).

use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::num::NonZeroUsize;
use std::os::fd::AsFd;

use nix::errno::Errno;

use super::Extent;
use crate::map::Mapping;
use crate::open::errno_of;
use crate::{Error, Result};

/// Why /dev/mem gives no window.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum WindowRefusal {
    /// There is no /dev/mem.
    Missing,
    /// The kernel is locked down.
    Lockdown {
        /// `integrity` or `confidentiality`.
        mode: String,
    },
    /// CAP_SYS_RAWIO (or permission to open the device) is missing.
    Privilege {
        /// What the kernel said.
        errno: Errno,
    },
    /// Persistent memory is claimed by its driver, and the kernel was booted without
    /// `iomem=relaxed`.
    Exclusive,
    /// Refused although `iomem=relaxed` is there: ordinary memory lies in the range.
    Strict,
    /// The memory is mapped with another caching than write-back.
    Caching,
    /// More mappings than this process may have.
    TooMany {
        /// How many this window wants.
        wanted: usize,
        /// vm.max_map_count.
        limit: u64,
    },
    /// Something else.
    Other {
        /// Which call.
        call: &'static str,
        /// What the kernel said.
        errno: Errno,
    },
}

impl fmt::Display for WindowRefusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Missing => f.write_str(
                "there is no /dev/mem: the kernel needs CONFIG_DEVMEM, a container the device node",
            ),
            Self::Lockdown { mode } => write!(
                f,
                "the kernel is locked down ({mode}): boot without lockdown= and without Secure \
                 Boot, or use devdax, which needs no window"
            ),
            Self::Privilege { errno } => write!(
                f,
                "no permission ({errno}): this needs CAP_SYS_RAWIO and write access to /dev/mem; \
                 run as root"
            ),
            Self::Exclusive => f.write_str(
                "the range belongs to a driver (IO_STRICT_DEVMEM): boot the kernel with \
                 iomem=relaxed, or use devdax, which needs no window",
            ),
            Self::Strict => f.write_str(
                "refused although the kernel was booted with iomem=relaxed: the range holds \
                 ordinary memory (STRICT_DEVMEM), so it is not persistent memory",
            ),
            Self::Caching => f.write_str(
                "the range is mapped elsewhere with another caching than write-back: is another \
                 program holding it through /dev/mem with O_SYNC?",
            ),
            Self::TooMany { wanted, limit } => write!(
                f,
                "it takes {wanted} mappings and a process may have {limit}: raise \
                 vm.max_map_count, or lay the file out anew on a file system that is aligned to \
                 2 MiB"
            ),
            Self::Other { call, errno } => write!(f, "{call} failed: {errno}"),
        }
    }
}

/// Physical extents mapped into this process, shared and writable, one address for each.
///
/// It holds nothing in place: it reaches the same physical bytes whoever owns them. Use it only
/// under a pin, and only to hand its addresses to an IOMMU; once they are mapped there, the window
/// may be dropped. Extents that follow each other physically share one mapping.
#[derive(Debug)]
pub struct Window {
    mappings: Vec<Mapping>,
    /// For each extent: mapping, offset in it, length.
    places: Vec<(usize, usize, usize)>,
}

impl Window {
    /// Maps `extents`. Needs CAP_SYS_RAWIO, a kernel without lockdown and, where persistent memory
    /// is claimed by its driver (always, under a file system), `iomem=relaxed`: the error says
    /// which is missing. Never opened with O_SYNC, which would ask for uncached memory and be
    /// refused.
    pub fn map(extents: &[Extent]) -> Result<Self> {
        let phys = extents.iter().map(|extent| extent.phys).min().unwrap_or(0);
        let end = extents.iter().map(|extent| extent.phys + extent.len).max().unwrap_or(0);
        let file = open_dev_mem().map_err(|why| Error::Window { phys, end, why })?;
        let (runs, places) = runs(extents);
        let mut mappings = Vec::with_capacity(runs.len());
        for &(phys, len) in &runs {
            let Some(size) = usize::try_from(len).ok().and_then(NonZeroUsize::new) else {
                return Err(Error::BadRange { offset: phys, len });
            };
            let mapping = Mapping::new(Some((file.as_fd(), phys)), size).map_err(|errno| {
                let why = refusal_of_map(errno, runs.len());
                Error::Window { phys, end: phys + len, why }
            })?;
            mappings.push(mapping);
        }
        Ok(Self { mappings, places })
    }

    /// How many extents it has.
    pub fn len(&self) -> usize {
        self.places.len()
    }

    /// Whether it has none.
    pub fn is_empty(&self) -> bool {
        self.places.is_empty()
    }

    /// Address in this process of extent `index`.
    ///
    /// # Panics
    /// If there is no such extent.
    pub fn va(&self, index: usize) -> usize {
        let (mapping, offset, _) = self.places[index];
        self.mappings[mapping].base().as_ptr() as usize + offset
    }

    /// Copies bytes into extent `index`: for checks that it is the file's.
    pub fn write_at(&self, index: usize, offset: usize, data: &[u8]) -> Result<()> {
        self.slice(index, offset, data.len())?.copy_from(data);
        Ok(())
    }

    /// Copies bytes out of extent `index`.
    pub fn read_at(&self, index: usize, offset: usize, buffer: &mut [u8]) -> Result<()> {
        self.slice(index, offset, buffer.len())?.copy_to(buffer);
        Ok(())
    }

    fn slice(
        &self,
        index: usize,
        offset: usize,
        len: usize,
    ) -> Result<vm_memory::VolatileSlice<'_>> {
        let (mapping, start, size) = self.places.get(index).copied().unwrap_or((0, 0, 0));
        let outside = Error::OutOfBounds { offset, len, size };
        if offset.checked_add(len).is_none_or(|end| end > size) {
            return Err(outside);
        }
        self.mappings[mapping].slice().subslice(start + offset, len).map_err(|_| outside)
    }
}

/// Physical runs (start, length) that `extents` make, and for each extent its run, its offset in
/// the run, and its length.
type Runs = (Vec<(u64, u64)>, Vec<(usize, usize, usize)>);

fn runs(extents: &[Extent]) -> Runs {
    let mut runs: Vec<(u64, u64)> = Vec::new();
    let mut places = Vec::with_capacity(extents.len());
    for extent in extents {
        match runs.last_mut() {
            Some((start, len)) if *start + *len == extent.phys => *len += extent.len,
            _ => runs.push((extent.phys, extent.len)),
        }
        let run = runs.len() - 1;
        let offset = extent.phys - runs[run].0;
        places.push((run, offset as usize, extent.len as usize));
    }
    (runs, places)
}

fn open_dev_mem() -> Result<File, WindowRefusal> {
    OpenOptions::new().read(true).write(true).open("/dev/mem").map_err(|error| {
        match errno_of(&error) {
            Errno::ENOENT | Errno::ENXIO => WindowRefusal::Missing,
            Errno::EPERM => match lockdown() {
                Some(mode) => WindowRefusal::Lockdown { mode },
                None => WindowRefusal::Privilege { errno: Errno::EPERM },
            },
            errno @ Errno::EACCES => WindowRefusal::Privilege { errno },
            errno => WindowRefusal::Other { call: "open", errno },
        }
    })
}

fn refusal_of_map(errno: Errno, wanted: usize) -> WindowRefusal {
    match errno {
        Errno::EPERM => {
            let line = fs::read_to_string("/proc/cmdline").unwrap_or_default();
            if is_relaxed(&line) { WindowRefusal::Strict } else { WindowRefusal::Exclusive }
        }
        Errno::EAGAIN => WindowRefusal::Caching,
        Errno::ENOMEM => {
            let limit = fs::read_to_string("/proc/sys/vm/max_map_count").unwrap_or_default();
            WindowRefusal::TooMany { wanted, limit: limit.trim().parse().unwrap_or(0) }
        }
        errno => WindowRefusal::Other { call: "mmap", errno },
    }
}

/// Whether a kernel command line asks for `iomem=relaxed`; the last word on it counts.
fn is_relaxed(line: &str) -> bool {
    line.split_whitespace().rev().find_map(|word| word.strip_prefix("iomem=")) == Some("relaxed")
}

/// The kernel's lockdown mode, if it is locked down.
fn lockdown() -> Option<String> {
    parse_lockdown(&fs::read_to_string("/sys/kernel/security/lockdown").ok()?)
}

/// `none [integrity] confidentiality`: the mode in brackets.
fn parse_lockdown(text: &str) -> Option<String> {
    let (_, rest) = text.split_once('[')?;
    let (mode, _) = rest.split_once(']')?;
    (mode != "none").then(|| mode.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn extents_that_follow_each_other_share_a_mapping() {
        let extent = |offset, phys, len| Extent { offset, phys, len };
        let (runs, places) = runs(&[
            extent(0, 0x10_0000, 0x2000),
            extent(0x2000, 0x10_2000, 0x1000),
            extent(0x3000, 0x50_0000, 0x1000),
            extent(0x4000, 0x10_3000, 0x1000),
        ]);
        assert_eq!(runs, [(0x10_0000, 0x3000), (0x50_0000, 0x1000), (0x10_3000, 0x1000)]);
        let expected = [(0, 0, 0x2000), (0, 0x2000, 0x1000), (1, 0, 0x1000), (2, 0, 0x1000)];
        assert_eq!(places, expected);
    }

    #[test]
    fn the_last_word_on_iomem_counts() {
        for (line, relaxed) in [
            ("quiet iomem=relaxed panic=-1", true),
            ("iomem=strict iomem=relaxed", true),
            ("iomem=relaxed iomem=strict", false),
            ("quiet", false),
        ] {
            assert_eq!(is_relaxed(line), relaxed, "{line}");
        }
    }

    #[test]
    fn lockdown_is_told_by_its_mode() {
        for (text, mode) in [
            ("[none] integrity confidentiality\n", None),
            ("none [integrity] confidentiality\n", Some("integrity")),
            ("none integrity [confidentiality]\n", Some("confidentiality")),
            ("", None),
        ] {
            assert_eq!(parse_lockdown(text).as_deref(), mode, "{text}");
        }
    }

    #[test]
    fn each_refusal_says_what_to_do() {
        for (why, words) in [
            (WindowRefusal::Lockdown { mode: "integrity".into() }, "Secure Boot"),
            (WindowRefusal::Privilege { errno: Errno::EACCES }, "CAP_SYS_RAWIO"),
            (WindowRefusal::Exclusive, "iomem=relaxed"),
            (WindowRefusal::TooMany { wanted: 70_000, limit: 65_530 }, "vm.max_map_count"),
        ] {
            assert!(why.to_string().contains(words), "{why}");
        }
    }
}
