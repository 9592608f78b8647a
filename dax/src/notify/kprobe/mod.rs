//! Events on kernel functions: the notifier that tells most.
//!
//! Before ext4 or xfs frees or moves a DAX file's blocks, it calls `dax_layout_busy_page_range` to
//! look for pages in use, and waits for ours. A kprobe event there, in a tracing instance of our
//! own ([`instance`]), says which file and which thread, at that moment; events on the ways into
//! the file system ([`probes`]) say what the thread wants, and both are joined by thread
//! ([`operations`]). Values are fetched by argument number and offsets that we look up in the
//! kernel's type information ([`btf`]), under names that are the same on every kernel: 6.1 takes
//! no others. Device and inode number are always compared.
//!
//! Probes only tell. Kernel functions are no interface that is promised to stay, so each is placed
//! if it is there, and the pin does not depend on any.

mod btf;
mod instance;
mod line;
mod meaning;
mod operations;
mod probes;
mod tracefs;

use std::fs;
use std::os::fd::BorrowedFd;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::time::{ClockId, clock_gettime};

use super::{Cause, Notice, Notifier, NotifierKind, NotifyError, Stage, Subject, Terms, Watched};
use crate::FileId;
use btf::{Btf, BtfError};
use instance::Instance;
use line::{Event, Line};
use operations::{Inode, Operations};
use probes::{Meaning, PREFIX, Probe, WAIT, WAYS};
use tracefs::TraceFs;

const KIND: NotifierKind = NotifierKind::Kprobe;
const KERNEL_BTF: &str = "/sys/kernel/btf/vmlinux";

/// Reads in a row before others get their turn; what is left keeps the descriptor readable.
const READS: usize = 64;

/// Probes on the kernel's layout functions, and what they have seen.
#[derive(Debug)]
pub struct KprobeEvents {
    instance: Instance,
    placed: Vec<&'static Probe>,
    /// Those that could not be placed, and why.
    absent: Vec<(&'static Probe, Absent)>,
    watched: Vec<Target>,
    /// Events were lost, and it is not known yet before when.
    lost: bool,
    devices: Vec<u32>,
    enabled: bool,
    operations: Operations,
    buffer: Box<[u8]>,
    /// Bytes in the buffer of a line whose end has not come yet.
    kept: usize,
}

/// A watched file.
#[derive(Debug)]
struct Target {
    inode: Inode,
    id: FileId,
    /// It was told to have something waiting, and has not been allowed since.
    told: bool,
    /// When it was allowed last, in microseconds of CLOCK_MONOTONIC.
    allowed: u64,
}

#[derive(Debug)]
enum Absent {
    /// Its module is not loaded, so no file can be on it.
    Unloaded,
    Failed(String),
}

impl KprobeEvents {
    /// Places all probes that this kernel takes; they are switched on when the first file is
    /// watched. Needs root (CAP_SYS_ADMIN), and takes some ten milliseconds to read the kernel's
    /// type information.
    pub fn new() -> Result<Self, NotifyError> {
        let missing =
            |reason: String, errno| NotifyError::Missing { notifier: KIND, reason, errno };
        let bytes = fs::read(KERNEL_BTF).map_err(|error| {
            let reason = format!("{KERNEL_BTF} cannot be read (CONFIG_DEBUG_INFO_BTF)");
            missing(reason, error.raw_os_error().map(Errno::from_raw))
        })?;
        let kernel = Btf::parse(&bytes).map_err(|error| missing(error.to_string(), None))?;
        drop(bytes);
        let instance = Instance::new(TraceFs::find()?)?;
        place(&instance, &WAIT, &kernel, false)
            .map_err(|error| error.into_notify(WAIT.function))?;
        let mut this = Self {
            instance,
            placed: vec![&WAIT],
            absent: WAYS.iter().map(|probe| (probe, Absent::Unloaded)).collect(),
            watched: Vec::new(),
            lost: false,
            devices: Vec::new(),
            enabled: false,
            operations: Operations::new(),
            buffer: vec![0; 64 * 1024].into_boxed_slice(),
            kept: 0,
        };
        this.place_all(Some(kernel));
        Ok(this)
    }

