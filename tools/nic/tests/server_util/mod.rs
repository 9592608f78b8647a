//! What the server's tests share: a toy device behind a socket, and a client that can say anything.
#![allow(dead_code)] // Each test binary uses its own part of this.

use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use holdfast_nic::server::toy::Toy;
use holdfast_nic::server::{End, Limits, Shutdown, serve_connection};
use holdfast_vfio::user::wire::{self, Header};
use holdfast_vfio::user::{Capabilities, Channel, ChannelError, Command, Wait, version};

/// Serves `toy` to `client`, which ends the session by dropping its socket.
pub fn serving<T>(toy: Toy, client: impl FnOnce(UnixStream) -> T) -> (T, Toy, End) {
    let (theirs, ours) = UnixStream::pair().unwrap();
    std::thread::scope(|scope| {
        let server = scope.spawn(move || {
            let mut toy = toy;
            let shutdown = Shutdown::new().unwrap();
            let end = serve_connection(theirs, &mut toy, &Limits::default(), &shutdown);
            (toy, end)
        });
        let outcome = client(ours);
        let (toy, end) = server.join().unwrap();
        (outcome, toy, end)
    })
}

/// A client that sends what it is told to.
pub struct Raw {
    pub channel: Channel,
    next_id: u16,
}

/// A reply: its header, payload and descriptors.
pub type Reply = (Header, Vec<u8>, Vec<OwnedFd>);

impl Raw {
    /// Says nothing yet.
    pub fn new(stream: UnixStream) -> Self {
        Self { channel: Channel::new(stream), next_id: 100 }
    }

    /// Has exchanged versions.
    pub fn negotiated(stream: UnixStream) -> Self {
        let mut raw = Self::new(stream);
        let told = Capabilities { write_multiple: true, ..Default::default() };
        let request = version::encode(wire::Version { major: 0, minor: 1 }, &told);
        assert_eq!(raw.errno(Command::VERSION, &request, &[]), 0);
        raw
    }

    fn wait() -> Wait<'static> {
        Wait { deadline: Some(Instant::now() + Duration::from_secs(20)), stop: None }
    }

    /// Sends a command.
    pub fn send(&mut self, command: Command, flags: u32, payload: &[u8], fds: &[BorrowedFd<'_>]) {
        self.next_id += 1;
        let header = Header { flags, ..Header::command(self.next_id, command, payload.len()) };
        self.channel.send(&header, &[payload], fds, Self::wait()).unwrap();
    }

    /// Receives whatever comes next.
    pub fn recv(&mut self) -> Result<Reply, ChannelError> {
        let mut payload = Vec::new();
        let message = self.channel.recv(&mut payload, 4 << 20, 16, Self::wait())?;
        Ok((message.header, payload, message.fds))
    }

    /// Sends a command and receives its reply.
    pub fn ask(&mut self, command: Command, payload: &[u8], fds: &[BorrowedFd<'_>]) -> Reply {
        self.send(command, 0, payload, fds);
        let reply = self.recv().unwrap();
        assert!(reply.0.is_reply());
        assert_eq!((reply.0.id, reply.0.kind()), (self.next_id, command), "not an echo");
        assert_eq!(reply.0.is_failure(), reply.0.error != 0);
        reply
    }

    /// The errno of the reply to a command, 0 if it succeeded.
    pub fn errno(&mut self, command: Command, payload: &[u8], fds: &[BorrowedFd<'_>]) -> i32 {
        let (header, payload, fds) = self.ask(command, payload, fds);
        assert!(header.error == 0 || (payload.is_empty() && fds.is_empty()), "a bare header");
        header.error as i32
    }
}
