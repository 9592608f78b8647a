//! What a guest said about its checks, and what its kernel said about the guest.

use serde::Serialize;
use serde_json::{Map, Value};

use super::table::Faults;

/// How the checks that every row is subject to begin.
const KERNEL_LOG: &str = "the kernel log";

/// One check.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Check {
    pub name: String,
    pub ok: bool,
    pub seconds: f64,
    /// Why it failed.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub reason: String,
}

/// How one row went.
#[derive(Debug, Serialize)]
pub struct Verdict {
    pub suite: String,
    pub row: String,
    pub kernel: &'static str,
    pub qemu: &'static str,
    pub ok: bool,
    pub seconds: f64,
    pub checks: Vec<Check>,
    /// DMA faults that the guest's kernel logged (it limits how many it logs).
    pub dma_faults: usize,
    /// What the suite measured.
    #[serde(skip_serializing_if = "Map::is_empty")]
    pub numbers: Map<String, Value>,
    /// Why the row could not run or came to no end.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// What failed before the row was run again.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub failed_before: Vec<String>,
}

impl Verdict {
    /// One line.
    pub fn print_counts(&self) {
        let (passed, failed) = self.counts();
        println!("   {passed} passed, {failed} failed in {:.0} s\n", self.seconds);
    }

    /// Whether it failed where no other attempt makes that good: what the kernel's log says, and
    /// the checks that a suite calls grave.
    pub fn is_grave(&self, grave: &[String]) -> bool {
        let kernel = |name: &str| name.starts_with(KERNEL_LOG);
        let is_grave = |name: &str| kernel(name) || grave.iter().any(|grave| grave == name);
        self.checks.iter().any(|check| !check.ok && is_grave(&check.name))
    }

    /// This is another attempt, after one that failed.
    pub fn after(&mut self, earlier: Self) {
        let failed = earlier.checks.iter().filter(|check| !check.ok);
        let failed = failed.map(|check| format!("{}: {}", check.name, check.reason));
        self.failed_before = earlier.failed_before;
        self.failed_before.extend(failed.chain(earlier.error));
    }

    /// Passed and failed checks; a row that came to no end counts as one more failure.
    pub fn counts(&self) -> (usize, usize) {
        let passed = self.checks.iter().filter(|check| check.ok).count();
        (passed, self.checks.len() - passed + usize::from(self.error.is_some()))
    }
}

/// Reads the lines `ok   NAME (1.2 s)` and `FAIL NAME (1.2 s): REASON` out of a console's text.
pub fn read_checks(console: &str) -> Vec<Check> {
    console.lines().filter_map(read_check).collect()
}

fn read_check(line: &str) -> Option<Check> {
    let (ok, rest) = match (line.strip_prefix("ok   "), line.strip_prefix("FAIL ")) {
        (Some(rest), _) => (true, rest),
        (_, Some(rest)) => (false, rest),
        _ => return None,
    };
    let (head, reason) = match rest.split_once(" s): ") {
        Some((head, reason)) => (head, reason),
        None => (rest.strip_suffix(" s)")?, ""),
    };
    let (name, seconds) = head.rsplit_once(" (")?;
    let seconds = seconds.parse().ok()?;
    Some(Check { name: name.to_owned(), ok, seconds, reason: reason.to_owned() })
}

/// The checks that the kernel log is subject to in every row, and the DMA faults in it. Warnings in
/// the functions of `provoked` are part of the suite.
pub fn judge_kernel_log(dmesg: &str, faults: Faults, provoked: &[String]) -> (Vec<Check>, usize) {
    let fault = |line: &&str| line.contains("DMAR: [") && line.contains("fault addr");
    let dma_faults: Vec<&str> = dmesg.lines().filter(fault).collect();
    let bad = ["BUG:", "WARNING:", "Oops", "Call Trace:", "general protection", "hung_task"];
    let trouble: Vec<&str> = unprovoked(dmesg, provoked)
        .filter(|line| bad.iter().any(|word| line.contains(word)))
        .collect();
    let mut checks = vec![log_check(&format!("{KERNEL_LOG} has no warning or bug"), &trouble)];
    if faults == Faults::None {
        checks.push(log_check(&format!("{KERNEL_LOG} has no DMA fault"), &dma_faults));
    }
    (checks, dma_faults.len())
}

/// The lines of a kernel log without the warnings in the functions of `provoked`, each of which
/// goes from its first line to its end mark; or is one line, which names no processor.
fn unprovoked<'a>(dmesg: &'a str, provoked: &'a [String]) -> impl Iterator<Item = &'a str> {
    let mut inside = false;
    dmesg.lines().filter(move |line| {
        let in_function = || provoked.iter().any(|function| line.contains(&**function));
        inside &= !line.contains("---[ cut here");
        let named = line.contains("WARNING:") && in_function();
        inside |= named && line.contains("CPU");
        let shown = !inside && !named;
        inside &= !line.contains("---[ end trace");
        shown
    })
}

