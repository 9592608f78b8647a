//! A driver in a process of its own, to be killed: it has a device and a guarded region, which a
//! peer of the process that started it writes.
//!
//! They talk in lines: the driver says where its region and its queue pair are, hears the peer's,
//! and says when it is ready. After that it only waits for its end.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, bail};
use holdfast::coherence::{Guard, GuardOptions};
use holdfast::connect::{Endpoint, RemoteRegion};
use holdfast::{Device, DeviceAddress, QueuePair};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::peer::{Side, Target};
use crate::region::{Extent, Region};

/// What the process does.
pub fn serve(device: &DeviceAddress, file: &Path, size: u64, keeper: bool) -> Result<()> {
    let device = Device::open(device).with_context(|| format!("opening {device}"))?;
    let mut options = GuardOptions::default();
    options.keeper = options.keeper.filter(|_| keeper);
    let guard = Guard::start(options)?;
    let side = Side::new(&device)?;
    let region = Region::guarded(&side, file, Extent { offset: 0, len: size }, &guard)?;
    let (mut qp, _cq) = side.queue_pair()?;
    let Target { addr, len, rkey } = region.target();
    let ours =
        Endpoint { regions: vec![RemoteRegion { addr, len, rkey }], ..endpoint(&device, &qp) };
    println!("{}", serde_json::to_string(&ours)?);
    let mut line = String::new();
    let mut stdin = std::io::stdin().lock();
    stdin.read_line(&mut line)?;
    let theirs: Endpoint = serde_json::from_str(&line).context("the peer's side")?;
    let info = theirs.queue_pairs.first().context("no queue pair of the peer")?;
    qp.connect(info, &theirs)?;
    println!("ready");
    // Until it is killed, or whoever started it is gone.
    line.clear();
    stdin.read_line(&mut line)?;
    Ok(())
}

/// One queue pair of a device, as the other side needs to know it.
pub fn endpoint(device: &Device, qp: &QueuePair) -> Endpoint {
    Endpoint {
        gid: device.gid(),
        mtu: device.mtu(),
        rd_atomic: device.max_rd_atomic(),
        queue_pairs: vec![qp.info()],
        ..Endpoint::default()
    }
}

/// Such a process, from outside.
pub struct Driver {
    child: Child,
    stdin: ChildStdin,
    lines: Receiver<String>,
}

impl Driver {
    /// Starts one.
    pub fn start(device: &DeviceAddress, file: &Path, size: u64, keeper: bool) -> Result<Self> {
        let mut command = Command::new(std::env::current_exe()?);
        command.arg("drive").arg("--device").arg(device.to_string());
        command.arg("--file").arg(file).arg("--size").arg(size.to_string());
        if !keeper {
            command.arg("--no-keeper");
        }
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let (Some(stdin), Some(stdout)) = (child.stdin.take(), child.stdout.take()) else {
            bail!("no pipes to the driver");
        };
        let (send, lines) = channel();
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                if send.send(line).is_err() {
                    return;
                }
            }
        });
        Ok(Self { child, stdin, lines })
    }

    fn line(&self, patience: Duration) -> Result<String> {
        self.lines.recv_timeout(patience).map_err(|_| anyhow!("the driver says nothing"))
    }

    /// Where its queue pair and its region are.
    pub fn endpoint(&self, patience: Duration) -> Result<Endpoint> {
        let line = self.line(patience)?;
        serde_json::from_str(&line).with_context(|| format!("the driver said {line:?}"))
    }

    /// Tells it where the peer is, and waits until it is ready.
    pub fn meet(&mut self, ours: &Endpoint, patience: Duration) -> Result<()> {
        writeln!(self.stdin, "{}", serde_json::to_string(ours)?)?;
        match self.line(patience)?.as_str() {
            "ready" => Ok(()),
            other => bail!("the driver said {other:?}"),
        }
    }

    /// SIGSTOP, SIGKILL, and so on.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        Ok(kill(Pid::from_raw(self.child.id() as i32), signal)?)
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
