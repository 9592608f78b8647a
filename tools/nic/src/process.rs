//! A NIC process: the threads around one processor, started and stopped together.

use std::hash::{BuildHasher as _, Hasher as _, RandomState};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use crossbeam::channel::{Sender, bounded};
use holdfast_wire::regs::{VERSION_MAX, VERSION_MIN};

use crate::control;
use crate::engine::{LinkSocket, MissPolicy, NicConfig};
use crate::error::Error;
use crate::links::{self, LinkAddress, LinkListener};
use crate::memory::{MAX_MAPPINGS, Space};
use crate::processor::bell::Bell;
use crate::processor::{Mail, PollMode, Processor, Report};
use crate::pvrdma::irq::Irqs;
use crate::pvrdma::{DeviceConfig, NicBackend, caps};
use crate::server::{self, Listener, Shutdown, serve_connection};

/// How doorbells reach the NIC.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Doorbells {
    /// The client maps the doorbell pages: a doorbell is a store.
    #[default]
    Mapped,
    /// Each doorbell is a message, which no stock driver can lose.
    Trapped,
}

/// What a NIC process is made of.
#[derive(Debug, Clone)]
pub struct NicOptions {
    /// A NIC per path, each a vfio-user socket to listen on.
    pub sockets: Vec<PathBuf>,
    /// NICs besides, without a socket; served by [`NicProcess::serve_stream`]. Their numbers come
    /// after those of `sockets`.
    pub extra_nics: usize,
    /// Where other NIC processes may join.
    pub link_listen: Vec<LinkAddress>,
    /// NIC processes to join; they must be listening.
    pub link_connect: Vec<LinkAddress>,
    /// Where to serve counters.
    pub control: Option<PathBuf>,
    /// What to do on a translation miss.
    pub miss: MissPolicy,
    /// When the processor sleeps.
    pub poll: PollMode,
    /// How doorbells arrive.
    pub doorbells: Doorbells,
    /// Interface version, 17 to 20.
    pub version: u32,
    /// Answer a command's register write before executing it.
    pub async_commands: bool,
    /// CPU to pin the processor to.
    pub cpu: Option<usize>,
    /// Forget queues and regions when a client goes. Its memory is let go of in any case; without
    /// this its doorbell pages are looked at until the next client comes.
    pub reset_on_disconnect: bool,
}

impl Default for NicOptions {
    fn default() -> Self {
        Self {
            sockets: Vec::new(),
            extra_nics: 0,
            link_listen: Vec::new(),
            link_connect: Vec::new(),
            control: None,
            miss: NicConfig::default().miss,
            poll: PollMode::default(),
            doorbells: Doorbells::Mapped,
            version: VERSION_MAX,
            async_commands: false,
            cpu: None,
            reset_on_disconnect: true,
        }
    }
}

/// Messages that may wait for the processor; senders block beyond that.
const MAILBOX: usize = 1024;

/// A running NIC process. Dropping it shuts it down.
#[derive(Debug)]
pub struct NicProcess {
    shutdown: Shutdown,
    mail: Sender<Mail>,
    bell: Arc<Bell>,
    // One per NIC; locked by whoever serves a client of it.
    backends: Vec<Arc<Mutex<NicBackend>>>,
    with_socket: usize,
    links: Vec<LinkAddress>,
    servers: Mutex<Vec<JoinHandle<()>>>,
    processor: Option<JoinHandle<Option<Processor>>>,
}

impl NicProcess {
    /// Starts all threads. A socket path that somebody serves is refused; one that a dead process
    /// left is taken over.
    pub fn start(options: NicOptions) -> Result<Self, Error> {
        let count = options.sockets.len() + options.extra_nics;
        if count == 0 {
            return Err(Error::NoNics);
        }
        if !(VERSION_MIN..=VERSION_MAX).contains(&options.version) {
            return Err(Error::Version(options.version));
        }
        let sockets: Vec<_> =
            options.sockets.iter().map(Listener::bind).collect::<Result<_, _>>()?;
        let links: Vec<_> =
            options.link_listen.iter().map(LinkListener::bind).collect::<Result<_, _>>()?;
        let control = options.control.as_ref().map(Listener::bind).transpose()?;
        let joined: Vec<_> =
            options.link_connect.iter().map(links::connect).collect::<Result<_, _>>()?;

        let shutdown = Shutdown::new()?;
        let unplugged: Arc<[_]> = (0..count).map(|_| Arc::new(AtomicBool::new(false))).collect();
        let bell = Arc::new(Bell::new().map_err(Error::Bell)?);
        let (mail, mailbox) = bounded(MAILBOX);
        let mut processor = Processor::new(mailbox, bell.clone());
        let (mut backends, number) = (Vec::new(), any_number());
        for nic in 0..count {
            let (space, reader) = Space::new();
            let irqs = Arc::new(Irqs::default());
            let mapped_doorbells = options.doorbells == Doorbells::Mapped;
            let device = DeviceConfig {
                version: options.version,
                guid: guid(number, nic),
                mapped_doorbells,
                async_commands: options.async_commands,
                may_sleep: options.poll != PollMode::Always,
            };
            let config = NicConfig { miss: options.miss, limits: caps::limits() };
            let number = processor.add_nic(space.clone(), reader, irqs.clone(), device, config);
            backends.push(Arc::new(Mutex::new(NicBackend::new(
                number,
                space,
                irqs,
                mail.clone(),
                bell.clone(),
                mapped_doorbells,
                options.reset_on_disconnect,
                unplugged[nic].clone(),
            ))));
        }
        let mut this = Self {
            shutdown,
            mail,
            bell,
            backends,
            with_socket: sockets.len(),
            links: links.iter().map(|link| link.address().clone()).collect(),
            servers: Mutex::default(),
            processor: None,
        };
        // From here on an early return drops `this`, which stops what was started.
        this.start_processor(processor, &options)?;
        for stream in joined {
            add_link(&this.mail, &this.bell, stream);
        }
        for listener in links {
            this.start_link_server(listener)?;
        }
        for (nic, listener) in sockets.into_iter().enumerate() {
            this.start_server(nic, listener)?;
        }
        if let Some(listener) = control {
            this.start_control(listener, unplugged)?;
        }
        Ok(this)
    }

