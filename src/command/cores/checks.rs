//! The list: one fact each about a processor or the machine, whether it costs latency, and what to
//! do. Everything is read from /proc and /sys.

use std::fs;
use std::path::Path;

use holdfast_iommu::numa;
use serde::Serialize;

/// Whether something costs latency.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// It is as it should be.
    Good,
    /// It costs latency.
    Costs,
    /// The machine does not tell.
    Unknown,
}

/// One fact.
#[derive(Debug, Clone, Serialize)]
pub struct Check {
    /// What it is about.
    pub name: &'static str,
    /// Whether it costs.
    pub verdict: Verdict,
    /// What was found.
    pub found: String,
    /// What to do about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub advice: Option<String>,
}

/// Where things are read.
struct Files<'a> {
    root: &'a Path,
    cpu: usize,
}

/// All facts about a processor, below a folder that stands for the root.
pub fn of(root: &Path, cpu: usize) -> Vec<Check> {
    let files = Files { root, cpu };
    vec![
        files.isolated(),
        files.tickless(),
        files.sibling(),
        files.governor(),
        files.idle_states(),
        files.interrupts(),
        files.huge_pages(),
        files.numa_balancing(),
        files.swap(),
        files.watchdog(),
        files.clock(),
        files.hypervisor(),
    ]
}

fn good(name: &'static str, found: impl Into<String>) -> Check {
    Check { name, verdict: Verdict::Good, found: found.into(), advice: None }
}

fn costs(name: &'static str, found: impl Into<String>, advice: impl Into<String>) -> Check {
    let (found, advice) = (found.into(), Some(advice.into()));
    Check { name, verdict: Verdict::Costs, found, advice }
}

fn unknown(name: &'static str, found: impl Into<String>) -> Check {
    Check { name, verdict: Verdict::Unknown, found: found.into(), advice: None }
}

/// Processors of a list such as `0-3,5`.
fn list(text: &str) -> Vec<usize> {
    numa::list(text).into_iter().map(|cpu| cpu as usize).collect()
}

