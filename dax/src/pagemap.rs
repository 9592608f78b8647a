//! What this process's page tables say: `/proc/self/pagemap`, 8 bytes for each page.
//!
//! A read takes the address space's lock for reading and nothing of any file: it goes through
//! while a file operation waits for a pin.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Mutex, PoisonError};

use nix::errno::Errno;

use crate::open::{errno_of, system_page_size};
use crate::{Error, Result};

/// Bit 63 of an entry: a page is mapped there.
const PRESENT: u64 = 1 << 63;
/// Bits 0 to 54: the page frame number, zero without CAP_SYS_ADMIN.
const FRAME: u64 = (1 << 55) - 1;

/// What one page is mapped to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Entry {
    /// Nothing, or swapped out.
    Absent,
    /// A page whose address the kernel keeps to itself.
    Hidden,
    /// The physical address of the page.
    At(u64),
}

/// An open pagemap. It shows the address space of the process that opened it, also to a child.
#[derive(Debug, Clone)]
pub struct Pagemap {
    file: Arc<File>,
    page_size: u64,
}

impl Pagemap {
    /// This process's, opened once.
    pub fn own() -> Result<Self> {
        static OPEN: Mutex<Option<(u32, Pagemap)>> = Mutex::new(None);
        let mut open = OPEN.lock().unwrap_or_else(PoisonError::into_inner);
        match &*open {
            Some((pid, pagemap)) if *pid == std::process::id() => Ok(pagemap.clone()),
            _ => {
                let path = "/proc/self/pagemap";
                let file = File::open(path)
                    .map_err(|error| Error::Pagemap { call: "open", errno: errno_of(&error) })?;
                let pagemap = Self { file: Arc::new(file), page_size: system_page_size() };
                *open = Some((std::process::id(), pagemap.clone()));
                Ok(pagemap)
            }
        }
    }

    /// Bytes in a page.
    pub fn page_size(&self) -> u64 {
        self.page_size
    }

    /// The entry of the page at `address`. No allocation.
    pub fn entry(&self, address: usize) -> Result<Entry, Errno> {
        let mut raw = [0; 8];
        self.read(address, &mut raw)?;
        Ok(self.decode(u64::from_ne_bytes(raw)))
    }

    /// The entries of `count` pages from `address` on.
    pub fn entries(&self, address: usize, count: usize) -> Result<Vec<Entry>, Errno> {
        let mut raw = vec![0; count * 8];
        self.read(address, &mut raw)?;
        let (words, _) = raw.as_chunks::<8>();
        Ok(words.iter().map(|word| self.decode(u64::from_ne_bytes(*word))).collect())
    }

    fn read(&self, address: usize, buffer: &mut [u8]) -> Result<(), Errno> {
        let at = address as u64 / self.page_size * 8;
        self.file.read_exact_at(buffer, at).map_err(|error| errno_of(&error))
    }

    fn decode(&self, word: u64) -> Entry {
        match (word & PRESENT != 0, word & FRAME) {
            (false, _) => Entry::Absent,
            (true, 0) => Entry::Hidden,
            (true, frame) => Entry::At(frame * self.page_size),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Memory, Populate};

    #[test]
    fn a_page_is_absent_until_it_is_touched() {
        let memory = Memory::open(&"memfd".parse().unwrap(), 8192, Populate::No).unwrap();
        let pagemap = Pagemap::own().unwrap();
        let address = memory.as_ptr().as_ptr() as usize;
        memory.write_at(4096, &[1]).unwrap();
        let entries = pagemap.entries(address, 2).unwrap();
        assert_eq!(entries[0], Entry::Absent);
        assert_ne!(entries[1], Entry::Absent);
        assert_eq!(pagemap.entry(address + 4096 + 77).unwrap(), entries[1]);
    }
}
