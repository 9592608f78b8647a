//! A driver that is killed, over and over, at any instant and with operations waiting.
//!
//! The peer and whoever operates on the file live on: the peer's requests reach the dead driver's
//! device for as long as that is able, and what the file gives up goes to a canary at once. What
//! must hold after each kill: no foreign byte, the operation that waited returns, and the file can
//! be truncated, all of that soon.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use holdfast::{Device, DeviceAddress, QueuePair};
use nix::errno::Errno;
use nix::sys::signal::Signal;

use crate::canary::Look;
use crate::choice;
use crate::driver::{Driver, endpoint};
use crate::field::Field;
use crate::figures::Times;
use crate::hands::Hands;
use crate::operation::{Kind, Operation};
use crate::peer::{Connect, Peer, Side, Target};
use crate::random::Random;

/// How long anything may take that has no limit of its own.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long canaries are left alone after a kill, for what may still be on its way.
const AFTERMATH: Duration = Duration::from_millis(100);

/// What is to be done.
#[derive(Debug, Clone)]
pub struct Plan {
    pub folder: std::path::PathBuf,
    pub device: DeviceAddress,
    pub peer: DeviceAddress,
    pub times: u64,
    pub seed: u64,
    pub size: u64,
    /// Within which a file must be usable again.
    pub within: Duration,
    pub keeper: bool,
}

/// What it came to.
#[derive(Debug, Clone, Default)]
pub struct Figures {
    pub kills: u64,
    /// Those during which an operation waited for the driver.
    pub waiting: u64,
    /// Those before the driver was ready.
    pub early: u64,
    /// From the kill until the operation had returned and the file could be truncated.
    pub to_usable: Times,
    pub writes: u64,
    pub look: Look,
}

impl Figures {
    /// For programs.
    pub fn json(&self, seed: u64) -> serde_json::Value {
        serde_json::json!({
            "schema": 1,
            "seed": seed,
            "kills": self.kills,
            "kills_with_an_operation_waiting": self.waiting,
            "kills_during_start": self.early,
            "time_to_usable": self.to_usable.quantiles(),
            "writes": self.writes,
            "compared_bytes": self.look.bytes,
            "foreign_bytes": self.look.foreign,
            "foreign_marks": self.look.marks,
        })
    }
}

/// How a driver dies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Death {
    /// While it starts.
    Early,
    /// While it does whatever it does, with an operation begun a moment ago.
    Busy,
    /// Stopped first, so that the operation waits for it.
    Waited,
}

/// Runs it. What was counted is there whether that worked or not.
pub fn run(plan: &Plan) -> (Figures, Result<()>) {
    let mut figures = Figures::default();
    let result = rounds(plan, &mut figures);
    (figures, result)
}

fn rounds(plan: &Plan, figures: &mut Figures) -> Result<()> {
    let mut random = Random::new(plan.seed);
    let mut field = Field::lay_out(&plan.folder, plan.size).context("laying out the files")?;
    let far = Device::open(&plan.peer).with_context(|| format!("opening {}", plan.peer))?;
    let mut hands = Hands::process("another process", &plan.folder)?;
    for kill in 0..plan.times {
        let round = Round { plan, random: &mut random, field: &mut field, far: &far, figures };
        round.run(&mut hands).with_context(|| format!("kill {kill}, seed {}", plan.seed))?;
        ensure!(
            figures.look.foreign == 0,
            "{} foreign bytes after kill {kill}, seed {}",
            figures.look.foreign,
            plan.seed
        );
        figures.kills += 1;
    }
    Ok(())
}

struct Round<'a> {
    plan: &'a Plan,
    random: &'a mut Random,
    field: &'a mut Field,
    far: &'a Device,
    figures: &'a mut Figures,
}