    /// Places what has become possible; a file system's module may be loaded at any time.
    fn place_all(&mut self, mut kernel: Option<Btf>) {
        let mut modules: Vec<(&str, Option<Btf>)> = Vec::new();
        for (probe, absent) in std::mem::take(&mut self.absent) {
            let loaded = |name: &str| Path::new("/sys/module").join(name).exists();
            let there = probe.module.is_none_or(loaded);
            if !there || matches!(absent, Absent::Failed(_)) {
                self.absent.push((probe, absent));
                continue;
            }
            let kernel = kernel.get_or_insert_with(|| {
                let bytes = fs::read(KERNEL_BTF).unwrap_or_default();
                Btf::parse(&bytes).unwrap_or_else(|_| Btf::empty())
            });
            let own = probe.module.and_then(|module| {
                if !modules.iter().any(|(name, _)| *name == module) {
                    let bytes = fs::read(format!("/sys/kernel/btf/{module}")).ok();
                    modules.push((module, bytes.and_then(|b| kernel.with_module(&b).ok())));
                }
                modules.iter().find(|(name, _)| *name == module).and_then(|(_, btf)| btf.as_ref())
            });
            match place(&self.instance, probe, own.unwrap_or(kernel), own.is_some()) {
                Ok(()) => self.placed.push(probe),
                Err(error) => self.absent.push((probe, Absent::Failed(error.to_string()))),
            }
        }
    }

    /// Has events of the devices of all watched files reported, and of no others.
    fn filter(&self) -> Result<(), NotifyError> {
        let devices: Vec<_> = self.devices.iter().map(|dev| format!("dev == {dev:#x}")).collect();
        let devices = devices.join(" || ");
        for probe in &self.placed {
            let filter = match probe.only {
                Some(only) => format!("({only}) && ({devices})"),
                None => devices.clone(),
            };
            self.instance.filter(probe.event, &filter)?;
        }
        Ok(())
    }

    fn file(&self, inode: Inode) -> Option<FileId> {
        self.watched.iter().find(|target| target.inode == inode).map(|target| target.id)
    }

    fn event(&mut self, event: &Event<'_>, clock: &Clock, sink: &mut dyn FnMut(Notice)) {
        let Some(probe) = self.placed.iter().find(|probe| probe.event == event.name) else {
            return;
        };
        let value = |name| {
            let at = probe.values.iter().position(|(value, _)| *value == name)?;
            event.values[at]
        };
        let dev = value("dev").unwrap_or(0) as u32;
        let inode = |name| value(name).map(|ino| (dev, ino));
        let (first, second) = (inode("ino"), inode("ino2"));
        let notice = |id: FileId, stage, (cause, range)| {
            Notice::new(id, KIND, stage)
                .cause(cause)
                .range(range)
                .pid(event.tid)
                .at(clock.instant(event.micros))
        };
        match &probe.meaning {
            Meaning::Wait => {
                let Some(first) = first else { return };
                let Some(id) = self.file(first) else { return };
                if let Some(what) = self.operations.wait(event.tid, event.micros, first) {
                    self.target(id).for_each(|target| target.told = true);
                    sink(notice(id, Stage::Waiting, what));
                }
            }
            Meaning::Begin(operation) => {
                let ours = |inode: Option<Inode>| inode.filter(|i| self.file(*i).is_some());
                let files = [ours(first), ours(second)];
                if files.iter().any(Option::is_some) {
                    let operation = operation(&event.values);
                    self.operations.begin(event.tid, event.micros, files, operation);
                }
            }
            Meaning::Unstoppable(operation) => {
                let operation = operation(&event.values);
                for (inode, what) in [(first, operation.first), (second, operation.second)] {
                    if let Some(id) = inode.and_then(|inode| self.file(inode)) {
                        sink(notice(id, Stage::Announced, what));
                    }
                }
            }
            Meaning::WholeDevice(cause) => {
                for target in self.watched.iter().filter(|target| target.inode.0 == dev) {
                    sink(notice(target.id, Stage::Announced, (*cause, None)));
                }
            }
        }
    }