/// That QEMU never gave up on the NIC: it takes an unmap without an answer for one that failed, and
/// lets the guest go on.
pub fn judge_qemu_log(log: &str) -> Check {
    let late: Vec<&str> = log.lines().filter(|line| line.contains("timed out waiting")).collect();
    log_check("QEMU had every answer of the NIC", &late)
}

fn log_check(name: &str, found: &[&str]) -> Check {
    let reason = found.first().map(|line| format!("{} lines, the first: {line}", found.len()));
    Check {
        name: name.to_owned(),
        ok: found.is_empty(),
        seconds: 0.0,
        reason: reason.unwrap_or_default(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verdict(checks: &str) -> Verdict {
        Verdict {
            suite: "s".to_owned(),
            row: "r".to_owned(),
            kernel: "6.1",
            qemu: "11.1",
            ok: false,
            seconds: 1.0,
            checks: read_checks(checks),
            dma_faults: 0,
            numbers: Map::new(),
            error: None,
            failed_before: Vec::new(),
        }
    }

    #[test]
    fn a_provoked_warning_of_one_line_hides_nothing_that_follows() {
        let boot =
            "[    0.945572] WARNING: workqueue cpumask: online intersect > possible intersect\n";
        let provoked = ["workqueue cpumask".to_owned()];
        let passes = |dmesg: &str| {
            judge_kernel_log(dmesg, Faults::None, &provoked).0.iter().all(|check| check.ok)
        };
        assert!(passes(boot));
        assert!(!passes(&format!("{boot}[    9.0] BUG: bad page\n")));
        let dax = "WARNING: CPU: 0 PID: 1 at fs/dax.c:398 dax_disassociate_entry";
        assert!(!passes(&format!("{boot}[    9.0] {dax}\n")));
    }

    #[test]
    fn a_nic_that_answers_too_late_fails_the_row() {
        assert!(judge_qemu_log("qemu: warning: Could not enable error recovery").ok);
        let late = "qemu-system-x86_64: timed out waiting for reply: Connection timed out\n\
            qemu-system-x86_64: vfio_container_dma_unmap(0x5, 0x510000, 0x1000) = -14";
        assert!(!judge_qemu_log(late).ok);
    }

    #[test]
    fn what_is_grave_is_not_tried_again_and_what_failed_first_stays_known() {
        let grave = ["no byte is foreign".to_owned()];
        let slow =
            verdict("FAIL it is quick (3.0 s): it took 3 s\nok   no byte is foreign (1.0 s)");
        assert!(!slow.is_grave(&grave));
        assert!(verdict("FAIL no byte is foreign (1.0 s): 3 are").is_grave(&grave));
        assert!(verdict("FAIL the kernel log has no DMA fault (0.0 s): 1").is_grave(&grave));
        let mut second = verdict("ok   it is quick (1.0 s)");
        second.after(slow);
        assert_eq!(second.failed_before, ["it is quick: it took 3 s"]);
    }

    #[test]
    fn checks_are_found_among_other_lines() {
        let console = "boot\nok   a write (64 B) lands (0.25 s)\n     | detail\n\
                       FAIL it (all) works (12.0 s): exit status 3 (see log)\nok   but no time\n";
        let check = |name: &str, ok, seconds, reason: &str| Check {
            name: name.into(),
            ok,
            seconds,
            reason: reason.into(),
        };
        assert_eq!(
            read_checks(console),
            [
                check("a write (64 B) lands", true, 0.25, ""),
                check("it (all) works", false, 12.0, "exit status 3 (see log)"),
            ]
        );
    }

    #[test]
    fn a_dma_fault_fails_a_row_that_provokes_none() {
        let dmesg = "[1.0] DMAR: Host address width 39\n[2.0] DMAR: [DMA Write NO_PASID] Request \
                     device [00:10.0] fault addr 0x1000 [fault reason 0x05] PTE\n";
        let (checks, faults) = judge_kernel_log(dmesg, Faults::None, &[]);
        assert_eq!(faults, 1);
        assert_eq!(checks.iter().filter(|check| !check.ok).count(), 1);
        let (checks, faults) = judge_kernel_log(dmesg, Faults::Provoked, &[]);
        assert_eq!(faults, 1);
        assert!(checks.iter().all(|check| check.ok));
    }

    #[test]
    fn a_provoked_warning_is_forgiven_and_no_other() {
        let warning = |function: &str| {
            format!(
                "[1.0] WARNING: CPU: 0 PID: 9 at fs/dax.c:404 {function}+0x9/0xc0\n[1.0] Call \
                 Trace:\n[1.0]  <TASK>\n[1.0] ---[ end trace 0000000000000000 ]---\n"
            )
        };
        let provoked = ["dax_disassociate_entry".to_owned()];
        let passes = |dmesg: &str| {
            judge_kernel_log(dmesg, Faults::None, &provoked).0.iter().all(|check| check.ok)
        };
        assert!(passes(&warning("dax_disassociate_entry")));
        assert!(!passes(&warning("another")));
        let both = warning("dax_disassociate_entry") + &warning("another");
        assert!(!passes(&both));
        assert!(!passes(&(warning("dax_disassociate_entry") + "[2.0] BUG: bad page\n")));
    }
}
