//! Two peers find each other: an exchange of what a connection needs, over TCP.
//!
//! As in perftest, the data path needs a side channel first: each side tells its queue pairs
//! (number, first packet sequence number), its GID and the regions it lets the other reach. An
//! [`Exchange`] carries that as lines of JSON, one message a line, the first of which says who
//! speaks which version. [`Exchange::pair`] is the same thing inside one process, so both ends of
//! a test run the same code as two machines.
//!
//! Nothing here is encrypted and the peer is not authenticated: the remote keys travel in the
//! clear, as they do in perftest. Use it inside a network you trust. What the peer sends is not
//! trusted to be well formed: lines are bounded, numbers are checked, every wait has a deadline.
//!
//! ```
//! use std::time::Duration;
//! use holdfast::connect::{Endpoint, Exchange, QueuePairInfo};
//!
//! let (mut here, mut there) = Exchange::pair(Duration::from_secs(1))?;
//! let mine = Endpoint {
//!     queue_pairs: vec![QueuePairInfo { qpn: 17, psn: 0x1234, qkey: 0 }],
//!     ..Endpoint::default()
//! };
//! let peer = std::thread::spawn(move || there.swap(&Endpoint::default()));
//! let theirs = here.swap(&mine)?;
//! assert_eq!(theirs, Endpoint::default());
//! assert_eq!(peer.join().unwrap()?, mine);
//! # Ok::<(), holdfast::connect::ConnectError>(())
//! ```

mod endpoint;
mod error;
mod fuzz;

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, ToSocketAddrs};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

pub use endpoint::{Endpoint, QueuePairInfo, RemoteRegion};
pub use error::ConnectError;
#[doc(hidden)]
pub use fuzz::fuzz_peer_bytes;

/// Version of the messages; both sides must speak the same.
pub const VERSION: u32 = 1;
/// What the first message of each side says.
const MAGIC: &str = "holdfast";
/// Longest line accepted, in bytes.
const MAX_LINE: usize = 1 << 20;
/// Most queue pairs of an endpoint.
const MAX_QUEUE_PAIRS: usize = 4096;
/// Most regions of an endpoint.
const MAX_REGIONS: usize = 4096;
/// How long a single read or write waits before the deadline is looked at again.
const TICK: Duration = Duration::from_millis(50);

/// The first message of each side.
#[derive(Debug, Serialize, Deserialize)]
struct Hello {
    magic: String,
    version: u32,
}

/// Both sides have reached a point of that name.
#[derive(Debug, Serialize, Deserialize)]
struct Barrier {
    barrier: String,
}

/// Something that one side decides for both.
#[derive(Debug, Serialize, Deserialize)]
struct Number {
    name: String,
    value: u64,
}

/// A byte stream with a receive timeout.
trait Stream: Read + Write + Send {}
impl Stream for TcpStream {}
impl Stream for UnixStream {}

/// A connection between two peers. Calls block, at most for the timeout it was made with.
pub struct Exchange {
    stream: Box<dyn Stream>,
    // Bytes received that belong to later messages.
    pending: Vec<u8>,
    timeout: Duration,
    stop: Option<fn() -> bool>,
}

impl std::fmt::Debug for Exchange {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Exchange").field("timeout", &self.timeout).finish_non_exhaustive()
    }
}

/// A socket that waits for a peer.
#[derive(Debug)]
pub struct Listener {
    socket: TcpListener,
}

impl Listener {
    /// Listens on `address` (`HOST:PORT`; port 0 picks a free one).
    pub fn bind(address: &str) -> Result<Self, ConnectError> {
        let listen = |source| ConnectError::Listen { address: address.to_owned(), source };
        let socket = TcpListener::bind(resolve(address)?.as_slice()).map_err(listen)?;
        socket.set_nonblocking(true).map_err(listen)?;
        Ok(Self { socket })
    }

    /// Where it listens.
    pub fn local_address(&self) -> Result<SocketAddr, ConnectError> {
        self.socket.local_addr().map_err(ConnectError::Broken)
    }

