//! All objects of the process, and the commands that make, change and destroy them.
//!
//! Commands take addresses of structures that were given out and find the objects behind them; a
//! structure itself is never read back. `objects` has the tables, `work` what moves data, the other
//! rooms the commands.

mod attributes;
mod completions;
mod device;
mod objects;
mod queues;
mod regions;
mod work;

use std::io;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use holdfast_nic::engine::{Engine, Limits, MissPolicy, NicConfig, NicId};

use crate::abi;
use crate::config::{Config, LinkConfig, MAX_GIDS};
use crate::error::Error;
use crate::exports;
use crate::face::Face;
use crate::hca::Hca;
use objects::{Ah, Chan, Context, Cq, Mr, Objects, Pd, Qp, RetiredCq, Srq};

pub(crate) use work::{PostedRecv, PostedSend, Target};

/// Queue pairs of a device; their numbers stay below it.
const MAX_QP: u32 = 1024;
/// The only port.
const PORT: u8 = 1;
/// Rounds of the engine's work that a caller does before the thread takes over.
const ROUNDS: usize = 16;

/// When the engine wants to be called next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Due {
    Now,
    In(Duration),
    Never,
}

/// A device, which is there as long as the process.
struct Device {
    face: Face<abi::Device>,
    nic: NicId,
    guid: u64,
}

/// Everything behind the lock.
pub(crate) struct State {
    engine: Engine<Hca>,
    start: Instant,
    devices: Vec<Device>,
    links: Vec<LinkConfig>,
    has_links: bool,
    contexts: Objects<Context>,
    pds: Objects<Pd>,
    mrs: Objects<Mr>,
    ahs: Objects<Ah>,
    channels: Objects<Chan>,
    cqs: Objects<Cq>,
    srqs: Objects<Srq>,
    qps: Objects<Qp>,
    /// Destroyed completion queues with events that are not acknowledged.
    retired: Objects<RetiredCq>,
    /// Nanoseconds since `start` at which the engine wants a call; `u64::MAX` for never.
    due: u64,
    /// Until when the thread sleeps.
    planned: u64,
}

/// A pointer of C as a number, and back when it is given back.
fn pointer<T>(address: usize) -> *mut T {
    std::ptr::with_exposed_provenance_mut(address)
}

fn same_device(what: &'static str, a: NicId, b: NicId) -> Result<(), Error> {
    if a == b { Ok(()) } else { Err(Error::Stranger { what }) }
}

fn check_port(port: u8) -> Result<(), Error> {
    if port == PORT { Ok(()) } else { Err(Error::Invalid { what: "port", value: port.into() }) }
}

fn limits() -> Limits {
    Limits {
        max_qp: MAX_QP,
        max_gids: MAX_GIDS as u32 + 1,
        // QEMU asks for one entry more than its guest.
        max_cqe: 1 << 17,
        ..Limits::default()
    }
}

impl State {
    pub(crate) fn new(config: Config) -> Result<Self, Error> {
        let mut engine = Engine::new();
        let mut devices = Vec::new();
        for (index, device) in config.devices.into_iter().enumerate() {
            let nic_config = NicConfig { miss: MissPolicy::Fail, limits: limits() };
            let nic = engine.add_nic(Hca::new(device.name.clone(), config.log), nic_config);
            // A number is the handle: the general services one, 1, and 0 are nobody's.
            engine.number_from(nic, 0);
            for (gid, at) in device.gids.iter().zip(1..) {
                engine.bind_gid(nic, at, *gid)?;
            }
            let guid = 0x02_48_46 << 40 | u64::from(std::process::id()) << 16 | index as u64;
            devices.push(Device { face: exports::device_face(&device.name), nic, guid });
        }
        Ok(Self {
            engine,
            start: Instant::now(),
            devices,
            links: config.links,
            has_links: false,
            contexts: Objects::new("context"),
            pds: Objects::new("protection domain"),
            mrs: Objects::new("memory region"),
            ahs: Objects::new("address handle"),
            channels: Objects::new("completion channel"),
            cqs: Objects::new("completion queue"),
            srqs: Objects::new("shared receive queue"),
            qps: Objects::new("queue pair"),
            retired: Objects::new("completion queue"),
            due: u64::MAX,
            planned: u64::MAX,
        })
    }

    /// The sockets to join, once.
    pub(crate) fn take_links(&mut self) -> Vec<LinkConfig> {
        std::mem::take(&mut self.links)
    }

    pub(crate) fn add_link(
        &mut self,
        stream: UnixStream,
        waker: Box<dyn Fn() + Send>,
    ) -> io::Result<()> {
        self.has_links = true;
        self.engine.add_link(stream, waker).map(drop)
    }

    pub(crate) fn has_links(&self) -> bool {
        self.has_links
    }

    /// Nanoseconds; never 0.
    fn now(&self) -> u64 {
        self.start.elapsed().as_nanos() as u64 + 1
    }

    /// Runs the engine until it is idle, waits, or has had enough turns for one caller.
    pub(crate) fn settle(&mut self) {
        for _ in 0..ROUNDS {
            let now = self.now();
            let progress = self.engine.poll(now);
            self.due = match progress.next_deadline {
                _ if progress.more_to_do => 0,
                Some(deadline) => deadline,
                None => u64::MAX,
            };
            if self.due > now {
                return;
            }
        }
    }

    /// When the thread must come back, if nobody wakes it before.
    pub(crate) fn plan(&mut self) -> Due {
        let now = self.now();
        self.planned = self.due;
        match self.due {
            u64::MAX => Due::Never,
            due if due <= now => Due::Now,
            due => Due::In(Duration::from_nanos(due - now)),
        }
    }

    /// Whether the thread sleeps longer than it may.
    pub(crate) fn is_earlier_than_planned(&self) -> bool {
        self.due < self.planned
    }
}
