//! Memory for rings, slots and directories: small pieces of large, mapped blocks.
//!
//! The driver asks for a few pages at a time; a DMA mapping for each would spend the domain's
//! limited entries and huge pages on crumbs. So memory is taken and mapped in blocks of 2 MiB
//! (one huge page, where the system has some reserved or can make one) and handed out by the page.
//! Larger requests get a block of their own. A block goes back when its last piece does. All of a
//! block is brought in when it is made, from the NUMA node that was asked for, if one was.
#![allow(unsafe_code)]

use std::ptr::NonNull;
use std::sync::{Arc, Mutex, Weak};

use holdfast_driver::dma::{AllocError, DmaAllocator, DmaBuffer};
use holdfast_iommu::{AddressSpace, Mapping, PageKind, Prot, SharedMemory, numa};
use holdfast_wire::PAGE_SIZE;

use crate::lock::lock;

/// Bytes of a shared block.
const BLOCK: usize = 2 << 20;
/// Pages of a shared block.
const BLOCK_PAGES: usize = BLOCK / PAGE_SIZE;

/// Hands out memory that the devices of one address space reach. Calls take a lock and may make
/// system calls; none belongs on a fast path.
#[derive(Debug)]
pub struct DmaPool {
    space: Arc<AddressSpace>,
    inner: Mutex<Blocks>,
}

/// The blocks there are, and where the next one is to be.
#[derive(Debug, Default)]
struct Blocks {
    all: Vec<Weak<Block>>,
    node: Option<u32>,
}

/// What rings, slots and directories lie in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RingMemory {
    /// Bytes of all blocks.
    pub bytes: u64,
    /// The least of what they consist of.
    pub pages: PageKind,
    /// The NUMA nodes they are on, in order; none where the kernel has no NUMA.
    pub nodes: Vec<u32>,
}

/// Memory with its mapping. The mapping goes first, so that the device never reaches freed memory.
#[derive(Debug)]
struct Block {
    mapping: Mapping,
    memory: SharedMemory,
    /// The node that it was to be on, and the one that it is on.
    wanted: Option<u32>,
    node: Option<u32>,
    /// Whether it is cut up, and not all of one large request.
    shared: bool,
    used: Mutex<PageMap>,
}

/// Pages of a block; they become free again when this is dropped.
#[derive(Debug)]
struct Lease {
    block: Arc<Block>,
    first: usize,
    count: usize,
}

impl DmaPool {
    /// A pool over an address space.
    pub fn new(space: Arc<AddressSpace>) -> Self {
        Self { space, inner: Mutex::default() }
    }

    /// From now on memory comes from this NUMA node while it has some, or from wherever the kernel
    /// takes it (`None`). On a machine with one node nothing changes. A node that is not among
    /// [`numa::nodes`] makes the next block fail.
    pub fn prefer_node(&self, node: Option<u32>) {
        let choice = numa::nodes().len() > 1;
        lock(&self.inner).node = node.filter(|_| choice);
    }

    /// What there is at present; `None` while there is nothing.
    pub fn memory(&self) -> Option<RingMemory> {
        let blocks: Vec<_> = lock(&self.inner).all.iter().filter_map(Weak::upgrade).collect();
        let pages = blocks.iter().map(|block| block.memory.pages()).min()?;
        let mut nodes: Vec<u32> = blocks.iter().filter_map(|block| block.node).collect();
        nodes.sort_unstable();
        nodes.dedup();
        Some(RingMemory { bytes: blocks.iter().map(|b| b.memory.len()).sum(), pages, nodes })
    }

    fn block(
        &self,
        len: usize,
        wanted: Option<u32>,
        shared: bool,
    ) -> holdfast_iommu::Result<Block> {
        let memory = SharedMemory::on_node(len as u64, wanted)?;
        let pages = memory.len() as usize / PAGE_SIZE;
        let node = memory.node();
        let mapping = self.space.map(memory.piece(), Prot::ReadWrite, None)?;
        Ok(Block { mapping, memory, wanted, node, shared, used: Mutex::new(PageMap::new(pages)) })
    }

