//! The structures VFIO answers with, read from bytes: fixed fields at the offsets of
//! `linux/vfio.h`, then a chain of capabilities. Nothing is taken on trust: every offset, count and
//! length is checked, and a chain that runs backwards is an error, so it always ends.

use std::mem::offset_of;

use vfio_bindings::bindings::vfio::{
    VFIO_IOMMU_INFO_CAPS, VFIO_IOMMU_INFO_PGSIZES, VFIO_IOMMU_TYPE1_INFO_CAP_IOVA_RANGE,
    VFIO_IOMMU_TYPE1_INFO_DMA_AVAIL, VFIO_REGION_INFO_CAP_SPARSE_MMAP, VFIO_REGION_INFO_FLAG_CAPS,
    VFIO_REGION_INFO_FLAG_MMAP, VFIO_REGION_INFO_FLAG_READ, VFIO_REGION_INFO_FLAG_WRITE,
    vfio_info_cap_header, vfio_iommu_type1_info, vfio_region_info,
};

use crate::RegionInfo;

/// Bytes of a capability header.
const HEADER: usize = size_of::<vfio_info_cap_header>();
const PAGE: u64 = 4096;

/// What is wrong with an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum CapError {
    /// The answer ends too early.
    #[error("the answer is {len} bytes long, too short for {what} at {offset:#x}")]
    Short {
        /// What should stand there.
        what: &'static str,
        /// Where.
        offset: usize,
        /// Bytes there are.
        len: usize,
    },
    /// A capability does not come after the one before it.
    #[error("the capability at {at:#x} is followed by one at {next:#x}, which does not advance")]
    Backwards {
        /// The capability.
        at: usize,
        /// What it says comes next.
        next: usize,
    },
    /// A range is empty, wraps, or lies outside what holds it.
    #[error("the answer holds the impossible range of {len:#x} bytes at {start:#x}")]
    Range {
        /// Start.
        start: u64,
        /// Bytes, or the last address.
        len: u64,
    },
}

/// One capability: its id, its version and everything from its header to the answer's end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capability<'a> {
    /// What it is, in the name space of the call.
    pub id: u16,
    /// Version of its layout.
    pub version: u16,
    bytes: &'a [u8],
}

/// A chain of capabilities in `answer` from `offset`, which is 0 when there is none.
pub fn capabilities(answer: &[u8], offset: u32) -> Capabilities<'_> {
    Capabilities { answer, next: offset as usize }
}

/// The walk along a chain of capabilities; it ends with the chain, or with the first error.
#[derive(Debug, Clone)]
pub struct Capabilities<'a> {
    answer: &'a [u8],
    next: usize,
}

impl<'a> Iterator for Capabilities<'a> {
    type Item = Result<Capability<'a>, CapError>;

    fn next(&mut self) -> Option<Self::Item> {
        let at = std::mem::take(&mut self.next);
        if at == 0 {
            return None;
        }
        Some(self.read(at))
    }
}

impl<'a> Capabilities<'a> {
    fn read(&mut self, at: usize) -> Result<Capability<'a>, CapError> {
        let short = CapError::Short { what: "a capability", offset: at, len: self.answer.len() };
        let bytes = self.answer.get(at..).filter(|bytes| bytes.len() >= HEADER).ok_or(short)?;
        let id = u16_at(bytes, offset_of!(vfio_info_cap_header, id))?;
        let version = u16_at(bytes, offset_of!(vfio_info_cap_header, version))?;
        let next = u32_at(bytes, offset_of!(vfio_info_cap_header, next))? as usize;
        if next != 0 && next < at + HEADER {
            return Err(CapError::Backwards { at, next });
        }
        self.next = next;
        Ok(Capability { id, version, bytes })
    }
}

impl Capability<'_> {
    /// The pairs of 64-bit numbers of a capability that holds a count of them: sparse mmap areas
    /// and IOVA ranges are laid out alike.
    fn pairs(&self) -> Result<Vec<(u64, u64)>, CapError> {
        const FIRST: usize = HEADER + 8;
        let count = u32_at(self.bytes, HEADER)? as usize;
        let short =
            CapError::Short { what: "a list of ranges", offset: FIRST, len: self.bytes.len() };
        let body = self.bytes.get(FIRST..).ok_or(short)?;
        // The count is compared with what is there before anything is allocated for it.
        let needed = count.checked_mul(16).filter(|needed| *needed <= body.len()).ok_or(short)?;
        let pair = |pair: &[u8]| Ok((u64_at(pair, 0)?, u64_at(pair, 8)?));
        body[..needed].chunks_exact(16).map(pair).collect()
    }
}

/// What VFIO_DEVICE_GET_REGION_INFO says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Region {
    /// The region.
    pub info: RegionInfo,
    /// Where it begins in the device's descriptor.
    pub offset: u64,
}

/// Bytes the kernel wants for its whole answer: the answer's first word.
pub fn wanted(answer: &[u8]) -> Result<usize, CapError> {
    Ok(u32_at(answer, 0)? as usize)
}

