//! Objects of a driver that was killed: nothing but the next driver's sweep takes them from the
//! device, which has no reset. The holder takes more than half of each kind, and so does whoever
//! comes after; unswept, the device would run out and corrupt itself.

use std::io::Write as _;
use std::time::Duration;

use anyhow::{Result, ensure};
use holdfast::{Access, CompletionQueue, DeviceAddress, QpType};
use holdfast_driver::{self as driver, QpConfig};
use holdfast_lab_check::Report;

use super::messages::{datagram, extra_gid};
use super::rig::Rig;

/// An index of the GID table that nothing else uses.
const INDEX: u8 = 5;

/// More than half of what the device has, of each kind.
#[derive(Default)]
struct Load {
    qps: Vec<driver::QueuePair>,
    srqs: Vec<driver::SharedReceiveQueue>,
    cqs: Vec<CompletionQueue>,
    regions: Vec<driver::MemoryRegion>,
    domains: Vec<holdfast::ProtectionDomain>,
    pages: Vec<std::sync::Arc<driver::Uar>>,
}

impl Load {
    fn new(rig: &Rig) -> Result<Self> {
        let driver = rig.device.driver();
        let limits = driver.limits();
        let most = |limit: u32| limit * 3 / 5;
        let mut load = Self::default();
        let page = [rig.region.iova()];
        let start = rig.region.remote().addr;
        for _ in 0..most(limits.max_mr) {
            let access = Access::LOCAL_WRITE.bits();
            load.regions.push(driver.register_mr(rig.pd.driver(), start, 4096, &page, access)?);
        }
        for _ in 0..most(limits.max_pd) {
            load.domains.push(rig.device.protection_domain()?);
        }
        for _ in 0..most(limits.max_cq) {
            load.cqs.push(rig.cq(4)?);
        }
        for _ in 0..most(limits.max_srq) {
            load.srqs.push(driver.create_srq(rig.pd.driver(), &rig.uar, 4, 1)?);
        }
        for number in 0..most(limits.max_qp) as usize {
            load.qps.push(rig.qp(&QpConfig::new(QpType::Rc, 1), &load.cqs[number])?);
        }
        for _ in 0..most(limits.max_uar) {
            load.pages.push(driver.alloc_uar()?);
        }
        Ok(load)
    }
}

/// Takes it all, says so, and waits to be killed.
pub fn hold(address: &DeviceAddress) -> Result<()> {
    let rig = Rig::open(address)?;
    rig.device.driver().bind_gid(INDEX.into(), extra_gid(&rig, 0))?;
    datagram(&rig, extra_gid(&rig, 2), INDEX, 64)?;
    let _load = Load::new(&rig)?;
    println!("holding");
    std::io::stdout().flush()?;
    loop {
        std::thread::sleep(Duration::from_secs(60));
    }
}

/// Comes after the holder.
pub fn after_kill(address: &DeviceAddress, report: &mut Report) -> Result<()> {
    let rig = Rig::open(address)?;
    report.check("after kill -9 the device has room for as much again", || {
        let load = Load::new(&rig)?;
        let regions: Vec<u32> = load.regions.iter().map(driver::MemoryRegion::lkey).collect();
        let all = rig.device.driver().limits().max_mr;
        ensure!(regions.iter().all(|key| *key < all), "a key beyond the table of {all}");
        rig.pair(4, 1)?.exchange(&rig, 4096, 31)
    });
    report.check("a GID that the killed driver bound is forgotten", || {
        rig.device.driver().bind_gid(INDEX.into(), rig.device.gid())?;
        datagram(&rig, extra_gid(&rig, 3), INDEX, 64)
    });
    Ok(())
}
