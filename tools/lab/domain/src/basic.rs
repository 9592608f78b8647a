//! What a mapping promises: the device reaches exactly what is mapped, as it is allowed to, for
//! exactly as long as it is mapped.

use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};
use holdfast_iommu::{Error, IovaRange, Prot, SharedMemory};
use holdfast_lab_check::Report;

use crate::Bench;
use crate::testdev::{PATTERN, Testdev};

const PAGE: u64 = 4096;
const MIB: u64 = 1 << 20;
/// Where [`hold`] maps.
const HELD: u64 = 0x4000_0000;

/// How many bytes of `memory` are not zero, and the first of them.
fn touched(memory: &SharedMemory) -> (usize, Option<usize>) {
    let mut bytes = vec![0; memory.len() as usize];
    memory.read(0, &mut bytes);
    let count = bytes.iter().filter(|byte| **byte != 0).count();
    (count, bytes.iter().position(|byte| *byte != 0))
}

/// The checks.
pub fn run(bench: &Bench, report: &mut Report) -> Result<()> {
    let engine = Testdev::new(bench.device())?;
    let space = &bench.space;

    report.check("a write reaches the mapped bytes and no others", || {
        let memory = SharedMemory::new(4 * PAGE)?;
        let mapping = space.map(memory.piece(), Prot::ReadWrite, None)?;
        for (offset, len) in [(0, 4_u32), (PAGE - 2, 4), (PAGE + 8, 5000), (4 * PAGE - 8, 8)] {
            memory.zero();
            ensure!(engine.write(mapping.iova() + offset, len)?, "a write at +{offset:#x} failed");
            let (count, first) = touched(&memory);
            ensure!(
                (count, first) == (len as usize, Some(offset as usize)),
                "{len} bytes at +{offset:#x} touched {count} bytes from {first:?}"
            );
            let mut word = [0; 4];
            memory.read(offset as usize, &mut word);
            ensure!(word == PATTERN, "wrong bytes: {word:x?}");
        }
        Ok(mapping.unmap()?)
    });

    report.check("a write outside any mapping fails, and so does one after the unmap", || {
        let memory = SharedMemory::new(PAGE)?;
        let mapping = space.map_at(0x2000_0000, &[memory.piece()], Prot::ReadWrite, None)?;
        ensure!(engine.write(mapping.iova(), 64)?, "the mapped write failed");
        ensure!(!engine.write(mapping.iova() + PAGE, 64)?, "a write past the mapping went through");
        ensure!(!engine.write(mapping.iova() - 64, 64)?, "a write before it went through");
        let address = mapping.iova();
        mapping.unmap()?;
        memory.zero();
        ensure!(!engine.write(address, 64)?, "a write after the unmap went through");
        ensure!(touched(&memory).0 == 0, "unmapped memory was written");
        Ok(())
    });

    report.check("a read-only mapping is not written", || {
        let memory = SharedMemory::new(PAGE)?;
        let mapping = space.map(memory.piece(), Prot::Read, None)?;
        ensure!(!engine.write(mapping.iova(), 64)?, "the write went through");
        ensure!(touched(&memory).0 == 0, "read-only memory was written");
        Ok(mapping.unmap()?)
    });

    report.check("the same memory may stand behind two addresses", || {
        let memory = SharedMemory::new(PAGE)?;
        let one = space.map(memory.piece(), Prot::ReadWrite, None)?;
        let two = space.map(memory.piece(), Prot::ReadWrite, None)?;
        one.unmap()?;
        ensure!(engine.write(two.iova(), 4)?, "the second mapping went with the first");
        ensure!(touched(&memory).0 == 4, "the memory was not written");
        Ok(two.unmap()?)
    });

    report.check("chunks are revoked one by one, never in half", || {
        let memory = SharedMemory::new(4 * MIB)?;
        let mapping = space.map(memory.piece(), Prot::ReadWrite, Some(MIB))?;
        let chunk = |n: u64, len: u64| IovaRange::new(mapping.iova() + n * MIB, len);
        let Some((half, whole)) = chunk(1, MIB / 2).zip(chunk(1, MIB)) else { bail!("no range") };
        match space.unmap(half) {
            Err(Error::Bisects { .. }) => {}
            other => bail!("unmapping half a chunk gives {other:?}"),
        }
        space.unmap(whole)?;
        for (n, open) in [(0, true), (1, false), (2, true), (3, true)] {
            let went = engine.write(mapping.iova() + n * MIB + 128, 8)?;
            ensure!(went == open, "chunk {n} is open: {went}");
        }
        drop(mapping);
        ensure!(space.mappings() == 0, "{} mappings are left", space.mappings());
        Ok(())
    });

    report.check("reserved addresses are refused before and by the kernel", || {
        let memory = SharedMemory::new(PAGE)?;
        match space.map_at(0xfee0_0000, &[memory.piece()], Prot::ReadWrite, None) {
            Err(Error::Reserved { .. }) => {}
            other => bail!("mapping the MSI window gives {other:?}"),
        }
        let beyond = space.limits().ranges.iter().map(IovaRange::end).max().unwrap_or(0);
        match space.map_at(beyond, &[memory.piece()], Prot::ReadWrite, None) {
            Err(Error::Reserved { .. } | Error::Usage(_)) => {}
            other => bail!("mapping past the last address {beyond:#x} gives {other:?}"),
        }
        let covers = |range: &IovaRange| range.contains(0xfee0_0000);
        let told = !space.limits().ranges.iter().any(covers);
        ensure!(told, "the kernel lists the MSI window as usable: {:?}", space.limits().ranges);
        Ok(())
    });

    for (pages, huge) in [("4 KiB", false), ("2 MiB", true)] {
        std::fs::write("/proc/sys/vm/nr_hugepages", if huge { "16" } else { "0" })?;
        let make = if huge { SharedMemory::new } else { SharedMemory::of_ordinary_pages };
        let memory = make(8 * MIB)?;
        let mut times = Vec::new();
        report.check(&format!("8 MiB of {pages} pages are mapped, reached and unmapped"), || {
            ensure!(memory.is_huge() == huge, "the guest gave other pages");
            let start = Instant::now();
            let mapping = space.map(memory.piece(), Prot::ReadWrite, None)?;
            times.push(("map", start.elapsed()));
            for offset in [0, 2 * MIB - 2, 8 * MIB - 4] {
                ensure!(engine.write(mapping.iova() + offset, 4)?, "no write at +{offset:#x}");
            }
            ensure!(touched(&memory).0 == 12, "other bytes were touched");
            let start = Instant::now();
            mapping.unmap()?;
            times.push(("unmap", start.elapsed()));
            Ok(())
        });
        for (what, time) in times {
            let name = format!("{what}_8MiB_of_{}_us", pages.replace(' ', ""));
            report.number(&name, time.as_micros() as u64);
        }
    }
    Ok(())
}

/// Maps, says so on standard output, and waits.
pub fn hold(bench: &Bench) -> Result<()> {
    let memory = SharedMemory::new(2 * MIB)?;
    let mapping = bench.space.map_at(HELD, &[memory.piece()], Prot::ReadWrite, None)?;
    let engine = Testdev::new(bench.device())?;
    ensure!(engine.write(mapping.iova(), 64)?, "the mapping does not work");
    println!("holding {:#x}", mapping.iova());
    std::thread::sleep(Duration::from_secs(600));
    Ok(())
}

/// The holder is dead; so are its mappings.
pub fn after_kill(bench: &Bench, report: &mut Report) -> Result<()> {
    let engine = Testdev::new(bench.device())?;
    report.check("a killed owner leaves nothing mapped", || {
        ensure!(!engine.write(HELD, 64)?, "the dead process's memory is still reachable");
        let memory = SharedMemory::new(PAGE)?;
        let mapping = bench.space.map_at(HELD, &[memory.piece()], Prot::ReadWrite, None)?;
        ensure!(engine.write(HELD, 64)?, "the address cannot be used again");
        Ok(mapping.unmap()?)
    });
    Ok(())
}
