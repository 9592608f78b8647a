//! The two ends of a test: devices opened, regions registered, queue pairs connected.
//!
//! By default both ends are in this process, on two NICs of one emulated NIC process that is
//! started for the command. With `--server` or `--connect`, this process has one end and a TCP
//! connection to the process that has the other. A [`Session`] has whichever ends are here: the
//! *active* one starts each exchange, the *passive* one answers.

mod end;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context as _;
use clap::Args;
use holdfast::connect::{Exchange, Listener};
use holdfast::cores::{self, Core, CoreOptions};
use holdfast::dma::RingMemory;
use holdfast::{
    Completion, CompletionQueue, Device, DeviceAddress, EmulatedNic, EmulatedOptions, Source,
};

use super::affinity::Placement;
use super::child::NicChild;
use super::patience::Patience;
use super::{Usage, interrupt, parse};

pub use end::{End, Shape};

/// Longest message there is room for: a region, of 1 GiB at most, has a buffer to send from and one
/// to receive into.
pub const LARGEST_MESSAGE: usize = 512 << 20;

/// Which devices, and where things run.
#[derive(Debug, Clone, Args)]
pub struct DeviceOptions {
    /// Device: emulated, vfio-user:PATH, or a PCI address; given twice, one for each end
    #[arg(long = "device", value_name = "DEVICE", default_value = "emulated")]
    pub devices: Vec<DeviceAddress>,

    /// Processor of the measuring thread [default: the last one allowed]
    #[arg(long, value_name = "N")]
    pub cpu: Option<usize>,

    /// Processor of the emulated NIC [default: another one, where there are two]; of a NIC that
    /// runs already, where it is
    #[arg(long, value_name = "N")]
    pub nic_cpu: Option<usize>,

    /// NUMA node of the memory of the rings [default: that of the measuring thread's processor]
    #[arg(long, value_name = "N")]
    pub ring_node: Option<u32>,

    /// Run the emulated NIC on threads of this process
    #[arg(long, hide = true)]
    pub in_process: bool,
}

/// Which devices, and whether the other end is in another process.
#[derive(Debug, Clone, Args)]
pub struct EndpointOptions {
    #[command(flatten)]
    pub device: DeviceOptions,

    /// Be the passive end: wait here for another process
    #[arg(long, value_name = "HOST:PORT", conflicts_with = "connect")]
    pub server: Option<String>,

    /// Be the active end: connect to the process that waits there
    #[arg(long, value_name = "HOST:PORT")]
    pub connect: Option<String>,

    /// How long to wait for the other end, or for a sign of life of the device
    #[arg(long, value_name = "SECONDS", default_value = "10", value_parser = parse::seconds)]
    pub timeout: Duration,
}

impl DeviceOptions {
    /// The devices as they were given.
    pub fn name(&self) -> String {
        let names: Vec<String> = self.devices.iter().map(ToString::to_string).collect();
        names.join(",")
    }

    /// Where the measuring thread and the NIC run; of a NIC that is not started here, only what
    /// the user says is known. Ask before the thread is bound.
    pub fn placement(&self) -> Placement {
        let placement = Placement::choose(self.cpu, self.nic_cpu, &cores::allowed());
        let started_here = self.devices.contains(&DeviceAddress::Emulated);
        Placement { nic: placement.nic.filter(|_| started_here).or(self.nic_cpu), ..placement }
    }

    /// Puts the rings where they are to be.
    fn place_rings(&self, device: &Device, placement: Placement) -> anyhow::Result<()> {
        if let Some(node) = self.ring_node {
            return device.prefer_ring_node(Some(node)).context("--ring-node");
        }
        // A processor's node may have no memory: then wherever the kernel takes it.
        let near = placement.bench.and_then(cores::node_of);
        Ok(device.prefer_ring_node(near).or_else(|_| device.prefer_ring_node(None))?)
    }
}

impl EndpointOptions {
    /// Options for both ends in this process.
    pub fn local(device: DeviceOptions, timeout: Duration) -> Self {
        Self { device, server: None, connect: None, timeout }
    }

    /// Which ends are in this process: the active one, and the passive one.
    pub fn here(&self) -> (bool, bool) {
        (self.server.is_none(), self.server.is_some() || self.connect.is_none())
    }

