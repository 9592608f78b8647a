//! A region as the server describes it: its size, its capabilities, what of it can be mapped.

use std::os::fd::OwnedFd;

use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::stat::{SFlag, fstat};
use zerocopy::FromBytes;

use super::wire;
use crate::RegionInfo;

/// Most mappable areas that are believed of one region.
const MAX_AREAS: usize = 4096;
/// Most capabilities that are followed.
const MAX_CAPS: usize = 64;

/// A region, and the file behind its mappable parts.
#[derive(Debug)]
pub(super) struct Region {
    /// What callers see.
    pub info: RegionInfo,
    /// The file, when something can be mapped.
    pub fd: Option<OwnedFd>,
    /// Where in it the region begins.
    pub offset: u64,
}

impl Region {
    /// Reads a reply's payload; `index` is what was asked for. An error says what is wrong.
    pub fn parse(index: u32, payload: &[u8], fds: Vec<OwnedFd>) -> Result<Self, String> {
        let (info, _) = wire::RegionInfo::read_from_prefix(payload)
            .map_err(|_| format!("region information of {} bytes", payload.len()))?;
        if info.index != index {
            return Err(format!("information on region {} instead of {index}", info.index));
        }
        let mut fds = fds.into_iter();
        let (fd, surplus) = (fds.next(), fds.next());
        if surplus.is_some() {
            return Err(format!("more than one descriptor for region {index}"));
        }
        let mut region = Self {
            info: RegionInfo {
                size: info.size,
                readable: info.flags & wire::REGION_READABLE != 0,
                writable: info.flags & wire::REGION_WRITABLE != 0,
                mappable: Vec::new(),
            },
            fd: None,
            offset: info.offset,
        };
        if info.flags & wire::REGION_MAPPABLE != 0 && info.size != 0 {
            // Without a descriptor there is nothing to map, whatever the flag says.
            if let Some(fd) = fd {
                let sparse = if info.flags & wire::REGION_HAS_CAPS != 0 {
                    sparse_areas(payload, info.cap_offset)?
                } else {
                    None
                };
                region.info.mappable = sparse.unwrap_or_else(|| vec![(0, info.size)]);
                region.check_areas(index)?;
                if region.has_file(&fd, index) {
                    region.fd = Some(fd);
                } else {
                    region.info.mappable.clear();
                }
            }
        }
        Ok(region)
    }

    fn check_areas(&self, index: u32) -> Result<(), String> {
        for &(offset, len) in &self.info.mappable {
            let end = offset.checked_add(len);
            let inside = end.is_some_and(|end| end <= self.info.size);
            let fits = end.and_then(|end| end.checked_add(self.offset)).is_some();
            if len == 0 || !inside || !fits || !offset.is_multiple_of(PAGE) {
                return Err(format!(
                    "region {index} of {:#x} bytes with a mappable area of {len:#x} bytes at \
                     {offset:#x}",
                    self.info.size
                ));
            }
        }
        Ok(())
    }

    /// Whether the mappable areas may be reached through `fd`. A store to a mapped page that the
    /// file does not have ends this process (SIGBUS), so what is no file, or too short a one, is
    /// left alone, and the region is reached by messages. A server may cut a file later unless it
    /// is sealed; one without a seal is believed, as QEMU and others send such.
    fn has_file(&self, fd: &OwnedFd, index: u32) -> bool {
        let size = match fstat(fd) {
            Ok(stat)
                if SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT == SFlag::S_IFREG =>
            {
                u64::try_from(stat.st_size).unwrap_or(0)
            }
            _ => 0,
        };
        // Checked not to wrap by `check_areas`.
        let ends = self.info.mappable.iter().map(|&(offset, len)| self.offset + offset + len);
        let needs = ends.max().unwrap_or(0);
        if size < needs {
            tracing::warn!(
                index,
                size,
                needs,
                "a region has no file of its length and is not mapped"
            );
            return false;
        }
        let sealed = fcntl(fd, FcntlArg::F_GET_SEALS)
            .is_ok_and(|seals| SealFlag::from_bits_retain(seals).contains(SealFlag::F_SEAL_SHRINK));
        if !sealed {
            tracing::warn!(
                index,
                "a region's file is not sealed: if the server cuts it short, this process ends"
            );
        }
        true
    }

