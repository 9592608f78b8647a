//! Canaries: files whose every byte is known, in the space that others gave up.
//!
//! Word `n` of a canary says which canary it is and which word, so that no two words of any two
//! canaries are alike, and none is ever the peer's mark.

use std::fs::{self, File, OpenOptions};
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use holdfast_dax::{Segment, layout};
use nix::errno::Errno;
use nix::unistd::syncfs;

use crate::operation::{PAGE, errno};
use crate::peer;

/// Written and compared at a time.
const PART: usize = 1 << 18;

/// A file whose every byte is known. It goes away with this.
#[derive(Debug)]
pub struct Canary {
    path: PathBuf,
    file: File,
    seed: u64,
    len: u64,
    part: Vec<u8>,
}

/// What a look at it found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize)]
pub struct Look {
    /// Bytes compared.
    pub bytes: u64,
    /// Those that are not as they were written.
    pub foreign: u64,
    /// Words among them that are the peer's.
    pub marks: u64,
    /// The first and the last epoch of those.
    pub epochs: Option<(u32, u32)>,
}

/// Pages with foreign bytes, one after the other in the file and on the device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Run {
    /// First byte, in the file.
    pub at: u64,
    pub pages: u64,
    /// First byte on the device.
    pub block: Option<u64>,
}

impl Run {
    fn continues(&self, at: u64, block: Option<u64>) -> bool {
        let len = self.pages * PAGE;
        at == self.at + len && block == self.block.map(|first| first + len)
    }
}

impl Look {
    /// An error that says how many bytes were foreign, if any were.
    pub fn none_foreign(&self) -> Result<()> {
        ensure!(self.foreign == 0, "{} were", self.foreign);
        Ok(())
    }

    /// Both together.
    pub fn add(&mut self, other: Self) {
        self.bytes += other.bytes;
        self.foreign += other.foreign;
        self.marks += other.marks;
        self.see(other.epochs);
    }

    fn see(&mut self, epochs: impl IntoIterator<Item = (u32, u32)>) {
        for (first, last) in epochs {
            let (low, high) = self.epochs.unwrap_or((first, last));
            self.epochs = Some((low.min(first), high.max(last)));
        }
    }
}

impl Canary {
    /// Fills a new file with at most `limit` bytes; a full file system ends it before that.
    pub fn new(path: &Path, number: u64, limit: u64) -> Result<Self> {
        let mut options = OpenOptions::new();
        let options = options.read(true).write(true).create(true).truncate(true);
        let file = match options.open(path) {
            Ok(file) => file,
            Err(error) => return Err(error).with_context(|| format!("making {}", path.display())),
        };
        // Never the peer's mark, whose highest byte is 0x5e.
        let seed = number << 40;
        let mut canary =
            Self { path: path.to_owned(), file, seed, len: 0, part: Vec::with_capacity(PART) };
        let mut synced = false;
        while canary.len < limit {
            let want = (limit - canary.len).min(PART as u64) as usize;
            canary.expect(canary.len, want);
            match canary.put(want) {
                // What was freed a moment ago may be free only once the journal is written.
                Ok(0) | Err(Errno::ENOSPC) if !synced => {
                    synced = true;
                    syncfs(&canary.file).context("syncing the file system")?;
                }
                Ok(0) | Err(Errno::ENOSPC) => break,
                Ok(wrote) => canary.len += wrote as u64,
                Err(errno) => {
                    return Err(errno).with_context(|| format!("writing {}", path.display()));
                }
            }
        }
        Ok(canary)
    }

    fn put(&self, want: usize) -> Result<usize, Errno> {
        self.file.write_at(&self.part[..want], self.len).map_err(errno)
    }

