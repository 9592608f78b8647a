//! System calls that nix does not have, each under a safe signature.
#![allow(unsafe_code)]

use std::ffi::{CStr, CString};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use nix::errno::Errno;

/// `F_SETSIG` and `F_SETOWN_EX` of asm-generic/fcntl.h, `F_SETDELEG` of linux/fcntl.h.
const F_SETSIG: i32 = 10;
const F_SETOWN_EX: i32 = 15;
const F_SETDELEG: i32 = 1024 + 16;

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

/// A path that leads to what a descriptor is open on, whether it has a name or not.
pub fn proc_path(fd: BorrowedFd<'_>) -> CString {
    CString::new(format!("/proc/self/fd/{}", fd.as_raw_fd())).unwrap_or_default()
}

/// Whether a file is accessed without the page cache (`STATX_ATTR_DAX`).
pub fn is_dax(file: BorrowedFd<'_>) -> Result<bool, Errno> {
    // SAFETY: all zeroes is a valid value of this plain structure.
    let mut found: libc::statx = unsafe { std::mem::zeroed() };
    // SAFETY: an empty path with AT_EMPTY_PATH is the descriptor itself; the kernel fills `found`.
    Errno::result(unsafe {
        let (flags, mask) = (libc::AT_EMPTY_PATH, libc::STATX_BASIC_STATS);
        libc::statx(file.as_raw_fd(), c"".as_ptr(), flags, mask, &mut found)
    })?;
    Ok(found.stx_attributes & libc::STATX_ATTR_DAX as u64 != 0)
}

/// `inotify_init1`, not blocking.
pub fn inotify() -> Result<OwnedFd, Errno> {
    // SAFETY: numbers only.
    descriptor(unsafe { libc::inotify_init1(libc::IN_NONBLOCK | libc::IN_CLOEXEC) }.into())
}

/// `inotify_add_watch`: gives back the watch's number.
pub fn inotify_add(inotify: BorrowedFd<'_>, path: &CStr, mask: u32) -> Result<i32, Errno> {
    // SAFETY: a C string that is only read.
    Errno::result(unsafe { libc::inotify_add_watch(inotify.as_raw_fd(), path.as_ptr(), mask) })
}

/// `inotify_rm_watch`.
pub fn inotify_remove(inotify: BorrowedFd<'_>, watch: i32) -> Result<(), Errno> {
    // SAFETY: numbers only.
    Errno::result(unsafe { libc::inotify_rm_watch(inotify.as_raw_fd(), watch) }).map(drop)
}

/// `fanotify_init`.
pub fn fanotify(flags: u32, event_flags: i32) -> Result<OwnedFd, Errno> {
    // SAFETY: numbers only.
    descriptor(unsafe { libc::fanotify_init(flags, event_flags as u32) }.into())
}

/// `fanotify_mark` on the file of a descriptor.
pub fn fanotify_mark(
    fanotify: BorrowedFd<'_>,
    flags: u32,
    mask: u64,
    file: BorrowedFd<'_>,
) -> Result<(), Errno> {
    // SAFETY: without a path, the mark is on the descriptor itself.
    Errno::result(unsafe {
        let file = file.as_raw_fd();
        libc::fanotify_mark(fanotify.as_raw_fd(), flags, mask, file, std::ptr::null())
    })
    .map(drop)
}

/// The descriptor that an event brought, which is ours from now on; `None` for a negative one.
pub fn received(fd: i32) -> Option<OwnedFd> {
    // SAFETY: the kernel installed it for the reader of the event, and each event is parsed once.
    (fd >= 0).then(|| unsafe { OwnedFd::from_raw_fd(fd) })
}

/// `F_SETSIG`: the signal that tells of events on a descriptor.
pub fn set_signal(file: BorrowedFd<'_>, signal: i32) -> Result<(), Errno> {
    // SAFETY: numbers only.
    Errno::result(unsafe { libc::fcntl(file.as_raw_fd(), F_SETSIG, signal) }).map(drop)
}

/// `F_SETOWN_EX`: the thread that gets it.
pub fn set_owner(file: BorrowedFd<'_>, thread: i32) -> Result<(), Errno> {
    // `struct f_owner_ex`: F_OWNER_TID and the thread.
    let owner = [0, thread];
    // SAFETY: the structure is read during the call.
    Errno::result(unsafe { libc::fcntl(file.as_raw_fd(), F_SETOWN_EX, owner.as_ptr()) }).map(drop)
}

/// `F_SETLEASE`: `F_WRLCK`, `F_RDLCK` or `F_UNLCK`.
pub fn set_lease(file: BorrowedFd<'_>, kind: i32) -> Result<(), Errno> {
    // SAFETY: numbers only.
    Errno::result(unsafe { libc::fcntl(file.as_raw_fd(), libc::F_SETLEASE, kind) }).map(drop)
}

