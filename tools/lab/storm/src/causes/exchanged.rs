//! Blocks of DAX files that are exchanged without a look at pins. Nothing makes these operations wait,
//! so the regions go to scrap when they are announced, whatever time they were to be given, and come
//! back to the blocks that the file has afterwards, whatever page tables still show.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use holdfast::coherence::Policy;
use holdfast_lab_check::{Report, ioctl};

use super::files::{BROKEN_AND_BACK, BROKEN_AND_LOST, WHOLE, arrives, create, on_with};
use super::scene::{CHUNK, Scene};

/// A region's time; an operation that waits for nobody takes less.
const TIME: Duration = Duration::from_secs(3);

/// The checks.
pub fn run(scene: &Scene, report: &mut Report, dax: &Path, ext4: bool) {
    if ext4 {
        // Once, and the file is left alone afterwards: the kernel keeps entries of the blocks that
        // went in the file's page cache, and Linux 7.3 has waited for their pages for ever.
        report.check("EXT4_IOC_SWAP_BOOT, which passes pins: told, and lost", || {
            swap_boot(scene, dax)
        });
    } else {
        report.check("XFS_IOC_SWAPEXT, which passes pins: told, and back", || {
            swap_extents(scene, dax, Policy::FOLLOW)
        });
        report.check("the same of a region that is given time: taken away at once", || {
            swap_extents(scene, dax, Policy::hold(TIME).and_follow())
        });
    }
}

fn swap_boot(scene: &Scene, dax: &Path) -> Result<()> {
    let (file, mut stage) = on_with(scene, dax, Policy::FOLLOW)?;
    ioctl::swap_boot(&file).context("EXT4_IOC_SWAP_BOOT")?;
    // The boot loader's inode had no blocks.
    stage.told(BROKEN_AND_LOST, "swap-boot", WHOLE)?;
    stage.write(CHUNK).map(drop)
}

fn swap_extents(scene: &Scene, dax: &Path, policy: Policy) -> Result<()> {
    let (file, mut stage) = on_with(scene, dax, policy)?;
    let other = create(&dax.join("other"))?;
    let start = Instant::now();
    ioctl::swap_extents(&file, &other).context("XFS_IOC_SWAPEXT")?;
    stage.told(&BROKEN_AND_BACK[..1], "swap-extents", WHOLE)?;
    at_once(start)?;
    stage.told(&BROKEN_AND_BACK[1..], "swap-extents", WHOLE)?;
    arrives(&mut stage, &file)
}

fn at_once(start: Instant) -> Result<()> {
    let took = start.elapsed();
    ensure!(took < TIME, "it took {took:?}");
    Ok(())
}
