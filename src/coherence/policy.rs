//! What is to happen to a region when its file's layout changes.

use std::time::Duration;

/// What is done before an operation that changes the layout may go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reaction {
    /// The region goes to scrap at once. The device and its peers see no error.
    Retarget,
    /// The application gets some time to stop its traffic: the region goes to scrap when it says
    /// so ([`Guard::proceed`](crate::coherence::Guard::proceed)) or when the deadline has passed,
    /// whichever is first. The operation waits meanwhile, if a pin makes it wait; where none does, or
    /// the operation passes pins, there is no time to give, and this is [`Reaction::Retarget`].
    Hold {
        /// From the [`Breaking`](crate::coherence::EventKind::Breaking) event. Less by a second than
        /// [`KeeperOptions::deadline`](crate::coherence::keeper::KeeperOptions::deadline), or the
        /// region is refused.
        deadline: Duration,
    },
    /// The device forgets the region as well (its keys become invalid), for devices that may have
    /// cached translations: later accesses fail with an access error. Nothing brings it back.
    Revoke,
}

/// A region's policy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Policy {
    /// Before the operation goes on.
    pub reaction: Reaction,
    /// After it: whether what is left of the file is put behind the same addresses again.
    pub follow: bool,
}

impl Policy {
    /// To scrap at once, and to stay there.
    pub const RETARGET: Self = Self { reaction: Reaction::Retarget, follow: false };
    /// To scrap at once, and back to what is left of the file afterwards.
    pub const FOLLOW: Self = Self { reaction: Reaction::Retarget, follow: true };
    /// The device forgets the region.
    pub const REVOKE: Self = Self { reaction: Reaction::Revoke, follow: false };

    /// Some time for the application first.
    pub const fn hold(deadline: Duration) -> Self {
        Self { reaction: Reaction::Hold { deadline }, follow: false }
    }

    /// The same, followed.
    pub const fn and_follow(self) -> Self {
        Self { follow: true, ..self }
    }
}

impl Default for Policy {
    fn default() -> Self {
        Self::FOLLOW
    }
}
