//! The processor: the one thread that owns the engine and with it every queue of every NIC.
//!
//! [`Processor::turn`] is one round: take messages from the server threads, look at the doorbells
//! of each NIC, let the engine work, and pass a quiescent point after each call into it. A round
//! does a bounded amount of work and waits for nobody (the one lock it takes, a vector's when an
//! interrupt is due, is held elsewhere only to exchange a descriptor), so it can be stepped by hand
//! as well (tests and fuzzing do); `Processor::run` is the thread's loop around it, which decides
//! when to sleep.
//!
//! While awake the readers of all NICs are online, so a `DMA_UNMAP` waits for the current call to
//! end; before sleeping they go offline, and nobody waits for a sleeper.

pub mod bell;
mod clock;
mod lane;
mod run;

use std::sync::Arc;

use crossbeam::channel::{Receiver, Sender};
use holdfast_wire::regs::VERSION_QP_HANDLE;
use serde::Serialize;

use crate::engine::{Counters, Engine, LinkSocket, LinkStatus, NicConfig};
use crate::memory::{Reader, Space};
use crate::pvrdma::irq::Irqs;
use crate::pvrdma::{DeviceConfig, Front, FrontCounters, UarPages};
use bell::Bell;
use clock::Clock;
use lane::Lane;
pub use run::PollMode;

/// What server and control threads ask of the processor.
#[derive(Debug)]
pub(crate) enum Mail {
    /// Read a register.
    Read { nic: usize, offset: u64, reply: Sender<u32> },
    /// Write a register.
    Write { nic: usize, offset: u64, value: u32, reply: Sender<u32> },
    /// A doorbell that came as a message.
    Doorbell { nic: usize, offset: u64, word: u32, reply: Sender<u32> },
    /// A client with these doorbell pages arrived.
    Connected { nic: usize, pages: Arc<UarPages>, reply: Sender<u32> },
    /// Forget everything the client made; with `gone`, its doorbell pages as well.
    Reset { nic: usize, gone: bool, reply: Sender<u32> },
    /// Tell what was counted.
    Report { reply: Sender<Report> },
    /// Join another process.
    Link(LinkSocket),
    /// End the loop.
    Stop,
}

/// What a NIC process tells of itself.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// One per NIC.
    pub nics: Vec<NicReport>,
    /// One per link to another process.
    pub links: Vec<LinkStatus>,
    /// Rounds of the processor's loop so far.
    pub turns: u64,
    /// Times it went to sleep.
    pub sleeps: u64,
}

/// What one NIC tells of itself.
#[derive(Debug, Clone, Serialize)]
pub struct NicReport {
    /// A client is connected.
    pub connected: bool,
    /// Queue pairs.
    pub queue_pairs: u32,
    /// Mappings of its IOVA space.
    pub mappings: usize,
    /// Bytes mapped.
    pub mapped_bytes: u64,
    /// Interrupts delivered.
    pub interrupts: u64,
    /// What the engine counted.
    pub engine: Counters,
    /// What the front counted.
    pub front: FrontCounters,
}

/// The engine, its NICs and the mailbox. See the [module](self).
pub struct Processor {
    engine: Engine<Front>,
    lanes: Vec<Lane>,
    mail: Receiver<Mail>,
    bell: Arc<Bell>,
    clock: Clock,
    now: u64,
    turns: u64,
    sleeps: u64,
    stopped: bool,
}

/// What one round did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Turn {
    /// Something was done, so more may follow at once.
    pub busy: bool,
    /// When the next timer expires, on the processor's clock in nanoseconds.
    pub deadline: Option<u64>,
}

/// Most messages taken per round.
const MAIL_PER_TURN: usize = 32;
/// The clock is read every so many rounds without work.
const CLOCK_EVERY: u64 = 16;

impl Processor {
    pub(crate) fn new(mail: Receiver<Mail>, bell: Arc<Bell>) -> Self {
        Self {
            engine: Engine::new(),
            lanes: Vec::new(),
            mail,
            bell,
            clock: Clock::new(),
            now: 0,
            turns: 0,
            sleeps: 0,
            stopped: false,
        }
    }

    /// Adds a NIC over `space`, whose reader this is.
    pub(crate) fn add_nic(
        &mut self,
        space: Arc<Space>,
        reader: Reader,
        irqs: Arc<Irqs>,
        device: DeviceConfig,
        config: NicConfig,
    ) -> usize {
        let front = Front::new(reader, irqs.clone(), device.version);
        let nic = self.engine.add_nic(front, config);
        if device.version < VERSION_QP_HANDLE {
            // These drivers know no handles but the numbers.
            self.engine.number_from(nic, 0);
        }
        self.lanes.push(Lane::new(nic, device, space, irqs));
        self.lanes.len() - 1
    }

    /// Takes all readers online. Rounds may follow.
    pub fn online(&mut self) {
        for lane in &self.lanes {
            self.engine.host(lane.nic()).reader().online();
        }
        self.now = self.clock.now();
    }