    /// Waits for one peer. `stop` is asked several times a second and ends the wait.
    pub fn accept(
        &self,
        timeout: Duration,
        stop: Option<fn() -> bool>,
    ) -> Result<Exchange, ConnectError> {
        let deadline = Instant::now() + timeout;
        loop {
            match self.socket.accept() {
                Ok((stream, peer)) => {
                    tracing::info!(%peer, "connected");
                    return Exchange::over_tcp(stream, timeout, stop);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    wait(deadline, timeout, "connect", stop)?;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(ConnectError::Broken(error)),
            }
        }
    }
}

impl Exchange {
    /// Connects to a [`Listener`], trying again until `timeout` has passed.
    pub fn connect(
        address: &str,
        timeout: Duration,
        stop: Option<fn() -> bool>,
    ) -> Result<Self, ConnectError> {
        let addresses = resolve(address)?;
        let deadline = Instant::now() + timeout;
        loop {
            let mut last = io::Error::from(io::ErrorKind::AddrNotAvailable);
            for candidate in &addresses {
                let left = deadline.saturating_duration_since(Instant::now());
                match TcpStream::connect_timeout(candidate, left.max(TICK)) {
                    Ok(stream) => return Self::over_tcp(stream, timeout, stop),
                    Err(error) => last = error,
                }
            }
            if Instant::now() >= deadline {
                let address = address.to_owned();
                return Err(ConnectError::Connect { address, timeout, source: last });
            }
            wait(deadline, timeout, "listen", stop)?;
        }
    }

    /// Both ends inside this process, for two threads.
    pub fn pair(timeout: Duration) -> Result<(Self, Self), ConnectError> {
        let (a, b) = UnixStream::pair().map_err(ConnectError::Broken)?;
        let end = |stream: UnixStream| {
            stream
                .set_read_timeout(Some(TICK))
                .and_then(|()| stream.set_write_timeout(Some(TICK)))
                .map_err(ConnectError::Broken)?;
            Ok(Self { stream: Box::new(stream), pending: Vec::new(), timeout, stop: None })
        };
        Ok((end(a)?, end(b)?))
    }

    fn over_tcp(
        stream: TcpStream,
        timeout: Duration,
        stop: Option<fn() -> bool>,
    ) -> Result<Self, ConnectError> {
        stream
            .set_nonblocking(false)
            .and_then(|()| stream.set_nodelay(true))
            .and_then(|()| stream.set_read_timeout(Some(TICK)))
            .and_then(|()| stream.set_write_timeout(Some(TICK)))
            .map_err(ConnectError::Broken)?;
        Ok(Self { stream: Box::new(stream), pending: Vec::new(), timeout, stop })
    }

    /// Changes for how long later calls wait.
    pub fn set_timeout(&mut self, timeout: Duration) {
        self.timeout = timeout;
    }

    /// Tells the peer a number it waits for with [`Exchange::hear`].
    pub fn tell(&mut self, name: &str, value: u64) -> Result<(), ConnectError> {
        self.send(&Number { name: name.to_owned(), value })
    }

    /// Waits for the number that the peer calls `name`.
    pub fn hear(&mut self, name: &str) -> Result<u64, ConnectError> {
        let number: Number = self.receive("tell a number")?;
        if number.name == name {
            Ok(number.value)
        } else {
            let text = format!("'{}' where '{name}' was expected", number.name);
            Err(ConnectError::Malformed(text))
        }
    }

    /// Tells the peer about this side and learns about that side. Both must call it.
    pub fn swap(&mut self, ours: &Endpoint) -> Result<Endpoint, ConnectError> {
        self.send(&Hello { magic: MAGIC.to_owned(), version: VERSION })?;
        let hello: Hello = self.receive("introduce itself").map_err(|error| match error {
            ConnectError::Malformed(text) => ConnectError::NotAPeer(text),
            other => other,
        })?;
        if hello.magic != MAGIC {
            return Err(ConnectError::NotAPeer(format!("it calls itself '{}'", hello.magic)));
        }
        if hello.version != VERSION {
            return Err(ConnectError::Version { theirs: hello.version });
        }
        self.send(ours)?;
        let theirs: Endpoint = self.receive("describe its endpoint")?;
        theirs.check()?;
        if !ours.purpose.is_empty() && !theirs.purpose.is_empty() && ours.purpose != theirs.purpose
        {
            let (ours, theirs) = (ours.purpose.clone(), theirs.purpose);
            return Err(ConnectError::Purpose { ours, theirs });
        }
        Ok(theirs)
    }

