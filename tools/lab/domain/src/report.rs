//! One line for each check, and the numbers measured on the way.

use std::time::Instant;

use anyhow::Result;
use serde_json::{Map, Value};

/// What was found.
#[derive(Default)]
pub struct Report {
    /// Checks that failed.
    pub failed: usize,
    /// Measured numbers by name.
    pub numbers: Map<String, Value>,
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
                println!(
                    "FAIL {name} ({seconds:.2} s): {}",
                    format!("{error:#}").replace('\n', " ")
                );
            }
        }
    }

    /// Notes a number.
    pub fn number(&mut self, name: &str, value: impl Into<Value>) {
        let value = value.into();
        println!("     {name} = {value}");
        self.numbers.insert(name.to_owned(), value);
    }
}
