//! Starting the keeper's process: which program, with which descriptors.
//!
//! The two sockets become its standard input and output. That way no other child which another
//! thread of this process may be starting at the same moment can inherit an end of them.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};

use super::client::KeeperOptions;
use super::error::KeeperError;

/// Name of the program, and the subcommand that makes it a keeper.
const PROGRAM: &str = "holdfast";
const SUBCOMMAND: &str = "keeper";

/// A process that was started, and this side's ends of its sockets.
pub(super) struct Spawned {
    pub(super) child: Child,
    pub(super) program: PathBuf,
    pub(super) calls: OwnedFd,
    pub(super) events: OwnedFd,
}

pub(super) fn spawn(options: &KeeperOptions) -> Result<Spawned, KeeperError> {
    let program = match &options.program {
        Some(program) => program.clone(),
        None => {
            let path = std::env::var_os("PATH").unwrap_or_default();
            let path: Vec<PathBuf> = std::env::split_paths(&path).collect();
            find(std::env::current_exe().ok().as_deref(), &path)?
        }
    };
    let (calls, calls_there) = pair()?;
    let (events, events_there) = pair()?;
    let child = Command::new(&program)
        .arg(SUBCOMMAND)
        .stdin(Stdio::from(calls_there))
        .stdout(Stdio::from(events_there))
        .spawn()
        .map_err(|source| KeeperError::Start { program: program.clone(), source })?;
    // `Command` and with it the other ends are gone: from here on the death of the process is
    // the end of the sockets.
    Ok(Spawned { child, program, calls, events })
}

fn pair() -> Result<(OwnedFd, OwnedFd), KeeperError> {
    socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)
        .map_err(KeeperError::system("make sockets for the keeper"))
}

/// This program if it is `holdfast`, else the one beside it, else the first in `path`.
fn find(this: Option<&Path>, path: &[PathBuf]) -> Result<PathBuf, KeeperError> {
    if let Some(this) = this.filter(|this| this.file_name().is_some_and(|name| name == PROGRAM)) {
        return Ok(this.to_owned());
    }
    let beside = this.and_then(Path::parent).map(Path::to_owned);
    let looked: Vec<PathBuf> =
        beside.iter().chain(path).map(|folder| folder.join(PROGRAM)).collect();
    let found = looked.iter().find(|program| program.is_file()).cloned();
    found.ok_or(KeeperError::NoProgram { looked })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_program_is_this_one_or_beside_it_or_in_the_path() {
        let [a, b] = [(); 2].map(|()| tempfile::tempdir().unwrap());
        let path = [a.path().to_owned(), b.path().to_owned()];
        let this = a.path().join("other");
        let error = find(Some(&this), &path).unwrap_err();
        assert!(matches!(&error, KeeperError::NoProgram { looked } if looked.len() == 3));
        let in_path = b.path().join("holdfast");
        std::fs::write(&in_path, "").unwrap();
        assert_eq!(find(Some(&this), &path).unwrap(), in_path);
        assert_eq!(find(None, &path).unwrap(), in_path);
        let beside = a.path().join("holdfast");
        std::fs::write(&beside, "").unwrap();
        assert_eq!(find(Some(&this), &path).unwrap(), beside);
        let itself = Path::new("/nowhere/holdfast");
        assert_eq!(find(Some(itself), &path).unwrap(), itself);
    }

    #[test]
    fn a_program_that_is_no_keeper_is_told_apart() {
        for program in ["/bin/true", "/bin/false"] {
            let options = KeeperOptions { program: Some(program.into()), ..Default::default() };
            let error = super::super::Keeper::spawn(&options).unwrap_err();
            let KeeperError::NotReady { status: Some(status), .. } = &error else {
                panic!("{error}")
            };
            assert_eq!(status.success(), program == "/bin/true");
        }
        let options = KeeperOptions { program: Some("/nowhere/x".into()), ..Default::default() };
        let error = super::super::Keeper::spawn(&options).unwrap_err();
        assert!(matches!(error, KeeperError::Start { .. }), "{error}");
    }
}