    fn target(&mut self, id: FileId) -> impl Iterator<Item = &mut Target> {
        self.watched.iter_mut().filter(move |target| target.id == id)
    }

    /// Tells of events lost before this time: anything may have begun to wait for any file. Not for
    /// those that were told already and not allowed yet, as all of such a file is being dealt with,
    /// nor for those allowed since. (While it waits, a clone on xfs spins, and may flood us.)
    fn tell_lost(&mut self, before: u64, sink: &mut dyn FnMut(Notice)) {
        if !std::mem::take(&mut self.lost) {
            return;
        }
        for target in &mut self.watched {
            if !target.told && target.allowed < before {
                target.told = true;
                sink(Notice::new(target.id, KIND, Stage::Waiting).cause(Cause::Unknown));
            }
        }
    }

    /// Goes through the whole lines among the first `len` bytes of the buffer.
    fn lines(&mut self, len: usize, clock: &Clock, sink: &mut dyn FnMut(Notice)) {
        let buffer = std::mem::take(&mut self.buffer);
        let mut start = 0;
        while let Some(end) = buffer[start..len].iter().position(|&byte| byte == b'\n') {
            match line::parse(&buffer[start..start + end], PREFIX) {
                Line::Event(event) => {
                    self.tell_lost(event.micros, sink);
                    self.event(&event, clock, sink);
                }
                Line::Lost => self.lost = true,
                Line::Other => {}
            }
            start += end + 1;
        }
        self.buffer = buffer;
        // A line longer than the buffer is none of ours.
        let keep = if len - start < self.buffer.len() { start..len } else { len..len };
        self.kept = keep.len();
        self.buffer.copy_within(keep, 0);
    }
}

impl Notifier for KprobeEvents {
    fn kind(&self) -> NotifierKind {
        KIND
    }

    fn fd(&self) -> BorrowedFd<'_> {
        self.instance.fd()
    }

    fn watch(&mut self, watched: &Watched<'_>) -> Result<(), NotifyError> {
        let Watched::File(file) = watched else {
            return Err(NotifyError::Unsuited {
                notifier: KIND,
                what: watched.subject().to_string(),
                reason: "it is no file, and layouts are files' affairs",
                errno: None,
            });
        };
        let dev = file.id.kernel_dev();
        let placed = self.placed.len();
        self.place_all(None);
        if !self.devices.contains(&dev) || self.placed.len() > placed {
            if !self.devices.contains(&dev) {
                self.devices.push(dev);
            }
            self.filter()?;
            self.enabled = false;
        }
        if !self.enabled {
            self.instance.enable(true)?;
            self.enabled = true;
        }
        let inode = (dev, file.id.ino);
        if self.file(inode).is_none() {
            let target = Target { inode, id: file.id, told: false, allowed: 0 };
            self.watched.push(target);
        }
        Ok(())
    }

    fn unwatch(&mut self, subject: Subject) {
        self.watched.retain(|target| Subject::from(target.id) != subject);
        if self.watched.is_empty() && self.enabled {
            self.enabled = false;
            if let Err(error) = self.instance.enable(false) {
                tracing::warn!(%error, "probes could not be switched off");
            }
        }
    }

    fn collect(&mut self, sink: &mut dyn FnMut(Notice)) -> Result<(), NotifyError> {
        let clock = Clock::now();
        for _ in 0..READS {
            let read = self.instance.read(&mut self.buffer[self.kept..]);
            let read = read.map_err(|errno| NotifyError::Call {
                notifier: KIND,
                call: "read",
                what: "trace_pipe".into(),
                errno,
            })?;
            if read == 0 {
                // Nothing came after what was lost.
                self.tell_lost(u64::MAX, sink);
                break;
            }
            self.lines(self.kept + read, &clock, sink);
        }
        Ok(())
    }

    fn allow(&mut self, subject: Subject) {
        if let Subject::File(id) = subject {
            let now = Clock::now().micros;
            self.operations.allow(now, (id.kernel_dev(), id.ino));
            self.target(id).for_each(|target| {
                target.told = false;
                target.allowed = now;
            });
        }
    }

