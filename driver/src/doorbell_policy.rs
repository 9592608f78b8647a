//! When a work queue rings its doorbell.

/// When a work queue rings its doorbell: an option of a queue pair.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum DoorbellPolicy {
    /// When told to ([`crate::SendQueue::ring`]): one doorbell for everything posted since the last
    /// one. The cheapest, for whoever knows where a batch ends.
    #[default]
    Batched,
    /// With every request that is posted. Nothing is ever forgotten, and each post costs a doorbell
    /// and a look at what has completed.
    Immediate,
    /// When its completion queue is polled next, empty or not: however often it was told to ring
    /// meanwhile, that is one doorbell for each iteration of a poll loop. Nothing is sent unless
    /// that queue is polled. Its owner may be another thread.
    Coalesced,
}
