//! Regions that are given time before they lose their file: they have all of it, and no more than the
//! keeper lets operations wait.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{bail, ensure};
use holdfast::coherence::Policy;
use holdfast_lab_check::Report;

use super::files::{BROKEN_AND_LOST, WHOLE, on_with};
use super::scene::{CHUNK, Scene};

/// A region's time.
const TIME: Duration = Duration::from_millis(700);

/// One check for each.
pub fn run(scene: &Scene, report: &mut Report, dax: &Path) {
    report.check("a region has the time that it is given, whatever was said before", || {
        let (file, stage) = on_with(scene, dax, Policy::hold(TIME).and_follow())?;
        // Too late for an operation that is over.
        scene.guard.proceed(stage.id()?);
        let start = Instant::now();
        file.set_len(CHUNK)?;
        let took = start.elapsed();
        ensure!(took >= TIME, "it had {took:?}");
        stage.told(&BROKEN_AND_LOST[..1], "truncate", WHOLE)
    });
    report.check("and less when the application says so", || {
        let time = Duration::from_secs(4);
        let (file, stage) = on_with(scene, dax, Policy::hold(time).and_follow())?;
        let took = std::thread::scope(|scope| {
            let cut = scope.spawn(|| {
                let start = Instant::now();
                file.set_len(CHUNK).map(|()| start.elapsed())
            });
            stage.breaking()?;
            scene.guard.proceed(stage.id()?);
            match cut.join() {
                Ok(took) => Ok(took?),
                Err(_) => bail!("the other thread panicked"),
            }
        })?;
        ensure!(took < time, "it had {took:?}");
        Ok(())
    });
    report.check("a region that wants more than the keeper allows is refused", || {
        match on_with(scene, dax, Policy::hold(Duration::from_secs(10))) {
            Err(error) if format!("{error:#}").contains("keeper") => Ok(()),
            Err(error) => Err(error),
            Ok(_) => bail!("it is not"),
        }
    });
}