    /// Refuses what cannot work.
    pub fn check(&self) -> anyhow::Result<()> {
        let devices = &self.device.devices;
        let remote = self.server.is_some() || self.connect.is_some();
        if devices.len() > 2 || (remote && devices.len() > 1) {
            let most = if remote { "one --device (this end's)" } else { "two --device" };
            return Err(Usage::error(format!("{} devices given; at most {most}", devices.len())));
        }
        if let Some(cpu) = self.device.cpu {
            cores::pin(cpu).map_err(|error| Usage::error(format!("--cpu {cpu}: {error}")))?;
        }
        let emulated = devices.contains(&DeviceAddress::Emulated);
        if remote && emulated {
            return Err(Usage::error(
                "--server and --connect need NICs that are joined, and each process would start \
                 an emulated one of its own. Serve two, and give each process one:\n  \
                 holdfast nic --socket /tmp/a.sock --socket /tmp/b.sock\n  \
                 ... --server 127.0.0.1:18515 --device vfio-user:/tmp/a.sock\n  \
                 ... --connect 127.0.0.1:18515 --device vfio-user:/tmp/b.sock",
            ));
        }
        if emulated && devices.len() > 1 {
            return Err(Usage::error(
                "'emulated' already stands for two NICs, one for each end; give it alone",
            ));
        }
        Ok(())
    }
}

/// The ends that are in this process.
#[derive(Debug)]
pub struct Session {
    /// The end that starts each exchange.
    pub active: Option<End>,
    /// The end that answers.
    pub passive: Option<End>,
    /// The connection to the other process, if there is one.
    pub exchange: Option<Exchange>,
    /// What to wait for at most.
    pub timeout: Duration,
    /// Messages sent so far, where they are counted.
    pub round: u64,
    /// The calling thread, prepared for polling.
    pub core: Core,
    // Ends after the ends.
    _nic: Option<Nic>,
}

/// The emulated NIC of a session.
#[derive(Debug)]
enum Nic {
    Child(#[expect(dead_code, reason = "kept for its end")] NicChild),
    Threads(#[expect(dead_code, reason = "kept for its end")] EmulatedNic),
}

impl Session {
    /// Starts the NIC, if it is this command's to start, connects the ends, with rings near the
    /// measuring thread's processor, and binds the calling thread to that for as long as the session
    /// is there (only now: the NIC's process and the threads of guards would inherit that). Call it on
    /// the main thread: the NIC's process ends with the thread that started it.
    pub fn start(
        options: &EndpointOptions,
        placement: Placement,
        shape: &Shape,
    ) -> anyhow::Result<Self> {
        let (devices, nic) = open(&options.device, placement)?;
        let (first, second) = devices;
        for device in [&first, &second] {
            interrupt::stop_at_removal(device);
            options.device.place_rings(device, placement)?;
        }
        interrupt::check()?;
        let mut session = Self {
            active: None,
            passive: None,
            exchange: None,
            timeout: options.timeout,
            round: 0,
            core: Core::default(),
            _nic: nic,
        };
        let cpu = placement.bench;
        match (&options.server, &options.connect) {
            (Some(address), _) => {
                session.serve(address, End::new(first, &shape.region, shape, cpu)?, shape)?;
            }
            (None, Some(address)) => {
                session.call(address, End::new(first, &Source::Memfd, shape, cpu)?, shape)?;
            }
            (None, None) => {
                let mut active = End::new(first, &Source::Memfd, shape, cpu)?;
                let mut passive = End::new(second, &shape.region, shape, cpu)?;
                let (a, p) = (active.describe(shape), passive.describe(shape));
                active.connect(&p)?;
                passive.connect(&a)?;
                (session.active, session.passive) = (Some(active), Some(passive));
            }
        }
        session.core = Core::prepare(&CoreOptions { cpu: placement.bench, ..Default::default() })?;
        Ok(session)
    }

    fn serve(&mut self, address: &str, mut end: End, shape: &Shape) -> anyhow::Result<()> {
        let listener = Listener::bind(address)?;
        eprintln!("waiting for the other end on {}", listener.local_address()?);
        let mut exchange = listener.accept(self.timeout, Some(interrupt::requested))?;
        end.meet(&mut exchange, shape)?;
        (self.passive, self.exchange) = (Some(end), Some(exchange));
        Ok(())
    }

    fn call(&mut self, address: &str, mut end: End, shape: &Shape) -> anyhow::Result<()> {
        let mut exchange = Exchange::connect(address, self.timeout, Some(interrupt::requested))?;
        end.meet(&mut exchange, shape)?;
        (self.active, self.exchange) = (Some(end), Some(exchange));
        Ok(())
    }

    /// A watch over waiting loops.
    pub fn watch(&self) -> Patience {
        let ends = self.active.iter().chain(&self.passive);
        Patience::new(self.timeout).over(ends.map(|end| &end.device))
    }

    /// What the rings of an end that is here lie in.
    pub fn ring_memory(&self) -> Option<RingMemory> {
        self.active.as_ref().or(self.passive.as_ref())?.device.ring_memory()
    }

    /// Waits until the other process has come to the same point, if there is one; for as long as
    /// `extra` beyond the usual time.
    pub fn line_up(&mut self, name: &str, extra: Duration) -> anyhow::Result<()> {
        if let Some(exchange) = &mut self.exchange {
            exchange.set_timeout(self.timeout + extra);
            exchange.barrier(name)?;
        }
        Ok(())
    }
}

/// Takes one completion from `cq`, waiting for it, and fails unless it is a success.
#[inline]
pub fn wait_for(
    cq: &mut CompletionQueue,
    watch: &mut Patience,
    what: &'static str,
) -> anyhow::Result<Completion> {
    let mut completion = [Completion::default()];
    while cq.poll(&mut completion)? == 0 {
        watch.tick(what)?;
    }
    watch.progress();
    succeeded(&completion[0])?;
    Ok(completion[0])
}

/// Fails unless the completion is a success.
#[inline(always)]
pub fn succeeded(completion: &Completion) -> Result<(), Failed> {
    if completion.is_success() { Ok(()) } else { Err(Failed(*completion)) }
}

/// A work request was not carried out.
#[derive(Debug, thiserror::Error)]
#[error(
    "a work request failed: {:?} ({:?}, device's own code {:#x})",
    .0.status, .0.opcode, .0.vendor_err
)]
pub struct Failed(pub Completion);

