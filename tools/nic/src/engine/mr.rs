//! Memory regions: keys, checks, and the way from a region's addresses to bus addresses.
//!
//! A key is `index << 8 | generation`; lkey and rkey are the same. A check takes a key, a
//! protection domain, a range and the rights wanted, and answers with the region or refuses; it is
//! made on every access, as is the translation of the bus addresses that follows it.

use holdfast_wire::attr::{
    ACCESS_LOCAL_WRITE, ACCESS_REMOTE_ATOMIC, ACCESS_REMOTE_WRITE, ACCESS_ZERO_BASED,
};

use super::error::Error;
use super::gather::SpanList;
use super::host::{Host, Miss};
use super::table::Table;

/// Bytes of a region's pages.
const PAGE: u64 = 4096;

/// What a region is made of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MrKind {
    /// A list of 4 KiB pages by bus address; the first one holds the start, at the start's own
    /// offset within a page.
    Pages(Vec<u64>),
    /// All bus addresses, each standing for itself.
    Dma,
    /// Nothing until a FAST_REG request names pages, `max_pages` at most.
    FastReg {
        /// Most pages of a registration.
        max_pages: u32,
    },
}

/// How to make a memory region.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MrInit {
    /// Protection domain handle.
    pub pd: u32,
    /// Where it starts in its own address space; not used for [`MrKind::Dma`] and `FastReg`.
    pub start: u64,
    /// Bytes; not used for [`MrKind::Dma`] and `FastReg`.
    pub length: u64,
    /// `holdfast_wire::attr::ACCESS_*` bits.
    pub access: u32,
    /// What it is made of.
    pub kind: MrKind,
}

/// A region's names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MrInfo {
    /// Handle, for commands.
    pub handle: u32,
    /// Key for the owner's scatter/gather entries.
    pub lkey: u32,
    /// Key for the peer's requests.
    pub rkey: u32,
}

#[derive(Debug, PartialEq, Eq)]
enum Map {
    Pages,
    Dma,
    FastReg { max_pages: u32, valid: bool },
}

/// A memory region.
#[derive(Debug)]
pub(crate) struct Mr {
    pub(crate) pd: u32,
    key: u32,
    access: u32,
    /// First address of the region as its users count.
    base: u64,
    length: u64,
    /// Where `base` lies in the first page.
    first_offset: u64,
    pages: Vec<u64>,
    map: Map,
}

/// A key, range or right was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Refused;

/// Checks the pages of a region: aligned, and enough of them.
fn check_pages(pages: &[u64], start: u64, length: u64) -> Result<(), Error> {
    if let Some(bad) = pages.iter().find(|p| !p.is_multiple_of(PAGE)) {
        return Err(Error::Invalid { what: "page address", value: *bad });
    }
    let end = (start % PAGE)
        .checked_add(length)
        .filter(|_| start.checked_add(length).is_some())
        .ok_or(Error::Invalid { what: "region length", value: length })?;
    let have = pages.len() as u64;
    if end.div_ceil(PAGE) > have {
        return Err(Error::Limit { what: "region length", value: length, limit: have * PAGE });
    }
    Ok(())
}

impl Mr {
    /// Checks what can be checked without a NIC and makes the region.
    pub(crate) fn new(init: MrInit) -> Result<Self, Error> {
        check_access(init.access)?;
        let mut mr = Mr {
            pd: init.pd,
            key: 0,
            access: init.access,
            base: init.start,
            length: init.length,
            first_offset: init.start % PAGE,
            pages: Vec::new(),
            map: Map::Pages,
        };
        match init.kind {
            MrKind::Pages(mut pages) => {
                pages.shrink_to_fit();
                check_pages(&pages, init.start, init.length)?;
                if init.access & ACCESS_ZERO_BASED != 0 {
                    mr.base = 0;
                }
                mr.pages = pages;
            }
            MrKind::Dma => {
                (mr.base, mr.length, mr.first_offset) = (0, u64::MAX, 0);
                mr.map = Map::Dma;
            }
            MrKind::FastReg { max_pages } => {
                mr.pages.reserve_exact(max_pages as usize);
                mr.map = Map::FastReg { max_pages, valid: false };
            }
        }
        Ok(mr)
    }

    pub(crate) fn set_key(&mut self, key: u32) {
        self.key = key;
    }

    pub(crate) fn key(&self) -> u32 {
        self.key
    }

    /// Pages that its list holds, or may come to hold.
    pub(crate) fn room(&self) -> u32 {
        match self.map {
            Map::FastReg { max_pages, .. } => max_pages,
            Map::Pages | Map::Dma => u32::try_from(self.pages.len()).unwrap_or(u32::MAX),
        }
    }

    /// Refuses a range that is not within the region, and rights it does not give.
    #[inline]
    fn check(&self, pd: u32, addr: u64, len: u64, access: u32) -> Result<(), Refused> {
        let offset = addr.wrapping_sub(self.base);
        let valid = !matches!(self.map, Map::FastReg { valid: false, .. });
        let within = addr >= self.base && len <= self.length && offset <= self.length - len;
        if valid && within && self.pd == pd && self.access & access == access {
            Ok(())
        } else {
            Err(Refused)
        }
    }