impl Files<'_> {
    fn text(&self, path: &str) -> Option<String> {
        Some(fs::read_to_string(self.root.join(path)).ok()?.trim().to_owned())
    }

    fn of_cpu(&self, path: &str) -> Option<String> {
        self.text(&format!("sys/devices/system/cpu/cpu{}/{path}", self.cpu))
    }

    fn in_list(&self, path: &str) -> Option<bool> {
        Some(list(&self.text(path)?).contains(&self.cpu))
    }

    fn isolated(&self) -> Check {
        let name = "isolated";
        let advice = format!("boot with isolcpus={0}, or keep others away with a cpuset", self.cpu);
        match self.in_list("sys/devices/system/cpu/isolated") {
            Some(true) => good(name, "the scheduler puts nobody else here"),
            Some(false) => costs(name, "the scheduler puts other threads here", advice),
            None => unknown(name, "the kernel does not tell"),
        }
    }

    fn tickless(&self) -> Check {
        let name = "no timer tick";
        let advice = format!("boot with nohz_full={0} rcu_nocbs={0}", self.cpu);
        match self.in_list("sys/devices/system/cpu/nohz_full") {
            Some(true) => good(name, "no tick while one thread runs"),
            _ => costs(
                name,
                "the timer interrupts a running thread hundreds of times a second",
                advice,
            ),
        }
    }

    fn sibling(&self) -> Check {
        let name = "physical core";
        let Some(text) = self.of_cpu("topology/thread_siblings_list") else {
            return unknown(name, "the kernel does not tell who shares it");
        };
        let others: Vec<_> = list(&text).into_iter().filter(|other| *other != self.cpu).collect();
        let Some(other) = others.first() else { return good(name, "not shared") };
        costs(
            name,
            format!("shared with cpu {other}"),
            format!("give cpu {other} no work: echo 0 >/sys/devices/system/cpu/cpu{other}/online"),
        )
    }

    fn governor(&self) -> Check {
        let name = "frequency";
        match self.of_cpu("cpufreq/scaling_governor") {
            Some(governor) if governor == "performance" => good(name, "governor performance"),
            Some(governor) => {
                let advice = format!("cpupower -c {} frequency-set -g performance", self.cpu);
                costs(name, format!("governor {governor}"), advice)
            }
            None => unknown(name, "no governor to be seen"),
        }
    }

    fn idle_states(&self) -> Check {
        let name = "idle states";
        let state = |number: usize| -> Option<(u64, bool)> {
            let value = |what| self.of_cpu(&format!("cpuidle/state{number}/{what}"));
            let latency = value("latency")?.parse().ok()?;
            Some((latency, value("disable").is_none_or(|disabled| disabled == "0")))
        };
        let states: Vec<_> = (0..16).map_while(state).collect();
        let deepest = states.iter().filter(|(_, enabled)| *enabled).map(|(us, _)| *us).max();
        match deepest {
            None => unknown(name, "none to be seen"),
            Some(us) if us <= 2 => good(name, format!("at most {us} us to wake up")),
            Some(us) => costs(
                name,
                format!("up to {us} us to wake up, for a thread that sleeps (a poller does not)"),
                "hold /dev/cpu_dma_latency open with 0 written to it, or processor.max_cstate=1",
            ),
        }
    }

    /// Interrupts that come here: numbers whose list names the processor.
    fn interrupts(&self) -> Check {
        let name = "interrupts";
        let Ok(entries) = fs::read_dir(self.root.join("proc/irq")) else {
            return unknown(name, "/proc/irq is not there");
        };
        let number = |entry: std::io::Result<fs::DirEntry>| -> Option<u32> {
            entry.ok()?.file_name().to_str()?.parse().ok()
        };
        let here = |irq: &u32| {
            let list_of = |file| self.text(&format!("proc/irq/{irq}/{file}"));
            let cpus = list_of("effective_affinity_list").filter(|text| !text.is_empty());
            let cpus = cpus.or_else(|| list_of("smp_affinity_list"));
            cpus.is_some_and(|text| list(&text).contains(&self.cpu))
        };
        let mut irqs: Vec<u32> = entries.filter_map(number).filter(here).collect();
        irqs.sort_unstable();
        if irqs.is_empty() {
            return good(name, "no device's come here");
        }
        let shown: Vec<String> = irqs.iter().take(8).map(u32::to_string).collect();
        let more = if irqs.len() > 8 { ", ..." } else { "" };
        costs(
            name,
            format!("{} may come here: {}{more}", irqs.len(), shown.join(", ")),
            "stop irqbalance, and write other processors to /proc/irq/N/smp_affinity_list",
        )
    }

    fn huge_pages(&self) -> Check {
        let name = "huge pages";
        match self.text("sys/kernel/mm/transparent_hugepage/enabled") {
            Some(text) if text.contains("[always]") => costs(
                name,
                "transparent ones always: the kernel moves pages of everybody together",
                "echo madvise >/sys/kernel/mm/transparent_hugepage/enabled",
            ),
            Some(_) => good(name, "transparent ones only where asked for"),
            None => unknown(name, "the kernel does not tell"),
        }
    }

    fn numa_balancing(&self) -> Check {
        let name = "NUMA balancing";
        let nodes = self.text("sys/devices/system/node/online").map_or(1, |text| list(&text).len());
        match self.text("proc/sys/kernel/numa_balancing") {
            Some(on) if on != "0" && nodes > 1 => costs(
                name,
                format!("on, with {nodes} nodes: pages are unmapped to see who uses them"),
                "sysctl kernel.numa_balancing=0",
            ),
            _ => good(name, "off, or nothing to balance"),
        }
    }

    fn swap(&self) -> Check {
        let name = "swap";
        match self.text("proc/swaps") {
            Some(text) if text.lines().count() > 1 => costs(
                name,
                "there is some: memory may be away when it is needed",
                "lock memory (bench --lock-memory; cores::lock_memory in a program), or swapoff -a",
            ),
            Some(_) => good(name, "none"),
            None => unknown(name, "the kernel does not tell"),
        }
    }

    fn watchdog(&self) -> Check {
        let name = "watchdog";
        match self.text("proc/sys/kernel/nmi_watchdog").as_deref() {
            Some("1") => {
                costs(name, "it interrupts every processor", "sysctl kernel.nmi_watchdog=0")
            }
            Some(_) => good(name, "off"),
            None => unknown(name, "the kernel does not tell"),
        }
    }

    fn clock(&self) -> Check {
        let name = "clock";
        match self.text("sys/devices/system/clocksource/clocksource0/current_clocksource") {
            Some(source) if source == "tsc" || source == "kvm-clock" => good(name, source),
            Some(source) => costs(
                name,
                format!("{source}: each reading is a system call or a device's register"),
                "find out why the kernel gave up tsc (dmesg)",
            ),
            None => unknown(name, "the kernel does not tell"),
        }
    }

    fn hypervisor(&self) -> Check {
        let name = "hypervisor";
        let cpuinfo = self.text("proc/cpuinfo").unwrap_or_default();
        let flags = cpuinfo.lines().find(|line| line.starts_with("flags")).unwrap_or_default();
        if flags.split_whitespace().any(|flag| flag == "hypervisor") {
            let found = "there is one: it may take the processor at any time";
            costs(name, found, "have the virtual processor pinned to one that nobody shares")
        } else {
            good(name, "none")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn machine(files: &[(&str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        root
    }

    fn verdicts(root: &tempfile::TempDir, cpu: usize, verdict: Verdict) -> Vec<&'static str> {
        let checks = of(root.path(), cpu).into_iter();
        checks.filter(|check| check.verdict == verdict).map(|check| check.name).collect()
    }

    /// As it should be for processor 3, and as it often is for processor 1.
    const FILES: &[(&str, &str)] = &[
        ("sys/devices/system/cpu/isolated", "2-3\n"),
        ("sys/devices/system/cpu/nohz_full", "3\n"),
        ("sys/devices/system/cpu/cpu3/topology/thread_siblings_list", "3\n"),
        ("sys/devices/system/cpu/cpu1/topology/thread_siblings_list", "1,5\n"),
        ("sys/devices/system/cpu/cpu3/cpufreq/scaling_governor", "performance\n"),
        ("sys/devices/system/cpu/cpu1/cpufreq/scaling_governor", "powersave\n"),
        ("sys/devices/system/cpu/cpu3/cpuidle/state0/latency", "0\n"),
        ("sys/devices/system/cpu/cpu3/cpuidle/state1/latency", "133\n"),
        ("sys/devices/system/cpu/cpu3/cpuidle/state1/disable", "1\n"),
        ("sys/devices/system/cpu/cpu1/cpuidle/state0/latency", "133\n"),
        ("sys/devices/system/cpu/cpu1/cpuidle/state0/disable", "0\n"),
        ("proc/irq/24/smp_affinity_list", "0-3\n"),
        ("proc/irq/24/effective_affinity_list", "1\n"),
        ("proc/irq/25/smp_affinity_list", "0\n"),
        ("proc/irq/default_smp_affinity", "f\n"),
        ("sys/kernel/mm/transparent_hugepage/enabled", "always [madvise] never\n"),
        ("sys/devices/system/node/online", "0\n"),
        ("proc/sys/kernel/numa_balancing", "1\n"),
        ("proc/swaps", "Filename Type Size Used Priority\n"),
        ("proc/sys/kernel/nmi_watchdog", "0\n"),
        ("sys/devices/system/clocksource/clocksource0/current_clocksource", "tsc\n"),
        ("proc/cpuinfo", "flags : fpu tsc\n"),
    ];

    #[test]
    fn a_processor_that_was_prepared_costs_nothing() {
        let root = machine(FILES);
        assert!(verdicts(&root, 3, Verdict::Costs).is_empty());
        assert!(verdicts(&root, 3, Verdict::Unknown).is_empty());
    }

    #[test]
    fn what_costs_is_told_with_what_to_do() {
        let root = machine(FILES);
        let expected = [
            "isolated",
            "no timer tick",
            "physical core",
            "frequency",
            "idle states",
            "interrupts",
        ];
        assert_eq!(verdicts(&root, 1, Verdict::Costs), expected);
        let checks = of(root.path(), 1);
        assert!(checks.iter().all(|c| (c.verdict == Verdict::Costs) == c.advice.is_some()));
        let found = |name| checks.iter().find(|c| c.name == name).map(|c| c.found.as_str());
        assert_eq!(found("physical core"), Some("shared with cpu 5"));
        assert_eq!(found("interrupts"), Some("1 may come here: 24"));

        let bad: Vec<_> = [
            ("sys/kernel/mm/transparent_hugepage/enabled", "[always] madvise never"),
            ("sys/devices/system/node/online", "0-1"),
            ("proc/swaps", "Filename Type\n/dev/sda2 partition\n"),
            ("proc/sys/kernel/nmi_watchdog", "1"),
            ("sys/devices/system/clocksource/clocksource0/current_clocksource", "hpet"),
            ("proc/cpuinfo", "flags : fpu hypervisor tsc"),
        ]
        .into_iter()
        .collect();
        let root = machine(&[FILES, &bad].concat());
        let expected = ["huge pages", "NUMA balancing", "swap", "watchdog", "clock", "hypervisor"];
        assert_eq!(verdicts(&root, 3, Verdict::Costs), expected);
    }

    #[test]
    fn a_machine_that_tells_nothing_is_no_error() {
        let root = machine(&[]);
        let costs = verdicts(&root, 0, Verdict::Costs);
        assert_eq!(costs, ["no timer tick"], "which a kernel without the file has");
        assert!(verdicts(&root, 0, Verdict::Unknown).len() >= 6);
    }

    #[test]
    fn lists_of_processors_are_read() {
        assert_eq!(list("0-2,5"), [0, 1, 2, 5]);
        assert_eq!(list("7"), [7]);
        assert!(list("").is_empty() && list("(null)").is_empty());
    }
}
