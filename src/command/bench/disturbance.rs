//! What disturbed the measuring thread while it measured, as the kernel counted it: so that a
//! spike can be put down to something.

use std::collections::BTreeMap;
use std::fs;

use nix::sys::resource::{UsageWho, getrusage};
use serde::Serialize;

/// Interrupts that are told by name.
const NAMED: usize = 4;

/// Counts of the measuring thread and of its processor, from the beginning of a measurement to its
/// end.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Disturbance {
    /// Times that the thread lost its processor to another.
    pub involuntary_switches: u64,
    /// Times that the thread waited of its own accord.
    pub voluntary_switches: u64,
    /// Page faults that needed no disk.
    pub minor_faults: u64,
    /// Page faults that did.
    pub major_faults: u64,
    /// Time that a hypervisor gave the processor to somebody else, in milliseconds; the kernel counts
    /// in steps of 10.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stolen_ms: Option<f64>,
    /// Interrupts that the processor took, by their name in /proc/interrupts, the most frequent first.
    pub interrupts: Vec<(String, u64)>,
}

/// The counters at a point in time.
#[derive(Debug, Default)]
pub struct Counters {
    usage: [u64; 4],
    stolen_ms: Option<f64>,
    interrupts: BTreeMap<String, u64>,
}

impl Counters {
    /// Reads those of the calling thread, and of the processor it is bound to.
    pub fn read(cpu: Option<usize>) -> Self {
        let count = |count: i64| u64::try_from(count).unwrap_or(0);
        let usage = getrusage(UsageWho::RUSAGE_THREAD).map_or([0; 4], |usage| {
            [
                count(usage.involuntary_context_switches()),
                count(usage.voluntary_context_switches()),
                count(usage.minor_page_faults()),
                count(usage.major_page_faults()),
            ]
        });
        let text = |path| fs::read_to_string(path).unwrap_or_default();
        Self {
            usage,
            stolen_ms: cpu.and_then(|cpu| stolen_ms(&text("/proc/stat"), cpu)),
            interrupts: cpu
                .map_or_else(BTreeMap::new, |cpu| interrupts(&text("/proc/interrupts"), cpu)),
        }
    }

    /// What has come to pass from these to the later ones.
    pub fn until(&self, later: &Self) -> Disturbance {
        let grown = |at: usize| later.usage[at].saturating_sub(self.usage[at]);
        let more = |(name, count): (&String, &u64)| {
            let more = count.saturating_sub(*self.interrupts.get(name).unwrap_or(&0));
            (more > 0).then(|| (name.clone(), more))
        };
        let mut interrupts: Vec<_> = later.interrupts.iter().filter_map(more).collect();
        interrupts.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
        interrupts.truncate(NAMED);
        Disturbance {
            involuntary_switches: grown(0),
            voluntary_switches: grown(1),
            minor_faults: grown(2),
            major_faults: grown(3),
            stolen_ms: later.stolen_ms.zip(self.stolen_ms).map(|(later, before)| later - before),
            interrupts,
        }
    }
}

/// The eighth number of the processor's line in /proc/stat, in ticks of 10 ms (proc_stat(5)).
fn stolen_ms(stat: &str, cpu: usize) -> Option<f64> {
    let name = format!("cpu{cpu}");
    let fields = |line: &str| {
        let mut words = line.split_whitespace();
        (words.next() == Some(&name)).then(|| words.nth(7)?.parse::<f64>().ok()).flatten()
    };
    stat.lines().find_map(fields).map(|ticks| ticks * 10.0)
}

/// A processor's column of /proc/interrupts: the first line names the columns; each other begins
/// with a name or number, and ends with what it is.
fn interrupts(text: &str, cpu: usize) -> BTreeMap<String, u64> {
    let mut lines = text.lines();
    let columns: Vec<&str> = lines.next().unwrap_or_default().split_whitespace().collect();
    let name = format!("CPU{cpu}");
    let Some(column) = columns.iter().position(|column| *column == name) else {
        return BTreeMap::new();
    };
    let row = |line: &str| {
        let (name, rest) = line.trim().split_once(':')?;
        let words: Vec<&str> = rest.split_whitespace().collect();
        let count = words.get(column)?.parse().ok()?;
        let what = words.get(columns.len()..).unwrap_or_default();
        // Numbered ones are named by their device, at the end.
        let known = if name.bytes().all(|b| b.is_ascii_digit()) { what.last() } else { None };
        Some((known.map_or_else(|| name.to_owned(), |device| format!("{name} {device}")), count))
    };
    lines.filter_map(row).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const INTERRUPTS: &str = "           CPU0       CPU2
  4:         11         22   IO-APIC   4-edge      ttyS0
LOC:        100        200   Local timer interrupts
ERR:          0
";

    #[test]
    fn a_processors_interrupts_are_those_of_its_column() {
        let counts = interrupts(INTERRUPTS, 2);
        let counts: Vec<_> = counts.iter().map(|(name, count)| (name.as_str(), *count)).collect();
        assert_eq!(counts, [("4 ttyS0", 22), ("LOC", 200)]);
        assert!(interrupts(INTERRUPTS, 1).is_empty(), "offline");
        assert!(interrupts("", 0).is_empty());
    }

    #[test]
    fn stolen_time_is_the_processors_own() {
        let stat =
            "cpu  9 9 9 9 9 9 9 99 0 0\ncpu1 1 2 3 4 5 6 7 8 0 0\ncpu10 1 2 3 4 5 6 7 12 0 0\n";
        assert_eq!((stolen_ms(stat, 1), stolen_ms(stat, 10)), (Some(80.0), Some(120.0)));
        assert_eq!(stolen_ms(stat, 2), None);
    }

    #[test]
    fn only_what_came_between_is_told() {
        let at = |usage, stolen, pairs: &[(&str, u64)]| Counters {
            usage,
            stolen_ms: Some(stolen),
            interrupts: pairs.iter().map(|(name, count)| ((*name).to_owned(), *count)).collect(),
        };
        let before = at([5, 6, 7, 8], 30.0, &[("LOC", 100), ("RES", 5)]);
        let after = at([6, 8, 10, 12], 50.0, &[("LOC", 150), ("RES", 5), ("CAL", 70)]);
        let between = before.until(&after);
        assert_eq!((between.involuntary_switches, between.voluntary_switches), (1, 2));
        assert_eq!((between.minor_faults, between.major_faults), (3, 4));
        assert_eq!(between.stolen_ms, Some(20.0));
        assert_eq!(between.interrupts, [("CAL".to_owned(), 70), ("LOC".to_owned(), 50)]);
    }

    #[test]
    fn a_thread_that_waits_is_seen_to() {
        let before = Counters::read(None);
        std::thread::sleep(std::time::Duration::from_millis(1));
        assert!(before.until(&Counters::read(None)).voluntary_switches > 0);
    }
}