/// `F_GETLEASE`: what the lease is, or is to become where it is being broken.
pub fn lease(file: BorrowedFd<'_>) -> Result<i32, Errno> {
    // SAFETY: numbers only.
    Errno::result(unsafe { libc::fcntl(file.as_raw_fd(), libc::F_GETLEASE) })
}

/// `F_SETDELEG`, as [`set_lease`].
pub fn set_delegation(file: BorrowedFd<'_>, kind: i32) -> Result<(), Errno> {
    // `struct delegation`: flags, type and padding.
    let delegation = [0u32, kind as u32];
    // SAFETY: the structure is read during the call.
    Errno::result(unsafe { libc::fcntl(file.as_raw_fd(), F_SETDELEG, delegation.as_ptr()) })
        .map(drop)
}

/// The last but two of the real-time signals.
pub fn spare_signal() -> i32 {
    libc::SIGRTMAX() - 2
}

/// Blocks these signals for the calling thread alone, and makes a descriptor from which this
/// thread, and no other, reads those that are sent to it.
pub fn signals_of_this_thread(signals: &[i32]) -> Result<OwnedFd, Errno> {
    // SAFETY: all zeroes is a valid set, which sigemptyset fills in; numbers of signals that are
    // none are refused.
    let set = unsafe {
        let mut set = std::mem::zeroed();
        Errno::result(libc::sigemptyset(&mut set))?;
        for &signal in signals {
            Errno::result(libc::sigaddset(&mut set, signal))?;
        }
        set
    };
    // SAFETY: the set is valid; the old one is not asked for.
    match unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &set, std::ptr::null_mut()) } {
        0 => {}
        errno => return Err(Errno::from_raw(errno)),
    }
    // SAFETY: a valid set, read during the call.
    descriptor(unsafe { libc::signalfd(-1, &set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK) }.into())
}

/// `userfaultfd(2)`.
pub fn userfaultfd(flags: i32) -> Result<OwnedFd, Errno> {
    // SAFETY: numbers only.
    descriptor(unsafe { libc::syscall(libc::SYS_userfaultfd, flags) })
}

/// `UFFDIO_API` of linux/userfaultfd.h: asks for features; those there are come back.
pub fn uffd_api(uffd: BorrowedFd<'_>, features: u64) -> Result<u64, Errno> {
    // `struct uffdio_api`: version, features, ioctls.
    let mut api = [0xaa_u64, features, 0];
    // SAFETY: the structure has the size that the request's number says.
    Errno::result(unsafe { libc::ioctl(uffd.as_raw_fd(), 0xc018_aa3f, api.as_mut_ptr()) })?;
    Ok(api[1])
}

/// `UFFDIO_REGISTER`: a range of this process's addresses in a mode. It changes how faults there
/// are handled, and no content.
pub fn uffd_register(uffd: BorrowedFd<'_>, address: u64, len: u64, mode: u64) -> Result<(), Errno> {
    // `struct uffdio_register`: start, length, mode, ioctls.
    let mut register = [address, len, mode, 0];
    // SAFETY: as above.
    Errno::result(unsafe { libc::ioctl(uffd.as_raw_fd(), 0xc020_aa00, register.as_mut_ptr()) })
        .map(drop)
}

/// `UFFDIO_UNREGISTER`.
pub fn uffd_unregister(uffd: BorrowedFd<'_>, address: u64, len: u64) -> Result<(), Errno> {
    // `struct uffdio_range`.
    let mut range = [address, len];
    // SAFETY: as above.
    Errno::result(unsafe { libc::ioctl(uffd.as_raw_fd(), 0x8010_aa01, range.as_mut_ptr()) })
        .map(drop)
}

/// `UFFDIO_CONTINUE`: maps a page that the file behind the mapping has, and gives the file none.
/// EEXIST when it is mapped, EFAULT when the file has no page there.
pub fn uffd_continue(uffd: BorrowedFd<'_>, address: u64, len: u64) -> Result<(), Errno> {
    // `struct uffdio_continue`: start, length, mode, what was mapped or an error.
    let mut request = [address, len, 0, 0];
    loop {
        // SAFETY: the structure has the size that the request's number says.
        let ret = unsafe { libc::ioctl(uffd.as_raw_fd(), 0xc020_aa07, request.as_mut_ptr()) };
        match Errno::result(ret) {
            Err(Errno::EAGAIN | Errno::EINTR) => {}
            other => return other.map(drop),
        }
    }
}

/// Whether anything is mapped at a page of this process.
pub fn is_mapped(page: u64) -> bool {
    let mut vector = 0;
    // SAFETY: one byte for one page is written; ENOMEM says that nothing is mapped there.
    unsafe { libc::mincore(page as *mut libc::c_void, 1, &mut vector) == 0 }
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
