//! Memory regions: remote keys that mean nothing, starts, sizes, and how many.

use anyhow::{Context as _, Result, ensure};
use holdfast::{Access, Memory, MemoryRegion, Populate, Source};
use holdfast_driver::Error as Driver;
use holdfast_lab_check::Report;

use super::rig::{HALF, Rig, wait};

/// Bytes of the longest region that the device reports.
const LONGEST: usize = 128 << 20;

/// Checks them on an open device.
pub fn run(rig: &Rig, report: &mut Report) {
    report.check("remote access to a region is refused, as its remote key means nothing", || {
        ensure!(rig.region.rkey() == u32::MAX, "the remote key is {:#x}", rig.region.rkey());
        let error = refused(register(rig, 4096, Access::REMOTE_WRITE))?;
        ensure!(matches!(error, Driver::Unsupported { .. }), "{error}");
        Ok(())
    });
    report.check("a region that starts inside a page is refused, with what to do", || {
        // The device would count its pages without the start and refuse only some of them.
        let page = [rig.region.iova()];
        let start = rig.region.remote().addr + 8;
        let result =
            rig.device.driver().register_mr(rig.pd.driver(), start, 4088, &page, LOCAL_WRITE);
        let error = result.err().context("it was registered")?;
        ensure!(error.to_string().contains("align the start"), "{error}");
        Ok(())
    });
    report.check(
        "a region of 128 MiB carries messages at both ends, and one more page is refused",
        || {
            let error = refused(register(rig, LONGEST + 4096, Access::LOCAL_WRITE))?;
            ensure!(
                matches!(error, Driver::Limit { limit, .. } if limit == LONGEST as u64),
                "{error}"
            );
            let region = register(rig, LONGEST, Access::LOCAL_WRITE)?;
            both_ends(rig, &region)
        },
    );
    report.check("regions together stay within what QEMU's process can map", || {
        let first = register(rig, LONGEST, Access::LOCAL_WRITE)?;
        let error = refused(register(rig, LONGEST, Access::LOCAL_WRITE))?;
        ensure!(matches!(error, Driver::Limit { limit: 60_000, .. }), "{error}");
        drop(first);
        register(rig, LONGEST, Access::LOCAL_WRITE)?;
        Ok(())
    });
    report.check("as many regions as the device has, and not one more", || {
        let driver = rig.device.driver();
        let page = [rig.region.iova()];
        let start = rig.region.remote().addr;
        let register = || driver.register_mr(rig.pd.driver(), start, 4096, &page, LOCAL_WRITE);
        let mut regions = Vec::new();
        let error = loop {
            match register() {
                Ok(region) => regions.push(region),
                Err(error) => break error,
            }
        };
        let all = driver.limits().max_mr;
        ensure!(regions.len() as u32 == all - 1, "{} and the rig's, of {all}", regions.len());
        ensure!(matches!(error, Driver::Limit { .. }), "{error}");
        Ok(())
    });
}

/// `holdfast_wire::attr::ACCESS_LOCAL_WRITE`.
const LOCAL_WRITE: u32 = Access::LOCAL_WRITE.bits();

fn register(rig: &Rig, bytes: usize, access: Access) -> holdfast::Result<MemoryRegion> {
    rig.pd.register(Memory::open(&Source::Memfd, bytes, Populate::Yes)?, access)
}

/// The driver's reason for refusing.
fn refused(result: holdfast::Result<MemoryRegion>) -> Result<Driver> {
    match result.err().context("it was registered")? {
        holdfast::Error::Driver(error) => Ok(error),
        other => Err(other.into()),
    }
}

/// The last page of a region goes to its first.
fn both_ends(rig: &Rig, region: &MemoryRegion) -> Result<()> {
    let mut pair = rig.pair(4, 1)?;
    let sge = |offset: usize| holdfast_driver::wire::wqe::Sge {
        addr: region.remote().addr + offset as u64,
        length: 4096,
        lkey: region.lkey(),
    };
    region.memory().fill(LONGEST - 4096, 4096, 0x5a)?;
    let recv = pair.b.recv.as_mut().context("a receive queue")?;
    recv.post(2, &[sge(0)])?;
    recv.ring();
    pair.a.send.send(1, &[sge(LONGEST - 4096)], holdfast::SendFlags::SIGNALED)?;
    pair.a.send.ring();
    for done in wait(&mut pair.cq, 2)? {
        ensure!(done.is_success(), "{done:?}");
    }
    let mut bytes = vec![0; 4096];
    region.memory().read_at(0, &mut bytes)?;
    ensure!(bytes.iter().all(|byte| *byte == 0x5a), "the first page has other bytes");
    // And the small region beside it still is what it was.
    pair.exchange(rig, HALF, 7)
}