/// Errors that a measuring loop counts, from how it ended: a work request that was not carried out
/// ends the loop and counts, all else ends the command.
pub fn failures(ended: anyhow::Result<()>) -> anyhow::Result<u64> {
    match ended {
        Ok(()) => Ok(0),
        Err(error) if error.is::<Failed>() => {
            tracing::error!("the measurement ends early: {error}");
            Ok(1)
        }
        Err(error) => Err(error),
    }
}

/// The devices of both ends (the same one twice, where one was named), and the NIC, if it was
/// started here.
fn open(
    options: &DeviceOptions,
    placement: Placement,
) -> anyhow::Result<((Device, Device), Option<Nic>)> {
    let open = |address: &DeviceAddress| {
        Device::open(address).with_context(|| format!("cannot open {address}"))
    };
    match options.devices.as_slice() {
        [DeviceAddress::Emulated] => {
            let (devices, nic) = start_nic(options.in_process, placement)?;
            Ok((devices, Some(nic)))
        }
        [one] => {
            let device = open(one)?;
            Ok(((device.clone(), device), None))
        }
        [first, second, ..] => Ok(((open(first)?, open(second)?), None)),
        [] => Err(Usage::error("no device given")),
    }
}

/// Starts a NIC process with two NICs, one for each end.
fn start_nic(in_process: bool, placement: Placement) -> anyhow::Result<((Device, Device), Nic)> {
    // A processor of its own is worth polling on.
    let poll = placement.nic.is_some() && placement.nic != placement.bench;
    if in_process {
        let options = EmulatedOptions { nics: 2, cpu: placement.nic, poll };
        let nics = EmulatedNic::start(options)?;
        return Ok(((nics.open(0)?, nics.open(1)?), Nic::Threads(nics)));
    }
    let nic = NicChild::start(2, placement.nic, poll)?;
    let open = |socket: &PathBuf| Device::open(&DeviceAddress::VfioUser(socket.clone()));
    let devices = (open(&nic.sockets()[0])?, open(&nic.sockets()[1])?);
    Ok((devices, Nic::Child(nic)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_nic_that_is_started_here_is_given_a_processor() {
        let nic = |device: &str, nic_cpu| {
            let devices = vec![device.parse().unwrap()];
            let options =
                DeviceOptions { devices, cpu: None, nic_cpu, ring_node: None, in_process: false };
            options.placement().nic
        };
        let two = cores::allowed().len() > 1;
        assert_eq!(nic("emulated", None).is_some(), two);
        assert_eq!(nic("vfio-user:/tmp/a.sock", None), None, "it may be anywhere");
        for device in ["emulated", "vfio-user:/tmp/a.sock", "0000:03:00.0"] {
            assert_eq!(nic(device, Some(0)), Some(0), "{device}");
        }
    }

    #[test]
    fn a_failed_request_is_counted_and_any_other_error_is_not() {
        let failed = Failed(Completion::default());
        assert_eq!(failures(Ok(())).unwrap(), 0);
        assert_eq!(failures(Err(failed.into())).unwrap(), 1);
        assert!(failures(Err(interrupt::Interrupted.into())).is_err());
    }
}
