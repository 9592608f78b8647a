//! A pin taken in one process and handed to another, as the keeper gets its pins.

use std::io::{IoSlice, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use holdfast_dax::{Memory, OwnedPinParts, Pin, PinParts, Populate, Source};
use nix::sys::socket::{
    AddressFamily, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType, recvmsg,
    sendmsg, socketpair,
};

use crate::raw;

/// Duplicates of a pin's parts, for another owner in the same process.
pub fn copy(parts: &PinParts<'_>) -> Result<OwnedPinParts> {
    Ok(OwnedPinParts {
        read: parts.read.try_clone_to_owned()?,
        write: parts.write.try_clone_to_owned()?,
        file: parts.file.try_clone_to_owned()?,
        offset: parts.offset,
    })
}

/// Starts a process that pins `FOLDER/file` and waits to be killed; what it handed over.
pub fn owner(folder: &Path) -> Result<(Child, OwnedPinParts)> {
    let (ours, theirs) =
        socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)?;
    let child = Command::new(std::env::current_exe()?)
        .arg("own-pin")
        .arg(folder)
        .stdin(Stdio::from(theirs))
        .spawn()
        .context("cannot start the pin's owner")?;
    let mut offset = [0; 8];
    let mut space = nix::cmsg_space!([std::os::fd::RawFd; 3]);
    let mut data = [IoSliceMut::new(&mut offset)];
    let message =
        recvmsg::<()>(ours.as_raw_fd(), &mut data, Some(&mut space), MsgFlags::MSG_CMSG_CLOEXEC)?;
    let mut descriptors: Vec<OwnedFd> = Vec::new();
    for control in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(received) = control {
            descriptors.extend(received.into_iter().map(raw::own));
        }
    }
    let [read, write, file] = match <[OwnedFd; 3]>::try_from(descriptors) {
        Ok(three) => three,
        Err(other) => bail!("the owner sent {} descriptors", other.len()),
    };
    Ok((child, OwnedPinParts { read, write, file, offset: u64::from_ne_bytes(offset) }))
}

/// The owner's side: pins, hands over through standard input, and waits to be killed.
pub fn serve(folder: &Path) -> Result<()> {
    let memory = Memory::open(&Source::fs_dax(folder.join("file")), 0, Populate::Yes)?;
    let (fd, _) = memory.backing().context("a file without a descriptor")?;
    let pin = Pin::take(fd, 0)?;
    let parts = pin.parts();
    let offset = parts.offset.to_ne_bytes();
    let descriptors = [parts.read, parts.write, parts.file].map(|fd| fd.as_raw_fd());
    let control = [ControlMessage::ScmRights(&descriptors)];
    let data = [IoSlice::new(&offset)];
    let socket = std::io::stdin().as_fd().as_raw_fd();
    sendmsg::<()>(socket, &data, &control, MsgFlags::empty(), None)?;
    std::thread::sleep(Duration::from_secs(600));
    Ok(())
}
