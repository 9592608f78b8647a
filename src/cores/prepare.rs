//! Preparing a thread that is to poll, and what came of it.

use super::cpu::{self, Pinned};
use super::{CoreError, memory};

/// What to prepare.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CoreOptions {
    /// Processor that the thread is bound to; `None`: it runs where the scheduler puts it.
    pub cpu: Option<usize>,
    /// Lock all memory of the process ([`super::lock_memory`]), which outlives the [`Core`].
    pub lock_memory: bool,
    /// Bytes of the stack that are touched: what the loop's calls need, and less than the thread has
    /// left, or it overflows here. 128 KiB by default.
    pub stack: usize,
}

impl Default for CoreOptions {
    fn default() -> Self {
        Self { cpu: None, lock_memory: false, stack: 128 << 10 }
    }
}

/// A thread that is prepared; by default one that nothing was done to. It stays on its thread, which
/// is let go of its processor when this is dropped.
#[derive(Debug, Default)]
pub struct Core {
    pinned: Option<Pinned>,
    node: Option<u32>,
    memory_locked: bool,
}

impl Core {
    /// Prepares the calling thread. Do it before queues are made, so that they can be put near it,
    /// and after emulated NICs, guards and other threads were started that are to run elsewhere: what
    /// this thread starts from then on is bound as it is. Blocks until all memory is there, where that
    /// is to be locked.
    ///
    /// # Errors
    /// [`CoreError`]; the thread is then as it was.
    pub fn prepare(options: &CoreOptions) -> Result<Self, CoreError> {
        let pinned = options.cpu.map(cpu::pin).transpose()?;
        // From the processor it is to run on, so that new pages come from that one's node.
        memory::touch_stack(options.stack);
        if options.lock_memory {
            memory::lock_memory()?;
        }
        let node = options.cpu.and_then(cpu::node_of);
        Ok(Self { pinned, node, memory_locked: options.lock_memory })
    }

    /// The processor that the thread is bound to.
    pub fn cpu(&self) -> Option<usize> {
        self.pinned.as_ref().map(Pinned::cpu)
    }

    /// Its NUMA node; `None` too where the thread is bound to none.
    pub fn node(&self) -> Option<u32> {
        self.node
    }

    /// Whether memory was locked.
    pub fn memory_locked(&self) -> bool {
        self.memory_locked
    }
}

#[cfg(test)]
mod tests {
    use super::super::{allowed, node_of};
    use super::*;

    #[test]
    fn a_thread_is_bound_while_its_core_is_there_and_says_where() {
        let before = allowed();
        let cpu = before[0];
        let core = Core::prepare(&CoreOptions { cpu: Some(cpu), ..Default::default() }).unwrap();
        assert_eq!((core.cpu(), core.node()), (Some(cpu), node_of(cpu)));
        assert_eq!(allowed(), [cpu]);
        drop(core);
        assert_eq!(allowed(), before);
        let free = Core::prepare(&CoreOptions::default()).unwrap();
        assert_eq!((free.cpu(), free.node(), allowed()), (None, None, before));
    }
}