    /// Waits until the peer has reached the point called `name` too.
    pub fn barrier(&mut self, name: &str) -> Result<(), ConnectError> {
        self.send(&Barrier { barrier: name.to_owned() })?;
        let theirs: Barrier = self.receive("reach the same point")?;
        if theirs.barrier == name {
            Ok(())
        } else {
            let text = format!("it is at '{}' and this side at '{name}'", theirs.barrier);
            Err(ConnectError::Malformed(text))
        }
    }

    fn send<T: Serialize>(&mut self, message: &T) -> Result<(), ConnectError> {
        let malformed = |error: serde_json::Error| ConnectError::Malformed(error.to_string());
        let mut line = serde_json::to_vec(message).map_err(malformed)?;
        line.push(b'\n');
        let deadline = Instant::now() + self.timeout;
        let mut rest = line.as_slice();
        while !rest.is_empty() {
            match self.stream.write(rest) {
                Ok(0) => return Err(ConnectError::Closed),
                Ok(n) => rest = &rest[n..],
                Err(error) => self.retry(error, deadline, "take a message")?,
            }
        }
        Ok(())
    }

    fn receive<T: DeserializeOwned>(&mut self, what: &'static str) -> Result<T, ConnectError> {
        let deadline = Instant::now() + self.timeout;
        let mut searched = 0;
        let end = loop {
            if let Some(at) = self.pending[searched..].iter().position(|b| *b == b'\n') {
                break searched + at;
            }
            searched = self.pending.len();
            if searched > MAX_LINE {
                return Err(ConnectError::Malformed(format!("a line of over {MAX_LINE} bytes")));
            }
            let mut chunk = [0; 4096];
            match self.stream.read(&mut chunk) {
                Ok(0) => return Err(ConnectError::Closed),
                Ok(n) => self.pending.extend_from_slice(&chunk[..n]),
                Err(error) => self.retry(error, deadline, what)?,
            }
            if Instant::now() >= deadline {
                return Err(ConnectError::Timeout { what, timeout: self.timeout });
            }
        };
        let line: Vec<u8> = self.pending.drain(..=end).collect();
        serde_json::from_slice(&line).map_err(|error| {
            let start = String::from_utf8_lossy(&line[..line.len().min(60)]).trim().to_owned();
            ConnectError::Malformed(format!("{error} in '{start}'"))
        })
    }

