//! Why the engine refuses a command.

/// A refused command. [`Error::errno`] is what a PVRDMA response carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// No such object.
    #[error("no {what} has handle {handle:#x}")]
    NoSuch {
        /// What kind of object.
        what: &'static str,
        /// The handle given.
        handle: u32,
    },
    /// The object is used by others, which must be destroyed first.
    #[error("{what} {handle:#x} is still used by {users} other objects")]
    Busy {
        /// What kind of object.
        what: &'static str,
        /// Its handle.
        handle: u32,
        /// How many use it.
        users: u32,
    },
    /// The NIC holds as many as it may.
    #[error("all {limit} {what} of the NIC are in use")]
    Exhausted {
        /// What kind of object.
        what: &'static str,
        /// The limit in force.
        limit: u32,
    },
    /// A parameter is beyond its limit.
    #[error("{what} is {value}, the limit is {limit}")]
    Limit {
        /// Which parameter.
        what: &'static str,
        /// Its value.
        value: u64,
        /// The limit in force.
        limit: u64,
    },
    /// A parameter makes no sense.
    #[error("{what} cannot be {value:#x}")]
    Invalid {
        /// Which parameter.
        what: &'static str,
        /// Its value.
        value: u64,
    },
    /// A state change that queue pairs do not make.
    #[error("a queue pair cannot go from state {from:?} to {to:?}")]
    Transition {
        /// State it is in.
        from: holdfast_wire::attr::QpState,
        /// State asked for.
        to: holdfast_wire::attr::QpState,
    },
    /// Attributes that a state change needs are missing.
    #[error("the state change needs attributes {missing:#x} as well (mask bits)")]
    Missing {
        /// Mask bits.
        missing: u32,
    },
    /// Attributes that a state change does not allow were given.
    #[error("the state change does not allow attributes {extra:#x} (mask bits)")]
    Excess {
        /// Mask bits.
        extra: u32,
    },
}

impl Error {
    /// The positive errno for it.
    pub fn errno(&self) -> i32 {
        match self {
            Error::Busy { .. } => libc::EBUSY,
            Error::Exhausted { .. } => libc::ENOMEM,
            _ => libc::EINVAL,
        }
    }
}