    /// Pages of an existing block, or of a new one.
    fn lease(&self, count: usize) -> holdfast_iommu::Result<Lease> {
        let mut blocks = lock(&self.inner);
        blocks.all.retain(|block| block.strong_count() > 0);
        let (node, shared) = (blocks.node, count <= BLOCK_PAGES / 2);
        // What was asked of that node and came from another is as near as it gets.
        let near =
            |block: &Arc<Block>| node.is_none() || [block.wanted, block.node].contains(&node);
        let fits = |block: &Arc<Block>| shared && block.shared && near(block);
        let mut there = blocks.all.iter().filter_map(Weak::upgrade).filter(fits);
        if let Some(lease) = there.find_map(|block| block.take(count)) {
            return Ok(lease);
        }
        let len = if shared { BLOCK } else { count * PAGE_SIZE };
        let block = Arc::new(self.block(len, node, shared)?);
        blocks.all.push(Arc::downgrade(&block));
        // A fresh block has room for what it was made for.
        Ok(block.take(count).unwrap_or(Lease { block, first: 0, count: 0 }))
    }
}

impl Block {
    fn take(self: &Arc<Self>, count: usize) -> Option<Lease> {
        let first = lock(&self.used).take(count)?;
        Some(Lease { block: Arc::clone(self), first, count })
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        lock(&self.block.used).give_back(self.first, self.count);
    }
}

impl DmaAllocator for DmaPool {
    fn allocate(&self, len: usize) -> Result<DmaBuffer, AllocError> {
        let failed = |source| AllocError { len, source };
        let count = len.div_ceil(PAGE_SIZE).max(1);
        if count.checked_mul(PAGE_SIZE).is_none_or(|bytes| bytes > isize::MAX as usize) {
            return Err(failed("that is more than an address space holds".into()));
        }
        let lease = self.lease(count).map_err(|error| failed(Box::new(error)))?;
        if lease.count != count {
            return Err(failed("the memory came out shorter than it was asked for".into()));
        }
        let start = lease.first * PAGE_SIZE;
        let iova = lease.block.mapping.iova() + start as u64;
        let pages: Box<[u64]> = (0..count).map(|page| iova + (page * PAGE_SIZE) as u64).collect();
        // SAFETY: `first + count` pages lie inside the block's memory, which the lease keeps
        // mapped; the pages belong to this lease alone.
        let buffer = unsafe {
            let base: NonNull<u8> = lease.block.memory.as_ptr().add(start);
            DmaBuffer::new(base, pages, Box::new(lease))
        };
        // Pages come back with whatever their last user left.
        buffer.zero();
        Ok(buffer)
    }
}

/// Which pages of a block are taken.
#[derive(Debug)]
struct PageMap {
    taken: Box<[bool]>,
}

impl PageMap {
    fn new(pages: usize) -> Self {
        Self { taken: vec![false; pages].into() }
    }

    /// Takes the first run of `count` free pages.
    fn take(&mut self, count: usize) -> Option<usize> {
        let mut run = 0;
        for page in 0..self.taken.len() {
            run = if self.taken[page] { 0 } else { run + 1 };
            if run == count {
                let first = page + 1 - count;
                self.taken[first..=page].fill(true);
                return Some(first);
            }
        }
        None
    }

    fn give_back(&mut self, first: usize, count: usize) {
        self.taken[first..first + count].fill(false);
    }
}

#[cfg(test)]
mod tests {
    use holdfast_iommu::{Backing, Domain, IovaRange, Limits};
    use proptest::prelude::*;

    use super::*;

    /// A domain that maps nothing and never fails.
    struct NoDevice;

    impl Domain for NoDevice {
        fn limits(&self) -> holdfast_iommu::Result<Limits> {
            Ok(Limits {
                ranges: vec![IovaRange::between(0, 1 << 40).unwrap()],
                page_sizes: PAGE_SIZE as u64,
                max_mappings: None,
                needs_fd: true,
                unmap_spans: false,
            })
        }

