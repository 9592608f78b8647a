//! The client's end: a device on the other side of a socket.

use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use zerocopy::IntoBytes;

use super::channel::{Channel, Wait};
use super::link::{Failure, Link, MAX_REPLY_FDS, take};
use super::regions::Region;
use super::version::{self, Capabilities};
use super::wire::{self, Command};
use crate::{DeviceInfo, Error, IrqInfo, Result};

/// Most regions and interrupt indices that a server is believed to have.
const MAX_REGIONS: u32 = 64;
const MAX_IRQS: u32 = 64;
/// Room for region information with its capabilities at the first try, and at the second.
const REGION_ROOM: u32 = 4096;
const REGION_ROOM_MOST: u32 = SMALL_REPLY as u32;
/// Most payload bytes of a reply that has no data in it.
pub(super) const SMALL_REPLY: usize = 64 << 10;
/// Most data bytes that are asked for or sent in one message, whatever the server allows.
pub(super) const MAX_TRANSFER: usize = 1 << 20;

/// How to talk to a server.
#[derive(Debug, Clone, Copy)]
pub struct ConnectOptions {
    /// Longest wait for one reply. A DMA_UNMAP is answered only when no access is in flight any
    /// more, so this must be longer than the longest stall the device may be configured for.
    pub timeout: Duration,
}

impl Default for ConnectOptions {
    fn default() -> Self {
        Self { timeout: Duration::from_secs(10) }
    }
}

/// A PCI device behind a vfio-user socket.
///
/// Every call that is not answered from what was learnt at connect time is one round trip under
/// one lock: calls from several threads queue up. A call fails when the server does not answer in
/// time ([`ConnectOptions::timeout`]) or breaks the protocol; the connection is then given up, for
/// a late answer could be taken for another's, and later calls fail with [`Error::UserGone`].
///
/// Memory that was handed to [`UserDevice::dma_map`] may be reused when
/// [`UserDevice::dma_unmap`] succeeded for it, or when [`UserDevice::disconnect`] succeeded.
/// Merely dropping the device closes the socket, and the server ends its accesses some time later.
#[derive(Debug)]
pub struct UserDevice {
    pub(super) socket: String,
    timeout: Duration,
    link: Mutex<Link>,
    pub(super) peer: Capabilities,
    pub(super) info: DeviceInfo,
    pub(super) regions: Vec<Region>,
    pub(super) irqs: Vec<IrqInfo>,
}

impl UserDevice {
    /// Connects to the server at `path`, with default options.
    pub fn connect(path: impl AsRef<Path>) -> Result<Self> {
        Self::connect_with(path, ConnectOptions::default())
    }

    /// Connects to the server at `path`. A server that serves another client answers only when
    /// that one is gone, or not within the timeout.
    pub fn connect_with(path: impl AsRef<Path>, options: ConnectOptions) -> Result<Self> {
        let path = path.as_ref();
        let socket = path.display().to_string();
        match UnixStream::connect(path) {
            Ok(stream) => Self::start(stream, socket, options),
            Err(error) => {
                let errno = error.raw_os_error().map_or(Errno::EINVAL, Errno::from_raw);
                Err(Error::UserConnect { socket, errno })
            }
        }
    }

    /// Talks to a server over a socket that is connected already; `name` stands for its path in
    /// errors.
    pub fn from_stream(
        stream: UnixStream,
        name: impl Into<String>,
        options: ConnectOptions,
    ) -> Result<Self> {
        Self::start(stream, name.into(), options)
    }

    fn start(stream: UnixStream, socket: String, options: ConnectOptions) -> Result<Self> {
        let mut device = Self {
            socket,
            timeout: options.timeout,
            link: Mutex::new(Link::new(Channel::new(stream))),
            peer: Capabilities::default(),
            info: DeviceInfo { regions: 0, irqs: 0, can_reset: false },
            regions: Vec::new(),
            irqs: Vec::new(),
        };
        device.peer = device.negotiate()?;
        device.info = device.get_info()?;
        for index in 0..device.info.regions {
            let region = device.get_region(index)?;
            device.regions.push(region);
        }
        for index in 0..device.info.irqs {
            let irq = device.get_irq(index)?;
            device.irqs.push(irq);
        }
        Ok(device)
    }

