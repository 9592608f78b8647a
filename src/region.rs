//! Memory regions: memory the device may reach, registered, mapped, and kept until nobody needs it.
#![allow(unsafe_code)]

use std::mem::ManuallyDrop;
use std::sync::{Arc, Mutex};

use holdfast_dax::Memory;
use holdfast_driver as driver;
use holdfast_iommu::{Backing, Mapping, Piece};
use holdfast_wire::PAGE_SIZE;
use holdfast_wire::wqe::Sge;

use crate::coherence::{Guard, Placement, Policy, Reaction, RegionId, Tie};
use crate::connect::RemoteRegion;
use crate::device::DeviceInner;
use crate::lock::lock;
use crate::{Access, Error, ProtectionDomain, Result};

/// Bytes of unguarded memory that are mapped, and so pinned, in one call (more, where its pages are
/// larger): meanwhile nothing else of the device's address space can be changed, and a guard that
/// has to take memory away waits.
const PINNED_AT_ONCE: u64 = 64 << 20;

/// Memory that the device may reach: the memory itself, its IOMMU mapping and its registration.
///
/// A handle is cheap to clone, and handles may be dropped at any time: the region stays until no
/// handle is left **and** no queue has an outstanding request that names it. Whoever must know
/// that it is gone (to truncate the file, say) calls [`MemoryRegion::deregister`], which gives the
/// memory back or says who is in the way.
///
/// What a peer does with the remote key is not an outstanding request of this side: once the
/// region is gone, the peer's access fails with a remote access error.
#[derive(Debug, Clone)]
pub struct MemoryRegion {
    pub(crate) inner: Arc<RegionInner>,
}

/// The parts, taken down in order: first the device forgets the region, then the IOMMU its
/// addresses, then the memory goes.
#[derive(Debug)]
pub(crate) struct RegionInner {
    registration: Registration,
    /// What requests name, without a look at the registration.
    keys: Keys,
    body: ManuallyDrop<Body>,
    taken_down: bool,
    // The device outlives its regions.
    device: Arc<DeviceInner>,
}

/// The device's knowledge of a region. A guard may take it away, so it is shared.
type Registration = Arc<Mutex<Option<driver::MemoryRegion>>>;

#[derive(Debug, Clone, Copy)]
struct Keys {
    start: u64,
    length: u64,
    lkey: u32,
    rkey: u32,
}

/// Where a region's memory is, and who sees to its mapping.
#[derive(Debug)]
enum Body {
    Plain { mapping: Mapping, memory: Memory },
    Guarded(Tie),
}

/// A part of a region, to be named in a request. It borrows the region, and the queue it is posted
/// to keeps the region from then on.
#[derive(Debug, Clone, Copy)]
pub struct Slice<'r> {
    pub(crate) sge: Sge,
    pub(crate) region: &'r Arc<RegionInner>,
}

impl Slice<'_> {
    /// Bytes.
    pub fn len(&self) -> usize {
        self.sge.length as usize
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.sge.length == 0
    }
}

impl MemoryRegion {
    /// Maps `memory` for the device and registers it. Blocks for the pinning of its pages and a
    /// command.
    pub(crate) fn new(
        pd: &ProtectionDomain,
        device: &Arc<DeviceInner>,
        memory: Memory,
        access: Access,
    ) -> Result<Self> {
        if Placement::of(memory.kind(), &device.space) == Placement::Physical {
            return Err(Error::NeedsGuard { what: memory.source().to_string() });
        }
        let prot = access.prot();
        let backing =
            // SAFETY: the memory stays mapped until `RegionInner` has seen the mapping go (or
            // leaks both), and `Memory` never gives out a reference to its bytes.
            unsafe { Backing::memory(memory.as_ptr().as_ptr().addr(), memory.backing()) };
        let piece = Piece { backing, len: memory.len() as u64 };
        let mapping = device
            .space
            .map(piece, prot, Some(PINNED_AT_ONCE.max(memory.page_size() as u64)))
            .map_err(|source| Error::Map { what: memory.source().to_string(), source })?;
        Self::with_body(pd, device, Body::Plain { mapping, memory }, access)
    }

