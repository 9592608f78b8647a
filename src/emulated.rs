//! Emulated NICs on threads of this process, reached through socket pairs: no file, no path.

use std::os::unix::net::UnixStream;
use std::sync::Arc;

use holdfast_driver::Options;
use holdfast_nic::{NicOptions, NicProcess, PollMode};
use holdfast_vfio::user::{ConnectOptions, UserDevice};

use crate::{Device, Error, Result};

/// Emulated NICs on threads of this process. They end when this handle and every device opened
/// from it are gone. To serve NICs to other processes, see `holdfast nic`.
#[derive(Debug, Clone)]
pub struct EmulatedNic {
    process: Arc<NicProcess>,
    nics: usize,
}

/// How to run emulated NICs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EmulatedOptions {
    /// How many; they reach each other.
    pub nics: usize,
    /// Processor that their working thread is bound to.
    pub cpu: Option<usize>,
    /// The working thread never sleeps: lower latency, for a processor of its own.
    pub poll: bool,
}

impl Default for EmulatedOptions {
    fn default() -> Self {
        Self { nics: 1, cpu: None, poll: false }
    }
}

impl EmulatedNic {
    /// Starts the NICs' threads.
    pub fn start(options: EmulatedOptions) -> Result<Self> {
        let failed = |error: holdfast_nic::Error| Error::EmulatedNic(error.to_string());
        let process = NicProcess::start(NicOptions {
            extra_nics: options.nics,
            cpu: options.cpu,
            poll: if options.poll { PollMode::Always } else { PollMode::default() },
            ..NicOptions::default()
        });
        Ok(Self { process: Arc::new(process.map_err(failed)?), nics: options.nics })
    }

    /// Number of NICs.
    pub fn nics(&self) -> usize {
        self.nics
    }

    /// Opens NIC `index`, counted from 0. Each has one client at a time: opening it again waits
    /// until the first device is gone, and fails after some seconds.
    pub fn open(&self, index: usize) -> Result<Device> {
        self.open_with(index, Options::default())
    }

    /// [`EmulatedNic::open`], with options for the driver.
    pub fn open_with(&self, index: usize, options: Options) -> Result<Device> {
        let failed = |why: String| Error::EmulatedNic(why);
        let (ours, theirs) = UnixStream::pair()
            .map_err(|error| failed(format!("no socket pair could be made: {error}")))?;
        self.process.serve_stream(index, theirs).map_err(|error| failed(error.to_string()))?;
        let name = format!("emulated NIC {index}");
        let transport = UserDevice::from_stream(ours, name, ConnectOptions::default())?;
        Device::over_socket(transport, self.clone(), options)
    }
}
