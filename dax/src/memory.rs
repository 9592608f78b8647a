//! A mapped range of memory: where it is, what it is, and how to reach its bytes.

use std::num::NonZeroUsize;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU8, AtomicU64};

use nix::errno::Errno;
use vm_memory::VolatileSlice;

use crate::map::Mapping;
use crate::pin::wants_small_pages;
use crate::{Error, FileId, Kind, Result, Source, fsdax, hugetlb, open};

/// Whether to fault everything in before use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Populate {
    /// Every page now: blocks of sparse files are allocated, and first accesses cost nothing.
    Yes,
    /// Every page now, but nothing is allocated: a sparse file is refused ([`Error::Sparse`]).
    NoHoles,
    /// Pages as they are touched. A full file system then shows as SIGBUS on a write into a hole.
    No,
}

/// A range of a file that stands behind memory.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Behind<'a> {
    pub fd: BorrowedFd<'a>,
    /// First byte, in the file.
    pub offset: u64,
    pub len: u64,
}

/// A mapped, writable range of memory. Files, memfd and huge pages are mapped shared: other users
/// of the file see every write at once. May be used from any thread; see the crate's text for why
/// it never gives out a reference to its bytes.
#[derive(Debug)]
pub struct Memory {
    mapping: Mapping,
    kind: Kind,
    page_size: usize,
    backing: Option<(OwnedFd, u64)>,
    source: Source,
}

impl Memory {
    /// Maps `source`, which must have or gets at least `min_len` bytes: a file's range is mapped
    /// as it was named, anything else is as long as asked, rounded up to whole pages. Blocks for
    /// as long as faulting in takes.
    pub fn open(source: &Source, min_len: usize, populate: Populate) -> Result<Self> {
        let opened = open::open(source, min_len as u64)?;
        let what = || source.to_string();
        let bad_range = Error::BadRange { offset: 0, len: opened.len };
        let len = usize::try_from(opened.len).ok().and_then(NonZeroUsize::new).ok_or(bad_range)?;
        let fd = opened.backing.as_ref().map(|(fd, offset)| (fd.as_fd(), *offset));
        let mapping = match fd {
            Some((fd, offset)) if opened.kind == Kind::FsDax && wants_small_pages(opened.len) => {
                Mapping::of_small_pages(fd, offset, len)
            }
            _ => Mapping::new(fd, len),
        };
        let mapping = mapping.map_err(|errno| match (opened.kind, errno) {
            (Kind::Hugetlb, Errno::ENOMEM) => {
                hugetlb::shortage(opened.len, opened.page_size, errno)
            }
            _ => Error::Map { what: what(), len: opened.len, errno },
        })?;
        let memory = Self {
            mapping,
            kind: opened.kind,
            page_size: opened.page_size as usize,
            backing: opened.backing,
            source: source.clone(),
        };
        if populate == Populate::NoHoles
            && let (Some(file), Some(path)) = (memory.behind(0, opened.len), memory.path())
            && matches!(opened.kind, Kind::PageCache | Kind::FsDax)
        {
            fsdax::check_no_holes(&file, path)?;
        }
        if populate != Populate::No {
            memory.populate(0, opened.len)?;
        }
        Ok(memory)
    }

    /// Faults `[offset, offset + len)` in for writing (`MADV_POPULATE_WRITE`), both multiples of
    /// the page size: blocks are allocated, unwritten extents converted, shared ones given blocks
    /// of their own, and the page tables filled. Nothing is written.
    ///
    /// Blocks while an operation on the file keeps page faults out (it holds the file's
    /// `invalidate_lock`). If it fails, [`Error::Shared`] and [`Error::Unwritten`] name what could
    /// not be changed.
    pub fn populate(&self, offset: u64, len: u64) -> Result<()> {
        let (Ok(start), Ok(size)) = (usize::try_from(offset), usize::try_from(len)) else {
            return Err(Error::BadRange { offset, len });
        };
        if size == 0 || start.checked_add(size).is_none_or(|end| end > self.len()) {
            return Err(Error::BadRange { offset, len });
        }
        self.mapping.populate_part(start, size).map_err(|errno| {
            let behind = self.behind(offset, len).zip(self.path());
            let explained = match self.kind {
                Kind::FsDax => {
                    behind.and_then(|(file, path)| fsdax::explain_populate(&file, path, errno))
                }
                _ => None,
            };
            explained.unwrap_or_else(|| Error::Populate {
                what: self.source.to_string(),
                len,
                hint: match self.kind {
                    Kind::PageCache | Kind::Tmpfs | Kind::FsDax => {
                        "is the file system full, read-only, or the file being truncated?"
                    }
                    _ => "is there enough free memory?",
                },
                errno,
            })
        })
    }

