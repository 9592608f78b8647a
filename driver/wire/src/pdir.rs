//! Page directories: how the interface names memory that is not contiguous on the bus.
//!
//! Two levels of 4 KiB pages of 64-bit bus addresses: a directory of up to 512 tables, each of up
//! to 512 pages. Page `i` of an object stands at entry `i % 512` of table `i / 512`.

use crate::PAGE_SIZE;

/// Entries in a directory or table page.
pub const ENTRIES: usize = PAGE_SIZE / 8;
/// Most pages that one directory can name (1 GiB of memory).
pub const MAX_PAGES: usize = ENTRIES * ENTRIES;

/// Where page `page` stands: (directory entry, table entry). `None` beyond [`MAX_PAGES`].
pub const fn position(page: usize) -> Option<(usize, usize)> {
    if page >= MAX_PAGES { None } else { Some((page / ENTRIES, page % ENTRIES)) }
}

/// Number of tables a directory of `pages` pages needs.
pub const fn tables(pages: usize) -> usize {
    pages.div_ceil(ENTRIES)
}
