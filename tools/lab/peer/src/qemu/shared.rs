//! Shared receive queues, whose commands the device knows by each other's numbers.

use anyhow::{Context as _, Result, ensure};
use holdfast::{CompletionQueue, QpType, SendFlags};
use holdfast_driver::wire::wqe::Sge;
use holdfast_driver::{QpConfig, QueuePair, SharedReceiveQueue};
use holdfast_lab_check::Report;

use super::rig::{HALF, Rig, wait};

const DEPTH: u32 = 16;

/// Checks them on an open device.
pub fn run(rig: &Rig, report: &mut Report) {
    report.check(
        "SRQ: its limit is set and its depth told, though the opcodes are swapped",
        || {
            let srq = Shared::new(rig)?.srq;
            srq.set_limit(3)?;
            let told = srq.query()?;
            ensure!(told.max_wr >= DEPTH && told.srq_limit == 3, "{told:?}");
            Ok(())
        },
    );
    report.check("SRQ: two queue pairs take from it, each message whole", || shared(rig));
    report.check("SRQ: a failed receive that names no queue pair is told to its poster", || {
        nameless(rig)
    });
}

/// A shared queue, with two senders and two takers.
struct Shared {
    takers: Vec<QueuePair>,
    senders: Vec<QueuePair>,
    srq: SharedReceiveQueue,
    sends: CompletionQueue,
    receives: CompletionQueue,
}

impl Shared {
    fn new(rig: &Rig) -> Result<Self> {
        let (sends, receives) = (rig.cq(8 * DEPTH)?, rig.cq(8 * DEPTH)?);
        let srq = rig.device.driver().create_srq(rig.pd.driver(), &rig.uar, DEPTH, 1)?;
        let plain = QpConfig::new(QpType::Rc, DEPTH);
        let taking = QpConfig { srq: Some(srq.share()), ..plain.clone() };
        let (mut takers, mut senders) = (Vec::new(), Vec::new());
        for _ in 0..2 {
            let (taker, sender) = (rig.qp(&taking, &receives)?, rig.qp(&plain, &sends)?);
            rig.connect(&taker.control, &sender.control)?;
            takers.push(taker);
            senders.push(sender);
        }
        Ok(Self { takers, senders, srq, sends, receives })
    }
}

fn shared(rig: &Rig) -> Result<()> {
    let mut s = Shared::new(rig)?;
    for round in 0..10 {
        for place in 0..DEPTH as usize {
            s.srq.post(place as u64, &[rig.sge(HALF + place * 64, 64)])?;
            rig.fill(place * 64, 64, round * 100 + place as u64)?;
            rig.wipe(HALF + place * 64, 64)?;
        }
        s.srq.ring();
        for place in 0..DEPTH as usize {
            let sender = &mut s.senders[place % 2];
            sender.send.send(place as u64, &[rig.sge(place * 64, 64)], SendFlags::SIGNALED)?;
            // Rung one by one, so that receives are taken in the order of the messages.
            sender.send.ring();
        }
        for done in wait(&mut s.sends, DEPTH as usize)? {
            ensure!(done.is_success(), "{done:?}");
        }
        for done in wait(&mut s.receives, DEPTH as usize)? {
            let place = done.wr_id as usize;
            ensure!(done.is_success() && done.byte_len == 64, "{done:?}");
            ensure!(done.qp == s.takers[place % 2].handle(), "{done:?}");
            rig.expect(HALF + place * 64, 64, round * 100 + place as u64)?;
        }
        ensure!(s.srq.outstanding() == 0, "{} receives are left", s.srq.outstanding());
    }
    Ok(())
}

/// The device refuses the key of a receive when that is posted, and names queue pair 0.
fn nameless(rig: &Rig) -> Result<()> {
    let mut s = Shared::new(rig)?;
    let nobodys = Sge { lkey: 900, ..rig.sge(HALF, 64) };
    s.srq.post(77, &[nobodys])?;
    s.srq.ring();
    let done = wait(&mut s.receives, 1)?;
    let one = done.first().context("no completion")?;
    ensure!(!one.is_success() && one.wr_id == 77, "{one:?}");
    ensure!(s.srq.outstanding() == 0, "{} receives are left", s.srq.outstanding());
    Ok(())
}
