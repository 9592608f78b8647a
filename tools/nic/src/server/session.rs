//! One client, from its first byte to its last.

use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use holdfast_vfio::user::wire::{self, Header};
use holdfast_vfio::user::{Capabilities, Channel, ChannelError, Command, Message, Wait, version};
use nix::errno::Errno;
use zerocopy::IntoBytes;

use super::{Backend, Irq, PCI_IRQS, PCI_REGIONS, Region, Shutdown};

/// What a server accepts of a client, and tells it at the start. The defaults suit QEMU, which
/// refuses a server that allows more than 16 descriptors or 65535 mappings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Descriptors in one message, 1 to 253.
    pub max_msg_fds: u32,
    /// Data bytes of one region access.
    pub max_data_xfer_size: u32,
    /// DMA mappings at a time. Only told; the backend enforces it (`ENOSPC`).
    pub max_dma_maps: u32,
    /// Page sizes of DMA mappings, or'ed together. Only told; the backend enforces it.
    pub pgsizes: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self { max_msg_fds: 16, max_data_xfer_size: 1 << 20, max_dma_maps: 65535, pgsizes: 4096 }
    }
}

/// How a session ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum End {
    /// The client closed the connection between messages.
    Closed,
    /// The server was told to stop.
    Stopped,
    /// The connection broke, or the client sent what no message can be.
    Broken(ChannelError),
    /// The client did not begin with a VERSION message that is understood here.
    NoVersion,
}

/// Payload bytes of a message that is no region write.
const SMALL_PAYLOAD: usize = 64 << 10;

/// Serves one client until it is gone or `shutdown` is triggered. The backend is told when the
/// client comes and goes; the socket is closed only after [`Backend::client_gone`] returned, so
/// that a client that sees the end of the stream knows that its memory is no longer in use.
pub fn serve_connection<B: Backend + ?Sized>(
    stream: UnixStream,
    backend: &mut B,
    limits: &Limits,
    shutdown: &Shutdown,
) -> End {
    let channel = Channel::new(stream);
    backend.client_connected();
    let regions = padded(backend.regions(), PCI_REGIONS);
    let irqs = padded(backend.irqs(), PCI_IRQS);
    let mut session =
        Session { backend, limits, regions, irqs, negotiated: false, reply: Vec::new(), fd: None };
    let end = session.run(&channel, shutdown);
    session.backend.client_gone();
    tracing::debug!(?end, "a vfio-user client is gone");
    end
}

fn padded<T: Default + Clone>(mut list: Vec<T>, len: usize) -> Vec<T> {
    if list.len() < len {
        list.resize(len, T::default());
    }
    list
}

/// What the command handlers (`commands`) work on.
pub(super) struct Session<'a, B: ?Sized> {
    pub backend: &'a mut B,
    pub limits: &'a Limits,
    pub regions: Vec<Region>,
    pub irqs: Vec<Irq>,
    /// Versions were exchanged.
    pub negotiated: bool,
    /// Payload of the reply in the making.
    pub reply: Vec<u8>,
    /// Descriptor of the reply in the making.
    pub fd: Option<Arc<OwnedFd>>,
}

