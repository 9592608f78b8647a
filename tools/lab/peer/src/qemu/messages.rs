//! SEND and RECV on connections and as datagrams, and everything else refused.

use anyhow::{Context as _, Result, ensure};
use holdfast::{AddressHandle, Completion, Datagram, Path, PostError, QpType, Remote, SendFlags};
use holdfast_driver::wire::attr::mtu_bytes;
use holdfast_driver::{Error as Driver, QpConfig};
use holdfast_lab_check::Report;

use super::rig::{HALF, QKEY, Rig, wait};

/// Bytes in front of a datagram.
const GRH: usize = 40;

/// Checks them on an open device.
pub fn run(rig: &Rig, report: &mut Report) {
    for size in [0, 1, 4095, 4096, 4097, 64 << 10, HALF] {
        report.check(&format!("RC: a SEND of {size} bytes arrives"), || {
            rig.pair(4, 1)?.exchange(rig, size, size as u64)
        });
    }
    report.check("entries that the device overwrites are written anew, ring after ring", || {
        scattered(rig)
    });
    report.check("sends without completions complete all the same, and none is lost", || {
        unsignalled(rig)
    });
    report.check("POLL shows what is done at once", || polled(rig));
    report.check("notifications that nobody asked for do not pile up under load", || {
        // The ring has room for 4096; both ends' completions are notified.
        let mut pair = rig.pair(8, 1)?;
        (0..3000).try_for_each(|round| pair.exchange_polled(rig, round))?;
        let driver = rig.device.driver();
        let mut left = 0;
        while driver.next_notification()?.is_some() {
            left += 1;
        }
        ensure!(left < 100, "{left} notifications wait");
        Ok(())
    });
    report.check("what the device would carry out as a SEND is refused", || not_sends(rig));
    report.check("queues as large as the device takes, and no larger", || depths(rig));
    report.check("UD: a datagram arrives with its GRH and sender", || {
        datagram(rig, rig.device.gid(), 0, 1000)
    });
    report.check("UD: more than the path MTU is refused", || {
        let mtu = mtu_bytes(rig.device.mtu()).context("an MTU code")? as usize;
        datagram(rig, rig.device.gid(), 0, mtu)?;
        let error = datagram(rig, rig.device.gid(), 0, mtu + 1).err().context("it was sent")?;
        let post = error.downcast_ref::<PostError>();
        ensure!(matches!(post, Some(PostError::MessageTooLong { .. })), "{error:#}");
        Ok(())
    });
    report.check("UD: an index that is bound anew means the new GID", || {
        let driver = rig.device.driver();
        driver.bind_gid(1, extra_gid(rig, 0))?;
        datagram(rig, extra_gid(rig, 0), 1, 100)?;
        driver.bind_gid(1, rig.device.gid())?;
        datagram(rig, extra_gid(rig, 1), 1, 100)?;
        Ok(driver.unbind_gid(1)?)
    });
}

/// A GID that the lab gives each device beside the one of its MAC address: fd00:NUMBER::SLOT. The
/// device keeps one address handle for each destination, with the source that it was first used
/// from, so whoever looks at the source takes a destination of his own.
pub fn extra_gid(rig: &Rig, number: u8) -> [u8; 16] {
    let mut gid = [0; 16];
    (gid[0], gid[3], gid[15]) = (0xfd, number, rig.device.gid()[15]);
    gid
}

