//! The remote peer: a thread that writes a region of another NIC without pause, page after page,
//! and knows nothing of files.
//!
//! Every word that it writes is a mark that no other data has, with the number of an *epoch*: what
//! was written before an operation can so be told from what was written after it.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use holdfast::{
    Access, Completion, CompletionQueue, Device, Memory, MemoryRegion, Populate, ProtectionDomain,
    QueuePair, QueuePairOptions, Remote, SendFlags, Source,
};

/// Bytes of one request.
pub const BLOCK: usize = 4096;
/// Requests under way at a time.
const DEPTH: usize = 16;
/// How long the device may complete nothing.
const SILENCE: Duration = Duration::from_secs(20);

const MARK: u64 = 0x5eed_5a57;

/// What the peer writes in an epoch, in every word.
pub fn mark(epoch: u32) -> u64 {
    MARK << 32 | u64::from(epoch)
}

/// The epochs of the marks among aligned words.
pub fn epochs(bytes: &[u8]) -> impl Iterator<Item = u32> + '_ {
    bytes.chunks_exact(8).filter_map(|chunk| {
        let word = u64::from_ne_bytes(chunk.try_into().ok()?);
        (word >> 32 == MARK).then_some(word as u32)
    })
}

/// How many aligned words are marks.
pub fn marks(bytes: &[u8]) -> u64 {
    epochs(bytes).count() as u64
}

/// A part of the writing side's world: where it writes.
#[derive(Debug, Clone, Copy)]
pub struct Target {
    pub addr: u64,
    pub len: u64,
    pub rkey: u32,
}

/// What everybody sees of a peer.
#[derive(Debug, Default)]
pub struct Progress {
    stop: AtomicBool,
    epoch: AtomicU32,
    passes: AtomicU64,
    done: AtomicU64,
    failed: AtomicU64,
    reconnects: AtomicU64,
    statuses: Mutex<BTreeMap<String, u64>>,
}

impl Progress {
    /// Requests that were carried out.
    pub fn done(&self) -> u64 {
        self.done.load(Ordering::Relaxed)
    }

    /// Requests that were not (those flushed after one that failed are not counted).
    pub fn failed(&self) -> u64 {
        self.failed.load(Ordering::Relaxed)
    }

    /// How often the connection was made anew.
    pub fn reconnects(&self) -> u64 {
        self.reconnects.load(Ordering::Relaxed)
    }

    /// Failures by their status.
    pub fn statuses(&self) -> BTreeMap<String, u64> {
        self.statuses.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The epoch of what is written now.
    pub fn epoch(&self) -> u32 {
        self.epoch.load(Ordering::Acquire)
    }

    /// From the next pass on, marks have the next number.
    pub fn next_epoch(&self) {
        self.epoch.fetch_add(1, Ordering::AcqRel);
    }
}

/// A queue pair of the peer's that is connected to the other side, at first and whenever the last
/// one has failed; `None` when there is no other side any more.
pub type Connect = Box<dyn FnMut() -> Result<Option<(QueuePair, CompletionQueue)>> + Send>;

/// A device, and a protection domain of it.
#[derive(Debug, Clone)]
pub struct Side {
    pub device: Device,
    pub pd: ProtectionDomain,
}

impl Side {
    /// Opens a protection domain on a device.
    pub fn new(device: &Device) -> Result<Self> {
        Ok(Self { device: device.clone(), pd: device.protection_domain()? })
    }

    /// A queue pair with a completion queue of its own.
    pub fn queue_pair(&self) -> Result<(QueuePair, CompletionQueue)> {
        let cq = self.device.completion_queue(4 * DEPTH as u32)?;
        let options = QueuePairOptions {
            send_depth: DEPTH as u32,
            recv_depth: DEPTH as u32,
            ..QueuePairOptions::default()
        };
        Ok((self.pd.queue_pair(&options, &cq, &cq)?, cq))
    }
}

/// A peer that writes.
pub struct Peer {
    progress: Arc<Progress>,
    thread: Option<JoinHandle<Result<()>>>,
}

impl Peer {
    /// Starts to write `targets`, over and over.
    pub fn start(side: &Side, targets: Vec<Target>, connect: Connect) -> Result<Self> {
        let memory = Memory::open(&Source::Memfd, 2 * BLOCK, Populate::Yes)?;
        let source = side.pd.register(memory, Access::LOCAL_READ)?;
        let progress = Arc::new(Progress::default());
        let shared = Arc::clone(&progress);
        let mut writer = Writer { source, targets, connect, progress: shared };
        let thread = std::thread::Builder::new()
            .name("peer".to_owned())
            .spawn(move || writer.run())
            .context("starting the peer's thread")?;
        Ok(Self { progress, thread: Some(thread) })
    }

    /// How far it is.
    pub fn progress(&self) -> &Progress {
        &self.progress
    }