    /// Maps `memory` under a guard and registers it.
    pub(crate) fn guarded(
        pd: &ProtectionDomain,
        device: &Arc<DeviceInner>,
        memory: Memory,
        access: Access,
        guard: &Guard,
        policy: Policy,
    ) -> Result<Self> {
        if device.driver.quirks().translates_once {
            return Err(Error::Driver(driver::Error::Unsupported {
                what: "give memory of a region back",
                why: "it goes on reaching pages that were taken from it, so a guard would not help; \
                      register memory that stays (memfd, hugetlb), without a guard",
            }));
        }
        let tie = guard.register(device, pd, memory, access.prot(), policy)?;
        let region = Self::with_body(pd, device, Body::Guarded(tie), access)?;
        if let (Body::Guarded(tie), Reaction::Revoke) = (&*region.inner.body, policy.reaction) {
            let registration = Arc::clone(&region.inner.registration);
            tie.region.on_revoke(Box::new(move || {
                let taken = lock(&registration).take();
                if let Some(Err(error)) = taken.map(driver::MemoryRegion::destroy) {
                    tracing::error!(%error, "the device did not forget a revoked region");
                }
            }));
        }
        Ok(region)
    }

    fn with_body(
        pd: &ProtectionDomain,
        device: &Arc<DeviceInner>,
        body: Body,
        access: Access,
    ) -> Result<Self> {
        let memory = body.memory();
        let start = memory.as_ptr().as_ptr().addr() as u64;
        let length = memory.len() as u64;
        let iova = body.iova();
        let pages: Vec<u64> =
            (0..length / PAGE_SIZE as u64).map(|page| iova + page * PAGE_SIZE as u64).collect();
        let registered =
            device.driver.register_mr(pd.driver(), start, length, &pages, access.bits());
        let registration = match registered {
            Ok(registration) => registration,
            Err(error) => {
                unmap_or_keep(device, body);
                return Err(error.into());
            }
        };
        let (lkey, rkey) = (registration.lkey(), registration.rkey());
        let keys = Keys { start, length, lkey, rkey };
        Ok(Self {
            inner: Arc::new(RegionInner {
                registration: Arc::new(Mutex::new(Some(registration))),
                keys,
                body: ManuallyDrop::new(body),
                taken_down: false,
                device: Arc::clone(device),
            }),
        })
    }

    /// Its name in events, if a guard watches it.
    pub fn id(&self) -> Option<RegionId> {
        match &*self.inner.body {
            Body::Plain { .. } => None,
            Body::Guarded(tie) => Some(tie.region.id),
        }
    }

    /// The memory, for this side's own access.
    pub fn memory(&self) -> &Memory {
        self.inner.body.memory()
    }

    /// Bytes.
    pub fn len(&self) -> usize {
        self.inner.keys.length as usize
    }

    /// Never true: there are no empty regions.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The bytes `[offset, offset + len)`, to be named in a request.
    #[inline]
    pub fn slice(&self, offset: usize, len: usize) -> Result<Slice<'_>> {
        let inside = offset.checked_add(len).is_some_and(|end| end <= self.len());
        match u32::try_from(len) {
            Ok(length) if inside => {
                let keys = &self.inner.keys;
                let sge = Sge { addr: keys.start + offset as u64, length, lkey: keys.lkey };
                Ok(Slice { sge, region: &self.inner })
            }
            _ => Err(Error::OutsideRegion { offset, len, region: self.len() }),
        }
    }

    /// What a peer needs to reach the region.
    pub fn remote(&self) -> RemoteRegion {
        let Keys { start, length, rkey, .. } = self.inner.keys;
        RemoteRegion { addr: start, len: length, rkey }
    }

    /// The local key.
    pub fn lkey(&self) -> u32 {
        self.inner.keys.lkey
    }

    /// The remote key.
    pub fn rkey(&self) -> u32 {
        self.inner.keys.rkey
    }

    /// Where the region lies in the device's address space.
    pub fn iova(&self) -> u64 {
        self.inner.body.iova()
    }

    /// Takes the region from the device and gives the memory back. When this returns `Ok`, no
    /// access by the device is in flight or can start. Blocks for a command and an unmap.
    ///
    /// # Errors
    /// [`DeregisterError::Busy`] with the region, when another handle or a queue's outstanding
    /// request still needs it ([`crate::QueuePair::release`] tells which);
    /// [`DeregisterError::Device`] when the device or the domain did not let go: the memory then
    /// stays mapped for ever, because it may still be written. (A vfio-user server whose connection
    /// is lost has let go when it has closed its end, as every process that dies does; that is
    /// waited for, for at most 10 s.)
    pub fn deregister(self) -> Result<Memory, DeregisterError> {
        match Arc::try_unwrap(self.inner) {
            Ok(mut inner) => inner.take_down().map_err(DeregisterError::Device),
            Err(inner) => {
                let holders = Arc::strong_count(&inner) - 1;
                Err(DeregisterError::Busy { region: Self { inner }, holders })
            }
        }
    }
}

