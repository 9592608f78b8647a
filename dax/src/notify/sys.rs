//! System calls that nix does not have, each under a safe signature.
#![allow(unsafe_code)]

use std::ffi::CStr;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use nix::errno::Errno;

/// A descriptor that a raw system call returned.
fn descriptor(ret: libc::c_long) -> Result<OwnedFd, Errno> {
    let fd = Errno::result(ret)? as i32;
    // SAFETY: the call succeeded and returned a new descriptor, which nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Mounts a file system that needs no device, without attaching it anywhere: it is seen through
/// the descriptor alone, and goes with it. (`fsopen`, `fsconfig`, `fsmount`.)
pub fn detached_mount(kind: &CStr) -> Result<OwnedFd, Errno> {
    // SAFETY: a C string, and no pointer is kept.
    let context = descriptor(unsafe {
        libc::syscall(libc::SYS_fsopen, kind.as_ptr(), libc::FSOPEN_CLOEXEC)
    })?;
    // SAFETY: FSCONFIG_CMD_CREATE takes neither key nor value.
    Errno::result(unsafe {
        libc::syscall(
            libc::SYS_fsconfig,
            context.as_raw_fd(),
            libc::FSCONFIG_CMD_CREATE,
            std::ptr::null::<libc::c_char>(),
            std::ptr::null::<libc::c_void>(),
            0,
        )
    })?;
    // SAFETY: numbers only.
    descriptor(unsafe {
        libc::syscall(libc::SYS_fsmount, context.as_raw_fd(), libc::FSMOUNT_CLOEXEC, 0)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_detached_mount_is_seen_through_its_descriptor() {
        let mount = detached_mount(c"proc").unwrap();
        let path = format!("/proc/self/fd/{}/uptime", mount.as_raw_fd());
        assert!(!std::fs::read_to_string(path).unwrap().is_empty());
        assert_eq!(detached_mount(c"no such thing").unwrap_err(), Errno::ENODEV);
    }
}