    /// Takes all readers offline, so that nobody waits for this thread.
    pub fn offline(&mut self) {
        for lane in &self.lanes {
            self.engine.host(lane.nic()).reader().offline();
        }
    }

    /// One round; the readers are online.
    #[inline]
    pub fn turn(&mut self) -> Turn {
        self.turns = self.turns.wrapping_add(1);
        if self.turns.is_multiple_of(CLOCK_EVERY) {
            self.now = self.clock.now();
        }
        let mut busy = false;
        if self.bell.take() {
            busy = true;
            self.take_mail();
        }
        for lane in 0..self.lanes.len() {
            busy |= Lane::poll(&mut self.lanes, lane, &mut self.engine, self.now);
            let front = self.engine.host(self.lanes[lane].nic());
            if front.has_unsent() {
                busy |= front.send_unsent();
            }
        }
        let progress = self.engine.poll(self.now);
        quiesce(&mut self.engine, &self.lanes);
        if progress.did_work {
            self.now = self.clock.now();
        }
        Turn {
            busy: busy | progress.did_work | progress.more_to_do,
            deadline: progress.next_deadline,
        }
    }

    #[cold]
    fn take_mail(&mut self) {
        self.now = self.clock.now();
        for _ in 0..MAIL_PER_TURN {
            let Ok(mail) = self.mail.try_recv() else { return };
            self.handle(mail);
            quiesce(&mut self.engine, &self.lanes);
        }
        // There may be more: look again in the next round.
        self.bell.ring();
    }

    fn handle(&mut self, mail: Mail) {
        // A reply that nobody waits for any more is no error.
        match mail {
            Mail::Read { nic, offset, reply } => {
                let _ = reply.send(self.read_register(nic, offset));
            }
            Mail::Write { nic, offset, value, reply } => {
                if self.lanes[nic].accepts_early(offset, value) {
                    self.lanes[nic].device.accept_request();
                    let _ = reply.send(0);
                    self.lanes[nic].device.run_accepted(&mut self.engine);
                } else {
                    self.write_register(nic, offset, value);
                    let _ = reply.send(0);
                }
            }
            Mail::Doorbell { nic, offset, word, reply } => {
                self.ring_doorbell(nic, offset, word);
                let _ = reply.send(0);
            }
            Mail::Connected { nic, pages, reply } => {
                self.connect(nic, pages);
                let _ = reply.send(0);
            }
            Mail::Reset { nic, gone, reply } => {
                self.reset(nic, gone);
                let _ = reply.send(0);
            }
            Mail::Report { reply } => {
                let _ = reply.send(self.report());
            }
            Mail::Link(stream) => {
                let bell = self.bell.clone();
                match self.engine.add_link(stream, Box::new(move || bell.ring())) {
                    Ok(link) => tracing::info!(?link, "joined another NIC process"),
                    Err(error) => tracing::error!(%error, "another NIC process cannot be joined"),
                }
            }
            Mail::Stop => self.stopped = true,
        }
    }

    /// Reads a register of a NIC.
    pub fn read_register(&mut self, nic: usize, offset: u64) -> u32 {
        let lane = &self.lanes[nic];
        lane.device.read(self.engine.host(lane.nic()), offset)
    }

    /// Writes a register of a NIC.
    pub fn write_register(&mut self, nic: usize, offset: u64, value: u32) {
        self.lanes[nic].device.write(&mut self.engine, offset, value);
    }

    /// Does what a 32-bit store to a NIC's doorbell region asks for.
    pub fn ring_doorbell(&mut self, nic: usize, offset: u64, word: u32) {
        self.lanes[nic].device.doorbell(&mut self.engine, offset, word, self.now);
    }

    /// A NIC's client arrived; these are its doorbell pages.
    pub fn connect(&mut self, nic: usize, pages: Arc<UarPages>) {
        self.lanes[nic].connect(pages);
    }

    /// Forgets everything that a NIC's client made.
    pub fn reset(&mut self, nic: usize, gone: bool) {
        self.lanes[nic].reset(&mut self.engine, gone);
    }

    /// What was counted so far.
    pub fn report(&mut self) -> Report {
        let mut nics = Vec::with_capacity(self.lanes.len());
        for lane in &self.lanes {
            let (mappings, bytes) = lane.space.mapped();
            let engine = self.engine.counters(lane.nic()).clone();
            let front = self.engine.host(lane.nic());
            nics.push(NicReport {
                connected: lane.is_connected(),
                queue_pairs: front.live_qps(),
                mappings,
                mapped_bytes: bytes,
                interrupts: lane.irqs.fired(),
                engine,
                front: front.counters(),
            });
        }
        Report { nics, links: self.engine.links(), turns: self.turns, sleeps: self.sleeps }
    }
}

/// A quiescent point for all NICs: one call may have touched the memory of several.
#[inline]
fn quiesce(engine: &mut Engine<Front>, lanes: &[Lane]) {
    for lane in lanes {
        engine.host(lane.nic()).reader().quiesce();
    }
}

impl std::fmt::Debug for Processor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Processor({} NICs)", self.lanes.len())
    }
}
