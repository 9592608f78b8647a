//! A device with a queue pair connected to itself, a guard, and a guarded region at a time.

use std::fs::File;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use holdfast::coherence::{Event, EventKind, Events, Guard, GuardOptions, Part, Policy, RegionId};
use holdfast::{
    Access, Completion, Device, DeviceAddress, Memory, MemoryRegion, Populate, QueuePair, Remote,
    SendFlags, Source,
};

use crate::peer::Side;

/// How long an event, or a request, may take on a loaded machine.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long nothing may be told before it is believed.
const SILENCE: Duration = Duration::from_millis(500);
/// The unit in which memory is taken away.
pub const CHUNK: u64 = 2 << 20;
/// Bytes of each region: four chunks.
pub const LEN: u64 = 4 * CHUNK;

/// Where it all happens.
pub struct Scene {
    side: Side,
    pub guard: Guard,
}

impl Scene {
    /// Opens the device and starts a guard with all notifiers that disturb nobody.
    pub fn open(device: &DeviceAddress) -> Result<Self> {
        let device = Device::open(device).with_context(|| format!("opening {device}"))?;
        let guard = Guard::start(GuardOptions::default())?;
        Ok(Self { side: Side::new(&device)?, guard })
    }

    /// A guarded region on `source`, and events from now on.
    pub fn region(&self, source: &Source) -> Result<Stage> {
        self.region_with(source, Policy::FOLLOW)
    }

    /// The same with a policy.
    pub fn region_with(&self, source: &Source, policy: Policy) -> Result<Stage> {
        self.register(source, Access::ALL, policy)
    }

    /// The same for less than all that a device can do.
    pub fn region_for(&self, source: &Source, access: Access) -> Result<Stage> {
        self.register(source, access, Policy::FOLLOW)
    }

    fn register(&self, source: &Source, access: Access, policy: Policy) -> Result<Stage> {
        let memory = Memory::open(source, LEN as usize, Populate::Yes)?;
        ensure!(memory.len() as u64 == LEN, "{source} has {} bytes", memory.len());
        let address = memory.as_ptr().as_ptr();
        let events = self.guard.events()?;
        let region = self.side.pd.register_guarded(memory, access, &self.guard, policy)?;
        let source = Memory::open(&Source::Memfd, 4096, Populate::Yes)?;
        let source = self.side.pd.register(source, Access::LOCAL_WRITE)?;
        let (mut qp, cq) = self.side.queue_pair()?;
        let (mut peer, peer_cq) = self.side.queue_pair()?;
        QueuePair::connect_pair(&mut qp, &mut peer)?;
        Ok(Stage { region, address, events, source, qp, cq, _peer: (peer, peer_cq), words: 0 })
    }
}

/// A region, and who writes and reads it through the device.
pub struct Stage {
    region: MemoryRegion,
    /// Where this process has it.
    pub address: *mut u8,
    events: Events,
    source: MemoryRegion,
    qp: QueuePair,
    cq: holdfast::CompletionQueue,
    _peer: (QueuePair, holdfast::CompletionQueue),
    words: u64,
}

impl Stage {
    /// Its name in events.
    pub fn id(&self) -> Result<RegionId> {
        self.region.id().context("the region is not guarded")
    }

    /// The file behind it.
    pub fn file(&self) -> Result<File> {
        let (fd, _) = self.region.memory().backing().context("the region has no file")?;
        Ok(fd.try_clone_to_owned()?.into())
    }

    /// The device writes a new word to an offset of the region, which must succeed.
    pub fn write(&mut self, offset: u64) -> Result<u64> {
        self.words += 1;
        let word = 0x5eed_0000 + self.words;
        self.source.memory().write_at(0, &word.to_ne_bytes())?;
        let local = [self.source.slice(0, 8)?];
        self.qp.write(1, &local, self.remote(offset), SendFlags::SIGNALED)?;
        self.done(&format!("a write to {offset:#x}"))?;
        Ok(word)
    }

    /// The device reads the word at an offset of the region, which must succeed.
    pub fn read(&mut self, offset: u64) -> Result<u64> {
        let local = [self.source.slice(8, 8)?];
        self.qp.read(1, &local, self.remote(offset), SendFlags::SIGNALED)?;
        self.done(&format!("a read of {offset:#x}"))?;
        let mut word = [0; 8];
        self.source.memory().read_at(8, &mut word)?;
        Ok(u64::from_ne_bytes(word))
    }

