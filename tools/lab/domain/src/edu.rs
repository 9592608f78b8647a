//! QEMU's `edu` (QEMU docs/specs/edu.rst): a DMA engine with a buffer of its own.

use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};
use holdfast_iommu::{Prot, SharedMemory};
use holdfast_lab_check::Report;
use holdfast_vfio::Device;

use crate::Bench;

const BAR: u32 = 0;
const IDENTITY: u64 = 0x00;
const SOURCE: u64 = 0x80;
const TARGET: u64 = 0x88;
const COUNT: u64 = 0x90;
const COMMAND: u64 = 0x98;
/// The device's buffer, in its own address space.
const BUFFER: u64 = 0x4_0000;
const START: u64 = 1;
const TO_MEMORY: u64 = 2;
/// What QEMU 7.2 moves at a time without complaint; later ones move 4096.
const CHUNK: usize = 2048;

fn transfer(device: &dyn Device, source: u64, target: u64, direction: u64) -> Result<()> {
    for (register, value) in [(SOURCE, source), (TARGET, target), (COUNT, CHUNK as u64)] {
        device.write_region(BAR, register, &value.to_le_bytes())?;
    }
    device.write_region(BAR, COMMAND, &(START | direction).to_le_bytes())?;
    let start = Instant::now();
    let mut command = [0; 8];
    loop {
        device.read_region(BAR, COMMAND, &mut command)?;
        if u64::from_le_bytes(command) & START == 0 {
            return Ok(());
        }
        if start.elapsed() > Duration::from_secs(10) {
            bail!("edu did not finish a transfer within 10 s");
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Data in both directions, before and after the memory behind the addresses was exchanged.
pub fn run(bench: &Bench, report: &mut Report) -> Result<()> {
    let device = &*bench.device;
    let identity = device.read_u32(BAR, IDENTITY)?;
    ensure!(identity & 0xff_ffff == 0xed, "this is no edu: it identifies as {identity:#x}");
    let page = 4096_usize;
    let first = SharedMemory::new(2 * page as u64)?;
    let second = SharedMemory::new(2 * page as u64)?;
    let mapping = bench.space.map_at(0x10_0000, &[first.piece()], Prot::ReadWrite, None)?;
    let data: Vec<u8> = (0..CHUNK).map(|n| (n * 7 + n / 251) as u8).collect();

    report.check("edu reads memory and writes it back where it is told", || {
        first.zero();
        first.write(8, &data);
        transfer(device, mapping.iova() + 8, BUFFER, 0)?;
        transfer(device, BUFFER, mapping.iova() + page as u64 + 16, TO_MEMORY)?;
        let mut back = vec![0; 2 * page];
        first.read(0, &mut back);
        ensure!(back[page + 16..page + 16 + CHUNK] == data, "other bytes came back");
        let around = &back[page..page + 16];
        ensure!(around.iter().all(|byte| *byte == 0), "bytes before the target were touched");
        let after = &back[page + 16 + CHUNK..];
        ensure!(after.iter().all(|byte| *byte == 0), "bytes after the target were touched");
        Ok(())
    });
    report.check("after unmap and map at the same address edu reads the new memory", || {
        let address = mapping.iova();
        mapping.unmap()?;
        second.zero();
        second.write(0, &data);
        let again = bench.space.map_at(address, &[second.piece()], Prot::ReadWrite, None)?;
        first.zero();
        transfer(device, address, BUFFER, 0)?;
        transfer(device, BUFFER, address + page as u64, TO_MEMORY)?;
        let (mut new, mut old) = (vec![0; CHUNK], vec![0; 2 * page]);
        second.read(page, &mut new);
        first.read(0, &mut old);
        ensure!(new == data, "the new memory did not get the data");
        ensure!(old.iter().all(|byte| *byte == 0), "the old memory was written");
        again.unmap()?;
        Ok(())
    });
    Ok(())
}
