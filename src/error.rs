//! What can go wrong in the library, with what a person needs to act on it.

use crate::coherence::keeper::KeeperError;
use crate::connect::ConnectError;
use crate::cores::CoreError;

/// Result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What can go wrong in the library.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// VFIO, or the vfio-user socket, failed.
    #[error(transparent)]
    Vfio(#[from] holdfast_vfio::Error),
    /// The device's address space failed.
    #[error(transparent)]
    Iommu(#[from] holdfast_iommu::Error),
    /// Memory could not be had, or an access was outside of it.
    #[error(transparent)]
    Memory(#[from] holdfast_dax::Error),
    /// The driver or the device refused.
    #[error(transparent)]
    Driver(#[from] holdfast_driver::Error),
    /// A work request could not be posted.
    #[error(transparent)]
    Post(#[from] holdfast_driver::PostError),
    /// The peer could not be reached, or does not fit.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// Memory could not be put within the device's reach.
    #[error("cannot map {what} for the device: {source}")]
    Map {
        /// Where the memory is from.
        what: String,
        /// Why.
        #[source]
        source: holdfast_iommu::Error,
    },
    /// The kernel would not wait for the device's interrupt.
    #[error("cannot wait for the device's interrupt: {0}")]
    Wait(#[source] nix::errno::Errno),
    /// A thread or its memory could not be prepared for polling.
    #[error(transparent)]
    Core(#[from] CoreError),
    /// No memory of that NUMA node for this process.
    #[error("there is no memory of NUMA node {node} for this process; there is of {nodes:?}")]
    NoNode {
        /// The node asked for.
        node: u32,
        /// Those there are, or that a cpuset leaves.
        nodes: Vec<u32>,
    },
    /// The emulated NIC did not start.
    #[error("the emulated NIC did not start: {0}")]
    EmulatedNic(String),
    /// A slice outside its region, or longer than a request can name (4 GiB).
    #[error(
        "{len} bytes at {offset:#x} are outside a memory region of {region:#x} bytes, or too many for one request"
    )]
    OutsideRegion {
        /// First byte.
        offset: usize,
        /// Bytes.
        len: usize,
        /// Bytes of the region.
        region: usize,
    },
    /// The keeper, which makes the death of this process safe, could not be had.
    #[error(transparent)]
    Keeper(#[from] KeeperError),
    /// The guard of regions refused, or could not be had.
    #[error("{0}")]
    Guard(String),
    /// Blocks of a DAX file, for a device of the kernel, without a guard.
    #[error(
        "{what} is a DAX file, and no kernel pins its pages for a device: only a guard keeps the \
         device off blocks that the file gives up; register it with \
         ProtectionDomain::register_guarded, or choose 'memfd' or a device file (/dev/dax)"
    )]
    NeedsGuard {
        /// Where the memory is from.
        what: String,
    },
    /// The peer's queue pairs or regions are not those that were expected.
    #[error("the peer does not fit: {0}")]
    Peer(String),
}

impl Error {
    /// Whether the connection to a vfio-user server was given up.
    pub(crate) fn is_lost_connection(&self) -> bool {
        use holdfast_vfio::Error as Vfio;
        let (Self::Vfio(source)
        | Self::Iommu(holdfast_iommu::Error::Vfio(source))
        | Self::Map { source: holdfast_iommu::Error::Vfio(source), .. }
        | Self::Driver(holdfast_driver::Error::Transport { source, .. })) = self
        else {
            return false;
        };
        matches!(source, Vfio::UserGone { .. } | Vfio::UserLost { .. } | Vfio::UserProtocol { .. })
    }
}
