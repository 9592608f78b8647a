//! One folder of finished things.
//!
//! An item is a directory named `NAME-HASH`, where the hash is taken over the recipe that makes
//! it and over the hashes of the items it is made from: change a recipe and everything after it
//! is made anew, keep it and nothing is. An item is made under a temporary name and renamed when
//! it is whole, so what stands there is whole. A lock per name lets only one `lab` make it while
//! others wait; the first to get the lock also sweeps what an interrupted one left behind.

use std::fs::{self, File, OpenOptions};
use std::path::{Path, PathBuf};
use std::time::{Duration, UNIX_EPOCH};

use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::process;

/// The folder.
#[derive(Debug, Clone)]
pub struct Cache {
    root: PathBuf,
}

/// What makes an item what it is: a name, and everything that, when changed, must make it anew.
#[derive(Debug, Clone)]
pub struct Recipe {
    name: String,
    hash: Sha256,
    text: Vec<String>,
}

impl Recipe {
    /// A recipe for the item called `name`.
    pub fn new(name: &str) -> Self {
        let recipe = Self { name: name.to_owned(), hash: Sha256::new(), text: Vec::new() };
        recipe.with("name", name)
    }

    /// Adds one ingredient.
    pub fn with(mut self, what: &str, value: impl AsRef<[u8]>) -> Self {
        let value = value.as_ref();
        self.hash.update((what.len() as u64).to_le_bytes());
        self.hash.update(what);
        self.hash.update((value.len() as u64).to_le_bytes());
        self.hash.update(value);
        self.text.push(match std::str::from_utf8(value) {
            Ok(text) if text.len() < 400 => format!("{what}: {text}"),
            _ => format!("{what}: {} bytes", value.len()),
        });
        self
    }

    /// Adds another item as an ingredient.
    pub fn from(self, item: &Item) -> Self {
        let id = item.path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        self.with("from", id)
    }

    fn id(&self) -> String {
        let digest = self.hash.clone().finalize();
        let hash: String = digest.iter().take(8).map(|byte| format!("{byte:02x}")).collect();
        format!("{}-{hash}", self.name)
    }
}

/// A finished item.
#[derive(Debug, Clone)]
pub struct Item {
    /// Its directory.
    pub path: PathBuf,
    /// What its maker noted about it (a version found, say).
    pub note: String,
}

impl Item {
    /// A file in it.
    pub fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }
}

#[derive(Serialize, Deserialize)]
struct Stamp {
    recipe: Vec<String>,
    note: String,
    made_at: u64,
}

const STAMP: &str = ".stamp.json";

impl Cache {
    /// Opens the folder, making it if it is not there. Without `root`: `holdfast/lab` in the
    /// user's cache folder.
    pub fn open(root: Option<PathBuf>) -> Result<Self> {
        let root = match root {
            Some(root) => root,
            None => default_root()?,
        };
        for folder in ["items", "locks", "tmp", "logs"] {
            let path = root.join(folder);
            fs::create_dir_all(&path).with_context(|| format!("cannot make {path:?}"))?;
        }
        let root = root.canonicalize().with_context(|| format!("cannot resolve {root:?}"))?;
        Ok(Self { root })
    }

    /// Where a build's output goes.
    pub fn log(&self, name: &str) -> PathBuf {
        self.root.join("logs").join(format!("{name}.log"))
    }

    /// The folder itself.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The item of this recipe: the one that is there, or a new one that `make` fills. `make`
    /// gets an empty directory and returns a note.
    pub fn item(
        &self,
        recipe: &Recipe,
        make: impl FnOnce(&Path) -> Result<String>,
    ) -> Result<Item> {
        let path = self.root.join("items").join(recipe.id());
        if let Some(item) = finished(&path)? {
            return Ok(item);
        }
        let _lock = self.lock(&recipe.name)?;
        if let Some(item) = finished(&path)? {
            return Ok(item);
        }
        self.sweep(&recipe.name)?;
        let temporary = self.root.join("tmp").join(recipe.id());
        fs::create_dir_all(&temporary)?;
        let made = make(&temporary).and_then(|note| {
            let made_at = UNIX_EPOCH.elapsed().map_or(0, |since| since.as_secs());
            let stamp = Stamp { recipe: recipe.text.clone(), note, made_at };
            fs::write(temporary.join(STAMP), serde_json::to_vec_pretty(&stamp)?)?;
            fs::rename(&temporary, &path).with_context(|| format!("cannot put {path:?} in place"))
        });
        if let Err(error) = made {
            let _ = fs::remove_dir_all(&temporary);
            return Err(error.context(format!("cannot make {}", recipe.name)));
        }
        finished(&path)?.with_context(|| format!("{path:?} vanished"))
    }

    /// Removes every item and what builds left behind; waits for a build that is under way.
    pub fn clean(&self) -> Result<u64> {
        let mut freed = 0;
        let mut locks = Vec::new();
        for entry in fs::read_dir(self.root.join("locks"))? {
            let name = entry?.file_name().to_string_lossy().into_owned();
            locks.push(self.lock(&name)?);
        }
        for folder in ["items", "tmp", "logs"] {
            for entry in fs::read_dir(self.root.join(folder))? {
                let path = entry?.path();
                freed += size_of_tree(&path);
                remove(&path)?;
            }
        }
        Ok(freed)
    }

