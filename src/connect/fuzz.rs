//! Entry point for fuzzing what a peer sends.

use std::io::Write as _;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use super::{Endpoint, Exchange};

/// Goes through an exchange with a peer that sends `bytes` and then nothing more. Whatever they
/// are, the calls return. At most so many bytes as a socket takes at once.
#[doc(hidden)]
pub fn fuzz_peer_bytes(bytes: &[u8]) {
    let Ok((ours, mut theirs)) = UnixStream::pair() else { return };
    if theirs.write_all(bytes).and_then(|()| theirs.shutdown(Shutdown::Write)).is_err() {
        return;
    }
    let timeout = Duration::from_secs(5);
    let mut exchange =
        Exchange { stream: Box::new(ours), pending: Vec::new(), timeout, stop: None };
    let _ = exchange.swap(&Endpoint::default());
    let _ = exchange.hear("iterations");
    let _ = exchange.barrier("done");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_that_says_little_is_survived() {
        for bytes in [&b""[..], b"\n\n\n", b"{\"magic\":\"holdfast\",\"version\":1}\n{"] {
            fuzz_peer_bytes(bytes);
        }
    }
}
