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
    /// No connection to a vfio-user server.
    #[error("cannot connect to the vfio-user socket {socket}: {errno}; is the server running?")]
    UserConnect {
        /// Path of the socket.
        socket: String,
        /// Why.
        #[source]
        errno: Errno,
    },
    /// The connection to a vfio-user server failed during a request; it is of no more use.
    #[error("the vfio-user server at {socket} is lost: {command}: {source}")]
    UserLost {
        /// Path of the socket.
        socket: String,
        /// What was asked for.
        command: crate::user::Command,
        /// Why.
        #[source]
        source: crate::user::ChannelError,
    },
    /// The connection to a vfio-user server failed earlier (or was closed), and nothing is sent
    /// over it any more.
    #[error("the connection to the vfio-user server at {socket} ended earlier; connect again")]
    UserGone {
        /// Path of the socket.
        socket: String,
    },
    /// A vfio-user server did not confirm the end of a connection.
    #[error(
        "the vfio-user server at {socket} did not let go of this client's memory: {source}; the \
         memory must be kept as it is until that process is gone"
    )]
    UserDisconnect {
        /// Path of the socket.
        socket: String,
        /// Why.
        #[source]
        source: crate::user::ChannelError,
    },
    /// A vfio-user server refused a request.
    #[error("the vfio-user server at {socket} refused {command}: {errno}")]
    UserRefused {
        /// Path of the socket.
        socket: String,
        /// What was asked for.
        command: crate::user::Command,
        /// The server's reason; `UnknownErrno` when it gave none.
        #[source]
        errno: Errno,
    },
    /// A vfio-user server answered something that the protocol does not allow.
    #[error(
        "the vfio-user server at {socket} broke the protocol in its reply to {command}: {detail}"
    )]
    UserProtocol {
        /// Path of the socket.
        socket: String,
        /// What was asked for.
        command: crate::user::Command,
        /// What is wrong.
        detail: String,
    },

    // The kernel's VFIO.
    /// A node of VFIO could not be opened.
    #[error(
        "cannot open {}: {source}; without /dev/vfio/vfio, `modprobe vfio-pci`; without \
         permission, run as root or give this user the group's node",
        path.display()
    )]
    Open {
        /// Which node.
        path: std::path::PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A VFIO ioctl failed.
    #[error("{call}: {errno}")]
    Ioctl {
        /// Its name in `linux/vfio.h`.
        call: &'static str,
        /// Why.
        #[source]
        errno: Errno,
    },
    /// The kernel speaks another version of VFIO.
    #[error("the kernel's VFIO has API version {found}, and only version 0 is known")]
    ApiVersion {
        /// What it said.
        found: i32,
    },
    /// The kernel offers no type1 container.
    #[error("the kernel offers no type1v2 IOMMU for VFIO: `modprobe vfio_iommu_type1`")]
    NoType1,
    /// A group has no IOMMU behind it.
    #[error(
        "group {group} has no IOMMU (noiommu mode), which is refused: nothing would keep the \
         device from writing anywhere; enable the IOMMU instead"
    )]
    NoIommu {
        /// The group.
        group: u32,
    },
    /// A function is in no IOMMU group.
    #[error(
        "{address} is in no IOMMU group: enable VT-d or AMD-Vi in the firmware, and boot with \
         intel_iommu=on"
    )]
    NoGroup {
        /// The function.
        address: crate::pci::Address,
    },
    /// A kernel driver holds part of a group.
    #[error("group {group} is not viable: {members}; run `holdfast bind {address}`")]
    NotViable {
        /// The group.
        group: u32,
        /// The function that was wanted.
        address: crate::pci::Address,
        /// Who holds what.
        members: String,
    },
    /// A group is open already.
    #[error("group {group} is open in another process (or twice in this one)")]
    GroupBusy {
        /// The group.
        group: u32,
    },
    /// A function does not belong to vfio-pci.
    #[error("{address} is not bound to vfio-pci: run `holdfast bind {address}`")]
    NotBound {
        /// The function.
        address: crate::pci::Address,
    },
    /// An answer of the kernel makes no sense.
    #[error("VFIO gave a malformed answer: {0}")]
    Capability(#[from] crate::kernel::caps::CapError),
    /// The device has no such region.
    #[error("the device has no region {index}")]
    NoRegion {
        /// The region.
        index: u32,
    },
    /// The device has no such interrupt.
    #[error("the device has no interrupt index {index}")]
    NoIrq {
        /// The interrupt index.
        index: u32,
    },
    /// An access does not lie in its region.
    #[error("{len} bytes at {offset:#x} are outside region {index} of {size:#x} bytes")]
    OutsideRegion {
        /// The region.
        index: u32,
        /// Where.
        offset: u64,
        /// Bytes.
        len: u64,
        /// Bytes of the region.
        size: u64,
    },
    /// An access to a region failed.
    #[error("access of {len} bytes at {offset:#x} of region {index}: {source}")]
    RegionAccess {
        /// The region.
        index: u32,
        /// Where.
        offset: u64,
        /// Bytes.
        len: u64,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// Part of a region cannot be mapped.
    #[error("{len:#x} bytes at {offset:#x} of region {index} cannot be mapped")]
    NotMappable {
        /// The region.
        index: u32,
        /// Where.
        offset: u64,
        /// Bytes.
        len: u64,
    },
    /// Interrupt vectors that the device does not have.
    #[error("{wanted} eventfds for interrupt index {index}, which takes 1 to {count}")]
    IrqVectors {
        /// The interrupt index.
        index: u32,
        /// Eventfds given.
        wanted: usize,
        /// Vectors there are; 0 when the index takes no eventfd.
        count: u32,
    },
    /// A function cannot be reset.
    #[error("{address} has no way to be reset")]
    NoReset {
        /// The function.
        address: crate::pci::Address,
    },
    /// The command register does not keep what is written to it.
    #[error("the device's command register stays at {found:#06x}: no bus mastering")]
    BusMaster {
        /// What it holds.
        found: u16,
    },

    // PCI functions and their drivers.
    /// Not a PCI address.
    #[error("{text:?} is no PCI address such as 0000:03:00.0")]
    BadAddress {
        /// What was given.
        text: String,
    },
    /// There is no such function.
    #[error("there is no PCI function {address}")]
    NoFunction {
        /// The address.
        address: crate::pci::Address,
    },
    /// A file of sysfs or procfs could not be read.
    #[error("cannot read {}: {source}", path.display())]
    Sysfs {
        /// Which.
        path: std::path::PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A kernel driver is not there.
    #[error("the driver {driver} is not there: `modprobe {driver}`")]
    DriverMissing {
        /// The driver.
        driver: &'static str,
    },
    /// A group cannot be moved to another driver now.
    #[error("group {group} is in use: {reasons}")]
    InUse {
        /// The group.
        group: u32,
        /// Why, for each member.
        reasons: String,
    },
    /// A change of drivers failed.
    #[error("cannot {step}: {source}; {left}")]
    Bind {
        /// The step that failed.
        step: String,
        /// What was put back, and what could not be.
        left: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
}

impl Error {
    /// A [`Error::Usage`] of that text.
    pub fn usage(text: impl Into<String>) -> Self {
        Self::Usage(text.into())
    }
}
