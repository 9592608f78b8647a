//! Why two peers could not be brought together.

use std::io;
use std::time::Duration;

use super::VERSION;

/// Why two peers could not be brought together.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConnectError {
    /// The address means nothing.
    #[error("'{address}' is not HOST:PORT: {source}")]
    Address {
        /// As it was given.
        address: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Nobody can be waited for at that address.
    #[error("cannot listen on {address}: {source}")]
    Listen {
        /// Where.
        address: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Nobody answered there.
    #[error("cannot connect to {address} within {timeout:?}: {source}; is the other side running?")]
    Connect {
        /// Where.
        address: String,
        /// For how long it was tried.
        timeout: Duration,
        /// Why, the last time.
        #[source]
        source: io::Error,
    },
    /// The other side did not do its part in time.
    #[error("the peer did not {what} within {timeout:?}")]
    Timeout {
        /// What it should have done.
        what: &'static str,
        /// For how long it was waited for.
        timeout: Duration,
    },
    /// The wait was cut short by the caller.
    #[error("interrupted while waiting for the peer to {what}")]
    Interrupted {
        /// What it should have done.
        what: &'static str,
    },
    /// The connection broke.
    #[error("the connection to the peer broke: {0}")]
    Broken(#[source] io::Error),
    /// The peer closed the connection.
    #[error("the peer closed the connection; see what it printed")]
    Closed,
    /// The peer speaks something else.
    #[error("the peer is not a holdfast of this kind: {0}")]
    NotAPeer(String),
    /// The peer speaks another version.
    #[error(
        "the peer speaks version {theirs} of the exchange, this side {VERSION}: use the same release on both sides"
    )]
    Version {
        /// The peer's version.
        theirs: u32,
    },
    /// The two sides were started for different things.
    #[error("the two sides disagree on what to do: here '{ours}', there '{theirs}'")]
    Purpose {
        /// This side's purpose.
        ours: String,
        /// The peer's.
        theirs: String,
    },
    /// A message that makes no sense.
    #[error("the peer sent nonsense: {0}")]
    Malformed(String),
}