    fn statement(&self) -> Terms {
        let absent: Vec<_> = self
            .absent
            .iter()
            .filter_map(|(probe, absent)| match absent {
                Absent::Unloaded => None,
                Absent::Failed(why) => Some(format!("{} ({why})", probe.function)),
            })
            .collect();
        let without = match absent.is_empty() {
            true => String::new(),
            false => format!("; here, causes that come by {}", absent.join(", ")),
        };
        Terms {
            sees: "every operation on a DAX file that looks for pins, as it begins to wait, with \
                   cause, range and thread; swaps of extents, attributes and shutdown as they \
                   begin"
                .into(),
            misses: format!("files that are not DAX{without}"),
            costs: format!(
                "{} probes, about a microsecond for each layout operation on a watched file's \
                 file system, and nothing elsewhere",
                self.placed.len()
            ),
        }
    }
}

#[derive(Debug, thiserror::Error)]
enum PlaceError {
    #[error(transparent)]
    Btf(#[from] BtfError),
    #[error(transparent)]
    Notify(#[from] NotifyError),
}

impl PlaceError {
    fn into_notify(self, function: &str) -> NotifyError {
        match self {
            Self::Notify(error) => error,
            Self::Btf(error) => NotifyError::Missing {
                notifier: KIND,
                reason: format!("{function}: {error}"),
                errno: None,
            },
        }
    }
}

fn place(instance: &Instance, probe: &Probe, btf: &Btf, module: bool) -> Result<(), PlaceError> {
    let mut arguments = String::new();
    for (name, path) in probe.values {
        arguments.push_str(&format!("{name}={} ", btf.fetch(probe.function, path)?));
    }
    let symbol = match probe.module {
        Some(name) if module => format!("{name}:{}", probe.function),
        _ => probe.function.to_owned(),
    };
    Ok(instance.probe(probe.event, &symbol, arguments.trim_end())?)
}

/// Two readings of the clock that are no further apart are as good as one.
const CLOSE: Duration = Duration::from_micros(2);
/// How often closer ones are tried for.
const PAIRS: u32 = 8;

/// Turns the kernel's times into ours; both count CLOCK_MONOTONIC.
struct Clock {
    instant: Instant,
    micros: u64,
}

impl Clock {
    /// The closest of a few pairs of readings: a thread that loses its processor between the two
    /// would take everything for earlier than it was.
    fn now() -> Self {
        let read = || {
            let instant = Instant::now();
            let now = clock_gettime(ClockId::CLOCK_MONOTONIC);
            let micros = now.map(Duration::from).unwrap_or_default().as_micros() as u64;
            (instant.elapsed(), Self { instant, micros })
        };
        let mut closest = read();
        for _ in 0..PAIRS {
            if closest.0 < CLOSE {
                break;
            }
            let again = read();
            if again.0 < closest.0 {
                closest = again;
            }
        }
        closest.1
    }

    fn instant(&self, micros: u64) -> Instant {
        // An event may have come after the clock was read.
        match self.micros.checked_sub(micros) {
            Some(ago) => self.instant.checked_sub(Duration::from_micros(ago)),
            None => self.instant.checked_add(Duration::from_micros(micros - self.micros)),
        }
        .unwrap_or(self.instant)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_times_are_ours() {
        let clock = Clock::now();
        let ago = clock.instant(clock.micros - 2_000_000);
        assert_eq!(clock.instant - ago, Duration::from_secs(2));
        assert_eq!(clock.instant(clock.micros + 5) - clock.instant, Duration::from_micros(5));
    }

    /// Where the kernel has probes at all, they are placed and go again; elsewhere it says what is
    /// missing. The lab's guests have them.
    #[test]
    fn probes_are_placed_or_the_reason_is_given() {
        match KprobeEvents::new() {
            Ok(events) => assert!(events.placed.len() > 4, "{events:?}"),
            Err(error) => assert!(error.to_string().contains("CONFIG_"), "{error}"),
        }
    }
}
