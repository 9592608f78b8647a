//! Asynchronous events and completion notifications: entries of the device's own rings.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Entry of the asynchronous event ring.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct EventEntry {
    /// One of [`EventKind`]'s values.
    pub kind: u32,
    /// The handle of the object it is about, or the port number.
    pub info: u32,
}
assert_layout!(EventEntry, 8, kind @ 0, info @ 4);

/// Entry of the completion notification ring.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct NotifyEntry {
    /// Handle of the completion queue that fired.
    pub cq: u32,
}
assert_layout!(NotifyEntry, 4, cq @ 0);

wire_enum! {
    /// What happened; the numbers are Linux's `enum ib_event_type`.
    pub enum EventKind: u32 {
        /// A completion queue overran or became unusable; info is its handle.
        CqError = 0,
        /// A queue pair stopped on an error it cannot report as a completion.
        QpFatal = 1,
        /// A queue pair received an invalid request.
        QpRequestError = 2,
        /// A queue pair refused a request for lack of access rights.
        QpAccessError = 3,
        /// A packet arrived on a queue pair that is not yet RTS.
        CommunicationEstablished = 4,
        /// A send queue finished draining.
        SendQueueDrained = 5,
        /// Path migration succeeded.
        PathMigrated = 6,
        /// Path migration failed.
        PathMigrationError = 7,
        /// The device is unusable.
        DeviceFatal = 8,
        /// A port came up; info is its number.
        PortActive = 9,
        /// A port went down; info is its number.
        PortError = 10,
        /// The LID changed.
        LidChange = 11,
        /// The partition table changed.
        PkeyChange = 12,
        /// The subnet manager changed.
        SmChange = 13,
        /// A shared receive queue became unusable.
        SrqError = 14,
        /// A shared receive queue fell below its limit.
        SrqLimitReached = 15,
        /// The last receive of a queue pair in error was consumed.
        QpLastWqeReached = 16,
        /// Clients should re-register with the subnet manager.
        ClientReregister = 17,
        /// The GID table changed.
        GidChange = 18,
    }
}