        fn map(&self, _: IovaRange, _: &Backing<'_>, _: Prot) -> holdfast_iommu::Result<()> {
            Ok(())
        }

        fn unmap(&self, range: IovaRange) -> holdfast_iommu::Result<u64> {
            Ok(range.len())
        }
    }

    fn pool() -> DmaPool {
        DmaPool::new(AddressSpace::new(Arc::new(NoDevice)).unwrap())
    }

    #[test]
    fn small_buffers_share_one_mapping_and_large_ones_have_their_own() {
        let pool = pool();
        let small: Vec<_> = (0..100).map(|_| pool.allocate(1).unwrap()).collect();
        assert_eq!(pool.space.mappings(), 1);
        let large = pool.allocate(3 * BLOCK).unwrap();
        assert_eq!((large.len(), pool.space.mappings()), (3 * BLOCK, 2));
        drop((small, large));
        assert_eq!(pool.space.mappings(), 0);
    }

    #[test]
    fn pages_are_zeroed_each_time_they_are_handed_out() {
        let pool = pool();
        let _keeps_the_block = pool.allocate(PAGE_SIZE).unwrap();
        let first = pool.allocate(PAGE_SIZE).unwrap();
        first.write(100, &0xdead_beef_u32);
        let page = first.pages()[0];
        drop(first);
        let again = pool.allocate(PAGE_SIZE).unwrap();
        assert_eq!((again.pages()[0], again.read::<u32>(100)), (page, 0));
    }

    #[test]
    fn what_the_memory_is_can_be_asked() {
        let pool = pool();
        assert_eq!(pool.memory(), None);
        let small = pool.allocate(1).unwrap();
        let one = pool.memory().unwrap();
        assert_eq!(one.bytes, BLOCK as u64);
        assert_eq!(one.nodes.len(), numa::nodes().len().min(1));
        let large = pool.allocate(3 * BLOCK).unwrap();
        assert_eq!(pool.memory().unwrap().bytes, 4 * BLOCK as u64);
        drop((small, large));
        assert_eq!(pool.memory(), None);
    }

    #[test]
    fn a_block_of_another_node_is_left_alone() {
        let Some(node) = numa::nodes().first().copied() else { return };
        let pool = pool();
        // As on a machine with several.
        lock(&pool.inner).node = Some(node);
        let first = pool.allocate(1).unwrap();
        assert_eq!(pool.memory().unwrap().nodes, [node]);
        let second = pool.allocate(1).unwrap();
        assert_eq!(pool.space.mappings(), 1, "of the same node");
        lock(&pool.inner).node = Some(u32::MAX);
        assert!(pool.allocate(1).is_err(), "there is no such node, so there is no such block");
        drop((first, second));
    }

    #[test]
    fn with_one_node_nothing_is_asked_of_the_kernel() {
        let pool = pool();
        pool.prefer_node(Some(u32::MAX));
        assert_eq!(pool.allocate(1).is_ok(), numa::nodes().len() < 2);
    }

    #[test]
    fn more_than_there_can_be_is_refused() {
        assert!(pool().allocate(usize::MAX).is_err());
    }

    proptest! {
        #[test]
        fn no_page_is_ever_handed_out_twice(steps in prop::collection::vec((1usize..40, any::<bool>()), 1..60)) {
            let pool = pool();
            let mut held: Vec<DmaBuffer> = Vec::new();
            for (pages, release) in steps {
                if release && !held.is_empty() {
                    held.swap_remove(pages % held.len());
                }
                held.push(pool.allocate(pages * PAGE_SIZE).unwrap());
                let mut all: Vec<u64> =
                    held.iter().flat_map(|b| b.pages().iter().copied()).collect();
                let count = all.len();
                all.sort_unstable();
                all.dedup();
                prop_assert_eq!(all.len(), count);
            }
        }
    }
}