/// Reads the answer to VFIO_DEVICE_GET_REGION_INFO. Only the whole pages of a mappable area are
/// offered for mapping.
pub fn region(answer: &[u8]) -> Result<Region, CapError> {
    let flags = u32_at(answer, offset_of!(vfio_region_info, flags))?;
    let size = u64_at(answer, offset_of!(vfio_region_info, size))?;
    let offset = u64_at(answer, offset_of!(vfio_region_info, offset))?;
    offset.checked_add(size).ok_or(CapError::Range { start: offset, len: size })?;
    let has = |flag| flags & flag != 0;

    let mut mappable = Vec::new();
    if has(VFIO_REGION_INFO_FLAG_MMAP) && size > 0 {
        mappable.push((0, size));
    }
    if has(VFIO_REGION_INFO_FLAG_CAPS) {
        let first = u32_at(answer, offset_of!(vfio_region_info, cap_offset))?;
        for capability in capabilities(answer, first) {
            let capability = capability?;
            if u32::from(capability.id) == VFIO_REGION_INFO_CAP_SPARSE_MMAP
                && has(VFIO_REGION_INFO_FLAG_MMAP)
            {
                mappable = capability.pairs()?;
            }
        }
    }
    for (start, len) in &mappable {
        if start.checked_add(*len).is_none_or(|end| end > size) {
            return Err(CapError::Range { start: *start, len: *len });
        }
    }
    let mappable =
        mappable.into_iter().filter_map(|(start, len)| whole_pages(start, len)).collect();
    let info = RegionInfo {
        size,
        readable: has(VFIO_REGION_INFO_FLAG_READ),
        writable: has(VFIO_REGION_INFO_FLAG_WRITE),
        mappable,
    };
    Ok(Region { info, offset })
}

/// The whole pages of an area that does not wrap.
fn whole_pages(start: u64, len: u64) -> Option<(u64, u64)> {
    let first = start.checked_next_multiple_of(PAGE)?;
    let end = (start + len) / PAGE * PAGE;
    (end > first).then(|| (first, end - first))
}

/// What VFIO_IOMMU_GET_INFO says of a type1 container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IommuInfo {
    /// Bit n: pages of 2^n bytes. 4 KiB when the kernel does not say.
    pub page_sizes: u64,
    /// Usable addresses, first and last of each range; `None` when the kernel does not say.
    pub ranges: Option<Vec<(u64, u64)>>,
    /// Mappings that can still be made; `None` when the kernel does not say (before 5.10).
    pub available: Option<u32>,
}

/// Reads the answer to VFIO_IOMMU_GET_INFO.
pub fn iommu_info(answer: &[u8]) -> Result<IommuInfo, CapError> {
    let flags = u32_at(answer, offset_of!(vfio_iommu_type1_info, flags))?;
    let mut info = IommuInfo { page_sizes: PAGE, ranges: None, available: None };
    if flags & VFIO_IOMMU_INFO_PGSIZES != 0 {
        info.page_sizes = u64_at(answer, offset_of!(vfio_iommu_type1_info, iova_pgsizes))?;
    }
    if flags & VFIO_IOMMU_INFO_CAPS != 0 {
        let first = u32_at(answer, offset_of!(vfio_iommu_type1_info, cap_offset))?;
        for capability in capabilities(answer, first) {
            let capability = capability?;
            match u32::from(capability.id) {
                VFIO_IOMMU_TYPE1_INFO_CAP_IOVA_RANGE => {
                    let ranges = capability.pairs()?;
                    if let Some((start, last)) = ranges.iter().find(|(start, last)| start > last) {
                        return Err(CapError::Range { start: *start, len: *last });
                    }
                    info.ranges = Some(ranges);
                }
                VFIO_IOMMU_TYPE1_INFO_DMA_AVAIL => {
                    info.available = Some(u32_at(capability.bytes, HEADER)?);
                }
                _ => {}
            }
        }
    }
    Ok(info)
}

/// Everything this module reads, for a fuzzer.
#[doc(hidden)]
pub fn fuzz(answer: &[u8]) {
    let _ = region(answer);
    let _ = iommu_info(answer);
    let first = wanted(answer).unwrap_or(0) as u32;
    let walked = capabilities(answer, first).count();
    assert!(walked <= answer.len() + 1, "a chain longer than its bytes");
}

fn field<const N: usize>(
    bytes: &[u8],
    offset: usize,
    what: &'static str,
) -> Result<[u8; N], CapError> {
    let short = CapError::Short { what, offset, len: bytes.len() };
    bytes.get(offset..).and_then(|rest| rest.first_chunk()).copied().ok_or(short)
}

fn u16_at(bytes: &[u8], offset: usize) -> Result<u16, CapError> {
    field(bytes, offset, "a 16-bit field").map(u16::from_ne_bytes)
}

fn u32_at(bytes: &[u8], offset: usize) -> Result<u32, CapError> {
    field(bytes, offset, "a 32-bit field").map(u32::from_ne_bytes)
}

fn u64_at(bytes: &[u8], offset: usize) -> Result<u64, CapError> {
    field(bytes, offset, "a 64-bit field").map(u64::from_ne_bytes)
}