/// Messages of four entries each, from and into other places each time, several times round rings
/// of four.
fn scattered(rig: &Rig) -> Result<()> {
    const LEN: usize = 100;
    let mut pair = rig.pair(4, 4)?;
    for round in 0..40 {
        let place = |part: usize| (round * 4 + part) * 4096 + round * 8;
        let from: Vec<_> = (0..4).map(|part| rig.sge(place(part), LEN)).collect();
        let to: Vec<_> = (0..4).rev().map(|part| rig.sge(HALF + place(part), LEN)).collect();
        for part in 0..4 {
            rig.fill(place(part), LEN, (round * 4 + part) as u64)?;
            rig.wipe(HALF + place(part), LEN)?;
        }
        let recv = pair.b.recv.as_mut().context("a receive queue")?;
        recv.post(2, &to)?;
        recv.ring();
        pair.a.send.send(1, &from, SendFlags::SIGNALED)?;
        pair.a.send.ring();
        for done in wait(&mut pair.cq, 2)? {
            ensure!(done.is_success(), "round {round}: {done:?}");
        }
        for part in 0..4 {
            // The first part sent lands in the last place.
            rig.expect(HALF + place(3 - part), LEN, (round * 4 + part) as u64)?;
        }
    }
    Ok(())
}

/// Sends of which only the last asks for a completion, in completion queues that have room for
/// every single one and for no more.
fn unsignalled(rig: &Rig) -> Result<()> {
    const DEPTH: u32 = 64;
    let (mut sends, mut receives, spare) = (rig.cq(DEPTH)?, rig.cq(DEPTH)?, rig.cq(DEPTH)?);
    let config = QpConfig::new(QpType::Rc, DEPTH);
    let driver = rig.device.driver();
    let create = |config: &QpConfig, send_cq, recv_cq| {
        driver.create_qp(rig.pd.driver(), &rig.uar, config, send_cq, recv_cq)
    };
    let mut a = create(&QpConfig { recv_depth: 1, ..config.clone() }, &sends, &spare)?;
    let mut b = create(&QpConfig { send_depth: 1, ..config }, &spare, &receives)?;
    rig.connect(&a.control, &b.control)?;
    for round in 0..20 {
        let recv = b.recv.as_mut().context("a receive queue")?;
        for place in 0..DEPTH as usize {
            recv.post(place as u64, &[rig.sge(HALF + place * 64, 64)])?;
            rig.fill(place * 64, 64, round * 100 + place as u64)?;
        }
        recv.ring();
        for place in 0..DEPTH as usize {
            let last = place as u32 == DEPTH - 1;
            let flags = if last { SendFlags::SIGNALED } else { SendFlags::NONE };
            a.send.send(round, &[rig.sge(place * 64, 64)], flags)?;
        }
        a.send.ring();
        let sent = wait(&mut sends, 1)?;
        ensure!(sent[0].is_success() && sent[0].wr_id == round, "{sent:?}");
        ensure!(a.send.outstanding() == 0, "{} sends are left", a.send.outstanding());
        for (place, done) in wait(&mut receives, DEPTH as usize)?.iter().enumerate() {
            ensure!(done.is_success() && done.wr_id == place as u64, "{place}: {done:?}");
            rig.expect(HALF + place * 64, 64, round * 100 + place as u64)?;
        }
        let mut more = [Completion::default()];
        ensure!(sends.poll(&mut more)? == 0, "of a send that asked for none: {more:?}");
    }
    Ok(())
}

/// After one POLL, the next look finds both ends' completions: the device takes them from its own
/// backend while the doorbell is being rung. Its thread would take a while.
fn polled(rig: &Rig) -> Result<()> {
    let mut pair = rig.pair(8, 1)?;
    (0..500).try_for_each(|round| {
        pair.exchange_polled(rig, round).with_context(|| format!("round {round}"))
    })
}

fn not_sends(rig: &Rig) -> Result<()> {
    let mut pair = rig.pair(4, 1)?;
    let (sge, remote) = (rig.sge(0, 8), Remote { addr: rig.region.remote().addr, rkey: u32::MAX });
    let (one, flags) = ([sge], SendFlags::SIGNALED);
    let queue = &mut pair.a.send;
    let refused = [
        ("WRITE", queue.write(1, &one, remote, flags)),
        ("WRITE with immediate", queue.write_imm(1, &one, remote, 7, flags)),
        ("READ", queue.read(1, &one, remote, flags)),
        ("compare and swap", queue.compare_swap(1, sge, remote, 0, 1, flags)),
        ("fetch and add", queue.fetch_add(1, sge, remote, 1, flags)),
        ("SEND with immediate", queue.send_imm(1, &one, 7, flags)),
    ];
    for (name, result) in refused {
        ensure!(matches!(result, Err(PostError::OpcodeUnsupported { .. })), "{name}: {result:?}");
    }
    let inline = QpConfig { max_inline: 16, ..QpConfig::new(QpType::Rc, 4) };
    let error = rig.qp(&inline, &pair.cq).err().context("a queue pair with inline data")?;
    let driver = error.downcast_ref::<Driver>();
    ensure!(matches!(driver, Some(Driver::Unsupported { .. })), "{error:#}");
    // Nothing of that reached the device.
    pair.exchange(rig, 64, 11)
}

