//! One line for each check, as the lab's runner reads them.

use std::time::Instant;

use anyhow::Result;

/// What was found.
#[derive(Default)]
pub struct Report {
    /// Checks that failed.
    pub failed: usize,
}

impl Report {
    /// Runs one check and prints how it went.
    pub fn check(&mut self, name: &str, check: impl FnOnce() -> Result<()>) {
        let start = Instant::now();
        let result = check();
        let seconds = start.elapsed().as_secs_f64();
        match result {
            Ok(()) => println!("ok   {name} ({seconds:.2} s)"),
            Err(error) => {
                self.failed += 1;
                let reason = format!("{error:#}").replace('\n', " ");
                println!("FAIL {name} ({seconds:.2} s): {reason}");
            }
        }
    }
}