    fn start_processor(&mut self, processor: Processor, options: &NicOptions) -> Result<(), Error> {
        let (mode, cpu) = (options.poll, options.cpu);
        let (pinned, was_pinned) = bounded(1);
        let bell = self.bell.clone();
        let thread = spawn("nic-processor", move || {
            let result = cpu.map_or(Ok(()), pin);
            let runs = result.is_ok();
            let _ = pinned.send(result);
            let mut kept = Some(processor).filter(|_| runs);
            if let Some(processor) = &mut kept {
                // Whoever waits for an answer must learn of the end, however it came.
                let run = std::panic::AssertUnwindSafe(|| processor.run(mode));
                if std::panic::catch_unwind(run).is_err() {
                    tracing::error!(
                        "the NIC's processor failed; its clients get errors from now on"
                    );
                    kept = None;
                }
            }
            bell.close();
            kept
        })?;
        self.processor = Some(thread);
        match (was_pinned.recv(), cpu) {
            (Ok(Err(errno)), Some(cpu)) => Err(Error::Pin { cpu, errno }),
            _ => Ok(()),
        }
    }

    fn start_server(&self, nic: usize, listener: Listener) -> Result<(), Error> {
        let (backend, shutdown) = (self.backends[nic].clone(), self.shutdown.clone());
        self.keep(spawn("nic-server", move || {
            let mut backend = backend.lock().unwrap_or_else(PoisonError::into_inner);
            let ended = |end| tracing::info!(nic, ?end, "client gone");
            if let Err(error) = listener.serve(&mut *backend, &limits(), &shutdown, ended) {
                tracing::error!(nic, %error, "no more clients are served");
            }
        })?);
        Ok(())
    }

    fn start_link_server(&self, listener: LinkListener) -> Result<(), Error> {
        let shutdown = self.shutdown.clone();
        let (mail, bell) = (self.mail.clone(), self.bell.clone());
        self.keep(spawn("nic-link", move || {
            loop {
                match listener.accept(&shutdown) {
                    Ok(Some(stream)) => add_link(&mail, &bell, stream),
                    Ok(None) => return,
                    Err(error) => return tracing::error!(%error, "no more links are taken"),
                }
            }
        })?);
        Ok(())
    }

    fn start_control(
        &self,
        listener: Listener,
        unplugged: Arc<[Arc<AtomicBool>]>,
    ) -> Result<(), Error> {
        let shutdown = self.shutdown.clone();
        let (mail, bell) = (self.mail.clone(), self.bell.clone());
        self.keep(spawn("nic-control", move || {
            let unplug: control::Unplug = {
                let (mail, bell) = (mail.clone(), bell.clone());
                Arc::new(move |nic| {
                    unplugged.get(nic)?.store(true, Ordering::Release);
                    forget(nic, &mail, &bell)
                })
            };
            let ask: control::Ask = Arc::new(move || report(&mail, &bell));
            let subject = control::Subject { ask, unplug };
            if let Err(error) = control::serve(&listener, &subject, &shutdown) {
                tracing::error!(%error, "the control socket is no longer served");
            }
        })?);
        Ok(())
    }

    fn keep(&self, thread: JoinHandle<()>) {
        self.servers.lock().unwrap_or_else(PoisonError::into_inner).push(thread);
    }

