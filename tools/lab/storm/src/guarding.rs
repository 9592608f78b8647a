//! The guard of the storm, and how its best notifier dies half-way.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use holdfast::coherence::keeper::KeeperOptions;
use holdfast::coherence::{Guard, GuardOptions, NotifierKind};

/// For how long an announcement is taken for the cause of what is found waiting, and a little longer.
const ANNOUNCED: Duration = Duration::from_millis(2500);

/// Switches the kprobe notifier's tracing instances off.
pub fn stop_tracing() -> Result<()> {
    let instances = Path::new("/sys/kernel/tracing/instances");
    let mut stopped = 0;
    for instance in instances.read_dir().with_context(|| instances.display().to_string())? {
        let instance = instance?;
        if instance.file_name().to_string_lossy().starts_with("holdfast-") {
            std::fs::write(instance.path().join("tracing_on"), "0")?;
            stopped += 1;
        }
    }
    ensure!(stopped > 0, "no tracing instance in {}", instances.display());
    // What was announced last explains a wait that nobody explains, for a while.
    std::thread::sleep(ANNOUNCED);
    Ok(())
}

/// Starts the guard, with these notifiers only, if any are named; says which are in force. Its keeper
/// waits for as long as `patience`.
pub fn start(notifiers: &[NotifierKind], patience: Duration) -> Result<Guard> {
    // Without KVM, and with an emulated NIC that is given each page by itself, a file's way to scrap
    // may take longer than the keeper would wait for on a machine that works.
    let keeper = KeeperOptions { deadline: patience, ..KeeperOptions::default() };
    let mut options = GuardOptions { keeper: Some(keeper), ..GuardOptions::default() };
    if !notifiers.is_empty() {
        options.notifiers.kinds = notifiers.to_vec();
    }
    let guard = Guard::start(options)?;
    let in_force: Vec<_> = guard.statement().in_force().map(NotifierKind::name).collect();
    println!("notifiers in force: {}", in_force.join(", "));
    Ok(guard)
}