    /// Path of the socket, for messages to people.
    pub fn socket(&self) -> &str {
        &self.socket
    }

    /// What the server said it can do.
    pub fn capabilities(&self) -> &Capabilities {
        &self.peer
    }

    /// Makes `[offset, offset + len)` of the file `fd` reachable for the device's DMA at `iova`.
    /// The server keeps a descriptor of its own.
    pub fn dma_map(
        &self,
        iova: u64,
        len: u64,
        read: bool,
        write: bool,
        fd: BorrowedFd<'_>,
        offset: u64,
    ) -> Result<()> {
        let mut flags = 0;
        if read {
            flags |= wire::DMA_MAP_READ;
        }
        if write {
            flags |= wire::DMA_MAP_WRITE;
        }
        let argsz = size_of::<wire::DmaMap>() as u32;
        let map = wire::DmaMap { argsz, flags, offset, address: iova, size: len };
        self.call(Command::DMA_MAP, &[map.as_bytes()], &[fd], SMALL_REPLY, |_, _| Ok(()))
    }

    /// Makes `[iova, iova + len)` unreachable and says how many bytes were mapped there. When
    /// this returns, no access through these mappings is in flight or will start.
    pub fn dma_unmap(&self, iova: u64, len: u64) -> Result<u64> {
        self.unmap(iova, len, 0)
    }

    /// As [`UserDevice::dma_unmap`], for everything that is mapped.
    pub fn dma_unmap_all(&self) -> Result<u64> {
        self.unmap(0, 0, wire::DMA_UNMAP_ALL)
    }

    fn unmap(&self, address: u64, size: u64, flags: u32) -> Result<u64> {
        let argsz = size_of::<wire::DmaUnmap>() as u32;
        let unmap = wire::DmaUnmap { argsz, flags, address, size };
        self.call(Command::DMA_UNMAP, &[unmap.as_bytes()], &[], SMALL_REPLY, |payload, _| {
            Ok(take::<wire::DmaUnmap>(payload)?.size)
        })
    }

    /// Tells the server that this client is done, and waits until the server has let go of
    /// everything it was given: when this succeeds, no DMA access is in flight or will start. It
    /// works also after a request failed. The device is of no more use afterwards.
    pub fn disconnect(&self, timeout: Duration) -> Result<()> {
        let mut link = self.lock();
        let link = &mut *link;
        link.close();
        let wait = Wait { deadline: Some(Instant::now() + timeout), stop: None };
        // Late replies are read and dropped; the server closes its end when it is done.
        link.channel
            .drain(&mut link.payload, wait)
            .map_err(|source| Error::UserDisconnect { socket: self.socket.clone(), source })
    }

    fn negotiate(&self) -> Result<Capabilities> {
        let ours = Capabilities {
            max_msg_fds: MAX_REPLY_FDS as u32,
            max_data_xfer_size: MAX_TRANSFER as u32,
            ..Capabilities::default()
        };
        let proposed = wire::Version { major: wire::MAJOR, minor: wire::MINOR };
        let request = version::encode(proposed, &ours);
        self.call(Command::VERSION, &[&request], &[], SMALL_REPLY, |payload, _| {
            let (version, peer) = version::decode(payload).map_err(|error| error.to_string())?;
            if version.major != wire::MAJOR || version.minor > wire::MINOR {
                return Err(format!(
                    "version {}.{} in answer to {}.{}",
                    version.major,
                    version.minor,
                    wire::MAJOR,
                    wire::MINOR
                ));
            }
            if peer.max_data_xfer_size == 0 {
                return Err("a maximum transfer of 0 bytes".into());
            }
            Ok(peer)
        })
    }

