//! Where the sockets are: a folder that belongs to the user and is closed to others.

use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use nix::unistd::geteuid;

/// Names another folder.
const VARIABLE: &str = "HOLDFAST_STATS_DIR";

/// The folder of this user's sockets: `$HOLDFAST_STATS_DIR`, or `holdfast` in `$XDG_RUNTIME_DIR`, or
/// `/run/holdfast` for root, or `/tmp/holdfast-UID`.
pub fn folder() -> PathBuf {
    let given = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let uid = geteuid();
    given(VARIABLE)
        .or_else(|| given("XDG_RUNTIME_DIR").map(|folder| folder.join("holdfast")))
        .unwrap_or_else(|| match uid.is_root() {
            true => PathBuf::from("/run/holdfast"),
            false => PathBuf::from(format!("/tmp/holdfast-{uid}")),
        })
}

/// Makes the folder, or checks that it is this user's alone: somebody else's could have anybody's
/// socket under our name.
pub(super) fn prepare(folder: &Path) -> io::Result<()> {
    match fs::DirBuilder::new().recursive(false).mode(0o700).create(folder) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        made => made?,
    }
    let found = fs::symlink_metadata(folder)?;
    if !found.is_dir() || found.uid() != geteuid().as_raw() || found.mode() & 0o022 != 0 {
        let why = format!("{} is not a folder that only its user writes", folder.display());
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, why));
    }
    Ok(())
}

/// The sockets in a folder, by process. None where there is no folder.
pub fn sockets(folder: &Path) -> Vec<(u32, PathBuf)> {
    let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
    let pid = |path: &Path| path.file_name()?.to_str()?.strip_suffix(".sock")?.parse().ok();
    let mut found: Vec<(u32, PathBuf)> = entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter_map(|path| Some((pid(&path)?, path)))
        .collect();
    found.sort();
    found
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn a_folder_that_others_write_is_refused() {
        let parent = tempfile::tempdir().unwrap();
        let folder = parent.path().join("holdfast");
        prepare(&folder).unwrap();
        assert_eq!(fs::metadata(&folder).unwrap().mode() & 0o777, 0o700);
        prepare(&folder).expect("it may be there already");
        fs::set_permissions(&folder, fs::Permissions::from_mode(0o777)).unwrap();
        assert_eq!(prepare(&folder).unwrap_err().kind(), io::ErrorKind::PermissionDenied);
        let link = parent.path().join("link");
        std::os::unix::fs::symlink(parent.path(), &link).unwrap();
        assert_eq!(prepare(&link).unwrap_err().kind(), io::ErrorKind::PermissionDenied);
        assert!(prepare(&parent.path().join("no/such")).is_err());
    }

    #[test]
    fn only_what_is_named_after_a_process_is_a_socket() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["77.sock", "5.sock", "x.sock", "5.socket", "notes"] {
            fs::write(folder.path().join(name), "").unwrap();
        }
        let pids: Vec<_> = sockets(folder.path()).into_iter().map(|(pid, _)| pid).collect();
        assert_eq!(pids, [5, 77]);
        assert!(sockets(Path::new("/nonexistent")).is_empty());
    }
}
