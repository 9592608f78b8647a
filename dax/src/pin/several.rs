//! Which pages to pin a file by.
//!
//! One would do, if Linux before 6.15 looked at all of them ([`super::Pin::take_several`] says what
//! it leaves out). There several are needed, each with a page cache entry of its own, and close
//! enough to each other for one look of the kernel's: neighbouring small pages, or neighbouring huge
//! ones. Which of them a file is mapped by is for the first one to say who touches it, so we take
//! both.

use std::num::NonZeroUsize;
use std::ops::Range;
use std::os::fd::BorrowedFd;
use std::sync::OnceLock;

use nix::sys::utsname::uname;

use crate::GRANULE;
use crate::map::Mapping;

/// The first kernel that looks at every page.
const LOOKS_AT_ALL: (u32, u32) = (6, 15);
/// Small pages, and huge ones: eight threads that sync the file at the same time would have to have
/// got to half of them each to hide them.
const EACH: u64 = 8;
const PAGE: u64 = 4096;

/// Whether this kernel wants several pages pinned.
fn several_needed() -> bool {
    static NEEDED: OnceLock<bool> = OnceLock::new();
    *NEEDED.get_or_init(|| {
        let release = uname().map(|name| name.release().to_string_lossy().into_owned());
        release.ok().as_deref().and_then(version).is_none_or(|version| version < LOOKS_AT_ALL)
    })
}

/// The two numbers that a release begins with.
fn version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

/// The pages to pin a file by beside the last one that it `has`, which is at `last`: none, or where
/// this kernel wants several, the small pages before it and one of each huge page before that.
/// Offsets in bytes.
pub fn others_to_pin(last: u64, has: impl Fn(u64) -> bool) -> Vec<u64> {
    if several_needed() { before(last, has) } else { Vec::new() }
}

fn before(last: u64, has: impl Fn(u64) -> bool) -> Vec<u64> {
    let small = (1..EACH).map(|n| n * PAGE);
    let huge = (1..EACH).map(|n| n * GRANULE);
    let before = small.chain(huge).filter_map(|distance| last.checked_sub(distance));
    before.filter(|offset| has(*offset)).collect()
}

/// Whether so many bytes of a DAX file, mapped with huge pages, would be too few page cache entries
/// for this kernel, which wants several pinned.
pub fn wants_small_pages(len: u64) -> bool {
    several_needed() && len < EACH * GRANULE
}

/// Where this kernel wants several pages pinned: faults the small pages among them in, those of
/// `within` that come last, as small ones. To be done before huge pages around them are, which
/// would get one page cache entry in their place; pages that have such an entry keep it. What fails
/// here fails again when the pages are populated, and is told then.
///
/// Blocks as a page fault does, while an operation on the file's layout keeps faults out.
pub fn touch_small_pages(file: BorrowedFd<'_>, within: Range<u64>) {
    if !several_needed() {
        return;
    }
    let start = within.end.saturating_sub(EACH * PAGE).max(within.start);
    let len = usize::try_from(within.end.saturating_sub(start)).ok().and_then(NonZeroUsize::new);
    // A mapping of so few pages has no huge one.
    let touched = len.map(|len| Mapping::new(Some((file, start)), len)?.populate());
    if let Some(Err(errno)) = touched {
        tracing::debug!(%errno, "small pages were not touched");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_are_pinned_small_and_huge() {
        let last = 5 * GRANULE - PAGE;
        let pages = before(last, |_| true);
        assert_eq!(pages[..2], [last - PAGE, last - 2 * PAGE]);
        assert_eq!(pages[7..], [1, 2, 3, 4].map(|n| last - n * GRANULE));
        assert_eq!(before(PAGE, |_| true), [0]);
        assert_eq!(before(last, |offset| offset < GRANULE), [last - 4 * GRANULE]);
    }

    #[test]
    fn a_kernels_release_is_read() {
        assert_eq!(version("6.1.0-56-amd64"), Some((6, 1)));
        assert_eq!(version("7.3+deb13-amd64"), Some((7, 3)));
        assert_eq!(version("unknown"), None);
    }
}
