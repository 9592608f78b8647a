//! What goes wrong: requests that fail, and steps that the device would ignore or hang on.

use anyhow::{Context as _, Result, bail, ensure};
use holdfast::{AddressHandle, Completion, Path, PostError, QpType, SendFlags, Status};
use holdfast_driver::wire::wqe::Sge;
use holdfast_driver::{Error as Driver, Init, QpConfig, ReadyToReceive};
use holdfast_lab_check::Report;

use super::rig::{HALF, Pair, Rig, wait};

/// What the device puts before the key it did not find.
const UNKNOWN_KEY: u32 = 0x207;

/// Checks them on an open device.
pub fn run(rig: &Rig, report: &mut Report) {
    report.check("a message longer than the receive fails at both ends", || too_long(rig));
    report.check("a send with a key that nobody has fails, and says which", || {
        let mut pair = rig.pair(4, 1)?;
        pair.a.send.send(5, &[Sge { lkey: 901, ..rig.sge(0, 64) }], SendFlags::SIGNALED)?;
        pair.a.send.ring();
        unknown_key(&wait(&mut pair.cq, 1)?, 5)
    });
    report.check("a receive with a key that nobody has fails, and says which", || {
        let mut pair = rig.pair(4, 1)?;
        let recv = pair.b.recv.as_mut().context("a receive queue")?;
        recv.post(6, &[Sge { lkey: 901, ..rig.sge(HALF, 64) }])?;
        recv.ring();
        unknown_key(&wait(&mut pair.cq, 1)?, 6)
    });
    report.check(
        "more entries than a queue has are refused before the device loops on them",
        || {
            let mut pair = rig.pair(4, 1)?;
            let two = [rig.sge(0, 8), rig.sge(64, 8)];
            let sent = pair.a.send.send(1, &two, SendFlags::SIGNALED);
            ensure!(matches!(sent, Err(PostError::TooManySges { .. })), "{sent:?}");
            let five = QpConfig { send_sges: 5, ..QpConfig::new(QpType::Rc, 4) };
            let error = rig.qp(&five, &pair.cq).err().context("a queue pair of five entries")?;
            is(&error, |error| matches!(error, Driver::Limit { limit: 4, .. }))?;
            pair.exchange(rig, 64, 21)
        },
    );
    report.check("a path from a GID that is not bound is refused before the device loops", || {
        let path = Path::new(rig.device.gid(), 9);
        let error = AddressHandle::new(rig.pd.driver(), &path).err().context("a handle")?;
        ensure!(error.to_string().contains("bind one"), "{error}");
        let cq = rig.cq(64)?;
        let qp = rig.qp(&QpConfig::new(QpType::Rc, 4), &cq)?;
        qp.control.to_init(&Init::default())?;
        let step = ReadyToReceive { path, ..rig.way_to(qp.qpn()) };
        let error = qp.control.to_rtr(&step).err().context("the step to RTR")?;
        ensure!(error.to_string().contains("bind one"), "{error}");
        Ok(())
    });
    report.check("ERR and RESET are refused, and a new queue pair takes over", || {
        let mut pair = rig.pair(4, 1)?;
        for result in [pair.a.to_error(), pair.a.reset()] {
            let error = result.err().context("a step that the device ignores")?;
            ensure!(matches!(error, Driver::Unsupported { .. }), "{error}");
            ensure!(error.to_string().contains("destroy"), "it does not say what to do: {error}");
        }
        // A send that nobody will ever take goes with its queue pair.
        pair.a.send.send(1, &[rig.sge(0, 64)], SendFlags::SIGNALED)?;
        pair.a.send.ring();
        drop(pair);
        rig.pair(4, 1)?.exchange(rig, 4096, 22)
    });
    report.check("of a queue pair only what the device answers in its place is asked", || {
        let pair = rig.pair(4, 1)?;
        use holdfast_driver::wire::attr::{QpState, mask};
        let state = pair.a.control.query_state()?;
        ensure!(state == QpState::ReadyToSend, "{state:?}");
        let attributes = pair.a.control.query(mask::DEST_QPN)?;
        ensure!(attributes.dest_qp_num == pair.b.qpn(), "{attributes:?}");
        let error = pair.a.control.query(mask::RETRY_CNT).err().context("a retry count")?;
        ensure!(matches!(error, Driver::Unsupported { .. }), "{error}");
        Ok(())
    });
}

fn too_long(rig: &Rig) -> Result<()> {
    let mut pair = rig.pair(4, 1)?;
    let Pair { a, b, cq } = &mut pair;
    rig.wipe(HALF, 4096)?;
    let recv = b.recv.as_mut().context("a receive queue")?;
    recv.post(2, &[rig.sge(HALF, 100)])?;
    recv.ring();
    a.send.send(1, &[rig.sge(0, 200)], SendFlags::SIGNALED)?;
    a.send.ring();
    for done in wait(cq, 2)? {
        let expected = match done.wr_id {
            1 => Status::RemoteInvalidRequest,
            _ => Status::LocalLength,
        };
        ensure!(done.status == expected, "{done:?}");
    }
    let mut beyond = [0; 100];
    rig.region.memory().read_at(HALF + 100, &mut beyond)?;
    ensure!(beyond == [0xee; 100], "bytes beyond the receive were written");
    drop(pair);
    rig.pair(4, 1)?.exchange(rig, 200, 23)
}

fn unknown_key(done: &[Completion], wr_id: u64) -> Result<()> {
    let [one] = done else { bail!("{done:?}") };
    ensure!(one.wr_id == wr_id && one.status == Status::General, "{one:?}");
    ensure!(one.vendor_err & UNKNOWN_KEY == UNKNOWN_KEY, "the device says {:#x}", one.vendor_err);
    Ok(())
}

fn is(error: &anyhow::Error, right: impl Fn(&Driver) -> bool) -> Result<()> {
    ensure!(error.downcast_ref().is_some_and(right), "{error:#}");
    Ok(())
}
