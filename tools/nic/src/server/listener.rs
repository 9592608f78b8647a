//! Taking clients, one after another, until told to stop.

use std::fmt::Display;
use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};

use super::{Backend, End, Limits, ServerError, serve_connection};

/// Pause before another try when the process is out of descriptors or memory, in milliseconds.
const RETRY_MS: u16 = 100;

/// Tells servers to stop, from any thread; clones tell the same ones. It cannot be taken back.
#[derive(Debug, Clone)]
pub struct Shutdown(Arc<EventFd>);

impl Shutdown {
    /// A handle that was not triggered yet.
    pub fn new() -> Result<Self, ServerError> {
        let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
        let fd = EventFd::from_value_and_flags(0, flags).map_err(ServerError::Shutdown)?;
        Ok(Self(Arc::new(fd)))
    }

    /// Ends every server that holds this handle, once it has finished the command it is at.
    pub fn trigger(&self) {
        // Fails only when the counter is full, and then it was triggered.
        let _ = self.0.write(1);
    }

    /// Whether it was triggered.
    pub fn is_triggered(&self) -> bool {
        let mut fds = [PollFd::new(self.as_fd(), PollFlags::POLLIN)];
        matches!(poll(&mut fds, PollTimeout::ZERO), Ok(1))
    }
}

impl AsFd for Shutdown {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// A listening socket; its path is removed when this is dropped.
#[derive(Debug)]
pub struct Listener {
    socket: UnixListener,
    path: PathBuf,
    /// Device and inode of the path as it was made, so that only that one is removed.
    identity: Option<(u64, u64)>,
}

impl Listener {
    /// Listens at `path`. A socket that a dead server left there is replaced. Who may connect is
    /// decided by the permissions of the socket (the process' umask) and of its folder.
    pub fn bind(path: impl AsRef<Path>) -> Result<Self, ServerError> {
        let path = path.as_ref();
        let name = || path.display().to_string();
        let failed = |error: io::Error| ServerError::Bind { path: name(), errno: errno_of(&error) };
        let socket = match UnixListener::bind(path) {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
                if !fs::symlink_metadata(path).map_err(failed)?.file_type().is_socket() {
                    return Err(ServerError::NotASocket { path: name() });
                }
                match UnixStream::connect(path) {
                    Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                        fs::remove_file(path).map_err(failed)?;
                        UnixListener::bind(path).map_err(failed)?
                    }
                    _ => return Err(ServerError::InUse { path: name() }),
                }
            }
            other => other.map_err(failed)?,
        };
        socket.set_nonblocking(true).map_err(failed)?;
        let identity = identity(path);
        Ok(Self { socket, path: path.to_path_buf(), identity })
    }

    /// Path of the socket.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Serves one client after another until `shutdown` is triggered. How each ended is told to
    /// `ended`; the next one is taken whatever it was.
    pub fn serve<B: Backend + ?Sized>(
        &self,
        backend: &mut B,
        limits: &Limits,
        shutdown: &Shutdown,
        mut ended: impl FnMut(End),
    ) -> Result<(), ServerError> {
        while let Some(client) = self.accept(shutdown)? {
            ended(serve_connection(client, backend, limits, shutdown));
        }
        Ok(())
    }

    /// The next client; `None` when `shutdown` is triggered.
    pub(crate) fn accept(&self, shutdown: &Shutdown) -> Result<Option<UnixStream>, ServerError> {
        let take = || self.socket.accept().map(|(client, _)| client);
        accept(&self.socket, take, &self.path.display(), shutdown)
    }
}

/// What `take` gives of the next client of `socket`, which does not block; `None` when `shutdown` is
/// triggered.
pub(crate) fn accept<S>(
    socket: &impl AsFd,
    take: impl Fn() -> io::Result<S>,
    name: &dyn Display,
    shutdown: &Shutdown,
) -> Result<Option<S>, ServerError> {
    let failed = |errno| ServerError::Accept { path: name.to_string(), errno };
    loop {
        let mut fds = [
            PollFd::new(shutdown.as_fd(), PollFlags::POLLIN),
            PollFd::new(socket.as_fd(), PollFlags::POLLIN),
        ];
        match poll(&mut fds, PollTimeout::NONE) {
            Err(Errno::EINTR) => continue,
            other => other.map_err(failed)?,
        };
        if fds[0].any() != Some(false) {
            return Ok(None);
        }
        match take().map_err(|error| errno_of(&error)) {
            Ok(client) => return Ok(Some(client)),
            // Gone again already, or a spurious wake-up.
            Err(Errno::EAGAIN | Errno::ECONNABORTED | Errno::EINTR) => {}
            Err(errno @ (Errno::EMFILE | Errno::ENFILE | Errno::ENOBUFS | Errno::ENOMEM)) => {
                tracing::warn!(%errno, path = %name, "cannot accept a client");
                let _ = poll(&mut fds[..1], PollTimeout::from(RETRY_MS));
            }
            Err(errno) => return Err(failed(errno)),
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if self.identity.is_some() && self.identity == identity(&self.path) {
            // Somebody may have been faster; there is nothing to do about a failure.
            let _ = fs::remove_file(&self.path);
        }
    }
}

fn identity(path: &Path) -> Option<(u64, u64)> {
    fs::symlink_metadata(path).ok().map(|meta| (meta.dev(), meta.ino()))
}

pub(crate) fn errno_of(error: &io::Error) -> Errno {
    error.raw_os_error().map_or(Errno::EINVAL, Errno::from_raw)
}
