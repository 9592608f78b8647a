//! What a file turns out to be, and where its bytes are: recognised or refused with the reason,
//! extents against FIEMAP, and windows against `pread`.
#![expect(clippy::single_range_in_vec_init, reason = "lists of one range are meant")]

use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use holdfast_dax::{
    Error, Extent, GRANULE, Kind, Memory, Populate, Source, Window, allocated, extents, layout,
};
use holdfast_lab_check::Report;
use nix::fcntl::{FallocateFlags, fallocate};

use crate::operation::PAGE;
use holdfast_lab_check::ioctl;

/// A file of `pages` pages, each filled with its number.
fn written(path: &Path, pages: u64) -> Result<File> {
    let _ = std::fs::remove_file(path);
    let file = File::options().read(true).write(true).create_new(true).open(path)?;
    for page in 0..pages {
        file.write_all_at(&[page as u8; PAGE as usize], page * PAGE)?;
    }
    file.sync_all()?;
    Ok(file)
}

fn fs_dax(path: &Path, populate: Populate) -> Result<Memory, Error> {
    Memory::open(&Source::fs_dax(path), 0, populate)
}

/// A file of which no two pages lie in a row: of twice as many, every other one was taken out.
/// Page n is filled with n.
fn scattered(folder: &Path, pages: u64) -> Result<File> {
    let path = folder.join("scattered");
    let file = written(&path, 0)?;
    for page in 0..2 * pages {
        file.write_all_at(&[(page / 2) as u8; PAGE as usize], page * PAGE)?;
    }
    file.sync_all()?;
    for page in 0..pages {
        let at = (page * PAGE) as i64;
        fallocate(&file, FallocateFlags::FALLOC_FL_COLLAPSE_RANGE, at, PAGE as i64)?;
    }
    Ok(file)
}

/// That every page's physical address is its place on the block device plus one constant.
fn agree(memory: &Memory, file: &File, granule: u64) -> Result<Vec<Extent>> {
    let len = memory.len() as u64;
    let found = extents(memory, 0, len, granule)?;
    let segments = layout(file.as_fd(), 0, len)?;
    let mut base = None;
    let mut next = 0;
    for extent in &found {
        ensure!(extent.offset == next, "a gap at {next:#x}");
        next = extent.offset + extent.len;
        let last = next - 1;
        ensure!(extent.offset / granule == last / granule, "{extent:x?} crosses a granule");
        for offset in (extent.offset..next).step_by(PAGE as usize) {
            let phys = extent.phys + (offset - extent.offset);
            let segment = segments
                .iter()
                .find(|segment| (segment.offset..segment.offset + segment.len).contains(&offset))
                .with_context(|| format!("FIEMAP has no block at {offset:#x}"))?;
            let block = segment.device_offset.context("FIEMAP does not say where")?;
            let difference = phys - (block + (offset - segment.offset));
            let base = *base.get_or_insert(difference);
            ensure!(difference == base, "{offset:#x} is {difference:#x} and not {base:#x} apart");
        }
    }
    ensure!(next == len, "extents end at {next:#x} and not {len:#x}");
    Ok(found)
}