    /// Empties the page-table entries of `[offset, offset + len)` (`MADV_DONTNEED`), both multiples
    /// of the page size; the bytes stay in the file, and the next touch faults them in again. Takes
    /// no lock of the file. Anonymous memory is left as it is, since it would lose its bytes.
    ///
    /// Linux 7.3 waits until nothing at all refers to a pinned page, page tables included: if this
    /// process touched the page of a [`Pin`](crate::Pin) while an operation waited for the pin,
    /// the operation goes on waiting after the release, until this is called for the page.
    pub fn forget(&self, offset: u64, len: u64) -> Result<()> {
        let (Ok(start), Ok(size)) = (usize::try_from(offset), usize::try_from(len)) else {
            return Err(Error::BadRange { offset, len });
        };
        if self.kind == Kind::Anon {
            return Ok(());
        }
        self.mapping.drop_entries(start, size).map_err(|errno| Error::File {
            call: "MADV_DONTNEED",
            path: self.source.to_string().into(),
            errno,
        })
    }

    /// The part of a file behind `[offset, offset + len)`.
    fn behind(&self, offset: u64, len: u64) -> Option<Behind<'_>> {
        let (fd, start) = self.backing()?;
        Some(Behind { fd, offset: start + offset, len })
    }

    /// The identity of the file behind it; `None` for anonymous memory.
    pub fn file_id(&self) -> Option<FileId> {
        let (fd, _) = self.backing()?;
        FileId::of(fd).ok()
    }

    /// The path it was opened by, if it was; the file may have another name by now, or none.
    pub fn path(&self) -> Option<&Path> {
        self.source.path()
    }

    /// Where it is mapped in this process; page aligned.
    pub fn as_ptr(&self) -> NonNull<u8> {
        self.mapping.base()
    }

    /// Bytes; a multiple of the page size.
    pub fn len(&self) -> usize {
        self.mapping.len()
    }

    /// Never true: an empty range cannot be mapped.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Page size in bytes of what is behind it.
    pub fn page_size(&self) -> usize {
        self.page_size
    }

    /// What kind of memory it turned out to be.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// What it was opened from.
    pub fn source(&self) -> &Source {
        &self.source
    }

    /// The descriptor and the offset in it of the first byte, for another process to map; `None`
    /// for anonymous memory.
    pub fn backing(&self) -> Option<(BorrowedFd<'_>, u64)> {
        self.backing.as_ref().map(|(fd, offset)| (fd.as_fd(), *offset))
    }

    /// The bytes `[offset, offset + len)` for volatile access.
    pub fn slice(&self, offset: usize, len: usize) -> Result<VolatileSlice<'_>> {
        let size = self.len();
        self.mapping.slice().subslice(offset, len).map_err(|_| Error::OutOfBounds {
            offset,
            len,
            size,
        })
    }

    /// Copies bytes out. Whoever writes them meanwhile can tear the copy.
    pub fn read_at(&self, offset: usize, buf: &mut [u8]) -> Result<()> {
        self.slice(offset, buf.len())?.copy_to(buf);
        Ok(())
    }

    /// Copies bytes in.
    pub fn write_at(&self, offset: usize, data: &[u8]) -> Result<()> {
        self.slice(offset, data.len())?.copy_from(data);
        Ok(())
    }

    /// Sets `len` bytes from `offset` on to `byte`.
    pub fn fill(&self, offset: usize, len: usize, byte: u8) -> Result<()> {
        let slice = self.slice(offset, len)?;
        let chunk = [byte; 4096];
        let mut at = 0;
        while at < len {
            let n = chunk.len().min(len - at);
            // In bounds: `slice` has `len` bytes.
            let Ok(part) = slice.subslice(at, n) else { break };
            part.copy_from(&chunk[..n]);
            at += n;
        }
        Ok(())
    }

    /// The byte at `offset`.
    pub fn atomic_u8(&self, offset: usize) -> Result<&AtomicU8> {
        let size = self.len();
        self.mapping.byte(offset).ok_or(Error::OutOfBounds { offset, len: 1, size })
    }

    /// The aligned 8-byte word at `offset`, in the machine's byte order.
    pub fn atomic_u64(&self, offset: usize) -> Result<&AtomicU64> {
        if !offset.is_multiple_of(8) {
            return Err(Error::UnalignedWord { offset });
        }
        let size = self.len();
        self.mapping.word(offset).ok_or(Error::OutOfBounds { offset, len: 8, size })
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::{Read, Seek, SeekFrom};
    use std::sync::atomic::Ordering;

    use super::*;

    fn open(text: &str, len: usize) -> Result<Memory> {
        Memory::open(&text.parse().unwrap(), len, Populate::Yes)
    }

    #[test]
    fn memory_without_a_file_is_zeroed_and_holds_what_is_written() {
        for (text, kind, has_fd) in [("anon", Kind::Anon, false), ("memfd", Kind::Memfd, true)] {
            let memory = open(text, 5000).unwrap();
            assert_eq!((memory.len(), memory.page_size(), memory.kind()), (8192, 4096, kind));
            assert_eq!(memory.backing().is_some(), has_fd);
            let mut bytes = vec![1; 8192];
            memory.read_at(0, &mut bytes).unwrap();
            assert_eq!(bytes, vec![0; 8192]);
            memory.write_at(4090, b"across pages").unwrap();
            memory.fill(5000, 3192, 7).unwrap();
            memory.read_at(0, &mut bytes).unwrap();
            assert_eq!(&bytes[4090..4102], b"across pages");
            assert!(bytes[5000..].iter().all(|&b| b == 7) && bytes[4999] == 0);
        }
    }

    #[test]
    fn a_memfd_can_be_mapped_again_through_its_descriptor() {
        let memory = open("memfd", 4096).unwrap();
        memory.atomic_u64(8).unwrap().store(42, Ordering::Release);
        let (fd, offset) = memory.backing().unwrap();
        let mut file = fs::File::from(fd.try_clone_to_owned().unwrap());
        let mut word = [0; 8];
        file.seek(SeekFrom::Start(offset + 8)).unwrap();
        file.read_exact(&mut word).unwrap();
        assert_eq!(u64::from_ne_bytes(word), 42);
    }

    #[test]
    fn writes_to_a_file_range_are_seen_in_the_file_and_nowhere_else() {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(3 * 4096).unwrap();
        let memory = open(&format!("{}:4K+4K", file.path().display()), 1).unwrap();
        assert_eq!(memory.backing().unwrap().1, 4096);
        memory.fill(0, 4096, 0xab).unwrap();
        let bytes = fs::read(file.path()).unwrap();
        assert!(bytes[4096..8192].iter().all(|&b| b == 0xab));
        assert!(bytes[..4096].iter().chain(&bytes[8192..]).all(|&b| b == 0));
    }

    #[test]
    fn tmpfs_is_told_from_the_page_cache() {
        let Ok(file) = tempfile::NamedTempFile::new_in("/dev/shm") else { return };
        file.as_file().set_len(4096).unwrap();
        let memory = open(file.path().to_str().unwrap(), 1).unwrap();
        assert_eq!(memory.kind(), Kind::Tmpfs);
    }

    #[test]
    fn huge_pages_are_had_or_the_error_says_how_to_get_them() {
        match open("hugetlb", 4096) {
            Ok(memory) => {
                assert!(memory.page_size() >= 2 << 20 && memory.kind() == Kind::Hugetlb);
                assert_eq!(memory.len() % memory.page_size(), 0);
            }
            Err(error @ Error::HugePages { .. }) => {
                assert!(error.to_string().contains("nr_hugepages"), "{error}");
            }
            Err(error) => assert!(matches!(error, Error::NoHugePages), "{error}"),
        }
    }

    #[test]
    fn what_cannot_be_a_region_is_refused_with_a_reason() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("small");
        fs::write(&file, [0; 4096]).unwrap();
        let path = file.display();
        for (text, need, words) in [
            (format!("{path}"), 8192, "0x2000 are needed"),
            (format!("{path}:0+8K"), 1, "grow it first"),
            (format!("{}/absent", dir.path().display()), 1, "cannot open"),
            (format!("{}", dir.path().display()), 1, "is a directory"),
            ("/dev/null".to_owned(), 1, "is a character device"),
            ("memfd".to_owned(), 0, "is not one"),
            ("anon".to_owned(), usize::MAX, "is not one"),
        ] {
            let error = open(&text, need).unwrap_err().to_string();
            assert!(error.contains(words), "{text}: {error}");
        }
    }

    #[test]
    fn accesses_outside_are_refused() {
        let memory = open("anon", 4096).unwrap();
        assert!(memory.read_at(4090, &mut [0; 7]).is_err());
        assert!(memory.write_at(usize::MAX, &[0]).is_err());
        assert!(memory.fill(1, 4096, 0).is_err());
        assert!(memory.slice(4096, 0).is_ok());
        assert!(memory.atomic_u64(4096).is_err());
        assert!(memory.atomic_u8(4095).is_ok() && memory.atomic_u8(4096).is_err());
        assert!(matches!(memory.atomic_u64(4), Err(Error::UnalignedWord { offset: 4 })));
    }
}