    /// Where its foreign bytes are: runs of whole pages, with the blocks that the file system says
    /// it has there. For a report, once a look has found some.
    pub fn foreign_runs(&mut self) -> Result<Vec<Run>> {
        let mut runs: Vec<Run> = Vec::new();
        let mut found = vec![0; PAGE as usize];
        let segments = self.segments()?;
        let block = |at: u64| {
            let segment = segments.iter().find(|one| (one.offset..one.end()).contains(&at))?;
            segment.device_offset.map(|start| start + (at - segment.offset))
        };
        for at in (0..self.len).step_by(PAGE as usize) {
            let len = (self.len - at).min(PAGE) as usize;
            self.file.read_exact_at(&mut found[..len], at)?;
            self.expect(at, len);
            if found[..len] == self.part[..] {
                continue;
            }
            let block = block(at);
            match runs.last_mut() {
                Some(last) if last.continues(at, block) => last.pages += 1,
                _ => runs.push(Run { at, pages: 1, block }),
            }
        }
        Ok(runs)
    }

    /// Where its blocks are.
    pub fn segments(&self) -> Result<Vec<Segment>> {
        Ok(layout(self.file.as_fd(), 0, self.len)?)
    }

    /// Bytes in it.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// What the bytes from `offset` on must be, in `part`.
    fn expect(&mut self, offset: u64, len: usize) {
        self.part.clear();
        let first = offset / 8;
        for word in first..first + len.div_ceil(8) as u64 {
            self.part.extend_from_slice(&(self.seed | word).to_ne_bytes());
        }
        self.part.truncate(len);
    }

    /// Compares every byte.
    pub fn look(&mut self) -> Result<Look> {
        let mut look = Look::default();
        let mut found = vec![0; PART];
        let mut at = 0;
        while at < self.len {
            let len = (self.len - at).min(PART as u64) as usize;
            let found = &mut found[..len];
            let what = || format!("reading {}", self.path.display());
            self.file.read_exact_at(found, at).with_context(what)?;
            self.expect(at, len);
            if found != &self.part[..] {
                look.foreign += found.iter().zip(&self.part).filter(|(a, b)| a != b).count() as u64;
                look.marks += peer::marks(found);
                look.see(peer::epochs(found).map(|epoch| (epoch, epoch)));
            }
            look.bytes += len as u64;
            at += len as u64;
        }
        Ok(look)
    }
}

impl Drop for Canary {
    fn drop(&mut self) {
        // Emptied first: unlinking leaves the freeing of blocks for later on xfs.
        let _ = self.file.set_len(0);
        let _ = fs::remove_file(&self.path);
    }
}

/// Looks through a file for marks of an epoch later than `epoch`: of what a peer wrote after the
/// file was given these blocks.
pub fn later_marks(path: &Path, epoch: u32) -> Result<Look> {
    let file = File::open(path).with_context(|| format!("opening {}", path.display()))?;
    let mut look = Look::default();
    let mut part = vec![0; PART];
    loop {
        let len = file.read_at(&mut part, look.bytes)?;
        if len == 0 {
            return Ok(look);
        }
        look.bytes += len as u64;
        let later = peer::epochs(&part[..len]).filter(|found| *found > epoch).count() as u64;
        look.marks += later;
        look.foreign += 8 * later;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_canary_finds_every_byte_that_is_not_its_own() {
        let folder = std::env::temp_dir().join(format!("canary-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let path = folder.join("c");
        let mut canary = Canary::new(&path, 3, 3 * PART as u64 + 100).unwrap();
        let bytes = 3 * PART as u64 + 100;
        assert_eq!(canary.look().unwrap(), Look { bytes, ..Look::default() });
        canary.file.write_all_at(&peer::mark(7).to_ne_bytes(), PART as u64 + 8).unwrap();
        let look = canary.look().unwrap();
        assert!(look.foreign > 3 && look.foreign <= 8 && look.marks == 1, "{look:?}");
        assert_eq!(look.epochs, Some((7, 7)));
        assert_eq!(later_marks(&path, 6).unwrap().marks, 1);
        assert_eq!(later_marks(&path, 7).unwrap().marks, 0);
        let runs = canary.foreign_runs().unwrap();
        assert_eq!((runs.len(), runs[0].at, runs[0].pages), (1, PART as u64, 1));
        drop(canary);
        assert!(!path.exists());
        fs::remove_dir_all(&folder).unwrap();
    }
}
