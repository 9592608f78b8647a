//! Where the tracing file system is: mounted somewhere, or mounted by us for ourselves alone.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::errno::Errno;

use crate::notify::{NotifierKind, NotifyError, sys};

/// The tracing file system.
#[derive(Debug)]
pub struct TraceFs {
    root: PathBuf,
    /// Our own mount, where there was none; nobody else sees it, and it goes with us.
    _mount: Option<OwnedFd>,
}

impl TraceFs {
    /// Finds it among the mounts; where it is not mounted, mounts it without attaching it to the
    /// file tree.
    pub fn find() -> Result<Self, NotifyError> {
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
        let found = mounted(&mounts).find(|root| root.join("instances").is_dir());
        if let Some(root) = found {
            return Ok(Self { root, _mount: None });
        }
        let mount = sys::detached_mount(c"tracefs").map_err(|errno| match errno {
            Errno::ENODEV => NotifyError::Missing {
                notifier: NotifierKind::Kprobe,
                reason: "this kernel has no tracefs (CONFIG_TRACING)".into(),
                errno: Some(errno),
            },
            _ => NotifyError::NotPermitted {
                notifier: NotifierKind::Kprobe,
                needs: "CAP_SYS_ADMIN to mount tracefs, or a tracefs that is mounted",
                call: "mount",
                errno,
            },
        })?;
        let root = PathBuf::from(format!("/proc/self/fd/{}", mount.as_raw_fd()));
        Ok(Self { root, _mount: Some(mount) })
    }

    /// Its path, good in this process only.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The text of one of its files.
    pub fn read(&self, file: &str) -> Result<String, NotifyError> {
        fs::read_to_string(self.root.join(file)).map_err(|error| failed("read", file, &error))
    }

    /// Hands `text` to one of its files in one write. Opened for appending: opening
    /// `kprobe_events` for anything else removes everybody's probes.
    pub fn write(&self, file: &str, text: &str) -> Result<(), NotifyError> {
        OpenOptions::new()
            .append(true)
            .open(self.root.join(file))
            .and_then(|mut opened| opened.write_all(text.as_bytes()))
            .map_err(|error| failed("write", &format!("{file} ({text})"), &error))
    }
}

/// A failed call on one of the file system's files, with what to do where that is known.
pub fn failed(call: &'static str, file: &str, error: &std::io::Error) -> NotifyError {
    let errno = Errno::from_raw(error.raw_os_error().unwrap_or(0));
    let notifier = NotifierKind::Kprobe;
    match errno {
        Errno::EPERM | Errno::EACCES => {
            NotifyError::NotPermitted { notifier, needs: "root and no lockdown", call, errno }
        }
        Errno::ENOENT if file.starts_with("kprobe_events") => NotifyError::Missing {
            notifier,
            reason: "this kernel has no kprobe events (CONFIG_KPROBE_EVENTS)".into(),
            errno: Some(errno),
        },
        _ => NotifyError::Call { notifier, call, what: format!("tracefs' {file}"), errno },
    }
}

/// Where it is mounted, according to a text like /proc/self/mounts.
fn mounted(mounts: &str) -> impl Iterator<Item = PathBuf> {
    mounts.lines().filter_map(|line| {
        let mut fields = line.split(' ');
        let (at, kind) = (fields.nth(1)?, fields.next()?);
        match kind {
            "tracefs" => Some(unescaped(at)),
            // Shown there for the sake of old programs; mounted by looking at it.
            "debugfs" => Some(unescaped(at).join("tracing")),
            _ => None,
        }
    })
}

/// A path as it was, from one with `\040` for a blank.
fn unescaped(path: &str) -> PathBuf {
    let mut parts = path.split('\\');
    let mut out = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        match part.get(..3).and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(byte) => out.push_str(&format!("{}{}", byte as char, &part[3..])),
            None => out.push_str(&format!("\\{part}")),
        }
    }
    out.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts_are_found_in_their_order() {
        let text = "proc /proc proc rw 0 0\nnone /sys/kernel/debug debugfs rw 0 0\n\
                    nodev /my\\040trace tracefs rw 0 0\nbad\n";
        let found: Vec<_> = mounted(text).collect();
        assert_eq!(found, [Path::new("/sys/kernel/debug/tracing"), Path::new("/my trace")]);
    }

    #[test]
    fn it_is_found_or_mounted_out_of_sight() {
        let before = fs::read_to_string("/proc/self/mounts").unwrap();
        let tracefs = TraceFs::find().unwrap();
        assert!(tracefs.root().join("instances").is_dir());
        assert!(tracefs.read("README").unwrap().contains("trace_pipe"));
        assert_eq!(fs::read_to_string("/proc/self/mounts").unwrap(), before);
    }

    #[test]
    fn a_kernel_without_probes_is_said_to_be_one() {
        let error = failed("write", "kprobe_events (x)", &Errno::ENOENT.into());
        assert!(error.to_string().contains("CONFIG_KPROBE_EVENTS"), "{error}");
    }
}
