//! The project's end-to-end tests as programs for a guest: the same that `cargo test` runs against
//! NICs of its own, told to use two PCI functions of the guest instead.

use std::fs::{self, File};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::cli::beside_us;
use crate::guest::Job;
use crate::process::{Guarded, Terminal};

/// Those that can use any two devices.
const TESTS: [&str; 5] = ["opcodes", "errors", "interrupts", "many", "reset"];

/// Where cargo's messages of the last build are kept: they say where the programs are.
fn messages() -> Result<PathBuf> {
    beside_us("lab-tests.json")
}

/// Puts them into the guest's PATH.
pub fn add(mut job: Job) -> Result<Job> {
    let path = messages()?;
    let messages = fs::read_to_string(&path)
        .with_context(|| format!("no {path:?}: run `cargo lab test` once without --no-build"))?;
    for test in TESTS {
        let program = messages.lines().find_map(|line| executable(line, test));
        let program =
            program.with_context(|| format!("cargo did not say where it built {test}"))?;
        job = job.file(program, format!("bin/test-{test}"));
    }
    Ok(job)
}

/// Builds them, if cargo started us.
pub fn build() -> Result<()> {
    let Some(cargo) = std::env::var_os("CARGO") else { return Ok(()) };
    let mut command = Command::new(cargo);
    command.args(["test", "--release", "--quiet", "--no-run", "--message-format=json"]);
    command.args(["-p", "holdfast"]);
    for test in TESTS {
        command.args(["--test", test]);
    }
    let path = messages()?;
    let messages = File::create(&path).with_context(|| format!("cannot write {path:?}"))?;
    command.stdin(Stdio::null()).stdout(messages);
    let status = Guarded::spawn(&mut command, Terminal::Own)?
        .named("cargo test --no-run")
        .wait(Duration::from_secs(3600))?;
    if !status.success() {
        bail!("cargo test --no-run of the end-to-end tests failed");
    }
    Ok(())
}

/// The program that cargo reports in this message, if it is that of `test`.
fn executable(message: &str, test: &str) -> Option<PathBuf> {
    let message: Value = serde_json::from_str(message).ok()?;
    let target = message.get("target")?;
    let ours = target.get("name")? == test && target.get("kind")?.get(0)? == "test";
    message.get("executable")?.as_str().filter(|_| ours).map(PathBuf::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_program_of_a_test_is_found_among_cargos_messages() {
        let message = |kind: &str, name: &str, executable: &str| {
            format!(
                r#"{{"reason":"compiler-artifact","target":{{"kind":["{kind}"],"name":"{name}"}},
                    "executable":{executable}}}"#
            )
        };
        let found = executable(&message("test", "many", r#""/t/many-1""#), "many");
        assert_eq!(found, Some("/t/many-1".into()));
        for other in [
            message("test", "errors", r#""/t/errors-1""#),
            message("bin", "many", r#""/t/many""#),
            message("test", "many", "null"),
            "warning: no JSON".to_owned(),
        ] {
            assert_eq!(executable(&other, "many"), None, "{other}");
        }
    }
}