impl<B: Backend + ?Sized> Session<'_, B> {
    fn run(&mut self, channel: &Channel, shutdown: &Shutdown) -> End {
        let wait = Wait { deadline: None, stop: Some(shutdown.as_fd()) };
        let mut payload = Vec::new();
        loop {
            match self.turn(channel, &mut payload, wait) {
                Ok(None) => {}
                Ok(Some(end)) => return end,
                Err(ChannelError::Closed) => return End::Closed,
                Err(ChannelError::Stopped) => return End::Stopped,
                Err(error) => return End::Broken(error),
            }
        }
    }

    /// Handles one message.
    fn turn(
        &mut self,
        channel: &Channel,
        payload: &mut Vec<u8>,
        wait: Wait<'_>,
    ) -> Result<Option<End>, ChannelError> {
        let most = SMALL_PAYLOAD.max(self.limits.max_data_xfer_size as usize + 64);
        let max_fds = self.limits.max_msg_fds as usize;
        let message = match channel.recv(payload, most, max_fds, wait) {
            Err(error @ ChannelError::BadSize { header, .. }) => {
                // Where the next message starts cannot be known: answer, and hang up.
                if header.is_command() && !header.no_reply() {
                    channel.send(&header.failure(libc::EMSGSIZE), &[], &[], wait)?;
                }
                return Err(error);
            }
            other => other?,
        };
        let header = message.header;
        if header.is_reply() {
            // This server asks its clients nothing, so it answers nothing.
            tracing::debug!(id = header.id, "a vfio-user client sent a reply to no command");
            return Ok(if self.negotiated { None } else { Some(End::NoVersion) });
        }

        self.reply.clear();
        self.fd = None;
        let outcome = self.dispatch(message, payload);
        if let Err(errno) = outcome {
            tracing::debug!(command = %header.kind(), %errno, "a vfio-user command failed");
        }
        if !header.no_reply() {
            match outcome {
                Ok(()) => {
                    let fd = self.fd.as_ref().map(|fd| fd.as_fd());
                    let reply = header.reply(self.reply.len());
                    channel.send(&reply, &[&self.reply], fd.as_slice(), wait)?;
                }
                Err(errno) => channel.send(&header.failure(errno as i32), &[], &[], wait)?,
            }
        }
        self.reply.shrink_to(SMALL_PAYLOAD);
        Ok(if self.negotiated { None } else { Some(End::NoVersion) })
    }

    /// Checks what is common to all commands, and calls the command's handler.
    fn dispatch(&mut self, message: Message, payload: &[u8]) -> Result<(), Errno> {
        let Message { header, fds, lost_fds } = message;
        let command = header.kind();
        if !header.is_command() || (command == Command::VERSION) == self.negotiated {
            return Err(Errno::EINVAL);
        }
        let takes_fds = match command {
            Command::DMA_MAP => 1,
            Command::DEVICE_SET_IRQS => self.limits.max_msg_fds as usize,
            _ => 0,
        };
        if lost_fds || fds.len() > takes_fds {
            return Err(Errno::EINVAL);
        }
        match command {
            Command::VERSION => self.version(&header, payload),
            Command::DMA_MAP => self.dma_map(payload, fds),
            Command::DMA_UNMAP => self.dma_unmap(payload),
            Command::DEVICE_GET_INFO => self.device_info(payload),
            Command::DEVICE_GET_REGION_INFO => self.region_info(payload),
            Command::DEVICE_GET_REGION_IO_FDS => self.region_io_fds(payload),
            Command::DEVICE_GET_IRQ_INFO => self.irq_info(payload),
            Command::DEVICE_SET_IRQS => self.set_irqs(payload, fds),
            Command::REGION_READ => self.region_read(payload),
            Command::REGION_WRITE => self.region_write(payload),
            Command::REGION_WRITE_MULTI => self.region_write_multi(payload),
            Command::DEVICE_RESET => self.reset(payload),
            _ => Err(Errno::ENOTSUP),
        }
    }

    fn version(&mut self, header: &Header, payload: &[u8]) -> Result<(), Errno> {
        let (proposed, client) = version::decode(payload).map_err(|error| {
            tracing::debug!(id = header.id, %error, "a vfio-user client's VERSION makes no sense");
            Errno::EINVAL
        })?;
        if proposed.major != wire::MAJOR {
            return Err(Errno::EINVAL);
        }
        let ours = Capabilities {
            max_msg_fds: self.limits.max_msg_fds,
            max_data_xfer_size: self.limits.max_data_xfer_size,
            pgsizes: self.limits.pgsizes,
            max_dma_maps: self.limits.max_dma_maps,
            // A capability proper is offered only to those who proposed it.
            write_multiple: client.write_multiple,
        };
        let agreed = wire::Version { minor: proposed.minor.min(wire::MINOR), ..proposed };
        self.reply = version::encode(agreed, &ours);
        self.negotiated = true;
        Ok(())
    }

    /// Puts a structure into the reply.
    pub fn put<T: IntoBytes + zerocopy::Immutable>(&mut self, value: &T) {
        self.reply.extend_from_slice(value.as_bytes());
    }
}