    /// Serves one client of NIC `nic` (one of the `extra_nics`) over a connected stream, on a
    /// thread of its own. A client of the same NIC that is still there is waited for, there.
    pub fn serve_stream(&self, nic: usize, stream: UnixStream) -> Result<(), Error> {
        if nic < self.with_socket || nic >= self.backends.len() {
            return Err(Error::NoSuchNic(nic));
        }
        let (backend, shutdown) = (self.backends[nic].clone(), self.shutdown.clone());
        let thread = spawn("nic-server", move || {
            let mut backend = backend.lock().unwrap_or_else(PoisonError::into_inner);
            let end = serve_connection(stream, &mut *backend, &limits(), &shutdown);
            tracing::info!(nic, ?end, "client gone");
        })?;
        let mut servers = self.servers.lock().unwrap_or_else(PoisonError::into_inner);
        servers.retain(|server| !server.is_finished());
        servers.push(thread);
        Ok(())
    }

    /// Plays a client of NIC `nic` (one of the `extra_nics`) without a socket, for tests.
    #[doc(hidden)]
    pub fn with_backend<R>(&self, nic: usize, play: impl FnOnce(&mut NicBackend) -> R) -> R {
        assert!(nic >= self.with_socket);
        play(&mut self.backends[nic].lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// What was counted so far.
    pub fn report(&self) -> Result<Report, Error> {
        report(&self.mail, &self.bell).ok_or(Error::Ended)
    }

    /// Where other NIC processes may join, with the ports that were found.
    pub fn link_addresses(&self) -> &[LinkAddress] {
        &self.links
    }

    /// A handle that ends the process from any thread; [`NicProcess::wait`] then returns.
    pub fn stopper(&self) -> Shutdown {
        self.shutdown.clone()
    }

    /// Blocks until the stopper is triggered, then shuts down.
    pub fn wait(self) {
        use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
        use std::os::fd::AsFd;
        let mut fds = [PollFd::new(self.shutdown.as_fd(), PollFlags::POLLIN)];
        while poll(&mut fds, PollTimeout::NONE) == Err(nix::errno::Errno::EINTR) {}
    }

    /// Ends all clients, joins all threads and removes the sockets.
    pub fn shutdown(self) {}

    fn stop(&mut self) {
        self.shutdown.trigger();
        let servers =
            std::mem::take(&mut *self.servers.lock().unwrap_or_else(PoisonError::into_inner));
        for server in servers {
            if server.join().is_err() {
                tracing::error!("a server thread failed");
            }
        }
        self.take_processor();
    }

    /// Ends the processor's thread and gives its processor away, offline, to be stepped by hand.
    /// Queues go on where they were, and doorbells in memory are heard; what clients ask for by
    /// message (commands, registers) is refused from now on. `None` when it failed or was taken
    /// before. Blocks until the thread has ended its round. For benchmarks and tests.
    pub fn take_processor(&mut self) -> Option<Processor> {
        let thread = self.processor.take()?;
        let _ = self.mail.send(Mail::Stop);
        self.bell.ring();
        thread.join().ok().flatten()
    }
}

impl Drop for NicProcess {
    fn drop(&mut self) {
        self.stop();
    }
}

fn limits() -> server::Limits {
    // QEMU refuses a server that names more than the protocol's default.
    let most = server::Limits::default().max_dma_maps;
    server::Limits { max_dma_maps: most.min(MAX_MAPPINGS as u32), ..server::Limits::default() }
}

fn spawn<R: Send + 'static>(
    name: &'static str,
    run: impl FnOnce() -> R + Send + 'static,
) -> Result<JoinHandle<R>, Error> {
    std::thread::Builder::new()
        .name(name.into())
        .spawn(run)
        .map_err(|source| Error::Thread { name, source })
}

fn add_link(mail: &Sender<Mail>, bell: &Arc<Bell>, stream: LinkSocket) {
    if mail.send(Mail::Link(stream)).is_ok() {
        bell.ring();
    }
}

fn report(mail: &Sender<Mail>, bell: &Bell) -> Option<Report> {
    let (reply, answer) = bounded(1);
    mail.send(Mail::Report { reply }).ok()?;
    bell.ring();
    answer.recv_timeout(Duration::from_secs(5)).ok()
}

/// Makes NIC `nic` forget its queues and regions.
fn forget(nic: usize, mail: &Sender<Mail>, bell: &Bell) -> Option<()> {
    let (reply, answer) = bounded(1);
    mail.send(Mail::Reset { nic, gone: false, reply }).ok()?;
    bell.ring();
    answer.recv_timeout(Duration::from_secs(5)).ok().map(drop)
}

fn pin(cpu: usize) -> nix::Result<()> {
    let mut set = nix::sched::CpuSet::new();
    set.set(cpu)?;
    nix::sched::sched_setaffinity(nix::unistd::Pid::from_raw(0), &set)
}

/// 40 bits that no other process has, on this host or another one.
fn any_number() -> u64 {
    // Its keys are random.
    RandomState::new().build_hasher().finish() >> 24
}

/// A locally administered EUI-64 that differs between NICs and, by `number`, between processes.
fn guid(number: u64, nic: usize) -> u64 {
    0x02 << 56 | number << 16 | nic as u64 & 0xffff
}
