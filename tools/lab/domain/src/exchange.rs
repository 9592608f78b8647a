//! Memory is exchanged under an engine that never stops writing.
//!
//! A thread keeps the engine writing to one address while this thread takes the memory behind it
//! away and puts scrap there, over and over. What must hold: when the exchange has returned, the
//! old memory is never written again. What is measured: how long nothing stood behind the address,
//! by the clock of the exchange and by the writes that failed.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, ensure};
use holdfast_iommu::{Prot, SharedMemory};
use holdfast_lab_check::Report;

use crate::Bench;
use crate::testdev::Testdev;

/// What the engine's thread counts.
#[derive(Default)]
struct Writes {
    done: AtomicU64,
    failed: AtomicU64,
    stop: AtomicBool,
    error: Mutex<Option<anyhow::Error>>,
}

impl Writes {
    fn keep_writing(&self, engine: &Testdev, iova: u64) {
        let result = (|| {
            engine.write(iova, 8)?;
            while !self.stop.load(Ordering::Relaxed) {
                let went = engine.again()?;
                let counter = if went { &self.done } else { &self.failed };
                counter.fetch_add(1, Ordering::Release);
            }
            Ok(())
        })();
        *self.error.lock().unwrap_or_else(|poison| poison.into_inner()) = result.err();
    }

    /// Waits until `count` more writes were carried out.
    fn wait_for(&self, count: u64) -> Result<()> {
        let target = self.done.load(Ordering::Acquire) + count;
        let start = Instant::now();
        while self.done.load(Ordering::Acquire) < target {
            ensure!(start.elapsed() < Duration::from_secs(10), "the engine stopped writing");
            std::thread::yield_now();
        }
        Ok(())
    }
}

/// The checks.
pub fn run(bench: &Bench, report: &mut Report) -> Result<()> {
    let engine = Testdev::new(bench.device())?;
    for (name, len, huge, rounds) in [
        ("4KiB", 4096, false, 300),
        ("2MiB", 2 << 20, true, 200),
        ("2MiB_of_4KiB", 2 << 20, false, 30),
    ] {
        std::fs::write("/proc/sys/vm/nr_hugepages", if huge { "16" } else { "0" })?;
        let what = format!("no write lands in memory taken away under a writing engine ({name})");
        let mut windows = Vec::new();
        let mut failed = 0;
        report.check(&what, || {
            (windows, failed) = exchange(bench, &engine, len, huge, rounds)?;
            Ok(())
        });
        windows.sort_unstable();
        if let (Some(middle), Some(most)) = (windows.get(windows.len() / 2), windows.last()) {
            report.number(&format!("window_{name}_p50_us"), middle.as_nanos() as f64 / 1e3);
            report.number(&format!("window_{name}_max_us"), most.as_nanos() as f64 / 1e3);
            report.number(
                &format!("window_{name}_failed_writes_per_exchange"),
                failed as f64 / rounds as f64,
            );
        }
    }
    Ok(())
}

fn exchange(
    bench: &Bench,
    engine: &Testdev,
    len: u64,
    huge: bool,
    rounds: usize,
) -> Result<(Vec<Duration>, u64)> {
    let make = if huge { SharedMemory::new } else { SharedMemory::of_ordinary_pages };
    let memory = make(len)?;
    ensure!(memory.is_huge() == huge, "the guest gave other pages");
    let space = &bench.space;
    let scrap = if huge { space.scrap(len)? } else { space.scrap_of_ordinary_pages(len)? };
    let mapping = space.map(memory.piece(), Prot::ReadWrite, None)?;
    let target = mapping.iova() + len / 2;
    let at = (len / 2) as usize;
    let writes = Writes::default();
    let mut windows = Vec::new();
    std::thread::scope(|scope| {
        scope.spawn(|| writes.keep_writing(engine, target));
        let result = (|| {
            for round in 0..rounds {
                writes.wait_for(2).context("before the exchange")?;
                let done = space.retarget(mapping.range(), &scrap)?;
                ensure!(done.chunks == 1 && done.holes == 0, "round {round}: {done:?}");
                windows.push(done.window);
                // The old memory belongs to someone else from here on.
                let mine = [round as u8 | 0x80; 8];
                memory.write(at, &mine);
                writes.wait_for(3).context("on scrap")?;
                let mut found = [0; 8];
                memory.read(at, &mut found);
                ensure!(found == mine, "round {round}: the memory taken away holds {found:x?}");
                let mut in_scrap = [0; 8];
                scrap.read(at, &mut in_scrap);
                ensure!(in_scrap != [0; 8], "round {round}: nothing arrived in the scrap");
                space.restore(mapping.range(), &[memory.piece()])?;
                writes.wait_for(2).context("after the restore")?;
                memory.read(at, &mut found);
                ensure!(found != mine, "round {round}: nothing arrives in the restored memory");
            }
            Ok(())
        })();
        writes.stop.store(true, Ordering::Relaxed);
        result
    })?;
    let error = writes.error.into_inner().map_err(|_| anyhow!("the engine's thread panicked"))?;
    if let Some(error) = error {
        return Err(error.context("the engine's thread"));
    }
    mapping.unmap()?;
    Ok((windows, writes.failed.into_inner()))
}
