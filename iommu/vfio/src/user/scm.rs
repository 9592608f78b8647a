//! One `recvmsg` with descriptors, and one `sendmsg`, both by hand.
//!
//! Every descriptor that the kernel installed must be taken or closed, also when it could not
//! install them all (`MSG_CTRUNC`), and nix's iterator refuses to show them in that case. What is
//! sent must go without an allocation, which nix's control messages make.
#![allow(unsafe_code)]

use std::io::IoSlice;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use nix::errno::Errno;

/// Most descriptors that Linux carries in one `sendmsg` (`SCM_MAX_FD`).
pub const SCM_MAX_FD: usize = 253;

/// Bytes of control data that hold [`SCM_MAX_FD`] descriptors, in words so that it is aligned.
const CONTROL_WORDS: usize = {
    // SAFETY: CMSG_SPACE is arithmetic on its argument.
    let bytes = unsafe { libc::CMSG_SPACE((SCM_MAX_FD * size_of::<RawFd>()) as u32) };
    (bytes as usize).div_ceil(size_of::<u64>())
};

/// What one receive brought.
pub struct Received {
    /// Bytes, 0 at the end of the stream.
    pub bytes: usize,
    /// Descriptors were sent that were not put in the caller's list: there were more than it
    /// takes (they were closed), or this process may not have more open files.
    pub lost_fds: bool,
}

/// Receives what is there, without waiting, into `buf`, and descriptors into `fds` as long as it
/// has fewer than `max_fds`; surplus ones are closed.
pub fn recv(
    socket: BorrowedFd<'_>,
    buf: &mut [u8],
    fds: &mut Vec<OwnedFd>,
    max_fds: usize,
) -> Result<Received, Errno> {
    let mut control = [0u64; CONTROL_WORDS];
    let mut part = libc::iovec { iov_base: buf.as_mut_ptr().cast(), iov_len: buf.len() };
    // SAFETY: a msghdr of zeroes is a valid one that names nothing.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = &mut part;
    message.msg_iovlen = 1;
    message.msg_control = control.as_mut_ptr().cast();
    message.msg_controllen = size_of_val(&control);

    let flags = libc::MSG_DONTWAIT | libc::MSG_CMSG_CLOEXEC;
    // SAFETY: `message` names `buf` and `control`, both exclusively ours for the call.
    let bytes = unsafe { libc::recvmsg(socket.as_raw_fd(), &mut message, flags) };
    let bytes = Errno::result(bytes)? as usize;

    let mut lost_fds = message.msg_flags & libc::MSG_CTRUNC != 0;
    // SAFETY: the kernel filled `message`, whose control pointer and length describe `control`.
    let mut entry = unsafe { libc::CMSG_FIRSTHDR(&message) };
    while !entry.is_null() {
        // SAFETY: CMSG_FIRSTHDR and CMSG_NXTHDR give headers that lie inside the control data.
        let header = unsafe { entry.read() };
        if header.cmsg_level == libc::SOL_SOCKET && header.cmsg_type == libc::SCM_RIGHTS {
            // SAFETY: CMSG_LEN is arithmetic; CMSG_DATA is in the same entry.
            let (start, empty) = unsafe { (libc::CMSG_DATA(entry), libc::CMSG_LEN(0) as usize) };
            let count = header.cmsg_len.saturating_sub(empty) / size_of::<RawFd>();
            for index in 0..count {
                // SAFETY: the kernel wrote `count` descriptors here and gave them to this
                // process; each is taken exactly once.
                let fd = unsafe {
                    OwnedFd::from_raw_fd(start.cast::<RawFd>().add(index).read_unaligned())
                };
                if fds.len() < max_fds {
                    fds.push(fd);
                } else {
                    lost_fds = true;
                }
            }
        }
        // SAFETY: as for CMSG_FIRSTHDR.
        entry = unsafe { libc::CMSG_NXTHDR(&message, entry) };
    }
    Ok(Received { bytes, lost_fds })
}

/// Sends as much as fits, without waiting, with `fds`, and says how many bytes.
pub fn send(
    socket: BorrowedFd<'_>,
    parts: &[IoSlice<'_>],
    fds: &[BorrowedFd<'_>],
) -> Result<usize, Errno> {
    if fds.len() > SCM_MAX_FD {
        return Err(Errno::EINVAL);
    }
    let mut control = [0u64; CONTROL_WORDS];
    // SAFETY: a msghdr of zeroes is a valid one that names nothing.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    // An IoSlice is laid out as an iovec; sendmsg writes to neither.
    message.msg_iov = parts.as_ptr().cast_mut().cast();
    message.msg_iovlen = parts.len();
    if !fds.is_empty() {
        let bytes = size_of_val(fds) as u32;
        message.msg_control = control.as_mut_ptr().cast();
        // SAFETY: CMSG_SPACE and CMSG_LEN are arithmetic; there is room for SCM_MAX_FD descriptors
        // in `control`, so the first header and `bytes` bytes behind it lie inside.
        unsafe {
            message.msg_controllen = libc::CMSG_SPACE(bytes) as usize;
            let entry = libc::CMSG_FIRSTHDR(&message);
            (*entry).cmsg_level = libc::SOL_SOCKET;
            (*entry).cmsg_type = libc::SCM_RIGHTS;
            (*entry).cmsg_len = libc::CMSG_LEN(bytes) as usize;
            for (index, fd) in fds.iter().enumerate() {
                let at = libc::CMSG_DATA(entry).cast::<RawFd>().add(index);
                at.write_unaligned(fd.as_raw_fd());
            }
        }
    }
    let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
    // SAFETY: `message` names `parts` and `control`, which live through the call.
    let sent = unsafe { libc::sendmsg(socket.as_raw_fd(), &message, flags) };
    Ok(Errno::result(sent)? as usize)
}
