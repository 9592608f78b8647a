//! Where a run keeps its sockets and passing files.
//!
//! As root it is a tmpfs in a mount namespace of our own: the folder is empty to everyone else,
//! and whatever ends us, even SIGKILL, takes the sockets with the last process that used them.
//! Without root it is a temporary folder, removed on drop.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result, bail};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

/// The folder; one per process.
#[derive(Debug)]
pub struct RunDir {
    path: PathBuf,
    private: bool,
    next: AtomicU32,
}

/// A socket's path has at most 107 bytes (unix(7)); file names of ours below the folder are short.
const LONGEST: usize = 80;

impl RunDir {
    /// Makes the folder. Call it before any thread is started: a mount namespace belongs to the
    /// threads that were born in it.
    pub fn new(cache: &Path) -> Result<Self> {
        let private = nix::unistd::geteuid().is_root() && unshare(CloneFlags::CLONE_NEWNS).is_ok();
        let path = if private {
            cache.join("run")
        } else {
            std::env::temp_dir().join(format!("holdfast-lab-{}", std::process::id()))
        };
        if path.as_os_str().len() > LONGEST {
            bail!("{path:?} is too long a path for sockets: name a shorter folder with --cache");
        }
        fs::create_dir_all(&path).with_context(|| format!("cannot make {path:?}"))?;
        if private {
            let none = None::<&str>;
            mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)
                .context("cannot make our mounts private")?;
            mount(Some("lab"), &path, Some("tmpfs"), MsFlags::empty(), Some("mode=700"))
                .with_context(|| format!("cannot mount a tmpfs on {path:?}"))?;
        }
        Ok(Self { path, private, next: AtomicU32::new(0) })
    }

    /// An empty folder for one guest.
    pub fn fresh(&self) -> Result<PathBuf> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let path = self.path.join(format!("g{number}"));
        fs::create_dir(&path).with_context(|| format!("cannot make {path:?}"))?;
        Ok(path)
    }
}

impl Drop for RunDir {
    fn drop(&mut self) {
        if !self.private {
            let _ = fs::remove_dir_all(&self.path);
        }
    }
}