impl Round<'_> {
    fn run(mut self, hands: &mut Hands) -> Result<()> {
        let death = match self.random.below(8) {
            0 => Death::Early,
            1..=4 => Death::Busy,
            _ => Death::Waited,
        };
        let file = self.field.path("region");
        let Plan { device, size, keeper, .. } = self.plan;
        let mut driver = Driver::start(device, &file, *size, *keeper)?;
        if death == Death::Early {
            std::thread::sleep(Duration::from_millis(self.random.below(700)));
            driver.signal(Signal::SIGKILL)?;
            self.figures.early += 1;
            return self.after(Instant::now(), hands, None, None);
        }
        let peer = self.meet(&mut driver)?;
        std::thread::sleep(Duration::from_micros(self.random.below(300_000)));
        // One that waits for pins, wherever its file system has it.
        let operation = loop {
            let operation = choice::any(self.random, self.field, false, true);
            if operation.kind.waits(self.field.fs) {
                break operation;
            }
        };
        if death == Death::Waited {
            driver.signal(Signal::SIGSTOP)?;
            self.figures.waiting += 1;
        }
        hands.begin(&operation)?;
        std::thread::sleep(Duration::from_micros(self.random.below(40_000)));
        let killed = Instant::now();
        driver.signal(Signal::SIGKILL)?;
        self.after(killed, hands, Some(operation), Some(peer))?;
        drop(driver);
        Ok(())
    }

    /// Connects a peer to a driver, and lets it loose.
    fn meet(&self, driver: &mut Driver) -> Result<Peer> {
        let theirs = driver.endpoint(PATIENCE)?;
        let side = Side::new(self.far)?;
        let region = theirs.regions.first().context("the driver has no region")?;
        let target = Target { addr: region.addr, len: region.len, rkey: region.rkey };
        let (mut qp, cq) = side.queue_pair()?;
        let info = *theirs.queue_pairs.first().context("the driver has no queue pair")?;
        qp.connect(&info, &theirs)?;
        driver.meet(&endpoint(self.far, &qp), PATIENCE)?;
        let mut peer = Peer::start(&side, vec![target], once(qp, cq))?;
        peer.pass(PATIENCE).context("before the kill")?;
        Ok(peer)
    }

    /// After a kill: the operation returns, what was freed goes to a canary, and the file can be
    /// truncated.
    fn after(
        &mut self,
        killed: Instant,
        hands: &mut Hands,
        operation: Option<Operation>,
        peer: Option<Peer>,
    ) -> Result<()> {
        if let Some(operation) = operation {
            hands.end(PATIENCE).with_context(|| format!("{operation}, with its driver dead"))?;
        }
        // At once: whatever still writes finds it.
        let mut canary = self.field.grab()?;
        let page = crate::operation::PAGE;
        let cut = Operation::new(Kind::Ftruncate, page, 0);
        hands.begin(&cut)?;
        let done = hands.end(PATIENCE).context("truncating with the driver dead")?;
        ensure!(done.refused.is_none(), "{cut}: {:?}", done.refused);
        // What the canary cost is not the file's.
        let usable = done.ended.saturating_duration_since(killed);
        self.figures.to_usable.note(usable);
        std::thread::sleep(AFTERMATH);
        let look = canary.look()?;
        self.figures.look.add(look);
        self.figures.look.add(self.field.look()?);
        if let Some(mut peer) = peer {
            // It has nobody to write to by now, or soon.
            let _ = peer.stop();
            self.figures.writes += peer.progress().done();
        }
        let look = canary.look()?;
        self.figures.look.add(look);
        drop(canary);
        ensure!(
            usable <= self.plan.within,
            "the file was usable again only {usable:?} after the kill"
        );
        self.restore(hands)
    }

    fn restore(&self, hands: &mut Hands) -> Result<()> {
        let back = [
            Operation::new(Kind::Allocate, 0, self.plan.size),
            Operation::new(Kind::Ftruncate, self.plan.size, 0),
        ];
        for operation in back {
            let mut tries = 0;
            loop {
                hands.begin(&operation)?;
                match hands.end(PATIENCE)?.refused {
                    None => break,
                    Some(Errno::ENOSPC) if tries < 20 => {
                        tries += 1;
                        self.field.settle()?;
                    }
                    Some(errno) => bail!("{operation}: {errno}"),
                }
            }
        }
        Ok(())
    }
}

/// A connection that is there, and no other after it.
fn once(qp: QueuePair, cq: holdfast::CompletionQueue) -> Connect {
    let mut there = Some((qp, cq));
    Box::new(move || Ok(there.take()))
}
