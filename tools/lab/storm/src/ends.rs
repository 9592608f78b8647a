//! The devices, the regions on the file, and the peers that write them.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result};
use holdfast::coherence::{Guard, RegionId};
use holdfast::{CompletionQueue, Device, DeviceAddress, QueuePair};

use crate::figures::Figures;
use crate::peer::{Connect, Peer, Side, Target};
use crate::region::{Extent, Region};
use crate::storm::Plan;
use crate::toucher::Toucher;

/// Everything that reaches the file. The peers stop before the regions go.
pub struct Ends {
    peers: Vec<Peer>,
    toucher: Option<Toucher>,
    regions: Vec<Region>,
}

impl Ends {
    /// Opens both devices, registers the regions, and lets the peers loose.
    ///
    /// The first region is all of the file, on the first device. A second one is a part of it on
    /// the same device, and a third one a part of it on the other device, written by a peer on the
    /// first.
    pub fn open(plan: &Plan, path: &Path, guard: Option<&Guard>) -> Result<Self> {
        let near = open(&plan.device)?;
        let far = open(&plan.peer)?;
        let register = |side: &Side, extent| match guard {
            Some(guard) => Region::guarded(side, path, extent, guard),
            None => Region::bare(side, path, extent),
        };
        let page = crate::operation::PAGE;
        let quarter = plan.size / 4 / page * page;
        let here = Side::new(&near)?;
        let mut regions = vec![register(&here, Extent { offset: 0, len: plan.size })?];
        if plan.regions > 1 {
            let extent = Extent { offset: quarter + page, len: quarter };
            regions.push(register(&here, extent)?);
        }
        let targets: Vec<Target> = regions.iter().map(Region::target).collect();
        let there = Side::new(&far)?;
        let mut peers = vec![Peer::start(&there, targets, connect(there.clone(), here))?];
        if plan.regions > 2 {
            let region = register(&there, Extent { offset: 2 * quarter, len: quarter })?;
            let targets = vec![region.target()];
            regions.push(region);
            let writing = Side::new(&near)?;
            let connect = connect(writing.clone(), there);
            peers.push(Peer::start(&writing, targets, connect)?);
        }
        let touched = regions.first().and_then(Region::handle).filter(|_| plan.touch);
        let toucher = touched.map(Toucher::start).transpose()?;
        Ok(Self { peers, toucher, regions })
    }

    /// The guarded regions' names, and where they are.
    pub fn named(&self) -> impl Iterator<Item = (RegionId, Extent)> {
        self.regions.iter().filter_map(|region| Some((region.id()?, region.extent)))
    }

    /// Waits until the peers have written everything once from now on.
    pub fn pass(&mut self, patience: Duration) -> Result<()> {
        self.peers.iter_mut().try_for_each(|peer| peer.pass(patience))
    }

    /// The number of what the peers write now; all have the same.
    pub fn epoch(&self) -> u32 {
        self.peers.first().map_or(0, |peer| peer.progress().epoch())
    }

    /// The next number.
    pub fn next_epoch(&self) {
        self.peers.iter().for_each(|peer| peer.progress().next_epoch());
    }

    /// Requests that have failed so far.
    pub fn failed(&self) -> u64 {
        self.peers.iter().map(|peer| peer.progress().failed()).sum()
    }

    /// Enters what the peers did.
    pub fn count(&self, figures: &mut Figures) {
        figures.touched = self.toucher.as_ref().map_or(0, Toucher::touched);
        for peer in &self.peers {
            let progress = peer.progress();
            figures.writes += progress.done();
            figures.failed += progress.failed();
            figures.reconnects += progress.reconnects();
            for (status, count) in progress.statuses() {
                *figures.statuses.entry(status).or_default() += count;
            }
        }
    }

    /// Ends the peers, then the regions.
    pub fn take_down(mut self) -> Result<()> {
        let mut result = Ok(());
        for mut peer in self.peers.drain(..) {
            result = result.and(peer.stop());
        }
        drop(self.toucher.take());
        for region in self.regions.drain(..) {
            result = result.and(region.deregister().context("deregistering"));
        }
        result
    }
}

fn open(address: &DeviceAddress) -> Result<Device> {
    Device::open(address).with_context(|| format!("opening {address}"))
}

/// Ever new queue pairs of `here`, connected to ever new ones of `there`, the last of which stays.
fn connect(here: Side, there: Side) -> Connect {
    let mut last: Option<(QueuePair, CompletionQueue)> = None;
    Box::new(move || {
        drop(last.take());
        let (mut qp, cq) = here.queue_pair()?;
        let (theirs, _) = last.insert(there.queue_pair()?);
        QueuePair::connect_pair(&mut qp, theirs)?;
        Ok(Some((qp, cq)))
    })
}
