//! What the loop needs of a device: queue pairs to post to, and a loop over completions. Queue pairs
//! and the library's loop have it, and so has the null device ([`super::null`]), on which the loop
//! shows what it costs by itself.

use std::ops::ControlFlow;

use holdfast::cores::{PollLoop, Step};
use holdfast::{CompletionQueue, QueuePair, Remote, SendFlags, Slice};

/// A queue pair, as the loop posts to it.
pub trait Requests {
    /// Where the payload of an operation is.
    type Slot<'a>: Copy;
    /// Where a message arrives.
    type Target<'a>: Copy;

    /// Writes a request into its queue: an RDMA WRITE.
    fn write(&mut self, id: u64, at: &Self::Slot<'_>, flags: SendFlags) -> anyhow::Result<()>;
    /// An RDMA READ.
    fn read(&mut self, id: u64, at: &Self::Slot<'_>, flags: SendFlags) -> anyhow::Result<()>;
    /// A SEND.
    fn send(&mut self, id: u64, at: &Self::Slot<'_>, flags: SendFlags) -> anyhow::Result<()>;
    /// A compare and swap.
    fn cas(&mut self, id: u64, at: &Self::Slot<'_>, flags: SendFlags) -> anyhow::Result<()>;
    /// A fetch and add.
    fn faa(&mut self, id: u64, at: &Self::Slot<'_>, flags: SendFlags) -> anyhow::Result<()>;
    /// Shows the device what was posted.
    fn ring_sends(&mut self);
    /// A receive.
    fn receive(&mut self, id: u64, at: &Self::Target<'_>) -> anyhow::Result<()>;
    /// Shows the device the receives.
    fn ring_receives(&mut self);
    /// Receives that are posted.
    fn outstanding_receives(&self) -> u32;
}

/// A loop over the completions of queues.
pub trait Poll {
    /// Turn after turn, until the handler breaks or fails ([`PollLoop::run`]).
    fn run(
        &mut self,
        handle: impl FnMut(Step<'_>) -> anyhow::Result<ControlFlow<()>>,
    ) -> anyhow::Result<()>;
}

impl Requests for QueuePair {
    /// Local and remote ends: to write or send from, and to read into.
    type Slot<'a> = [(Slice<'a>, Remote); 2];
    type Target<'a> = Slice<'a>;

    #[inline(always)]
    fn write(&mut self, id: u64, at: &Self::Slot<'_>, flags: SendFlags) -> anyhow::Result<()> {
        let [(source, there), _] = *at;
        Ok(self.write(id, &[source], there, flags)?)
    }

    #[inline(always)]
    fn read(&mut self, id: u64, at: &Self::Slot<'_>, flags: SendFlags) -> anyhow::Result<()> {
        let [_, (target, from)] = *at;
        Ok(self.read(id, &[target], from, flags)?)
    }

    #[inline(always)]
    fn send(&mut self, id: u64, at: &Self::Slot<'_>, flags: SendFlags) -> anyhow::Result<()> {
        let [(source, _), _] = *at;
        Ok(self.send(id, &[source], flags)?)
    }

    #[inline(always)]
    fn cas(&mut self, id: u64, at: &Self::Slot<'_>, flags: SendFlags) -> anyhow::Result<()> {
        let [_, (target, from)] = *at;
        Ok(self.compare_swap(id, target, from, 0, 0, flags)?)
    }

    #[inline(always)]
    fn faa(&mut self, id: u64, at: &Self::Slot<'_>, flags: SendFlags) -> anyhow::Result<()> {
        let [_, (target, from)] = *at;
        Ok(self.fetch_add(id, target, from, 1, flags)?)
    }

    #[inline(always)]
    fn ring_sends(&mut self) {
        self.ring_sends();
    }

    #[inline(always)]
    fn receive(&mut self, id: u64, at: &Self::Target<'_>) -> anyhow::Result<()> {
        Ok(self.receive(id, &[*at])?)
    }

    #[inline(always)]
    fn ring_receives(&mut self) {
        self.ring_receives();
    }

    fn outstanding_receives(&self) -> u32 {
        self.outstanding_receives()
    }
}

impl Poll for PollLoop<&mut CompletionQueue> {
    #[inline(always)]
    fn run(
        &mut self,
        handle: impl FnMut(Step<'_>) -> anyhow::Result<ControlFlow<()>>,
    ) -> anyhow::Result<()> {
        self.run(handle)
    }
}