/// Why a region was not deregistered.
#[derive(Debug, thiserror::Error)]
pub enum DeregisterError {
    /// Somebody needs it.
    #[error(
        "the memory region is in use by {holders} other handles or queues with outstanding \
         requests: poll their completions, release it there, and try again"
    )]
    Busy {
        /// The region.
        region: MemoryRegion,
        /// How many others have it.
        holders: usize,
    },
    /// The device or its address space did not let go.
    #[error("the device may still reach the region, which stays mapped: {0}")]
    Device(#[source] Error),
}

impl RegionInner {
    fn take_down(&mut self) -> Result<Memory> {
        self.taken_down = true;
        // What failed is done all the same where the device's process has let go of everything.
        let device = &self.device;
        let settle = |error: Error| if device.let_go(&error) { Ok(()) } else { Err(error) };
        let registration = lock(&self.registration).take();
        if let Some(registration) = registration {
            registration.destroy().map_err(Error::from).or_else(settle)?;
        }
        // SAFETY: taken once, guarded by `taken_down`, and not used afterwards. If the device did
        // not forget the region, it is left alone, which leaks it: the device may still reach it.
        let body = unsafe { ManuallyDrop::take(&mut self.body) };
        body.unmap(settle)
    }
}

impl Body {
    fn memory(&self) -> &Memory {
        match self {
            Self::Plain { memory, .. } => memory,
            Self::Guarded(tie) => &tie.region.memory,
        }
    }

    fn iova(&self) -> u64 {
        match self {
            Self::Plain { mapping, .. } => mapping.iova(),
            Self::Guarded(tie) => tie.region.iova(),
        }
    }

    /// Takes the memory out of the device's address space and gives it back; if that does not work
    /// (and `settle` does not say that it did not have to), leaks it.
    fn unmap(self, settle: impl Fn(Error) -> Result<()>) -> Result<Memory> {
        match self {
            Self::Plain { mapping, memory } => {
                let memory = ManuallyDrop::new(memory);
                mapping.unmap().map_err(Error::from).or_else(settle)?;
                Ok(ManuallyDrop::into_inner(memory))
            }
            Self::Guarded(tie) => {
                let tie = ManuallyDrop::new(tie);
                if let Err(error) = tie.take_down() {
                    settle(error)?;
                    tie.leave_unmapped();
                }
                ManuallyDrop::into_inner(tie).into_memory()
            }
        }
    }
}

/// Takes back memory that was mapped but not registered, or leaks it if the device may still reach
/// it.
fn unmap_or_keep(device: &DeviceInner, body: Body) {
    let settle = |error: Error| if device.let_go(&error) { Ok(()) } else { Err(error) };
    if let Err(error) = body.unmap(settle) {
        tracing::error!(%error, "memory stays mapped: the device may reach it");
    }
}

impl Drop for RegionInner {
    fn drop(&mut self) {
        if self.taken_down {
            return;
        }
        if let Err(error) = self.take_down() {
            tracing::error!(%error, "a memory region's memory stays mapped: the device may reach it");
        }
    }
}

#[cfg(test)]
mod tests {
    use holdfast_dax::{Populate, Source};

    use super::*;
    use crate::{
        Busy, Completion, CompletionQueue, Device, EmulatedNic, EmulatedOptions, QueuePair,
        QueuePairOptions, Remote, SendFlags,
    };

    /// A queue pair connected to another of the same NIC, and two regions.
    struct Bench {
        pd: ProtectionDomain,
        qp: QueuePair,
        _peer: QueuePair,
        cq: CompletionQueue,
        source: MemoryRegion,
        target: MemoryRegion,
    }

