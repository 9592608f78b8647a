//! The socket: one short conversation after another, on a thread that sleeps in between.
//!
//! A client says `GET /metrics` or `GET /json`, as HTTP, or the bare word `metrics` or `json`. It
//! has a second, and a thousand bytes; what it says beyond the first line is not read.

use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::os::fd::AsFd as _;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};

use super::{Stats, folder};

/// How long a client may take to ask, and to read.
const PATIENCE: Duration = Duration::from_secs(1);
/// Longest first line of a client.
const LONGEST: u64 = 1000;

/// Serves until it is dropped, and removes the socket then.
#[derive(Debug)]
pub struct Server {
    path: PathBuf,
    over: Arc<EventFd>,
    thread: Option<JoinHandle<()>>,
}

impl Stats {
    /// Serves these counts on `PID.sock` in a folder, which is made where it is not there (its parent
    /// must be). Sockets there whose process has died are removed.
    ///
    /// # Errors
    /// When the folder is not this user's alone, or the socket cannot be made.
    pub fn serve(&self, folder: &Path) -> io::Result<Server> {
        folder::prepare(folder)?;
        for (_, path) in folder::sockets(folder) {
            if UnixStream::connect(&path)
                .is_err_and(|e| e.kind() == io::ErrorKind::ConnectionRefused)
            {
                let _ = std::fs::remove_file(&path);
            }
        }
        let path = folder.join(format!("{}.sock", std::process::id()));
        let listener = UnixListener::bind(&path)?;
        listener.set_nonblocking(true)?;
        let over = Arc::new(EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?);
        let (stats, ended) = (self.clone(), Arc::clone(&over));
        let thread = std::thread::Builder::new()
            .name("holdfast-stats".to_owned())
            .spawn(move || accept(&stats, &listener, &ended))?;
        Ok(Server { path, over, thread: Some(thread) })
    }
}

impl Server {
    /// The socket.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.over.write(1);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
        let _ = std::fs::remove_file(&self.path);
    }
}

fn accept(stats: &Stats, listener: &UnixListener, over: &EventFd) {
    loop {
        let readable = |fd| PollFd::new(fd, PollFlags::POLLIN);
        let mut fds = [readable(over.as_fd()), readable(listener.as_fd())];
        match poll(&mut fds, PollTimeout::NONE) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => return tracing::warn!(%errno, "counts are no longer served"),
        }
        if fds[0].any() == Some(true) {
            return;
        }
        match listener.accept() {
            Ok((stream, _)) => {
                if let Err(error) = answer(stats, &stream) {
                    tracing::debug!(%error, "a client of the counts was not served");
                }
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => {
                // Out of descriptors, say: not to be met in a busy loop.
                tracing::debug!(%error, "no client of the counts");
                std::thread::sleep(Duration::from_millis(100));
            }
        }
    }
}

fn answer(stats: &Stats, mut stream: &UnixStream) -> io::Result<()> {
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let mut line = String::new();
    BufReader::new(stream.take(LONGEST)).read_line(&mut line)?;
    let mut words = line.split_whitespace();
    let (http, what) = match words.next() {
        Some("GET") => (true, words.next().unwrap_or_default().trim_start_matches('/')),
        other => (false, other.unwrap_or_default()),
    };
    let (status, kind, body) = match what {
        "metrics" => ("200 OK", "text/plain; version=0.0.4", stats.prometheus()),
        "json" | "" => {
            let json = serde_json::to_string(&stats.snapshot()).map_err(io::Error::other)?;
            ("200 OK", "application/json", json + "\n")
        }
        _ => ("404 Not Found", "text/plain", "there are /metrics and /json\n".to_owned()),
    };
    if http {
        write!(
            stream,
            "HTTP/1.0 {status}\r\nContent-Type: {kind}\r\nContent-Length: {}\r\n\r\n",
            body.len()
        )?;
    }
    stream.write_all(body.as_bytes())
}

/// The JSON of the process that serves this socket. Blocks for a second at most at each step.
pub fn fetch(path: &Path) -> io::Result<String> {
    let mut stream = UnixStream::connect(path)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    stream.write_all(b"json\n")?;
    let mut text = String::new();
    // More than any process has to say.
    stream.take(16 << 20).read_to_string(&mut text)?;
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(path: &Path, words: &[u8]) -> String {
        let mut stream = UnixStream::connect(path).unwrap();
        stream.write_all(words).unwrap();
        let mut text = String::new();
        let _ = stream.read_to_string(&mut text);
        text
    }

    #[test]
    fn curl_prometheus_and_a_bare_word_are_answered_and_nonsense_is_survived() {
        let folder = tempfile::tempdir().unwrap();
        let stats = Stats::new("test");
        stats.lane("a").done(5, 40);
        let server = stats.serve(&folder.path().join("stats")).unwrap();
        let path = server.path().to_owned();
        let metrics = ask(&path, b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n");
        assert!(metrics.starts_with("HTTP/1.0 200 OK\r\n"), "{metrics}");
        assert!(metrics.contains("holdfast_operations_total{lane=\"a\"} 5"), "{metrics}");
        let (_, body) = metrics.split_once("\r\n\r\n").unwrap();
        assert!(metrics.contains(&format!("Content-Length: {}\r\n", body.len())));
        assert!(ask(&path, b"GET /etc/passwd HTTP/1.1\r\n").starts_with("HTTP/1.0 404"));
        ask(&path, &[0xff; 5000]);
        ask(&path, b"\n");
        drop(UnixStream::connect(&path).unwrap());
        let json: serde_json::Value = serde_json::from_str(&fetch(&path).unwrap()).unwrap();
        assert_eq!(
            (&json["lanes"][0]["bytes"], &json["pid"]),
            (&40.into(), &std::process::id().into())
        );
        drop(server);
        assert!(!path.exists());
    }

    #[test]
    fn the_sockets_of_the_dead_are_removed() {
        let parent = tempfile::tempdir().unwrap();
        let folder = parent.path().join("stats");
        folder::prepare(&folder).unwrap();
        let dead = folder.join("1.sock");
        drop(UnixListener::bind(&dead).unwrap());
        let alive = folder.join("2.sock");
        let _listener = UnixListener::bind(&alive).unwrap();
        let _server = Stats::new("test").serve(&folder).unwrap();
        assert!(!dead.exists() && alive.exists());
    }
}