/// Runs the checks in `folder`, on a DAX mount of type `fs_type`.
pub fn run(report: &mut Report, folder: &Path, fs_type: &str) -> Result<()> {
    let path = folder.join("source");

    report.check("a file on the mount is fs-dax, whether asked for or not", || {
        written(&path, 4)?;
        for source in [Source::file(&path), Source::fs_dax(&path)] {
            let memory = Memory::open(&source, 0, Populate::Yes)?;
            ensure!(memory.kind() == Kind::FsDax, "{source} is {}", memory.kind());
        }
        Ok(())
    });

    report.check("extents of a file in one piece agree with FIEMAP, in aligned 2 MiB", || {
        let file = written(&path, 0)?;
        fallocate(&file, FallocateFlags::empty(), 0, 4 * GRANULE as i64)?;
        let memory = fs_dax(&path, Populate::Yes)?;
        let found = agree(&memory, &file, GRANULE)?;
        ensure!(found.len() == 4, "8 MiB lie in {} pieces", found.len());
        for extent in found {
            ensure!(extent.phys.is_multiple_of(GRANULE), "{extent:x?} is not aligned to 2 MiB");
        }
        let small = agree(&memory, &file, 64 << 10)?;
        ensure!(small.len() == 128, "in granules of 64 KiB it has {} extents", small.len());
        Ok(())
    });

    report.check("extents of a scattered file agree with FIEMAP", || {
        let file = scattered(folder, 64)?;
        let memory = fs_dax(&folder.join("scattered"), Populate::Yes)?;
        let found = agree(&memory, &file, GRANULE)?;
        ensure!(found.len() == 64, "64 pages lie in {} pieces", found.len());
        Ok(())
    });

    report.check("a window shows the file's bytes, and the file the window's", || {
        let file = scattered(folder, 64)?;
        let memory = fs_dax(&folder.join("scattered"), Populate::Yes)?;
        let found = extents(&memory, 0, memory.len() as u64, GRANULE)?;
        let window = Window::map(&found)?;
        ensure!(window.len() == found.len(), "{} windows", window.len());
        for (index, extent) in found.iter().enumerate() {
            let mut bytes = vec![0; extent.len as usize];
            window.read_at(index, 0, &mut bytes)?;
            for (n, page) in bytes.chunks(PAGE as usize).enumerate() {
                let number = (extent.offset / PAGE) as u8 + n as u8;
                ensure!(page.iter().all(|byte| *byte == number), "page {number} is another");
            }
            let word = (0xdead_0000_u64 + index as u64).to_ne_bytes();
            window.write_at(index, bytes.len() - 8, &word)?;
            let mut back = [0; 8];
            file.read_exact_at(&mut back, extent.offset + extent.len - 8)?;
            ensure!(back == word, "extent {index}: pread gives {back:x?} and not {word:x?}");
            ensure!(window.va(index).is_multiple_of(PAGE as usize), "an odd address");
        }
        Ok(())
    });

    holes(report, folder);
    if fs_type == "xfs" {
        sharing(report, folder);
    }
    Ok(())
}

/// Holes and unwritten extents.
fn holes(report: &mut Report, folder: &Path) {
    let path = folder.join("sparse");
    let sparse = || -> Result<File> {
        let file = written(&path, 0)?;
        file.set_len(8 * PAGE)?;
        file.write_all_at(&[1; PAGE as usize], 2 * PAGE)?;
        Ok(file)
    };

    report.check("pages that are not mapped in have no extents", || {
        sparse()?;
        let memory = fs_dax(&path, Populate::No)?;
        memory.populate(0, 3 * PAGE)?;
        match extents(&memory, 0, 8 * PAGE, GRANULE) {
            Err(Error::Absent { offset, .. }) if offset == 3 * PAGE => Ok(()),
            other => bail!("it gives {other:?}"),
        }
    });

    report.check("a hole that was read is not taken for a block", || {
        sparse()?;
        let memory = fs_dax(&path, Populate::No)?;
        memory.read_at(0, &mut [0])?;
        match extents(&memory, 0, PAGE, GRANULE) {
            Err(Error::NotPersistent { offset: 0, .. }) => Ok(()),
            other => bail!("it gives {other:?}"),
        }
    });

    report.check("a sparse file is refused where none is wanted, and filled where it is", || {
        let file = sparse()?;
        match fs_dax(&path, Populate::NoHoles) {
            Err(Error::Sparse { offset: 0, end, .. }) if end == 2 * PAGE => {}
            other => bail!("it gives {other:?}"),
        }
        let memory = fs_dax(&path, Populate::No)?;
        let ranges = allocated(&memory)?;
        ensure!(ranges == [2 * PAGE..3 * PAGE], "allocated are {ranges:x?}");
        memory.populate(0, 8 * PAGE)?;
        agree(&memory, &file, GRANULE)?;
        let ranges = allocated(&memory)?;
        ensure!(ranges == [0..8 * PAGE], "then {ranges:x?}");
        fs_dax(&path, Populate::NoHoles)?;
        Ok(())
    });

    report.check("what is left of a truncated file is told", || {
        let file = written(&path, 8)?;
        let memory = fs_dax(&path, Populate::Yes)?;
        file.set_len(3 * PAGE + 1)?;
        let ranges = allocated(&memory)?;
        ensure!(ranges == [0..4 * PAGE], "left are {ranges:x?}");
        Ok(())
    });

    report.check("unwritten extents are written by populating", || {
        let file = written(&path, 0)?;
        fallocate(&file, FallocateFlags::empty(), 0, 8 * PAGE as i64)?;
        let unwritten = |file: &File| -> Result<bool> {
            Ok(layout(file.as_fd(), 0, 8 * PAGE)?.iter().any(|segment| segment.unwritten))
        };
        ensure!(unwritten(&file)?, "they are written already");
        let memory = fs_dax(&path, Populate::Yes)?;
        ensure!(!unwritten(&file)?, "they are still unwritten");
        agree(&memory, &file, GRANULE)?;
        Ok(())
    });
}

