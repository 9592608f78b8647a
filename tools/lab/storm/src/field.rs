//! The file system under the storm: so full that freed blocks are all there is, and full of files
//! whose bytes are known.

use std::fs::{self, File, OpenOptions};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail, ensure};
use holdfast_dax::{Segment, layout};
use holdfast_lab_check::ioctl;
use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, fallocate};
use nix::sys::statfs::{EXT4_SUPER_MAGIC, XFS_SUPER_MAGIC, statfs};
use nix::sys::statvfs::statvfs;
use nix::unistd::syncfs;

use crate::canary::{Canary, Look};
use crate::operation::{FileSystem, PAGE};
use crate::peer;

/// Canaries that stand for the whole storm.
const STANDING: u64 = 4;
/// Bytes of each.
const STANDING_LEN: u64 = 1 << 20;
/// Room left beside what a clone of the region takes, for the file system's own purposes.
const SLACK: u64 = 2 << 20;
/// Blocks that xfs may keep for itself; 5 % by default.
const RESERVED: u64 = 64;
/// The number of the donor among the canaries.
const DONOR: u64 = 1;

/// The folder, and what is in it.
pub struct Field {
    folder: PathBuf,
    handle: File,
    pub fs: FileSystem,
    /// Bytes of the region's file.
    pub size: u64,
    standing: Vec<Canary>,
    donor: Option<Canary>,
    numbers: u64,
}

impl Field {
    /// Makes the region's file and fills the rest of the file system. Whatever an earlier storm
    /// left in the folder goes.
    pub fn lay_out(folder: &Path, size: u64) -> Result<Self> {
        clear(folder)?;
        let handle = File::open(folder).with_context(|| format!("opening {}", folder.display()))?;
        let kind = statfs(folder)?.filesystem_type();
        let fs = match kind {
            EXT4_SUPER_MAGIC => FileSystem::Ext4,
            XFS_SUPER_MAGIC => FileSystem::Xfs,
            _ => bail!("{} is neither on ext4 nor on xfs", folder.display()),
        };
        let mut field = Self {
            folder: folder.to_owned(),
            handle,
            fs,
            size,
            standing: Vec::new(),
            donor: None,
            numbers: DONOR,
        };
        if fs == FileSystem::Xfs {
            // Else what is freed may stay among those, and no canary gets it.
            ioctl::reserve_blocks(&field.handle, RESERVED).context("XFS_IOC_SET_RESBLKS")?;
        }
        let region = field.create("region")?;
        fallocate(&region, FallocateFlags::empty(), 0, size as i64)?;
        for _ in 0..STANDING {
            let number = field.number();
            let path = field.path(&format!("standing-{number}"));
            let canary = Canary::new(&path, number, STANDING_LEN)?;
            ensure!(canary.len() == STANDING_LEN, "no room for canaries");
            field.standing.push(canary);
        }
        if fs == FileSystem::Xfs {
            field.donor()?;
        }
        field.fill(size + SLACK)?;
        Ok(field)
    }

    /// A path in the folder.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    fn create(&self, name: &str) -> Result<File> {
        let path = self.path(name);
        let mut options = OpenOptions::new();
        let options = options.read(true).write(true).create(true).truncate(true);
        options.open(&path).with_context(|| format!("making {}", path.display()))
    }

    fn number(&mut self) -> u64 {
        self.numbers += 1;
        self.numbers
    }

    /// Takes all space but `left` bytes.
    fn fill(&self, left: u64) -> Result<()> {
        let ballast = self.create("ballast")?;
        let mut at = 0;
        let mut step: u64 = 32 << 20;
        self.settle()?;
        while step >= PAGE {
            if self.free()? < left + step {
                step /= 2;
                continue;
            }
            match fallocate(&ballast, FallocateFlags::empty(), at, step as i64) {
                Ok(()) => at += step as i64,
                Err(Errno::ENOSPC) => step /= 2,
                Err(errno) => return Err(errno).context("filling the file system"),
            }
        }
        self.settle()
    }

    /// Bytes that are free.
    pub fn free(&self) -> Result<u64> {
        let stat = statvfs(&self.folder)?;
        Ok(stat.blocks_available() * stat.fragment_size())
    }

    /// Has the file system finish what it put off; what was freed is free then.
    pub fn settle(&self) -> Result<()> {
        Ok(syncfs(&self.handle)?)
    }

    /// A canary in all the space there is.
    pub fn grab(&mut self) -> Result<Canary> {
        let number = self.number();
        Canary::new(&self.path("canary"), number, u64::MAX)
    }

    /// The file that blocks are cloned from: a canary as long as the region's file.
    pub fn donor(&mut self) -> Result<&mut Canary> {
        if self.donor.is_none() {
            let number = self.number();
            let canary = Canary::new(&self.path("donor"), number, self.size)?;
            ensure!(canary.len() == self.size, "no room for the donor");
            self.donor = Some(canary);
        }
        self.donor.as_mut().context("no donor")
    }

    /// The donor's blocks are others now: the next one is a new file.
    pub fn spend_donor(&mut self) {
        self.donor = None;
    }

    /// A file of the peer's words in a range, as the region has them in `epoch`.
    pub fn twin(&self, offset: u64, len: u64, epoch: u32) -> Result<()> {
        use std::os::unix::fs::FileExt as _;
        let file = self.create("clone")?;
        let word = peer::mark(epoch).to_ne_bytes();
        let bytes: Vec<u8> = word.iter().copied().cycle().take(len as usize).collect();
        Ok(file.write_all_at(&bytes, offset)?)
    }

    /// Removes a file, and frees its blocks now.
    pub fn remove(&self, name: &str) -> Result<()> {
        remove(&self.path(name))
    }

    /// Looks at the canaries that stand.
    pub fn look(&mut self) -> Result<Look> {
        let mut look = Look::default();
        for canary in self.standing.iter_mut().chain(&mut self.donor) {
            look.add(canary.look()?);
        }
        Ok(look)
    }

    /// Where the region's file has its blocks.
    pub fn segments(&self) -> Result<Vec<Segment>> {
        let file = File::open(self.path("region"))?;
        Ok(layout(file.as_fd(), 0, file.metadata()?.len().next_multiple_of(PAGE))?)
    }

    /// For each page of the region's file, whether it has a block.
    pub fn blocks(&self) -> Result<Vec<bool>> {
        let mut pages = vec![false; (self.size / PAGE) as usize];
        for segment in self.segments()? {
            let last = (segment.end().min(self.size)).div_ceil(PAGE) as usize;
            let first = ((segment.offset / PAGE) as usize).min(last);
            pages[first..last].fill(true);
        }
        Ok(pages)
    }
}

/// Removes a file, and frees its blocks now: unlinking leaves that for later on xfs.
pub fn remove(path: &Path) -> Result<()> {
    let gone = |error: &std::io::Error| error.kind() == std::io::ErrorKind::NotFound;
    match OpenOptions::new().write(true).truncate(true).open(path) {
        Ok(_) => {}
        Err(error) if gone(&error) => return Ok(()),
        Err(error) => return Err(error).with_context(|| format!("emptying {}", path.display())),
    }
    fs::remove_file(path).with_context(|| format!("removing {}", path.display()))
}

/// Removes what an earlier storm left.
fn clear(folder: &Path) -> Result<()> {
    for entry in fs::read_dir(folder).with_context(|| format!("reading {}", folder.display()))? {
        let entry = entry?;
        if entry.file_type()?.is_file() {
            remove(&entry.path())?;
        }
    }
    Ok(())
}