    fn get_info(&self) -> Result<DeviceInfo> {
        let argsz = size_of::<wire::DeviceInfo>() as u32;
        let ask = wire::DeviceInfo { argsz, ..Default::default() };
        self.call(Command::DEVICE_GET_INFO, &[ask.as_bytes()], &[], SMALL_REPLY, |payload, _| {
            let info = take::<wire::DeviceInfo>(payload)?;
            if info.flags & wire::DEVICE_IS_PCI == 0 {
                return Err("a device that is not a PCI device".into());
            }
            if info.regions > MAX_REGIONS || info.irqs > MAX_IRQS {
                return Err(format!(
                    "{} regions and {} interrupt indices; at most {MAX_REGIONS} and {MAX_IRQS} \
                     are believed",
                    info.regions, info.irqs
                ));
            }
            Ok(DeviceInfo {
                regions: info.regions,
                irqs: info.irqs,
                can_reset: info.flags & wire::DEVICE_RESET_WORKS != 0,
            })
        })
    }

    fn get_region(&self, index: u32) -> Result<Region> {
        let command = Command::DEVICE_GET_REGION_INFO;
        let mut room = REGION_ROOM;
        loop {
            let ask = wire::RegionInfo { argsz: room, index, ..Default::default() };
            let answer =
                self.call(command, &[ask.as_bytes()], &[], SMALL_REPLY, |payload, fds| {
                    let needs = take::<wire::RegionInfo>(payload)?.argsz;
                    if needs <= room {
                        return Region::parse(index, payload, fds).map(Ok);
                    }
                    if needs > REGION_ROOM_MOST || room != REGION_ROOM {
                        return Err(format!("{needs} bytes of information on region {index}"));
                    }
                    Ok(Err(needs))
                })?;
            match answer {
                Ok(region) => return Ok(region),
                Err(needs) => room = needs,
            }
        }
    }

    fn get_irq(&self, index: u32) -> Result<IrqInfo> {
        let argsz = size_of::<wire::IrqInfo>() as u32;
        let ask = wire::IrqInfo { argsz, index, ..Default::default() };
        let command = Command::DEVICE_GET_IRQ_INFO;
        self.call(command, &[ask.as_bytes()], &[], SMALL_REPLY, |payload, _| {
            let info = take::<wire::IrqInfo>(payload)?;
            if info.index != index {
                return Err(format!("index {} instead of {index}", info.index));
            }
            Ok(IrqInfo { count: info.count, eventfd: info.flags & wire::IRQ_EVENTFD != 0 })
        })
    }

    fn lock(&self) -> MutexGuard<'_, Link> {
        // A panic inside a call cannot leave half a message behind: `dead` is set first.
        self.link.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One round trip. `read` gets the reply's payload and descriptors; what it complains about
    /// is a breach of the protocol.
    pub(super) fn call<T>(
        &self,
        command: Command,
        parts: &[&[u8]],
        fds: &[BorrowedFd<'_>],
        max_reply: usize,
        read: impl FnOnce(&[u8], Vec<OwnedFd>) -> Result<T, String>,
    ) -> Result<T> {
        let mut link = self.lock();
        let link = &mut *link;
        if link.dead {
            return Err(Error::UserGone { socket: self.socket.clone() });
        }
        let wait = Wait { deadline: Some(Instant::now() + self.timeout), stop: None };
        link.dead = true;
        let outcome =
            link.exchange(command, parts, fds, max_reply, wait).and_then(|(header, fds)| {
                if header.is_failure() {
                    return Err(Failure::Refused(match header.error {
                        0 => Errno::UnknownErrno,
                        error => Errno::from_raw(error as i32),
                    }));
                }
                read(&link.payload, fds).map_err(Failure::Protocol)
            });
        if let Ok(_) | Err(Failure::Refused(_)) = &outcome {
            link.dead = false;
        } else {
            link.close();
        }
        let socket = || self.socket.clone();
        outcome.map_err(|failure| match failure {
            Failure::Refused(errno) => Error::UserRefused { socket: socket(), command, errno },
            Failure::Lost(source) => Error::UserLost { socket: socket(), command, source },
            Failure::Protocol(detail) => Error::UserProtocol { socket: socket(), command, detail },
        })
    }
}