    /// Whether to go on after an error of the stream.
    fn retry(
        &self,
        error: io::Error,
        deadline: Instant,
        what: &'static str,
    ) -> Result<(), ConnectError> {
        match error.kind() {
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut | io::ErrorKind::Interrupted => {
                go_on(deadline, self.timeout, what, self.stop)
            }
            io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => Err(ConnectError::Closed),
            _ => Err(ConnectError::Broken(error)),
        }
    }
}

fn resolve(address: &str) -> Result<Vec<SocketAddr>, ConnectError> {
    let wrong = |source| ConnectError::Address { address: address.to_owned(), source };
    let found: Vec<_> = address.to_socket_addrs().map_err(wrong)?.collect();
    if found.is_empty() {
        return Err(wrong(io::Error::from(io::ErrorKind::NotFound)));
    }
    Ok(found)
}

fn go_on(
    deadline: Instant,
    timeout: Duration,
    what: &'static str,
    stop: Option<fn() -> bool>,
) -> Result<(), ConnectError> {
    if stop.is_some_and(|stop| stop()) {
        return Err(ConnectError::Interrupted { what });
    }
    if Instant::now() >= deadline {
        return Err(ConnectError::Timeout { what, timeout });
    }
    Ok(())
}

/// A short pause between two tries.
fn wait(
    deadline: Instant,
    timeout: Duration,
    what: &'static str,
    stop: Option<fn() -> bool>,
) -> Result<(), ConnectError> {
    go_on(deadline, timeout, what, stop)?;
    std::thread::sleep(TICK.min(deadline.saturating_duration_since(Instant::now())));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn endpoint(qpn: u32, purpose: &str) -> Endpoint {
        Endpoint {
            purpose: purpose.to_owned(),
            gid: [7; 16],
            mtu: 5,
            rd_atomic: 16,
            queue_pairs: vec![QueuePairInfo { qpn, psn: 0xff_ffff, qkey: 0x8000_0001 }],
            regions: vec![RemoteRegion { addr: 0x7f00_0000_0000, len: 4096, rkey: 0x1234_5678 }],
        }
    }

    /// One side swaps; the other side sends these bytes and leaves.
    fn swap_against(bytes: &[u8]) -> ConnectError {
        let (mut ours, theirs) = Exchange::pair(Duration::from_millis(200)).unwrap();
        let bytes = bytes.to_owned();
        let peer = std::thread::spawn(move || {
            let mut stream = theirs.stream;
            let _ = stream.write_all(&bytes);
            stream
        });
        let error = ours.swap(&endpoint(1, "test")).unwrap_err();
        drop(peer.join());
        error
    }

    #[test]
    fn two_peers_learn_of_each_other_over_tcp() {
        let listener = Listener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_address().unwrap().to_string();
        let client = std::thread::spawn(move || {
            let mut exchange = Exchange::connect(&address, SECOND, None)?;
            let theirs = exchange.swap(&endpoint(2, "write lat"))?;
            exchange.barrier("ready")?;
            Ok::<_, ConnectError>(theirs)
        });
        let mut exchange = listener.accept(SECOND, None).unwrap();
        assert_eq!(exchange.swap(&endpoint(1, "write lat")).unwrap(), endpoint(2, "write lat"));
        exchange.barrier("ready").unwrap();
        assert_eq!(client.join().unwrap().unwrap(), endpoint(1, "write lat"));
    }

    #[test]
    fn peers_with_different_plans_are_told_both() {
        let (mut a, mut b) = Exchange::pair(SECOND).unwrap();
        let peer = std::thread::spawn(move || b.swap(&endpoint(2, "read bw")));
        let error = a.swap(&endpoint(1, "write lat")).unwrap_err().to_string();
        assert!(error.contains("'write lat'") && error.contains("'read bw'"), "{error}");
        assert!(matches!(peer.join().unwrap(), Err(ConnectError::Purpose { .. })));
    }

    #[test]
    fn what_is_no_peer_is_recognised() {
        let hello = br#"{"magic":"holdfast","version":1}"#;
        let after_hello = |line: &str| [hello, "\n".as_bytes(), line.as_bytes(), b"\n"].concat();
        let with_qpn = serde_json::to_string(&endpoint(1 << 24, "test")).unwrap();
        let with_region = with_qpn.replace("4096", "18446744073709551615").replace("16777216", "1");
        for (bytes, words) in [
            (b"GET / HTTP/1.1\r\n".to_vec(), "not a holdfast"),
            (b"{\"magic\":\"other\",\"version\":1}\n".to_vec(), "calls itself 'other'"),
            (b"{\"magic\":\"holdfast\",\"version\":9}\n".to_vec(), "speaks version 9"),
            (after_hello("{}"), "nonsense"),
            (after_hello(&with_qpn), "more than 24 bits"),
            (after_hello(&with_region), "a region of"),
        ] {
            let error = swap_against(&bytes).to_string();
            assert!(error.contains(words), "{}: {error}", String::from_utf8_lossy(&bytes));
        }
        assert!(matches!(swap_against(b""), ConnectError::Timeout { .. }));
        let endless = vec![b'x'; MAX_LINE + 8192];
        assert!(swap_against(&endless).to_string().contains("a line of over"));
    }

    #[test]
    fn a_peer_that_leaves_is_noticed() {
        let (mut ours, theirs) = Exchange::pair(SECOND).unwrap();
        drop(theirs);
        assert!(matches!(ours.swap(&Endpoint::default()), Err(ConnectError::Closed)));
    }

    #[test]
    fn a_wait_ends_when_it_is_asked_to() {
        let listener = Listener::bind("127.0.0.1:0").unwrap();
        let error = listener.accept(SECOND, Some(|| true)).unwrap_err();
        assert!(matches!(error, ConnectError::Interrupted { .. }), "{error}");
        let error = listener.accept(Duration::from_millis(60), None).unwrap_err();
        assert!(matches!(error, ConnectError::Timeout { .. }), "{error}");
    }

    #[test]
    fn addresses_that_mean_nothing_are_refused() {
        for address in ["", "nowhere", "127.0.0.1", "127.0.0.1:70000"] {
            let error = Listener::bind(address).unwrap_err();
            assert!(matches!(error, ConnectError::Address { .. }), "{address}: {error}");
        }
    }
}