/// Extents shared with a clone.
fn sharing(report: &mut Report, folder: &Path) {
    let (path, clone) = (folder.join("shared"), folder.join("clone"));
    let shared = |file: &File, len: u64| -> Result<bool> {
        Ok(layout(file.as_fd(), 0, len)?.iter().any(|segment| segment.shared))
    };

    report.check("shared extents get blocks of their own by populating", || {
        let file = written(&path, 16)?;
        ioctl::clone(&file, &written(&clone, 0)?)?;
        ensure!(shared(&file, 16 * PAGE)?, "the clone shares nothing");
        let memory = fs_dax(&path, Populate::Yes)?;
        ensure!(!shared(&file, 16 * PAGE)?, "they are still shared");
        agree(&memory, &file, GRANULE)?;
        Ok(())
    });

    report.check("shared extents that cannot be unshared are refused", || {
        let len = 4 * GRANULE;
        let file = written(&path, len / PAGE)?;
        ioctl::clone(&file, &written(&clone, 0)?)?;
        let filler = written(&folder.join("filler"), 0)?;
        let mut size = 0;
        for step in [64 << 20, 1 << 20, 64 << 10, PAGE] {
            while fallocate(&filler, FallocateFlags::empty(), size, step as i64).is_ok() {
                size += step as i64;
            }
        }
        let result = fs_dax(&path, Populate::Yes);
        std::fs::remove_file(folder.join("filler"))?;
        match result {
            Err(error @ Error::Shared { .. }) => {
                println!("     {error}");
                Ok(())
            }
            other => bail!("it gives {other:?}"),
        }
    });
}

/// That a source is refused, and that the refusal has these words.
pub fn refused(report: &mut Report, source: &Source, words: &str) {
    report.check(&format!("{source} is refused: {words}"), || {
        match Memory::open(source, 0, Populate::Yes) {
            Err(error) if error.to_string().contains(words) => Ok(()),
            Err(error) => bail!("it says: {error}"),
            Ok(memory) => bail!("it is taken, as {}", memory.kind()),
        }
    });
}

/// That a window on a file's extents is refused, and that the refusal has these words.
pub fn no_window(report: &mut Report, path: &Path, words: &str) {
    report.check(&format!("no window: {words}"), || {
        let memory = fs_dax(path, Populate::Yes)?;
        let found =
            extents(&memory, 0, memory.len() as u64, GRANULE).and_then(|found| Window::map(&found));
        match found {
            Err(error) if error.to_string().contains(words) => {
                println!("     {error}");
                Ok(())
            }
            Err(error) => bail!("it says: {error}"),
            Ok(_) => bail!("it is given"),
        }
    });
}

/// A devdax device: taken whole and in part, in multiples of its alignment.
pub fn devdax(report: &mut Report, path: &Path) {
    report.check("a devdax device is recognised, and holds what is written", || {
        let source = Source::File { path: path.into(), range: Some((GRANULE, 2 * GRANULE)) };
        let memory = Memory::open(&source, 0, Populate::Yes)?;
        ensure!(memory.kind() == Kind::DevDax, "it is {}", memory.kind());
        ensure!(memory.page_size() as u64 == GRANULE, "pages of {:#x}", memory.page_size());
        memory.write_at(5, b"held fast")?;
        let again = Memory::open(&source, 0, Populate::Yes)?;
        let mut back = [0; 9];
        again.read_at(5, &mut back)?;
        ensure!(&back == b"held fast", "it holds {back:?}");
        let found = extents(&memory, 0, 2 * GRANULE, GRANULE)?;
        let whole = found.iter().all(|e| e.len == GRANULE && e.phys.is_multiple_of(GRANULE));
        ensure!(found.len() == 2 && whole, "its extents are {found:x?}");
        Ok(())
    });

    report.check("a part of a devdax device that is not aligned is refused", || {
        let source = Source::File { path: path.into(), range: Some((PAGE, 2 * GRANULE)) };
        match Memory::open(&source, 0, Populate::Yes) {
            Err(Error::Unaligned { what: "offset", page_size: GRANULE, .. }) => Ok(()),
            other => bail!("it gives {other:?}"),
        }
    });
}