    fn lock(&self, name: &str) -> Result<Flock<File>> {
        let path = self.root.join("locks").join(name);
        let mut file = OpenOptions::new().create(true).append(true).open(&path)?;
        let mut told = false;
        loop {
            file = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
                Ok(lock) => return Ok(lock),
                Err((file, Errno::EWOULDBLOCK)) => file,
                Err((_, errno)) => bail!("cannot lock {path:?}: {errno}"),
            };
            if !std::mem::replace(&mut told, true) {
                eprintln!("lab: another lab is making {name}; waiting for it");
            }
            if process::interrupted() {
                bail!("stopped while waiting for {name}");
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// Removes what an interrupted build of `name` left. The caller holds its lock.
    fn sweep(&self, name: &str) -> Result<()> {
        for entry in fs::read_dir(self.root.join("tmp"))? {
            let entry = entry?;
            let file_name = entry.file_name().to_string_lossy().into_owned();
            if file_name.rsplit_once('-').is_some_and(|(item, _)| item == name) {
                remove(&entry.path())?;
            }
        }
        Ok(())
    }
}

fn finished(path: &Path) -> Result<Option<Item>> {
    let Ok(text) = fs::read(path.join(STAMP)) else { return Ok(None) };
    let stamp: Stamp =
        serde_json::from_slice(&text).with_context(|| format!("{path:?} has a damaged stamp"))?;
    Ok(Some(Item { path: path.to_owned(), note: stamp.note }))
}

fn remove(path: &Path) -> Result<()> {
    let removed = if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) };
    removed.with_context(|| format!("cannot remove {path:?}"))
}

fn size_of_tree(path: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    let Ok(metadata) = path.symlink_metadata() else { return 0 };
    let below: u64 = match fs::read_dir(path) {
        Ok(entries) if metadata.is_dir() => {
            entries.flatten().map(|entry| size_of_tree(&entry.path())).sum()
        }
        _ => 0,
    };
    metadata.blocks() * 512 + below
}

fn default_root() -> Result<PathBuf> {
    let base = match std::env::var_os("XDG_CACHE_HOME").filter(|value| !value.is_empty()) {
        Some(folder) => PathBuf::from(folder),
        None => PathBuf::from(
            std::env::var_os("HOME")
                .context("neither XDG_CACHE_HOME nor HOME is set: use --cache")?,
        )
        .join(".cache"),
    };
    Ok(base.join("holdfast/lab"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scratch(name: &str) -> Cache {
        let root = std::env::temp_dir().join(format!("lab-cache-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&root);
        Cache::open(Some(root)).unwrap()
    }

    #[test]
    fn an_item_is_made_once_and_again_when_its_recipe_changes() {
        let cache = scratch("once");
        let mut made = 0;
        for version in ["1", "1", "2"] {
            let recipe = Recipe::new("thing").with("version", version);
            let item = cache.item(&recipe, |path| {
                made += 1;
                fs::write(path.join("data"), version)?;
                Ok(version.to_owned())
            });
            let item = item.unwrap();
            assert_eq!(fs::read_to_string(item.file("data")).unwrap(), version);
            assert_eq!(item.note, version);
        }
        assert_eq!(made, 2);
        fs::remove_dir_all(cache.root()).unwrap();
    }

    #[test]
    fn a_failed_build_leaves_nothing_that_looks_finished() {
        let cache = scratch("failed");
        let recipe = Recipe::new("thing");
        let failed = cache.item(&recipe, |path| {
            fs::write(path.join("data"), "half")?;
            bail!("no more disk")
        });
        assert!(format!("{:#}", failed.unwrap_err()).contains("no more disk"));
        assert_eq!(fs::read_dir(cache.root().join("tmp")).unwrap().count(), 0);
        assert_eq!(fs::read_dir(cache.root().join("items")).unwrap().count(), 0);
        fs::remove_dir_all(cache.root()).unwrap();
    }

    #[test]
    fn what_an_interrupted_build_left_is_swept_before_the_next() {
        let cache = scratch("swept");
        let left = cache.root().join("tmp/thing-0123456789abcdef");
        let other = cache.root().join("tmp/other-thing-0123456789abcdef");
        fs::create_dir(&left).unwrap();
        fs::create_dir(&other).unwrap();
        cache.item(&Recipe::new("thing"), |_| Ok(String::new())).unwrap();
        assert!(!left.exists());
        assert!(other.exists());
        fs::remove_dir_all(cache.root()).unwrap();
    }

    #[test]
    fn ingredients_that_join_to_the_same_text_make_different_items() {
        let one = Recipe::new("x").with("a", "bc").id();
        let other = Recipe::new("x").with("ab", "c").id();
        assert_ne!(one, other);
    }
}
