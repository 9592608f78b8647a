//! What can go wrong, a variant per cause, each with what a person needs to act on it.
//!
//! [`Error`] is for everything that may block. [`PostError`] is what posting a work request can
//! say; it is small and `Copy`, because it is returned from the fast path.

use std::time::Duration;

use holdfast_wire::attr::QpState;
use holdfast_wire::cmd::Command;
use holdfast_wire::wqe::Opcode;
use nix::errno::Errno;

use crate::dma::AllocError;

/// Result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What can go wrong with a device.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The transport (VFIO, or the vfio-user socket) failed.
    #[error("the device's transport failed while {doing}")]
    Transport {
        /// What the driver was doing.
        doing: &'static str,
        /// Why.
        #[source]
        source: holdfast_vfio::Error,
    },
    /// No memory that the device can reach.
    #[error(transparent)]
    Memory(#[from] AllocError),
    /// The function is not a PVRDMA device.
    #[error(
        "PCI function {vendor:04x}:{device:04x} is not a PVRDMA device (15ad:0820); check the address"
    )]
    NotPvrdma {
        /// PCI vendor id found.
        vendor: u16,
        /// PCI device id found.
        device: u16,
    },
    /// The device speaks an interface version that this driver does not.
    #[error("the device speaks interface version {version}; this driver knows 17 to 20")]
    Version {
        /// The VERSION register.
        version: u32,
    },
    /// The device did not load the shared region: its capabilities stayed zero.
    #[error(
        "the device did not load its shared region at {address:#x} (its capabilities stayed zero): \
         check that bus mastering is on and that the IOMMU maps that address"
    )]
    SharedRegion {
        /// Bus address of the shared region.
        address: u64,
    },
    /// The device's port is not RoCE, or offers none or several GID types.
    #[error(
        "the device offers mode {mode} with GID types {gid_types:#x}; RoCE with one type is needed"
    )]
    NotRoce {
        /// `Caps::mode`.
        mode: u8,
        /// `Caps::gid_types`.
        gid_types: u8,
    },
    /// The device did not start.
    #[error("the device refused to start: its error register reads {code:#x}")]
    Activate {
        /// The ERR register.
        code: u32,
    },
    /// A command was not answered in time. The device may still carry it out.
    #[error("command {command:?} was not answered within {waited:?}; the device may be hung")]
    Timeout {
        /// Which command.
        command: Command,
        /// How long the driver waited.
        waited: Duration,
    },
    /// The device refused a command.
    #[error("the device refused command {command:?}: {errno}")]
    Refused {
        /// Which command.
        command: Command,
        /// The device's reason.
        #[source]
        errno: Errno,
    },
    /// The device does not know the shared region or the opcode any more.
    #[error("the device cannot take command {command:?}: no shared region, or unknown opcode")]
    NotReady {
        /// Which command.
        command: Command,
    },
    /// The device does not answer any more: its registers read as all ones.
    #[error(
        "the device is gone (its registers read as all ones): it was unplugged, or whatever \
         emulates it has ended; close everything that was made from it"
    )]
    Gone,
    /// The device wrote something that cannot be.
    #[error("the device wrote a nonsensical {what}: {value:#x}")]
    DeviceNonsense {
        /// Which value.
        what: &'static str,
        /// What it wrote.
        value: u64,
    },
    /// The device did not do something other than a command in time.
    #[error("the device did not {what} within {waited:?}")]
    Late {
        /// What it should have done.
        what: &'static str,
        /// How long the driver waited.
        waited: Duration,
    },
    /// More was asked for than the device, or this driver, allows.
    #[error("{what}: {asked} asked for, the limit is {limit}")]
    Limit {
        /// Which limit.
        what: &'static str,
        /// What was asked for.
        asked: u64,
        /// The limit.
        limit: u64,
    },
    /// An argument that can never be right.
    #[error("invalid argument: {0}")]
    Invalid(&'static str),
    /// This device cannot do that.
    #[error("this device cannot {what}: {why}")]
    Unsupported {
        /// What was asked.
        what: &'static str,
        /// Why not, and what to do instead.
        why: &'static str,
    },
    /// The queue pair is in the wrong state for that.
    #[error("the queue pair is in state {state:?}, which does not allow {what}")]
    QpState {
        /// Its state.
        state: QpState,
        /// What was asked.
        what: &'static str,
    },
    /// A completion queue would be too small for the work that may complete into it.
    #[error(
        "a completion queue of {depth} entries cannot take {needed} outstanding requests: make it \
         larger, poll what destroyed queue pairs left in it, or allow overcommitment in the queue \
         pair's configuration"
    )]
    CqTooSmall {
        /// Its depth.
        depth: u32,
        /// What its queue pairs may have outstanding, this one included.
        needed: u32,
    },
    /// The outstanding work was not flushed in time.
    #[error("{left} work requests were still outstanding after {waited:?}")]
    Drain {
        /// Work requests that have not completed.
        left: u32,
        /// How long the driver waited.
        waited: Duration,
    },
    /// Interrupts could not be set up.
    #[error("an eventfd could not be made: {errno}")]
    Eventfd {
        /// Why.
        #[source]
        errno: Errno,
    },
    /// A work request could not be posted.
    #[error(transparent)]
    Post(#[from] PostError),
}

