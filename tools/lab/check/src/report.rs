//! One line for each check, as the lab's runner reads them, and the numbers measured on the way.

use std::time::{Duration, Instant};

use anyhow::Result;
use serde_json::{Map, Value};

/// What was found.
#[derive(Debug, Default)]
pub struct Report {
    /// Checks that failed.
    pub failed: usize,
    /// Measured numbers by name.
    pub numbers: Map<String, Value>,
}

impl Report {
    /// Runs one check and prints how it went; says whether it passed.
    pub fn check(&mut self, name: &str, check: impl FnOnce() -> Result<()>) -> bool {
        let start = Instant::now();
        let result = check();
        self.enter(name, start.elapsed(), result)
    }

    /// Prints how a check went that took so long; says whether it passed.
    pub fn enter(&mut self, name: &str, took: Duration, result: Result<()>) -> bool {
        let seconds = took.as_secs_f64();
        match &result {
            Ok(()) => println!("ok   {name} ({seconds:.2} s)"),
            Err(error) => {
                self.failed += 1;
                let reason = format!("{error:#}").replace('\n', " ");
                println!("FAIL {name} ({seconds:.2} s): {reason}");
            }
        }
        result.is_ok()
    }

    /// Notes a number.
    pub fn number(&mut self, name: &str, value: impl Into<Value>) {
        let value = value.into();
        println!("     {name} = {value}");
        self.numbers.insert(name.to_owned(), value);
    }
}
