//! After the operations of a step: what became free goes to a canary, the peer gets time to spoil it,
//! and in the end the file gets its size and blocks back.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use holdfast_dax::Segment;
use nix::errno::Errno;

use super::{MOMENT, PATIENCE, Storm, causes_of};
use crate::canary::{Canary, Look};
use crate::freed::Freed;
use crate::operation::{Kind, Operation};
use crate::peer;

impl Storm {
    /// A canary in all that is free, which the peer gets time to spoil.
    pub(super) fn canary(&mut self, what: &[Operation], before: &[Segment]) -> Result<()> {
        let mut canary = self.timed("grabbing", |storm| storm.field.grab())?;
        self.figures.canaries += 1;
        let (now, taken) = (self.field.segments()?, canary.segments()?);
        self.figures.freed.add(Freed::between(before, &now, &taken));
        let pass = |storm: &mut Self| storm.ends.pass(PATIENCE);
        self.timed("writing", pass).context("with a canary in the freed space")?;
        self.timed("comparing", |storm| {
            let look = canary.look()?;
            storm.foreign_of(&mut canary, look, what)?;
            if storm.random.one_in(4) {
                let look = storm.field.look()?;
                storm.foreign(look, what)?;
            } else {
                std::thread::sleep(MOMENT);
            }
            let look = canary.look()?;
            storm.foreign_of(&mut canary, look, what)
        })
    }

    /// The same for the canary in what was freed, with all there is to know of a foreign byte.
    fn foreign_of(&mut self, canary: &mut Canary, look: Look, what: &[Operation]) -> Result<()> {
        let noted = self.foreign(look, what);
        if noted.is_err() && self.plan.guarded {
            println!("foreign: {:x?}", canary.foreign_runs());
            println!("the region's file now: {:x?}", self.field.segments());
            // Whether the device goes on to write there, and when what is there was written.
            self.ends.next_epoch();
            let (epoch, passed) = (self.ends.epoch(), self.ends.pass(PATIENCE));
            println!("a pass of epoch {epoch} later ({passed:?}): {:?}", canary.look());
        }
        noted
    }

    /// Notes what a look found. Under a guard, the first foreign byte ends the storm.
    pub(super) fn foreign(&mut self, look: Look, what: &[Operation]) -> Result<()> {
        self.figures.look.add(look);
        if self.plan.guarded && look.foreign > 0 {
            let told = self.ledger.as_mut().map(|ledger| ledger.last_words());
            bail!(
                "{} foreign bytes ({} of the peer's words, of epochs {:?}; now is {}) after {what:?}; \
                 {told:?}",
                look.foreign,
                look.marks,
                look.epochs,
                self.ends.epoch()
            );
        }
        Ok(())
    }

    /// Removes the second files.
    pub(super) fn tidy(&mut self, what: &[Operation]) -> Result<()> {
        if what.iter().any(|operation| operation.kind.shares()) {
            self.field.remove("clone")?;
        }
        Ok(())
    }

    /// Every page is restored or lost, as the file has a block there or not.
    pub(super) fn settle(&mut self, what: &[Operation], ended: Option<Instant>) -> Result<()> {
        let Some(ledger) = &mut self.ledger else { return Ok(()) };
        ledger.settle(PATIENCE).with_context(|| format!("after {what:?}"))?;
        if let Some(ended) = ended {
            // Of several at once, one may have met a file that was no longer held: nothing of the
            // region stood on it then.
            ledger.fenced_by(ended).with_context(|| format!("after {what:?}"))?;
        }
        let blocks = self.field.blocks()?;
        let has = |offset: u64| blocks.get((offset / 4096) as usize).copied().unwrap_or(false);
        ledger.come_to_agree(has, PATIENCE).with_context(|| format!("after {what:?}"))?;
        for one in &ledger.breaks {
            self.figures.windows.note(one.window);
        }
        Ok(())
    }

    /// Gives the file its size and blocks back, and waits until all of it is the region's again.
    pub(super) fn restore(&mut self, what: &[Operation]) -> Result<()> {
        let size = self.plan.size;
        let back =
            [Operation::new(Kind::Allocate, 0, size), Operation::new(Kind::Ftruncate, size, 0)];
        let mut tries = 0;
        let mut ended = Instant::now();
        for operation in back {
            loop {
                let who = self.random.below(self.hands.len() as u64) as usize;
                self.hands[who].begin(&operation)?;
                let done = self.hands[who].end(PATIENCE);
                let done = done.with_context(|| format!("{operation} after {what:?}"))?;
                ended = done.ended;
                self.note(&operation, &done);
                match done.refused {
                    None => break,
                    Some(Errno::ENOSPC) if tries < 20 => {
                        tries += 1;
                        self.field.settle()?;
                        std::thread::sleep(Duration::from_millis(50));
                    }
                    Some(errno) => bail!("{operation} after {what:?}: {errno}"),
                }
            }
        }
        if let Some(ledger) = &mut self.ledger {
            ledger.whole(PATIENCE).with_context(|| format!("restored after {what:?}"))?;
            self.figures.to_whole.note(ended.elapsed());
            ledger.adds_up().with_context(|| format!("after {what:?}"))?;
            let mut causes = causes_of(what);
            causes.extend(causes_of(&back));
            ledger.in_time(ended - 10 * PATIENCE, ended, &causes)?;
            self.arrives().with_context(|| format!("restored after {what:?}"))?;
        }
        Ok(())
    }

    /// What the peer writes now is in the file, every word of it: what was told to be on the file
    /// is.
    pub(super) fn arrives(&mut self) -> Result<()> {
        self.ends.next_epoch();
        let epoch = self.ends.epoch();
        self.ends.pass(PATIENCE)?;
        let bytes = std::fs::read(self.field.path("region"))?;
        let there = peer::epochs(&bytes).filter(|found| *found == epoch).count();
        let words = self.plan.size as usize / 8;
        ensure!(there == words, "{there} of {words} words that the peer writes are in the file");
        Ok(())
    }
}
