//! A processor for one thread: preparing it, and the loop that runs there.
//!
//! A thread that polls is as fast as whatever interrupts it lets it be. [`Core::prepare`] takes away
//! what a program can: the thread is bound to its processor, its stack is touched, and all memory of
//! the process is locked if that is asked for. What only the machine's owner can take away (the timer
//! tick, a sibling, a frequency governor) `holdfast cores` lists. The priority stays what it is: a
//! thread that polls at real-time priority starves the kernel's own threads on that processor.
//!
//! [`Device::prefer_ring_node`] then puts the queues' memory on the processor's NUMA node; it is in
//! huge pages where there are some, and brought in when it is made, in any case.
//!
//! [`PollLoop`] is the loop: each turn polls completion queues and hands each completion to a handler
//! where it lies, and what the handler posts is rung with one doorbell at the next turn
//! ([`DoorbellPolicy::Coalesced`]) or as the queue pair has it. A turn allocates nothing, takes no
//! lock and makes no system call. It counts its turns ([`crate::stats::Turns`]), so that `holdfast top`
//! shows how much of a processor has nothing to do.
//!
//! Who has no processor to spare wants [`crate::Waiter`] instead, which sleeps until an interrupt.
//!
//! # Example
//! A hundred writes, of which the next is posted when one before is done, eight at a time:
//!
//! ```
//! use std::ops::ControlFlow;
//!
//! use holdfast::cores::{Core, CoreOptions, PollLoop, Step, allowed};
//! use holdfast::{
//!     Access, DoorbellPolicy, EmulatedNic, EmulatedOptions, Error, Memory, Populate, QueuePair,
//!     QueuePairOptions, Remote, SendFlags, Source,
//! };
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let nics = EmulatedNic::start(EmulatedOptions { nics: 2, ..Default::default() })?;
//! let (here, there) = (nics.open(0)?, nics.open(1)?);
//! // Not before the NICs' threads are there, which would be bound to this processor too.
//! let core = Core::prepare(&CoreOptions { cpu: allowed().last().copied(), ..Default::default() })?;
//! here.prefer_ring_node(core.node())?;
//!
//! let (pd_here, pd_there) = (here.protection_domain()?, there.protection_domain()?);
//! let memory = || Memory::open(&Source::Memfd, 4096, Populate::Yes);
//! let source = pd_here.register(memory()?, Access::LOCAL_READ)?;
//! let target = pd_there.register(memory()?, Access::REMOTE_WRITE)?;
//! let (completions, completions_there) = (here.completion_queue(64)?, there.completion_queue(64)?);
//! let doorbells = DoorbellPolicy::Coalesced;
//! let options = QueuePairOptions { send_depth: 32, recv_depth: 32, doorbells, ..Default::default() };
//! let mut qp = pd_here.queue_pair(&options, &completions, &completions)?;
//! let mut peer = pd_there.queue_pair(&options, &completions_there, &completions_there)?;
//! QueuePair::connect_pair(&mut qp, &mut peer)?;
//!
//! let remote = Remote { addr: target.remote().addr, rkey: target.rkey() };
//! let mut poll = PollLoop::new();
//! poll.add(completions);
//! let (mut posted, mut done) = (0, 0);
//! poll.run(|step| {
//!     match step {
//!         Step::Completion { completion, .. } => {
//!             assert!(completion.is_success());
//!             done += 1;
//!         }
//!         Step::Turn { .. } if done == 100 => return Ok(ControlFlow::Break(())),
//!         Step::Turn { .. } => {
//!             while posted < 100 && posted - done < 8 {
//!                 qp.write(posted, &[source.slice(0, 64)?], remote, SendFlags::SIGNALED)?;
//!                 posted += 1;
//!             }
//!             // Rung when the loop polls next.
//!             qp.ring_sends();
//!         }
//!     }
//!     Ok::<_, Error>(ControlFlow::Continue(()))
//! })?;
//! assert_eq!(poll.counts().completions, 100);
//! # Ok(())
//! # }
//! ```
//!
//! [`Device::prefer_ring_node`]: crate::Device::prefer_ring_node
//! [`DoorbellPolicy::Coalesced`]: crate::DoorbellPolicy::Coalesced

mod cpu;
mod error;
mod memory;
mod poll_loop;
mod prepare;

pub use cpu::{Pinned, allowed, node_of, pin};
pub use error::CoreError;
pub use memory::lock_memory;
pub use poll_loop::{PollLoop, Step};
pub use prepare::{Core, CoreOptions};