fn depths(rig: &Rig) -> Result<()> {
    let limits = rig.device.driver().limits();
    ensure!(limits.max_cqe == 4096, "a completion queue of {}", limits.max_cqe);
    let cq = rig.cq(4096)?;
    let too_deep = |what: &str, error: anyhow::Error| {
        let driver = error.downcast_ref::<Driver>();
        ensure!(matches!(driver, Some(Driver::Limit { .. })), "{what}: {error:#}");
        Ok(())
    };
    too_deep("completion queue", rig.cq(4097).err().context("a queue of 4097")?)?;
    let config = |send_depth, recv_depth, sges| QpConfig {
        send_depth,
        recv_depth,
        send_sges: sges,
        overcommit: true,
        ..QpConfig::new(QpType::Rc, 1)
    };
    for (send, recv, sges) in [(4096, 1, 3), (2048, 1, 4), (1, limits.max_qp_wr, 1)] {
        let qp = rig.qp(&config(send, recv, sges), &cq);
        qp.with_context(|| format!("{send} sends of {sges} entries, {recv} receives"))?;
    }
    for (send, recv, sges) in [(4097, 1, 1), (2049, 1, 4), (1, limits.max_qp_wr + 1, 1)] {
        let what = format!("{send} sends of {sges} entries, {recv} receives");
        let error = rig.qp(&config(send, recv, sges), &cq).err();
        too_deep(&what, error.with_context(|| what.clone())?)?;
    }
    Ok(())
}

/// One datagram to `dgid` (a GID of this device) from the GID at `index`, whose GRH must say so.
pub fn datagram(rig: &Rig, dgid: [u8; 16], index: u8, len: usize) -> Result<()> {
    let mut cq = rig.cq(64)?;
    let (mut a, mut b) = (rig.datagrams(4, &cq)?, rig.datagrams(4, &cq)?);
    rig.fill(0, len, 5)?;
    rig.wipe(HALF, GRH + len)?;
    let recv = b.recv.as_mut().context("a receive queue")?;
    recv.post(2, &[rig.sge(HALF, GRH + len)])?;
    recv.ring();
    let to = AddressHandle::new(rig.pd.driver(), &Path::new(dgid, index))?;
    let to = Datagram { to: &to, qpn: b.qpn(), qkey: QKEY };
    a.send.ud_send(1, &[rig.sge(0, len)], to, SendFlags::SIGNALED)?;
    a.send.ring();
    let done = wait(&mut cq, 2)?;
    let received = done.iter().find(|one| one.is_receive()).context("no receive completed")?;
    ensure!(done.iter().all(Completion::is_success), "{done:?}");
    ensure!(received.has_grh() && received.byte_len as usize == GRH + len, "{received:?}");
    ensure!(received.src_qp == a.qpn(), "from {:#x}, sent by {:#x}", received.src_qp, a.qpn());
    rig.expect(HALF + GRH, len, 5)?;
    let mut grh = [0; GRH];
    rig.region.memory().read_at(HALF, &mut grh)?;
    let ours = rig.device.driver().gid(index.into()).context("no GID there")?;
    ensure!(grh[8..24] == ours, "the GRH names {:02x?}, sent from {ours:02x?}", &grh[8..24]);
    ensure!(grh[24..40] == dgid, "the GRH goes to {:02x?}", &grh[24..40]);
    Ok(())
}
