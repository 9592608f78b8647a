//! What can go wrong below a device, with what a person needs to act on it.

use nix::errno::Errno;

/// Result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What can go wrong below a device.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A caller broke this crate's own rules.
    #[error("{0}")]
    Usage(String),
    /// A region could not be mapped.
    #[error("cannot map {len:#x} bytes at {offset:#x} of a device region: {errno}")]
    MapRegion {
        /// Offset in the device descriptor.
        offset: u64,
        /// Bytes.
        len: u64,
        /// Why.
        #[source]
        errno: Errno,
    },
}

impl Error {
    /// A [`Error::Usage`] of that text.
    pub fn usage(text: impl Into<String>) -> Self {
        Self::Usage(text.into())
    }
}