    fn remote(&self, offset: u64) -> Remote {
        Remote { addr: self.region.remote().addr + offset, rkey: self.region.rkey() }
    }

    fn done(&mut self, what: &str) -> Result<()> {
        self.qp.ring_sends();
        let mut done = [Completion::default()];
        let start = Instant::now();
        while self.cq.poll(&mut done)? == 0 {
            ensure!(start.elapsed() < PATIENCE, "{what} never completed");
            std::thread::yield_now();
        }
        ensure!(done[0].is_success(), "{what}: {:?}", done[0].status);
        Ok(())
    }

    /// The next events are of these kinds and in this order, each about `part` and of the cause;
    /// announcements and merged parts may come between.
    pub fn told(&self, kinds: &[EventKind], cause: &str, part: Part) -> Result<()> {
        let until = Instant::now() + PATIENCE;
        let mut before: Vec<Event> = Vec::new();
        for kind in kinds {
            let event = loop {
                let left = until.saturating_duration_since(Instant::now());
                let Some(event) = self.events.next_within(left) else {
                    bail!("'{kind}' by {cause} was not told, but {before:?}");
                };
                before.push(event);
                if event.kind == *kind {
                    break event;
                }
                ensure!(event.kind == EventKind::Breaking, "no '{kind}' but {event:?}");
            };
            let inside = event.part.start <= part.start && part.end <= event.part.end;
            ensure!(inside, "'{kind}' was told of {}, not of {part}", event.part);
            let name = event.cause.name();
            let known = name == cause || *kind == EventKind::Restored;
            ensure!(known, "'{kind}' was told by {name}, not {cause}");
        }
        Ok(())
    }

    /// The next event says that an operation has begun.
    pub fn breaking(&self) -> Result<()> {
        match self.events.next_within(PATIENCE) {
            Some(event) if event.kind == EventKind::Breaking => Ok(()),
            other => bail!("no '{}' but {other:?}", EventKind::Breaking),
        }
    }

    /// An event of this kind is about `part`, whatever else is told before.
    pub fn told_some_time(&self, kind: EventKind, part: Part) -> Result<()> {
        let until = Instant::now() + PATIENCE;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            let Some(event) = self.events.next_within(left) else {
                bail!("'{kind}' was not told of {part}");
            };
            if event.kind == kind && event.part.start <= part.start && part.end <= event.part.end {
                return Ok(());
            }
        }
    }

    /// Events of these kinds are told in this order, each about `part`, and all breaks that are told
    /// meanwhile are of this cause.
    pub fn told_among(&self, kinds: &[EventKind], cause: &str, part: Part) -> Result<()> {
        let until = Instant::now() + PATIENCE;
        for kind in kinds {
            loop {
                let left = until.saturating_duration_since(Instant::now());
                let Some(event) = self.events.next_within(left) else {
                    bail!("'{kind}' was not told of {part}");
                };
                let known = event.cause.name() == cause || event.kind == EventKind::Restored;
                ensure!(known, "no {cause}, but {event:?}");
                let inside = event.part.start <= part.start && part.end <= event.part.end;
                if event.kind == *kind && inside {
                    break;
                }
            }
        }
        Ok(())
    }

    /// What is told until nothing is for a while is the rest of something of this cause: a look in the
    /// middle of an operation makes two breaks of one.
    pub fn nothing_told_but(&self, cause: &str) -> Result<()> {
        for _ in 0..6 {
            match self.events.next_within(SILENCE) {
                None => return Ok(()),
                Some(event) => {
                    let name = event.cause.name();
                    ensure!(name == cause, "nothing was taken away, and told was {event:?}");
                }
            }
        }
        bail!("'{cause}' is told over and over")
    }

    /// Nothing breaks for a while.
    pub fn nothing_told(&self) -> Result<()> {
        match self.events.next_within(SILENCE) {
            None => Ok(()),
            Some(event) => bail!("nothing was taken away, and told was {event:?}"),
        }
    }
}