    /// Waits until it has written everything at least once from now on.
    pub fn pass(&mut self, patience: Duration) -> Result<()> {
        // The pass under way, and the next one, of which the first requests may have been posted.
        let target = self.progress.passes.load(Ordering::Acquire) + 3;
        let start = Instant::now();
        while self.progress.passes.load(Ordering::Acquire) < target {
            self.check()?;
            ensure!(start.elapsed() < patience, "the peer has written nothing for {patience:?}");
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }

    /// Whether it still writes.
    pub fn check(&mut self) -> Result<()> {
        if self.thread.as_ref().is_some_and(|thread| thread.is_finished()) {
            self.stop()?;
            bail!("the peer has stopped writing");
        }
        Ok(())
    }

    /// Ends it.
    pub fn stop(&mut self) -> Result<()> {
        self.progress.stop.store(true, Ordering::Release);
        match self.thread.take().map(JoinHandle::join) {
            None => Ok(()),
            Some(Ok(result)) => result.context("the peer"),
            Some(Err(_)) => Err(anyhow!("the peer's thread panicked")),
        }
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        if let Err(error) = self.stop() {
            eprintln!("lab-storm: {error:#}");
        }
    }
}

struct Writer {
    source: MemoryRegion,
    targets: Vec<Target>,
    connect: Connect,
    progress: Arc<Progress>,
}

impl Writer {
    fn run(&mut self) -> Result<()> {
        let places: Vec<Remote> = self.targets.iter().flat_map(places).collect();
        ensure!(places.len() > DEPTH, "too little to write: {} blocks", places.len());
        while !self.stopped() {
            let connected = (self.connect)().context("connecting to the other side")?;
            let Some((mut qp, mut cq)) = connected else { return Ok(()) };
            let whole = self.write_on(&mut qp, &mut cq, &places)?;
            if !whole {
                self.progress.reconnects.fetch_add(1, Ordering::Relaxed);
            }
        }
        Ok(())
    }

    fn stopped(&self) -> bool {
        self.progress.stop.load(Ordering::Acquire)
    }

    /// Writes until told to stop (`true`) or until a request fails (`false`).
    fn write_on(
        &self,
        qp: &mut QueuePair,
        cq: &mut CompletionQueue,
        places: &[Remote],
    ) -> Result<bool> {
        let (mut posted, mut done) = (0_usize, 0_usize);
        let mut completions = [Completion::default(); DEPTH];
        let mut heard = Instant::now();
        loop {
            let stop = self.stopped();
            if stop && posted == done {
                return Ok(true);
            }
            while !stop && posted - done < DEPTH {
                let (pass, at) = (posted / places.len(), posted % places.len());
                let buffer = pass % 2 * BLOCK;
                if at == 0 {
                    // Nothing of the pass before the last one is under way any more.
                    self.fill(buffer)?;
                }
                let local = [self.source.slice(buffer, BLOCK)?];
                qp.write(posted as u64, &local, places[at], SendFlags::SIGNALED)?;
                posted += 1;
            }
            qp.ring_sends();
            let count = cq.poll(&mut completions)?;
            for completion in &completions[..count] {
                if !completion.is_success() {
                    self.note_failure(completion);
                    return Ok(false);
                }
                done += 1;
                if done.is_multiple_of(places.len()) {
                    self.progress.passes.fetch_add(1, Ordering::Release);
                }
            }
            self.progress.done.fetch_add(count as u64, Ordering::Relaxed);
            if count > 0 {
                heard = Instant::now();
            } else {
                ensure!(heard.elapsed() < SILENCE, "the device completes nothing any more");
                std::thread::yield_now();
            }
        }
    }

    fn fill(&self, offset: usize) -> Result<()> {
        let word = mark(self.progress.epoch()).to_ne_bytes();
        let block: Vec<u8> = word.iter().copied().cycle().take(BLOCK).collect();
        Ok(self.source.memory().write_at(offset, &block)?)
    }

    fn note_failure(&self, completion: &Completion) {
        self.progress.failed.fetch_add(1, Ordering::Relaxed);
        let mut statuses = self.progress.statuses.lock().unwrap_or_else(PoisonError::into_inner);
        *statuses.entry(format!("{:?}", completion.status)).or_default() += 1;
    }
}

/// The blocks of a target.
fn places(target: &Target) -> impl Iterator<Item = Remote> {
    let Target { addr, len, rkey } = *target;
    (0..len / BLOCK as u64).map(move |n| Remote { addr: addr + n * BLOCK as u64, rkey })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_tells_its_epoch_and_other_words_are_none() {
        let mut bytes = Vec::new();
        for word in [mark(3), 0, mark(u32::MAX), u64::MAX, mark(3) ^ 1 << 63] {
            bytes.extend_from_slice(&word.to_ne_bytes());
        }
        assert_eq!(epochs(&bytes).collect::<Vec<_>>(), [3, u32::MAX]);
        assert_eq!(marks(&bytes), 2);
    }
}