    /// Translates `[addr, addr + len)`, checked before, and appends what it is made of. Stops
    /// early when `out` is full; says how many bytes were appended.
    #[inline]
    pub(crate) fn spans<H: Host>(
        &self,
        host: &mut H,
        addr: u64,
        len: usize,
        write: bool,
        out: &mut SpanList,
    ) -> Result<usize, Miss> {
        // Mostly it is one piece.
        let (iova, run) = self.run(addr, len);
        if run == len {
            let span = host.translate(iova, len, write)?;
            if span.len() >= len && out.try_push(span.slice(0, len)).is_ok() {
                return Ok(len);
            }
        }
        self.pieces(host, addr, len, write, out)
    }

    /// As [`Mr::spans`], for what may be in several pieces.
    #[inline(never)]
    fn pieces<H: Host>(
        &self,
        host: &mut H,
        addr: u64,
        len: usize,
        write: bool,
        out: &mut SpanList,
    ) -> Result<usize, Miss> {
        let mut done = 0;
        while done < len {
            let (iova, run) = self.run(addr + done as u64, len - done);
            let mut within = 0;
            while within < run {
                if out.is_full() {
                    return Ok(done + within);
                }
                let iova = iova + within as u64;
                let span = host.translate(iova, run - within, write)?;
                if span.is_empty() {
                    return Err(Miss { iova });
                }
                let span = span.slice(0, run - within);
                within += span.len();
                out.push(span);
            }
            done += run;
        }
        Ok(done)
    }

    /// The bus address of `addr` and how many of the `len` bytes from there on are contiguous.
    #[inline]
    fn run(&self, addr: u64, len: usize) -> (u64, usize) {
        if matches!(self.map, Map::Dma) {
            return (addr, len);
        }
        let at = addr - self.base + self.first_offset;
        let (mut page, within) = ((at / PAGE) as usize, at % PAGE);
        let iova = self.pages[page] + within;
        let mut run = (PAGE - within) as usize;
        while run < len && self.adjacent(page) {
            run += PAGE as usize;
            page += 1;
        }
        (iova, run.min(len))
    }

    /// Whether the page after this one exists and follows it on the bus.
    fn adjacent(&self, page: usize) -> bool {
        matches!((self.pages.get(page), self.pages.get(page + 1)),
            (Some(this), Some(next)) if this.checked_add(PAGE) == Some(*next))
    }

    /// Whether an invalidation may be asked for: a fast registration that is in force.
    fn can_invalidate(&self, pd: u32) -> bool {
        self.pd == pd && matches!(self.map, Map::FastReg { valid: true, .. })
    }

    /// Most pages of a fast registration, if one may be made now under `key`.
    pub(crate) fn fast_reg_room(&self, pd: u32, key: u32) -> Option<u32> {
        match self.map {
            Map::FastReg { max_pages, valid: false }
                if self.pd == pd && key >> 8 == self.key >> 8 =>
            {
                Some(max_pages)
            }
            _ => None,
        }
    }

    /// Carries out a fast registration; the caller asked [`Mr::fast_reg_room`] first.
    pub(crate) fn fast_register(
        &mut self,
        key: u32,
        start: u64,
        length: u64,
        access: u32,
        pages: impl Iterator<Item = u64>,
    ) -> Result<(), Error> {
        check_access(access)?;
        self.pages.clear();
        self.pages.extend(pages);
        check_pages(&self.pages, start, length)?;
        let Map::FastReg { valid, .. } = &mut self.map else {
            return Err(Error::Invalid { what: "kind of region", value: key.into() });
        };
        *valid = true;
        self.key = key;
        self.access = access;
        self.base = if access & ACCESS_ZERO_BASED != 0 { 0 } else { start };
        self.first_offset = start % PAGE;
        self.length = length;
        Ok(())
    }
}

/// Hints that a device may ignore: the kernel's IB_ACCESS_OPTIONAL (relaxed ordering is one) and
/// IB_ACCESS_HUGETLB (include/rdma/ib_verbs.h).
pub(crate) const ACCESS_IGNORED: u32 = 0x3ff0_0000 | 0x80;

/// Refuses rights that make no sense: remote writes and atomics need local writes.
fn check_access(access: u32) -> Result<(), Error> {
    let writes = access & (ACCESS_REMOTE_WRITE | ACCESS_REMOTE_ATOMIC) != 0;
    if access & !ACCESS_IGNORED > 0x7f || (writes && access & ACCESS_LOCAL_WRITE == 0) {
        return Err(Error::Invalid { what: "access flags", value: access.into() });
    }
    Ok(())
}

/// Finds the region of a key and checks the access.
#[inline]
pub(crate) fn lookup(
    mrs: &Table<Mr>,
    key: u32,
    pd: u32,
    addr: u64,
    len: u64,
    access: u32,
) -> Result<&Mr, Refused> {
    let mr = mrs.get(key >> 8).filter(|mr| mr.key == key).ok_or(Refused)?;
    mr.check(pd, addr, len, access)?;
    Ok(mr)
}

/// Whether [`invalidate`] would succeed.
pub(crate) fn can_invalidate(mrs: &Table<Mr>, key: u32, pd: u32) -> bool {
    mrs.get(key >> 8).is_some_and(|mr| mr.key == key && mr.can_invalidate(pd))
}

/// Takes a fast registration back.
pub(crate) fn invalidate(mrs: &mut Table<Mr>, key: u32, pd: u32) -> Result<(), Refused> {
    let mr = mrs.get_mut(key >> 8).filter(|mr| mr.key == key && mr.can_invalidate(pd));
    match mr.ok_or(Refused)?.map {
        Map::FastReg { ref mut valid, .. } => *valid = false,
        _ => return Err(Refused),
    }
    Ok(())
}
