//! Entry point for fuzzing what the server reads.

use std::io::{Read, Write};
use std::net::Shutdown as Direction;
use std::os::unix::net::UnixStream;

use super::toy::Toy;
use super::{Limits, Shutdown, serve_connection};

/// Serves a client that sends `bytes` and hangs up. Whatever they are, the server returns, and
/// the backend is asked only what it may be asked.
#[doc(hidden)]
pub fn fuzz_server_bytes(bytes: &[u8]) {
    let (Ok((server, client)), Ok(shutdown)) = (UnixStream::pair(), Shutdown::new()) else {
        return;
    };
    let Ok(replies) = client.try_clone() else { return };
    std::thread::scope(|scope| {
        scope.spawn(move || {
            let mut client = client;
            // Fails when the server has hung up, as it may.
            let _ = client.write_all(bytes);
            let _ = client.shutdown(Direction::Write);
        });
        scope.spawn(move || {
            let mut replies = replies;
            let mut scratch = [0; 4096];
            while matches!(replies.read(&mut scratch), Ok(1..)) {}
        });
        serve_connection(server, &mut Toy::new(), &Limits::default(), &shutdown);
    });
}