    /// Whether `[offset, offset + len)` lies inside one mappable area.
    pub fn is_mappable(&self, offset: u64, len: u64) -> bool {
        self.info.mappable.iter().any(|&(start, bytes)| {
            // Neither sum can wrap: areas were checked, and the second is not reached if it could.
            offset >= start && offset - start <= bytes && len <= bytes - (offset - start)
        })
    }
}

/// Size of a page, which is what areas are made of.
const PAGE: u64 = 4096;

/// The areas of the first sparse mapping capability, if there is one.
fn sparse_areas(payload: &[u8], first: u32) -> Result<Option<Vec<(u64, u64)>>, String> {
    let mut at = first as usize;
    for _ in 0..MAX_CAPS {
        if at == 0 {
            return Ok(None);
        }
        let cap = payload.get(at..).filter(|_| at >= size_of::<wire::RegionInfo>());
        let Some((header, rest)) = cap.and_then(|cap| wire::CapHeader::read_from_prefix(cap).ok())
        else {
            return Err(format!("a region capability at {at}, outside of {}", payload.len()));
        };
        if header.id == wire::CAP_SPARSE_MMAP {
            let Ok((list, mut rest)) = wire::SparseMmap::read_from_prefix(rest) else {
                return Err("a sparse mapping capability that is cut short".into());
            };
            let count = list.areas as usize;
            if count > MAX_AREAS || rest.len() / size_of::<wire::SparseArea>() < count {
                return Err(format!("{count} mappable areas in {} bytes", rest.len()));
            }
            let mut areas = Vec::with_capacity(count);
            while areas.len() < count {
                let (area, more) =
                    wire::SparseArea::read_from_prefix(rest).expect("the length was checked");
                areas.push((area.offset, area.size));
                rest = more;
            }
            return Ok(Some(areas));
        }
        at = header.next as usize;
    }
    Err(format!("more than {MAX_CAPS} capabilities of one region"))
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use nix::sys::memfd::{MFdFlags, memfd_create};
    use zerocopy::IntoBytes;

    use super::*;

    fn payload(flags: u32, size: u64, caps: &[u8]) -> Vec<u8> {
        let info = wire::RegionInfo {
            argsz: 32 + caps.len() as u32,
            flags,
            index: 2,
            cap_offset: if caps.is_empty() { 0 } else { 32 },
            size,
            offset: 0,
        };
        [info.as_bytes(), caps].concat()
    }

    fn sparse(next: u32, count: u32, areas: &[(u64, u64)]) -> Vec<u8> {
        let header = wire::CapHeader { id: wire::CAP_SPARSE_MMAP, version: 1, next };
        let list = wire::SparseMmap { areas: count, reserved: 0 };
        let mut bytes = [header.as_bytes(), list.as_bytes()].concat();
        for &(offset, size) in areas {
            bytes.extend_from_slice(wire::SparseArea { offset, size }.as_bytes());
        }
        bytes
    }

    fn parse(payload: &[u8]) -> Result<Region, String> {
        Region::parse(2, payload, vec![memfd(0x3000)])
    }

    fn memfd(len: u64) -> OwnedFd {
        let file = File::from(memfd_create("region", MFdFlags::MFD_CLOEXEC).unwrap());
        file.set_len(len).unwrap();
        file.into()
    }

    const MAP: u32 = wire::REGION_MAPPABLE;
    const CAPS: u32 = wire::REGION_MAPPABLE | wire::REGION_HAS_CAPS;

    #[test]
    fn without_capabilities_all_of_it_is_mappable() {
        let region = parse(&payload(MAP, 0x3000, &[])).unwrap();
        assert_eq!(region.info.mappable, [(0, 0x3000)]);
        assert!(region.is_mappable(0x1000, 0x2000));
        assert!(!region.is_mappable(0x1000, 0x2001));
        assert!(!region.is_mappable(u64::MAX, 2));
    }

    #[test]
    fn with_a_sparse_list_only_its_areas_are() {
        let caps = sparse(0, 2, &[(0, 0x1000), (0x2000, 0x1000)]);
        let region = parse(&payload(CAPS, 0x3000, &caps)).unwrap();
        assert_eq!(region.info.mappable, [(0, 0x1000), (0x2000, 0x1000)]);
        assert!(!region.is_mappable(0, 0x3000));
        assert!(!region.is_mappable(0x1000, 0x1000));
    }

    #[test]
    fn an_unknown_capability_is_passed_over() {
        let mut caps = wire::CapHeader { id: 77, version: 1, next: 40 }.as_bytes().to_vec();
        caps.extend(sparse(0, 1, &[(0x1000, 0x1000)]));
        let region = parse(&payload(CAPS, 0x3000, &caps)).unwrap();
        assert_eq!(region.info.mappable, [(0x1000, 0x1000)]);
    }

    #[test]
    fn only_a_file_that_is_long_enough_is_mapped() {
        let null = || OwnedFd::from(File::open("/dev/null").unwrap());
        let sparse = sparse(0, 1, &[(0x1000, 0x1000)]);
        for (name, fd, payload, mappable) in [
            ("as long as the region", memfd(0x3000), payload(MAP, 0x3000, &[]), true),
            ("a byte short", memfd(0x2fff), payload(MAP, 0x3000, &[]), false),
            ("empty", memfd(0), payload(MAP, 0x3000, &[]), false),
            ("no file", null(), payload(MAP, 0x3000, &[]), false),
            ("to the area's end", memfd(0x2000), payload(CAPS, 0x3000, &sparse), true),
            ("short of the area's end", memfd(0x1fff), payload(CAPS, 0x3000, &sparse), false),
        ] {
            let region = Region::parse(2, &payload, vec![fd]).unwrap();
            assert_eq!(region.info.mappable.is_empty(), !mappable, "{name}");
            assert_eq!(region.fd.is_some(), mappable, "{name}");
            assert_eq!(region.is_mappable(0x1000, 0x1000), mappable, "{name}");
        }
    }

    #[test]
    fn the_offset_in_the_file_counts() {
        let mut info = payload(MAP, 0x1000, &[]);
        // The last field of the region information.
        info[24..32].copy_from_slice(&0x2001_u64.to_ne_bytes());
        assert!(parse(&info).unwrap().fd.is_none());
        info[24..32].copy_from_slice(&0x2000_u64.to_ne_bytes());
        assert!(parse(&info).unwrap().fd.is_some());
    }

    #[test]
    fn broken_lists_are_refused() {
        let looping = wire::CapHeader { id: 77, version: 1, next: 32 }.as_bytes().to_vec();
        let inside_info = wire::CapHeader { id: 77, version: 1, next: 8 }.as_bytes().to_vec();
        for (name, caps) in [
            ("a list that loops", looping),
            ("a capability inside the info", inside_info),
            ("a count beyond the list", sparse(0, u32::MAX, &[(0, 0x1000)])),
            ("an area beyond the region", sparse(0, 1, &[(0x3000, 0x1000)])),
            ("an area that wraps", sparse(0, 1, &[(0x1000, u64::MAX)])),
            ("an empty area", sparse(0, 1, &[(0x1000, 0)])),
            ("an unaligned area", sparse(0, 1, &[(0x10, 0x1000)])),
            ("a cut header", vec![0; 7]),
        ] {
            assert!(parse(&payload(CAPS, 0x3000, &caps)).is_err(), "{name}");
        }
    }
}
