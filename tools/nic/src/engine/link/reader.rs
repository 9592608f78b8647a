//! A link's reader: a thread that turns the socket's bytes into frames.
//!
//! It blocks on the socket and on the channel to the engine, never the engine on it. The channel
//! is short, so that a peer that sends faster than the engine takes is slowed by its own socket.

use std::io::{self, BufReader, Read};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crossbeam::channel::Sender;

use super::frame::{self, Frame, HEAD};

/// What the reader has to say.
pub(super) enum Event {
    Frame(Frame),
    /// The link is down, and why.
    Down(String),
}

/// Bytes read at once.
const BUFFER: usize = 256 * 1024;

/// Reads until the socket ends, the peer errs, or the engine hangs up.
pub(super) fn run(
    stream: UnixStream,
    events: Sender<Event>,
    bytes: Arc<AtomicU64>,
    waker: Box<dyn Fn() + Send>,
) {
    let mut stream = BufReader::with_capacity(BUFFER, stream);
    let mut greeted = false;
    loop {
        let event = match next(&mut stream, &bytes) {
            Ok(Frame::Hello) if !greeted => {
                greeted = true;
                Event::Frame(Frame::Hello)
            }
            Ok(_) if !greeted => Event::Down(frame::Refused::Stranger.to_string()),
            Ok(frame) => Event::Frame(frame),
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

fn next(stream: &mut BufReader<UnixStream>, bytes: &AtomicU64) -> io::Result<Frame> {
    let invalid = |refused| io::Error::new(io::ErrorKind::InvalidData, refused);
    let mut head = [0; HEAD];
    stream.read_exact(&mut head)?;
    let (kind, len) = frame::decode_head(head).map_err(invalid)?;
    let mut body = vec![0; len];
    stream.read_exact(&mut body)?;
    bytes.fetch_add((HEAD + len) as u64, Ordering::Relaxed);
    frame::decode(kind, body).map_err(invalid)
}
