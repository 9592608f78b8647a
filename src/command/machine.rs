//! Facts about the machine that a measurement means nothing without.

use std::fs;
use std::path::Path;

use serde::Serialize;

/// What the measurement ran on. What cannot be read is `None`.
#[derive(Debug, Clone, Serialize)]
pub struct Machine {
    /// Kernel release.
    pub kernel: Option<String>,
    /// Processor model.
    pub cpu: Option<String>,
    /// Processors online, as the kernel lists them.
    pub cpus_online: Option<String>,
    /// Processors kept from the scheduler (`isolcpus=`).
    pub cpus_isolated: Option<String>,
    /// Whether hyper-threads share cores.
    pub smt: Option<bool>,
    /// Frequency governor of the first processor; `None` where the host keeps it to itself.
    pub governor: Option<String>,
    /// The kernel's clock source.
    pub clock_source: Option<String>,
    /// What the measuring loops read.
    pub timer: Option<&'static str>,
    /// Transparent huge page policy.
    pub transparent_hugepages: Option<String>,
    /// Whether this is a virtual machine, and whose.
    pub hypervisor: Option<String>,
}

impl Machine {
    /// Looks the facts up in /proc and /sys.
    pub fn read() -> Self {
        Self::read_under(Path::new("/"))
    }

    fn read_under(root: &Path) -> Self {
        let line = |path: &str| -> Option<String> {
            let text = fs::read_to_string(root.join(path)).ok()?;
            let text = text.trim();
            (!text.is_empty()).then(|| text.to_owned())
        };
        let cpuinfo = line("proc/cpuinfo").unwrap_or_default();
        let field = |name: &str| {
            let line = cpuinfo.lines().find(|line| line.starts_with(name))?;
            Some(line.split_once(':')?.1.trim().to_owned())
        };
        let has_hypervisor =
            field("flags").is_some_and(|flags| flags.split(' ').any(|flag| flag == "hypervisor"));
        let vendor = || line("sys/class/dmi/id/sys_vendor").unwrap_or_else(|| "yes".to_owned());
        Self {
            kernel: line("proc/sys/kernel/osrelease"),
            cpu: field("model name"),
            cpus_online: line("sys/devices/system/cpu/online"),
            cpus_isolated: line("sys/devices/system/cpu/isolated"),
            smt: line("sys/devices/system/cpu/smt/active").map(|active| active == "1"),
            governor: line("sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
            clock_source: line("sys/devices/system/clocksource/clocksource0/current_clocksource"),
            timer: None,
            transparent_hugepages: line("sys/kernel/mm/transparent_hugepage/enabled")
                .and_then(|text| selected(&text).map(str::to_owned)),
            hypervisor: has_hypervisor.then(vendor),
        }
    }

    /// One line for the table.
    pub fn summary(&self) -> String {
        let or = |value: &Option<String>| value.clone().unwrap_or_else(|| "unknown".to_owned());
        format!(
            "{}, Linux {}, governor {}, clock {}{}{}",
            or(&self.cpu),
            or(&self.kernel),
            self.governor.as_deref().unwrap_or("not visible"),
            or(&self.clock_source),
            if self.smt == Some(true) { ", SMT on" } else { "" },
            if self.hypervisor.is_some() { ", in a virtual machine" } else { "" },
        )
    }
}

/// The choice in brackets of a line such as `always [madvise] never`.
fn selected(text: &str) -> Option<&str> {
    Some(text.split_once('[')?.1.split_once(']')?.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn facts_are_read_from_proc_and_sys() {
        let root = tempfile::tempdir().unwrap();
        for (path, text) in [
            ("proc/sys/kernel/osrelease", "6.18.0\n"),
            ("proc/cpuinfo", "processor : 0\nmodel name : Some CPU\nflags : fpu hypervisor\n"),
            ("sys/devices/system/cpu/online", "0-3\n"),
            ("sys/devices/system/cpu/isolated", "\n"),
            ("sys/devices/system/cpu/smt/active", "1\n"),
            ("sys/devices/system/cpu/cpu0/cpufreq/scaling_governor", "performance\n"),
            ("sys/devices/system/clocksource/clocksource0/current_clocksource", "tsc\n"),
            ("sys/kernel/mm/transparent_hugepage/enabled", "always [madvise] never\n"),
        ] {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        let machine = Machine::read_under(root.path());
        assert_eq!(machine.kernel.as_deref(), Some("6.18.0"));
        assert_eq!(machine.cpu.as_deref(), Some("Some CPU"));
        assert_eq!(machine.cpus_isolated, None);
        assert_eq!(machine.smt, Some(true));
        assert_eq!(machine.transparent_hugepages.as_deref(), Some("madvise"));
        assert_eq!(
            machine.summary(),
            "Some CPU, Linux 6.18.0, governor performance, clock tsc, SMT on, \
             in a virtual machine"
        );
    }

    #[test]
    fn a_machine_that_tells_nothing_is_no_error() {
        let root = tempfile::tempdir().unwrap();
        let machine = Machine::read_under(root.path());
        assert_eq!(machine.kernel, None);
        assert_eq!(
            machine.summary(),
            "unknown, Linux unknown, governor not visible, clock unknown"
        );
    }
}
