//! Slow-path access to client memory: structures and page directories, at any address.

use holdfast_wire::PAGE_SIZE;
use holdfast_wire::pdir::{ENTRIES, MAX_PAGES};
use zerocopy::{FromBytes, Immutable, IntoBytes};

use crate::memory::Reader;

/// Client memory could not be reached: not mapped, mapped without that access, or vanished.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the client's memory at IOVA {iova:#x} cannot be reached; was it mapped for DMA?")]
pub struct Unreachable {
    /// The first address that failed.
    pub iova: u64,
}

/// Reads `buf.len()` bytes at `iova`.
pub fn read_bytes(reader: &mut Reader, iova: u64, buf: &mut [u8]) -> Result<(), Unreachable> {
    let mut done = 0;
    while done < buf.len() {
        let at = iova.checked_add(done as u64).ok_or(Unreachable { iova })?;
        let span = reader
            .translate(at, buf.len() - done, false)
            .map_err(|miss| Unreachable { iova: miss.iova })?;
        let part = &mut buf[done..done + span.len()];
        span.read(part).map_err(|_| Unreachable { iova: at })?;
        done += span.len();
    }
    Ok(())
}

/// Writes `data` at `iova`.
pub fn write_bytes(reader: &mut Reader, iova: u64, data: &[u8]) -> Result<(), Unreachable> {
    let mut done = 0;
    while done < data.len() {
        let at = iova.checked_add(done as u64).ok_or(Unreachable { iova })?;
        let span = reader
            .translate(at, data.len() - done, true)
            .map_err(|miss| Unreachable { iova: miss.iova })?;
        span.write(&data[done..done + span.len()]).map_err(|_| Unreachable { iova: at })?;
        done += span.len();
    }
    Ok(())
}

/// Reads a structure.
pub fn read<T: FromBytes + IntoBytes>(reader: &mut Reader, iova: u64) -> Result<T, Unreachable> {
    let mut value = T::new_zeroed();
    read_bytes(reader, iova, value.as_mut_bytes())?;
    Ok(value)
}

/// Writes a structure.
pub fn write<T: IntoBytes + Immutable>(
    reader: &mut Reader,
    iova: u64,
    value: &T,
) -> Result<(), Unreachable> {
    write_bytes(reader, iova, value.as_bytes())
}

/// Why a page directory cannot be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadDirectory {
    /// More pages than a directory can name, or none.
    #[error("a page directory of {0} pages was given; 1 to 262144 are possible")]
    Size(usize),
    /// A page's address is not a multiple of 4 KiB.
    #[error("entry {index} of the page directory is {address:#x}, which is not page aligned")]
    Unaligned {
        /// Which page.
        index: usize,
        /// The address found.
        address: u64,
    },
    /// The directory itself cannot be read.
    #[error(transparent)]
    Unreachable(#[from] Unreachable),
}

/// Reads the bus addresses of the first `pages` pages that the directory at `pdir` names. They
/// are page aligned; whether they are mapped is seen when they are used.
pub fn read_directory(
    reader: &mut Reader,
    pdir: u64,
    pages: usize,
) -> Result<Box<[u64]>, BadDirectory> {
    if pages == 0 || pages > MAX_PAGES {
        return Err(BadDirectory::Size(pages));
    }
    let mut found = Vec::new();
    let mut table = [0u64; ENTRIES];
    for first in (0..pages).step_by(ENTRIES) {
        let entry = pdir.checked_add((first / ENTRIES * 8) as u64);
        let table_address: u64 = read(reader, entry.ok_or(Unreachable { iova: pdir })?)?;
        let count = ENTRIES.min(pages - first);
        read_bytes(reader, table_address, table[..count].as_mut_bytes())?;
        for (offset, &address) in table[..count].iter().enumerate() {
            if !address.is_multiple_of(PAGE_SIZE as u64) {
                return Err(BadDirectory::Unaligned { index: first + offset, address });
            }
            found.push(address);
        }
    }
    Ok(found.into_boxed_slice())
}
