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

/// Where a test's program is kept, whatever hash cargo puts into its name.
fn program(test: &str) -> Result<PathBuf> {
    beside_us(&format!("lab-test-{test}"))
}

/// Puts them into the guest's PATH.
pub fn add(mut job: Job) -> Result<Job> {
    for test in TESTS {
        let program = program(test)?;
        let hint = "run `cargo lab test` once without --no-build";
        program.metadata().with_context(|| format!("no {program:?}: {hint}"))?;
        job = job.file(program, format!("bin/test-{test}"));
    }
    Ok(job)
}

/// Builds them as `cargo test` does, if cargo started us: where the tests were run before, nothing
/// is left to compile.
pub fn build() -> Result<()> {
    let Some(cargo) = std::env::var_os("CARGO") else { return Ok(()) };
    let kept = beside_us("lab-tests.json")?;
    let messages = File::create(&kept).with_context(|| format!("cannot write {kept:?}"))?;
    let mut command = Command::new(cargo);
    command.args(["test", "--quiet", "--no-run", "--message-format=json", "-p", "holdfast"]);
    command.args(TESTS.iter().flat_map(|test| ["--test", test]));
    run(command.stdout(messages), "cargo test --no-run")?;
    let messages = fs::read_to_string(&kept)?;
    for test in TESTS {
        let built = messages.lines().find_map(|line| executable(line, test));
        let built = built.with_context(|| format!("cargo did not say where it built {test}"))?;
        // What a debugger needs is nine tenths of it.
        let mut strip = Command::new("strip");
        strip.args(["--strip-debug", "-o"]).arg(program(test)?).arg(built);
        run(&mut strip, "strip (of binutils)")?;
    }
    Ok(())
}

fn run(command: &mut Command, name: &'static str) -> Result<()> {
    let status = Guarded::spawn(command.stdin(Stdio::null()), Terminal::Own)
        .with_context(|| format!("cannot start {name}"))?
        .named(name)
        .wait(Duration::from_secs(3600))?;
    if !status.success() {
        bail!("{name} failed");
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
