//! Where NIC processes join each other: at a Unix socket of this machine, or over TCP.

use std::fmt;
use std::io;
use std::net::{TcpListener, TcpStream, ToSocketAddrs as _};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use nix::errno::Errno;

use crate::engine::LinkSocket;
use crate::error::Error;
use crate::server::{Listener, ServerError, Shutdown, accept, errno_of};

/// How long another host may take to answer.
const CONNECT_WITHIN: Duration = Duration::from_secs(10);

/// Where a NIC process listens for others, or is joined: a path, or `tcp:HOST:PORT`.
///
/// Links know no users and no keys. Who may connect to a Unix socket is decided by its permissions;
/// over TCP whoever reaches the port can send to the NICs' queue pairs, as on any RDMA network, and
/// what travels can be read on its way. Listen on an address of a network that you trust.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum LinkAddress {
    /// A Unix socket.
    Unix(PathBuf),
    /// `HOST:PORT`; port 0 to listen on one that is free.
    Tcp(String),
}

/// What is no [`LinkAddress`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' is no address of a link: give a path, or tcp:HOST:PORT")]
pub struct NoLinkAddress(String);

impl FromStr for LinkAddress {
    type Err = NoLinkAddress;

    fn from_str(text: &str) -> Result<Self, NoLinkAddress> {
        let wrong = || NoLinkAddress(text.to_owned());
        let Some(address) = text.strip_prefix("tcp:") else {
            return if text.is_empty() { Err(wrong()) } else { Ok(Self::Unix(text.into())) };
        };
        let (host, port) = address.rsplit_once(':').ok_or_else(wrong)?;
        let sound = !host.is_empty() && port.parse::<u16>().is_ok();
        if sound { Ok(Self::Tcp(address.to_owned())) } else { Err(wrong()) }
    }
}

impl fmt::Display for LinkAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => path.display().fmt(f),
            Self::Tcp(address) => write!(f, "tcp:{address}"),
        }
    }
}

impl From<PathBuf> for LinkAddress {
    fn from(path: PathBuf) -> Self {
        Self::Unix(path)
    }
}

/// Joins the NIC process that listens there. Blocks for 10 s at most for each address of a host.
pub(crate) fn connect(address: &LinkAddress) -> Result<LinkSocket, Error> {
    let connected = match address {
        LinkAddress::Unix(path) => UnixStream::connect(path).map(LinkSocket::from),
        LinkAddress::Tcp(address) => connect_tcp(address),
    };
    connected.map_err(|source| Error::Link { address: address.clone(), source })
}

fn connect_tcp(address: &str) -> io::Result<LinkSocket> {
    let mut last = io::Error::other("the host has no address");
    for address in address.to_socket_addrs()? {
        match TcpStream::connect_timeout(&address, CONNECT_WITHIN) {
            Ok(stream) => return LinkSocket::tcp(stream),
            Err(error) => last = error,
        }
    }
    Err(last)
}

/// Where other NIC processes may join.
#[derive(Debug)]
pub(crate) struct LinkListener {
    /// With the port that was found, where any would do.
    address: LinkAddress,
    socket: Listening,
}

#[derive(Debug)]
enum Listening {
    Unix(Listener),
    Tcp(TcpListener),
}

impl LinkListener {
    pub(crate) fn bind(address: &LinkAddress) -> Result<Self, ServerError> {
        let host = match address {
            LinkAddress::Unix(path) => {
                let socket = Listening::Unix(Listener::bind(path)?);
                return Ok(Self { address: address.clone(), socket });
            }
            LinkAddress::Tcp(host) => host,
        };
        let failed = |error: io::Error| ServerError::Bind {
            path: address.to_string(),
            errno: errno_of(&error),
        };
        let socket = TcpListener::bind(host).map_err(failed)?;
        socket.set_nonblocking(true).map_err(failed)?;
        let address = LinkAddress::Tcp(socket.local_addr().map_err(failed)?.to_string());
        Ok(Self { address, socket: Listening::Tcp(socket) })
    }

    pub(crate) fn address(&self) -> &LinkAddress {
        &self.address
    }

    /// The next process that joins; `None` when `shutdown` is triggered.
    pub(crate) fn accept(&self, shutdown: &Shutdown) -> Result<Option<LinkSocket>, ServerError> {
        match &self.socket {
            Listening::Unix(socket) => Ok(socket.accept(shutdown)?.map(LinkSocket::from)),
            Listening::Tcp(socket) => accept(
                socket,
                || {
                    let (stream, _) = socket.accept()?;
                    let link = stream.set_nonblocking(false).and_then(|()| LinkSocket::tcp(stream));
                    // One that is of no use is no reason to take no others.
                    link.map_err(|_| Errno::ECONNABORTED.into())
                },
                &self.address,
                shutdown,
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_paths_or_hosts_with_a_port() {
        for (text, address) in [
            ("/tmp/l.sock", LinkAddress::Unix("/tmp/l.sock".into())),
            ("tcp:10.0.0.1:7471", LinkAddress::Tcp("10.0.0.1:7471".into())),
            ("tcp:[::1]:0", LinkAddress::Tcp("[::1]:0".into())),
        ] {
            assert_eq!(text.parse::<LinkAddress>().unwrap(), address);
            assert_eq!(address.to_string(), text);
        }
        for text in ["", "tcp:", "tcp:host", "tcp::1", "tcp:host:port", "tcp:host:65536"] {
            let error = text.parse::<LinkAddress>().unwrap_err().to_string();
            assert!(error.contains("tcp:HOST:PORT"), "{error}");
        }
    }
}
