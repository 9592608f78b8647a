//! The device is recognised, comes up again without a stall, and its odd limits are understood.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use holdfast::DeviceAddress;
use holdfast_driver::Error;
use holdfast_lab_check::Report;

use super::rig::{HALF, Rig};

/// A second ACTIVATE, or a RESET, stops the guest for two to six seconds.
const NO_STALL: Duration = Duration::from_millis(1500);

/// Opens the device several times; nobody else may have it open.
pub fn run(address: &DeviceAddress, report: &mut Report) -> Result<()> {
    let rig = Rig::open(address)?;
    report.check("QEMU's device is recognised for what it is", || {
        let driver = rig.device.driver();
        let quirks = driver.quirks();
        ensure!(driver.version() == 17, "version {}", driver.version());
        ensure!(quirks.sends_only && quirks.keeps_stale_objects, "{quirks:?}");
        Ok(())
    });
    report.check("a port that is down (its vmxnet3 is VFIO's) still carries messages", || {
        let port = rig.device.driver().query_port(1)?;
        ensure!(port.state == 1, "the port is in state {}", port.state);
        rig.pair(4, 1)?.exchange(&rig, 100, 1)
    });
    report.check("a message may be longer than the port says", || {
        let said = rig.device.driver().query_port(1)?.max_msg_sz;
        ensure!((said as usize) < HALF, "the port says {said}");
        rig.pair(4, 1)?.exchange(&rig, HALF, 2)
    });
    report.check("the limit on doorbell pages is taken for bytes", || {
        let limit = rig.device.driver().limits().max_uar;
        ensure!(limit == 512, "{limit} pages");
        let mut pages = Vec::new();
        let refused = loop {
            match rig.device.driver().alloc_uar() {
                Ok(page) => pages.push(page),
                Err(error) => break error,
            }
            ensure!(pages.len() < 600, "no end of doorbell pages");
        };
        // The driver, the library and the rig have one each.
        ensure!(pages.len() == 509, "{} more pages", pages.len());
        ensure!(matches!(refused, Error::Limit { .. }), "{refused}");
        Ok(())
    });
    report.check("the device closes and opens again without stalling the guest", || {
        let start = Instant::now();
        drop(rig);
        let closed = start.elapsed();
        let rig = Rig::open(address)?;
        let took = start.elapsed();
        ensure!(took < NO_STALL, "closing took {closed:?}, all of it {took:?}");
        rig.pair(4, 1)?.exchange(&rig, 100, 3)
    });
    Ok(())
}
