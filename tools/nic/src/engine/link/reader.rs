//! A link's reader: a thread that turns the socket's bytes into frames.
//!
//! It blocks on the socket and on the channel to the engine, never the engine on it. The channel
//! is short, so that a peer that sends faster than the engine takes is slowed by its own socket.
//! Only the hello must come in time; afterwards a peer may be silent for as long as it likes.

use std::io::ErrorKind::{TimedOut, WouldBlock};
use std::io::{self, BufReader, Read};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crossbeam::channel::Sender;

use super::frame::{self, Frame, HEAD};
use super::socket::Socket;

/// What the reader has to say.
pub(super) enum Event {
    Frame(Frame),
    /// The link is down, and why.
    Down(String),
}

/// How long a peer may take for each part of its hello.
pub(super) const HELLO_WAIT: Duration = Duration::from_secs(5);
/// Bytes read at once.
const BUFFER: usize = 256 * 1024;

/// Reads until the socket ends, the peer errs, or the engine hangs up.
pub(super) fn run(
    stream: Socket,
    events: Sender<Event>,
    bytes: Arc<AtomicU64>,
    waker: Box<dyn Fn() + Send>,
    hello_wait: Duration,
) {
    // A socket that takes no timeout has none; its reads still end with the connection.
    let _ = stream.set_read_timeout(Some(hello_wait));
    let mut stream = BufReader::with_capacity(BUFFER, stream);
    let mut greeted = false;
    loop {
        let event = match next(&mut stream, &bytes) {
            Ok(Frame::Hello) if !greeted => {
                greeted = true;
                let _ = stream.get_ref().set_read_timeout(None);
                Event::Frame(Frame::Hello)
            }
            Ok(_) if !greeted => Event::Down(frame::Refused::Stranger.to_string()),
            Ok(frame) => Event::Frame(frame),
            Err(error) if matches!(error.kind(), WouldBlock | TimedOut) => {
                Event::Down("the peer did not say hello in time".into())
            }
            Err(error) => Event::Down(error.to_string()),
        };
        let down = matches!(event, Event::Down(_));
        if events.send(event).is_err() || down {
            waker();
            return;
        }
        waker();
    }
}

fn next(stream: &mut BufReader<Socket>, bytes: &AtomicU64) -> io::Result<Frame> {
    let invalid = |refused| io::Error::new(io::ErrorKind::InvalidData, refused);
    let mut head = [0; HEAD];
    stream.read_exact(&mut head)?;
    let (kind, len) = frame::decode_head(head).map_err(invalid)?;
    let mut body = vec![0; len];
    stream.read_exact(&mut body)?;
    bytes.fetch_add((HEAD + len) as u64, Ordering::Relaxed);
    frame::decode(kind, body).map_err(invalid)
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::unix::net::UnixStream;

    use crossbeam::channel::{Receiver, bounded};

    use super::*;

    const WAIT: Duration = Duration::from_millis(20);

    fn start(bytes: &[u8]) -> (UnixStream, Receiver<Event>) {
        let (mut ours, theirs) = UnixStream::pair().expect("a socket pair");
        ours.write_all(bytes).expect("room");
        let (sender, events) = bounded(4);
        std::thread::spawn(move || {
            run(theirs.into(), sender, Arc::default(), Box::new(|| {}), WAIT)
        });
        (ours, events)
    }

    fn next_event(events: &Receiver<Event>) -> Event {
        events.recv_timeout(Duration::from_secs(20)).expect("an event")
    }

    #[test]
    fn a_peer_that_says_nothing_is_given_up() {
        let mut hello = Vec::new();
        frame::put_hello(&mut hello);
        for said in [&[][..], &hello[..5]] {
            let (_peer, events) = start(said);
            let Event::Down(why) = next_event(&events) else { panic!("nothing was said") };
            assert!(why.contains("hello"), "{why}");
        }
    }

    #[test]
    fn a_peer_that_said_hello_may_be_silent() {
        let mut hello = Vec::new();
        frame::put_hello(&mut hello);
        let (mut peer, events) = start(&hello);
        assert!(matches!(next_event(&events), Event::Frame(Frame::Hello)));
        assert!(events.recv_timeout(WAIT * 3).is_err(), "neither down nor a frame");
        let mut gid = Vec::new();
        frame::put_gid(&mut gid, 9, true);
        peer.write_all(&gid).expect("room");
        assert!(matches!(next_event(&events), Event::Frame(Frame::GidAdd(9))));
    }
}
