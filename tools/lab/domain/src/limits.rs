//! The limits of a container, each run into and each named in the error.

use anyhow::{bail, ensure};
use holdfast_iommu::{Error, Mapping, Prot, SharedMemory};
use holdfast_lab_check::Report;

use crate::Bench;

/// Maps page after page until the container has no entries left.
pub fn entries(bench: &Bench, report: &mut Report) {
    report.check("the limit on mappings is known, run into and survived", || {
        let Some(limit) = bench.space.limits().max_mappings else { bail!("no limit is known") };
        ensure!(limit <= 4096, "dma_entry_limit is {limit}: set it low for this check");
        let memory = SharedMemory::new(4096)?;
        let mut mappings: Vec<Mapping> = Vec::new();
        let refused = loop {
            match bench.space.map(memory.piece(), Prot::ReadWrite, None) {
                Ok(mapping) => mappings.push(mapping),
                Err(error) => break error,
            }
            ensure!(mappings.len() as u64 <= limit, "more than {limit} mappings were made");
        };
        ensure!(mappings.len() as u64 == limit, "{} of {limit} were made", mappings.len());
        match refused {
            Error::MappingLimit { limit: named } if named == limit => {}
            other => bail!("the refusal is {other}"),
        }
        mappings.pop();
        mappings.push(bench.space.map(memory.piece(), Prot::ReadWrite, None)?);
        drop(mappings);
        ensure!(bench.space.mappings() == 0, "mappings are left");
        Ok(())
    });
}

/// Pins more than RLIMIT_MEMLOCK allows.
pub fn memlock(bench: &Bench, report: &mut Report) {
    report.check("the limit on pinned memory is named with its value", || {
        let memory = SharedMemory::new(16 << 20)?;
        match bench.space.map(memory.piece(), Prot::ReadWrite, None) {
            Err(Error::Memlock { limit: Some(limit), .. }) if limit < 16 << 20 => {}
            Err(other) => bail!("the refusal is {other}"),
            Ok(_) => bail!("16 MiB were pinned: the limit is not low enough for this check"),
        }
        let small = SharedMemory::new(4096)?;
        Ok(bench.space.map(small.piece(), Prot::ReadWrite, None)?.unmap()?)
    });
}
