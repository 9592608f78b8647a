//! The files that results go to. They are looked at before anything is measured, so that no result
//! is made that cannot be kept; what is in them stays until there is a result.

use std::fs::{self, OpenOptions};
use std::io::ErrorKind;
use std::path::Path;

use anyhow::Context as _;

/// Fails if this file cannot be written. Changes nothing: a file that did not exist does not
/// afterwards.
pub fn check(path: &Path) -> anyhow::Result<()> {
    let writable = match fs::metadata(path) {
        Ok(there) if there.is_file() || there.is_dir() => {
            OpenOptions::new().write(true).open(path).map(drop)
        }
        // Whoever reads from a pipe would take a look for the end.
        Ok(_) => Ok(()),
        Err(error) if error.kind() == ErrorKind::NotFound => create_and_remove(path),
        Err(error) => Err(error),
    };
    writable.with_context(|| format!("cannot write {}", path.display()))
}

fn create_and_remove(path: &Path) -> std::io::Result<()> {
    match OpenOptions::new().write(true).create_new(true).open(path) {
        Ok(_) => fs::remove_file(path),
        // A link to what does not exist yet.
        Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(()),
        Err(error) => Err(error),
    }
}

/// Writes a result.
pub fn write(path: &Path, bytes: &[u8]) -> anyhow::Result<()> {
    fs::write(path, bytes).with_context(|| format!("cannot write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_look_at_a_file_leaves_everything_as_it_was() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        fs::write(path("old"), "a result").unwrap();
        std::os::unix::fs::symlink(path("nowhere"), path("link")).unwrap();
        for name in ["old", "new", "link"] {
            check(&path(name)).unwrap();
        }
        assert_eq!(fs::read_to_string(path("old")).unwrap(), "a result");
        assert!(!path("new").exists() && !path("nowhere").exists());
        check(Path::new("/dev/null")).unwrap();
    }

    #[test]
    fn what_cannot_be_written_is_named() {
        let folder = tempfile::tempdir().unwrap();
        for path in [folder.path().to_owned(), folder.path().join("none/report.html")] {
            let error = format!("{:#}", check(&path).unwrap_err());
            assert!(error.starts_with(&format!("cannot write {}: ", path.display())), "{error}");
        }
    }
}