impl Error {
    /// Whether the device may yet carry out the command that failed so.
    pub(crate) fn device_may_act(&self) -> bool {
        matches!(self, Self::Transport { .. } | Self::Timeout { .. } | Self::DeviceNonsense { .. })
    }

    /// Whether the device was lost, with everything that was in it. A function that is not there
    /// reaches no memory.
    pub fn is_gone(&self) -> bool {
        matches!(self, Self::Gone)
    }

    /// A transport error with what was being done.
    pub(crate) fn transport(doing: &'static str) -> impl Fn(holdfast_vfio::Error) -> Self {
        move |source| Self::Transport { doing, source }
    }

    /// [`Error::Limit`], when `asked` is beyond `limit`.
    pub(crate) fn check_limit(what: &'static str, asked: u64, limit: u64) -> Result<()> {
        if asked > limit { Err(Self::Limit { what, asked, limit }) } else { Ok(()) }
    }

    /// [`Error::DeviceNonsense`].
    pub(crate) fn nonsense(what: &'static str, value: u64) -> Self {
        Self::DeviceNonsense { what, value }
    }
}

/// Why a work request was not posted. Nothing was written that the device will look at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PostError {
    /// As many requests are outstanding as the queue is deep: ring the doorbell, then poll the
    /// completion queue.
    #[error("the queue has {depth} requests outstanding, its depth: poll for completions")]
    QueueFull {
        /// The queue's depth.
        depth: u32,
    },
    /// More scatter/gather entries than the queue was made for.
    #[error("{given} scatter/gather entries; the queue allows {limit}")]
    TooManySges {
        /// Entries given.
        given: u32,
        /// Entries allowed.
        limit: u32,
    },
    /// More inline bytes than the queue was made for.
    #[error("{given} inline bytes; the queue allows {limit}")]
    InlineTooLong {
        /// Bytes given.
        given: u32,
        /// Bytes allowed.
        limit: u32,
    },
    /// The message is longer than the port (or, for UD, the path MTU) allows.
    #[error("a message of {given} bytes; the limit is {limit}")]
    MessageTooLong {
        /// Bytes given.
        given: u64,
        /// Bytes allowed.
        limit: u32,
    },
    /// The queue pair's type, or the device, does not have this operation.
    #[error(
        "{opcode:?} is not available on this queue pair: datagrams have SEND alone, and some \
         devices (QEMU's own) carry out only SEND, without immediate data"
    )]
    OpcodeUnsupported {
        /// The operation.
        opcode: Opcode,
    },
    /// The operand of an atomic must be 8 bytes, aligned, in one entry.
    #[error(
        "an atomic needs a remote address aligned to 8 (got {address:#x}) and one 8-byte entry"
    )]
    AtomicOperand {
        /// Remote address given.
        address: u64,
    },
    /// The queue pair has not been brought to a state that allows posting.
    #[error("the queue pair is in state {state:?}: bring it up before posting")]
    QpState {
        /// Its state.
        state: QpState,
    },
    /// The queue is shared by threads and was not given the region that the request names.
    #[error("the request names a memory region that the shared queue pair was not given")]
    RegionNotHeld,
    /// The device wrote a consumer index that cannot be.
    #[error("the device wrote a nonsensical consumer index: {value:#x}")]
    DeviceNonsense {
        /// The index.
        value: u32,
    },
}