    fn bench() -> Bench {
        let device = EmulatedNic::start(EmulatedOptions::default()).unwrap().open(0).unwrap();
        let pd = device.protection_domain().unwrap();
        let cq = device.completion_queue(64).unwrap();
        let options = QueuePairOptions { send_depth: 8, recv_depth: 8, ..Default::default() };
        let mut qp = pd.queue_pair(&options, &cq, &cq).unwrap();
        let mut peer = pd.queue_pair(&options, &cq, &cq).unwrap();
        QueuePair::connect_pair(&mut qp, &mut peer).unwrap();
        let region = || pd.register(memory(), Access::ALL).unwrap();
        let (source, target) = (region(), region());
        Bench { pd, qp, _peer: peer, cq, source, target }
    }

    fn memory() -> Memory {
        Memory::open(&Source::Memfd, 4096, Populate::Yes).unwrap()
    }

    impl Bench {
        /// Posts a WRITE of all of the source, without ringing.
        fn post(&mut self) {
            let remote = Remote { addr: self.target.remote().addr, rkey: self.target.rkey() };
            let local = [self.source.slice(0, 4096).unwrap()];
            self.qp.write(1, &local, remote, SendFlags::SIGNALED).unwrap();
        }

        fn finish(&mut self) -> Completion {
            self.qp.ring_sends();
            let mut done = [Completion::default()];
            while self.cq.poll(&mut done).unwrap() == 0 {
                std::thread::yield_now();
            }
            done[0]
        }
    }

    #[test]
    fn a_region_gives_its_memory_back() {
        let device: Device =
            EmulatedNic::start(EmulatedOptions::default()).unwrap().open(0).unwrap();
        let pd = device.protection_domain().unwrap();
        let before = device.address_space().mappings();
        let region = pd.register(memory(), Access::LOCAL_WRITE).unwrap();
        assert_eq!(device.address_space().mappings(), before + 1);
        let memory = region.deregister().unwrap();
        assert_eq!((memory.len(), device.address_space().mappings()), (4096, before));
    }

    #[test]
    fn a_region_that_a_request_needs_is_not_deregistered() {
        let mut b = bench();
        b.post();
        assert_eq!(b.qp.release(&b.source), Err(Busy { outstanding: 1 }));
        let source = std::mem::replace(&mut b.source, b.target.clone());
        let Err(DeregisterError::Busy { region, holders }) = source.deregister() else {
            panic!("it was let go");
        };
        assert_eq!(holders, 1, "the queue pair");
        assert!(b.finish().is_success());
        assert_eq!(b.qp.release(&region), Ok(()));
        assert!(region.deregister().is_ok());
    }

    #[test]
    fn dropping_the_last_handle_leaves_the_memory_to_the_request() {
        let mut b = bench();
        b.source.memory().fill(0, 4096, 0x5a).unwrap();
        b.post();
        let other = b.target.clone();
        b.source = other;
        assert!(b.finish().is_success());
        let mut bytes = [0; 4096];
        b.target.memory().read_at(0, &mut bytes).unwrap();
        assert_eq!(bytes, [0x5a; 4096]);
    }

    #[test]
    fn a_request_that_is_refused_needs_no_region() {
        let mut b = bench();
        let remote = Remote { addr: b.target.remote().addr, rkey: b.target.rkey() };
        let slice = b.source.slice(0, 64).unwrap();
        // More entries than the queue pair has, to either queue.
        let local = [slice, slice];
        assert!(b.qp.write(1, &local, remote, SendFlags::SIGNALED).is_err());
        assert!(b.qp.receive(2, &local).is_err());
        assert_eq!((b.qp.outstanding_sends(), b.qp.outstanding_receives()), (0, 0));
        assert_eq!(b.qp.release(&b.source), Ok(()));
        // And through a shared queue, which holds what it holds until all is done.
        let mut shared = b.pd.shared_receive_queue(8, 1).unwrap();
        assert!(shared.receive(3, &local).is_err());
        let source = std::mem::replace(&mut b.source, b.target.clone());
        assert!(source.deregister().is_ok(), "nobody holds it");
    }

    #[test]
    fn a_slice_must_lie_inside() {
        let b = bench();
        for (offset, len) in [(0, 4097), (4096, 1), (usize::MAX, 2)] {
            let error = b.source.slice(offset, len).unwrap_err();
            assert!(matches!(error, Error::OutsideRegion { region: 4096, .. }), "{error}");
        }
        assert!(b.source.slice(4096, 0).unwrap().is_empty());
    }
}
